"""IP-Adapter (2308.06721): what a file is if it is no IP-Adapter, or if parts of it are of two files."""

from __future__ import annotations

from collections.abc import Iterable

from ..foreign_files import few, kind_among
from .kinds import LAYERS, PROJECTION, Weights

# What is often chosen instead, by a name in the file. The first that fits is told.
OTHERS = {
    "a LoRA of XLabs for Flux: use the node that was made for it": (
        r"double_blocks\.\d+\.processor\.(qkv|proj)_lora\d?\..*"
    ),
    "a LoRA: use Load LoRA": r".*\blora_(up|down|A|B)\b.*|lora_(unet|te)\d?_.*",
    "a ControlNet: use Load ControlNet Model": (
        r"control_model\..*|(zero_convs|input_hint_block|controlnet_(cond_embedding|down_blocks|blocks|x_embedder))\..*"
        r"|lora_controlnet"
    ),
    "a style model, as Redux is one: use Load Style Model": r"redux_(up|down)\..*",
    "a PuLID: use the node that was made for it": r"pulid_(encoder|ca)\..*",
    "an image encoder: use Load CLIP Vision": r"(vision_model|visual)\..*",
    "an image model: use Load Checkpoint, or Load Diffusion Model": (
        r"(model\.)?diffusion_model\..*|(first|cond)_stage_model\..*"
        r"|((down|up|input|output)_blocks?|mid(dle)?_block|conv_in|conv_out|time_embed)\..*"
        r"|((double|single|joint|transformer|single_transformer)_blocks)\..*"
    ),
}


def refusal(weights: Weights, name: str, left_over: Iterable[str] = ()) -> str:
    """What to say of a file called `name` that is no IP-Adapter. `left_over` are names of no group."""
    known = any(key.startswith((*PROJECTION, *LAYERS)) for key in weights)
    if not known and (what := kind_among(weights, OTHERS)) is not None:
        return f"{name} is not an IP-Adapter but {what}."
    return (
        f"{name} is not an IP-Adapter: it should hold image_proj.* and ip_adapter.<n>.to_k_ip.weight, but holds "
        f"{few(list(left_over) or weights)}. Choose a file from an IP-Adapter release."
    )


def check_one_spelling(weights: Weights, name: str) -> None:
    """Raises ValueError if a group is there under both of its names, so that one tensor would hide another."""
    for spellings in (PROJECTION, LAYERS):
        found = [prefix for prefix in spellings if any(key.startswith(prefix) for key in weights)]
        if len(found) > 1:
            raise ValueError(
                f"{name} holds {' and '.join(f'{prefix}*' for prefix in found)}, which are two names of one part. The "
                f"parts are of different files; download it again."
            )
