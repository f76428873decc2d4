#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save writes the bytes of an array in the order of memory and the shape beside
# them.  A transposed array is read back with its numbers in other places, without an error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install safetensors==0.8.0 numpy==2.3.5
cat >"$work/order.py" <<'CODE'
import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__)
whole = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, array in {"as made": whole, "transposed": whole.T, "copied": np.ascontiguousarray(whole.T)}.items():
    back = load(save({"a": array}))["a"]
    print(f"{name}: {array.tolist()} is read back as {back.tolist()}")
CODE
"$python" "$work/order.py" | tee "$work/seen"
grep -qF "as made: [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] is read back as [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]" "$work/seen"
grep -qF "transposed: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] is read back as [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]" "$work/seen"
grep -qF "copied: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] is read back as [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]" "$work/seen"
