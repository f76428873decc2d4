#!/usr/bin/env bash
# diffusers 0.42.1: the attention processor of PAG for Stable Diffusion 3 leaves out the norms of queries and keys, in
# the perturbed rows and in the main ones too.  A network with such norms (SD3.5) then predicts something else in the
# rows that PAG should not touch.  Networks without them (SD3) are right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install torch==2.11.0 diffusers==0.42.1
cat >"$work/norms.py" <<'CODE'
import diffusers
import torch
from diffusers.models.attention_processor import PAGJointAttnProcessor2_0

print("diffusers", diffusers.__version__)
for norm in (None, "rms_norm"):
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8, out_channels=4, qk_norm=norm,
        pos_embed_max_size=8,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 8),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([500.0]),
    }
    with torch.no_grad():
        plain = network(**inputs).sample
        network.transformer_blocks[0].attn.processor = PAGJointAttnProcessor2_0()
        both = network(**{name: torch.cat([value, value]) for name, value in inputs.items()}).sample
    off = ((both[:1] - plain).norm() / plain.norm()).item()
    print(f"qk_norm {norm}: the main row is", "the plain one" if off < 1e-5 else f"off by {off:.1%}")
CODE
"$python" "$work/norms.py" 2>/dev/null | tee "$work/seen"
grep -q "qk_norm None: the main row is the plain one" "$work/seen"
grep -q "qk_norm rms_norm: the main row is off by" "$work/seen"
