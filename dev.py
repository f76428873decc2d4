#!/usr/bin/env python3
"""One command for people who try, test or change the pack; needs only Python 3.10 and nothing installed.

    python3 dev.py demo     the example workflows through a real ComfyUI server, pictures in output/demo
    python3 dev.py test     the tests, on every ComfyUI that can be found
    python3 dev.py bench    what each node costs
    python3 dev.py sweep    one workflow with many settings, on one ComfyUI, on several or on a Ray cluster
    python3 dev.py ray      Ray's own command line, by which machines form a cluster for sweeps
    python3 dev.py serve    a ComfyUI with the pack linked in, until Ctrl-C
    python3 dev.py hosts    the ComfyUI folders that the other commands use
    python3 dev.py train    makes a file of demo/weights anew; train --help names them
    python3 dev.py pin      makes tools/constraints.txt anew: the versions of packages that are installed

The first run prepares a virtual environment (and, if none is found, a ComfyUI) in a cache folder; REINS_HOME names
another one.  COMFYUI_PATH names one or several ComfyUI folders to use instead of the ones that are found.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - in words that older ones can read, unlike the imports below
    sys.exit("dev.py needs Python 3.10 or newer; this is Python " + sys.version.split()[0] + " at " + sys.executable)

import os

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # some Pythons leave the script's folder out

from tools.commands import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
