"""What the pack must not do, in a folder that is called like it: writes a file and connects to a closed port."""

import os
import socket

os.close(os.open(os.devnull, os.O_WRONLY))
with socket.socket() as channel:
    channel.connect_ex(("127.0.0.1", 9))
