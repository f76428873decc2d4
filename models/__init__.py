"""Networks, their file formats and the formulas, in plain torch. Nothing here imports the host."""
