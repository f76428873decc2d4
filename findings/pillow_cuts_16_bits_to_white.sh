#!/usr/bin/env bash
# Pillow: a grey PNG of 16 bits that is converted to RGB is cut at 255, not divided by 257.  A measured depth map comes
# out white.  ComfyUI 0.16.3 and older load pictures in this way.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install pillow==12.0.0 numpy==2.3.5
cat >"$work/cut.py" <<'CODE'
import sys

import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)
Image.fromarray(np.array([[0, 200, 256, 32768, 65535]], dtype=np.uint16)).save(sys.argv[1])
image = Image.open(sys.argv[1])
print(image.mode, np.asarray(image).tolist(), "in RGB:", np.asarray(image.convert("RGB"))[..., 0].tolist())
CODE
"$python" "$work/cut.py" "$work/deep.png" | tee "$work/seen"
grep -qF "I;16 [[0, 200, 256, 32768, 65535]] in RGB: [[0, 200, 255, 255, 255]]" "$work/seen"
