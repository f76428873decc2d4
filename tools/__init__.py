"""The rooms behind dev.py: plain Python, for they run before anything is installed.

commands, testing, sweeping, pin, environment, hosts, registry, frontend, packages, venv, threads, children, screen:
each imports only what stands after it.
"""
