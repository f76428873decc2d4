"""First on PYTHONPATH of a server: notes what the pack, or what it calls, writes in Python, connects to or starts.

REINS_WATCH names the file for the notes: a line of JSON each, [event, what].  REINS_NO_COLLECTION turns the collection
of garbage off.
"""

from __future__ import annotations

import gc
import json
import os
import sys

NOTES = os.open(os.environ["REINS_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
PACK = f"{os.sep}ComfyUI-Reins{os.sep}"
LEASH = os.path.join("demo", "leash.py")  # runs the host itself
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PLACES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.move"}
REACHING = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec"}


def watch(event: str, arguments: tuple) -> None:
    told = event in PLACES or event in REACHING
    if event == "open":
        path, _, flags = arguments
        told = isinstance(path, (str, bytes, os.PathLike)) and (flags or 0) & WRITING
    if told and _from_the_pack():
        what = repr(arguments) if event in REACHING else os.fsdecode(arguments[0])
        os.write(NOTES, (json.dumps([event, what]) + "\n").encode())


def _from_the_pack() -> bool:
    """Python's own store of compiled modules does not count."""
    frame, found = sys._getframe(2), False
    while frame:
        name = frame.f_code.co_filename
        if "importlib" in name and frame.f_code.co_name in ("set_data", "_write_atomic", "_cache_bytecode"):
            return False
        found = found or (PACK in name and not name.endswith(LEASH))
        frame = frame.f_back
    return found


sys.addaudithook(watch)
if os.environ.get("REINS_NO_COLLECTION"):
    gc.disable()
