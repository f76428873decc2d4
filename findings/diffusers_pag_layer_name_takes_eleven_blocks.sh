#!/usr/bin/env bash
# diffusers 0.42.1: pag_applied_layers="blocks.1", the default of the pipelines of PAG for Stable Diffusion 3, is
# searched for anywhere in the names of layers.  Of 24 blocks it takes block 1 and blocks 10 to 19.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip --disable-pip-version-check --quiet install torch==2.11.0 diffusers==0.42.1
cat >"$work/layers.py" <<'CODE'
import diffusers
from diffusers.models.attention_processor import PAGJointAttnProcessor2_0
from diffusers.pipelines.pag.pag_utils import PAGMixin

print("diffusers", diffusers.__version__)
pipeline = PAGMixin()
pipeline.transformer = diffusers.SD3Transformer2DModel(
    sample_size=8, in_channels=4, num_layers=24, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
    caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
)
processor = PAGJointAttnProcessor2_0()
pipeline.set_pag_applied_layers("blocks.1", pag_attn_processors=(processor, processor))
pipeline._set_pag_attn_processor(pag_applied_layers=["blocks.1"], do_classifier_free_guidance=False)
taken = [name.split(".")[1] for name, used in pipeline.transformer.attn_processors.items() if used is processor]
print("blocks with PAG:", *sorted(taken, key=int))
CODE
"$python" "$work/layers.py" 2>/dev/null | tee "$work/seen"
grep -q "blocks with PAG: 1 10 11 12 13 14 15 16 17 18 19$" "$work/seen"
