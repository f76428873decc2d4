#!/usr/bin/env bash
# scikit-image 0.25.2: unknown disparities of stereo_motorcycle are infinite.  The docstring says NaN.  So nanmax is
# infinite, and a depth map that is divided by it is black.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install scikit-image==0.25.2 numpy==2.3.5
cat >"$work/unknown.py" <<'CODE'
import numpy as np
import skimage
from skimage.data import stereo_motorcycle

disparity = stereo_motorcycle()[2]
print("scikit-image", skimage.__version__, "docstring says NaN:", "NaNs denote pixels" in stereo_motorcycle.__doc__)
print("NaN:", int(np.isnan(disparity).sum()), "infinite:", int(np.isinf(disparity).sum()), "nanmax:", np.nanmax(disparity))
CODE
"$python" "$work/unknown.py" | tee "$work/seen"
grep -qF "docstring says NaN: True" "$work/seen"
grep -qE "NaN: 0 infinite: [1-9][0-9]* nanmax: inf" "$work/seen"
