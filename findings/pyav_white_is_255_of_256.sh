#!/usr/bin/env bash
# PyAV 16.0.1: the white of a picture of 8 bits is about 255/256 as a float, not 1, and an opaque lossless WebP without
# alpha is decoded with an alpha of 255/256.  ComfyUI 0.30 and newer load grey PNG and WebP in this way (RGB in bytes).
# So the mask of an opaque picture is about 1/256 and not 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install av==16.0.1 pillow==12.0.0 numpy==2.3.5
cat >"$work/white.py" <<'CODE'
import sys

import av
from PIL import Image

print("av", av.__version__)
for mode, name, wanted in (("L", "grey.png", "gbrpf32le"), ("RGB", "rgb.png", "gbrpf32le"), ("RGB", "x.webp", "gbrapf32le")):
    path = f"{sys.argv[1]}/{name}"
    Image.new(mode, (8, 8), "white").save(path, lossless=True)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        print(name, frame.format.name, "white is", 256 * float(frame.to_ndarray(format=wanted)[0, 0, -1]), "of 256")
CODE
"$python" "$work/white.py" "$work" | tee "$work/seen"
grep -qF "grey.png gray white is 255.0" "$work/seen"
grep -qF "rgb.png rgb24 white is 255.0" "$work/seen"
grep -qF "x.webp argb white is 255.9" "$work/seen"
