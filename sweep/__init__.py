"""Sweeps: one workflow with many settings, on one server, on several, or on a Ray cluster.

The way of a sweep through the files: graph, where, values, options and plan make its rows. needs and prompt are what a
worker does. servers and cluster are the engines. drive gives the rows to an engine. records, table, page and sheet
keep and show what comes.
"""
