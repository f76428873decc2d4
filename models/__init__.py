"""Networks, file formats and formulas of the methods, in plain torch. Nothing here imports the host."""
