#!/usr/bin/env bash
# comfy-kitchen 0.2.31, ComfyUI's quantised tensors: a change in place (mul_) is lost without an error, and deepcopy
# raises an error, though clone works.  A weight of zeros becomes NaN in fp8, and stays zero in int8.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install torch==2.11.0 comfy-kitchen==0.2.31 numpy==2.3.5 packaging==25.0
cat >"$work/tensors.py" <<'CODE'
from copy import deepcopy
from importlib.metadata import version

import torch
from comfy_kitchen.tensor import QuantizedTensor

print("comfy-kitchen", version("comfy-kitchen"))


def numbers(tensor):
    return sorted(set(str(number) for number in tensor.dequantize().flatten().tolist()))


for layout in ("TensorCoreFP8Layout", "TensorWiseINT8Layout"):
    ones = QuantizedTensor.from_float(torch.ones(16, 16), layout)
    ones.mul_(2)
    print(f"{layout}: ones after mul_(2): {numbers(ones)}")
    print(f"{layout}: ones cloned: {numbers(ones.clone())}")
    try:
        print(f"{layout}: deepcopy: {numbers(deepcopy(ones))}")
    except RuntimeError as error:
        print(f"{layout}: deepcopy: {error}")
    print(f"{layout}: zeros: {numbers(QuantizedTensor.from_float(torch.zeros(16, 16), layout))}")
CODE
"$python" "$work/tensors.py" | tee "$work/seen"
[ "$(grep -cF "ones after mul_(2): ['1.0']" "$work/seen")" = 2 ]
[ "$(grep -cF "ones cloned: ['1.0']" "$work/seen")" = 2 ]
[ "$(grep -c "deepcopy: .*invalid python storage" "$work/seen")" = 2 ]
grep -qF "TensorCoreFP8Layout: zeros: ['nan']" "$work/seen"
grep -qF "TensorWiseINT8Layout: zeros: ['0.0']" "$work/seen"
