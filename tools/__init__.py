"""The rooms behind dev.py: plain Python, for they run before anything is installed.

commands, pin, testing, environment, hosts, registry, packages, venv, children, screen: each imports only what
stands after it.
"""
