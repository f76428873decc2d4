"""A real ComfyUI server from the outside: started, spoken to and shown.  Used by `dev.py` and by the server tests.

Nothing here imports the host or the pack, except `weightless`, which reads the host's shapes.
"""
