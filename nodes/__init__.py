"""The families of methods, one folder each: their nodes, and their layers in the sampling loop."""
