"""Texts as embeddings in the space that a CLIP's text and image encoder share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from comfy.sd import CLIP
from torch import Tensor, nn

PROJECTION = "text_projection"
TOLERANCE = 1e-2  # of the values: within it two texts are the same, and no trained projection leaves a text unchanged
PLAUSIBLE = (1e-3, 1e3)  # factors by which a trained projection may change a length (CLIP-L, H and bigG: below 10)
PARTNERS = (
    "768 wide is CLIP-L (SD2.1 unCLIP-L, Stable Cascade), 1024 ViT-H (SD2.1 unCLIP-H, most IP-Adapters), 1280 "
    "ViT-bigG (SDXL)"
)


class _Pass(NamedTuple):
    """The input and the output of a projection, both (texts, c)."""

    before: Tensor
    after: Tensor


def projected_text(clip: CLIP | None, text: str, width: int) -> Tensor:
    """Returns the projected text (1, width), also of encoders whose pooled output the host leaves unprojected.

    The host leaves CLIP-L unprojected. A checkpoint of SD1.5 holds no projection at all: the host then uses whatever
    its memory holds, zeros, or an identity. What the projection does to a text shows all of these. Raises ValueError if
    `clip` has no trained projection of this width.
    """
    if not hasattr(clip, "tokenize") or not hasattr(clip, "cond_stage_model"):
        raise ValueError(
            f"clip should be a CLIP text encoder, but is {type(clip).__name__}. Connect a checkpoint that holds one, "
            f"or Load CLIP."
        )
    with _watched(clip.cond_stage_model) as passes:
        _, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    if not isinstance(pooled, Tensor) or not passes:
        raise ValueError(
            f"clip should be a CLIP text encoder with a projection, but {type(clip.cond_stage_model).__name__} has "
            f"none. Connect the CLIP that belongs to the image encoder: {PARTNERS}."
        )
    if pooled.shape[-1] != width:
        raise ValueError(
            f"clip and clip_vision_output should share one space, but this text encoder's is {pooled.shape[-1]} wide "
            f"and the image encoder's {width}. Connect the two that belong together: {PARTNERS}."
        )
    return _projection_of(pooled, passes)


def _projection_of(pooled: Tensor, passes: list[_Pass]) -> Tensor:
    """Returns the projected form of a pooled output (1, c), which may be projected already.

    Raises ValueError if there is none.
    """
    for values in passes:
        before, after = (part[:1].to(pooled) for part in values)
        if before.shape != pooled.shape or not (_near(before, pooled) or _near(after, pooled)):
            continue
        shrunk = (after.norm() / before.norm()).item()  # NaN is not plausible either
        if _near(before, after) or not PLAUSIBLE[0] < shrunk < PLAUSIBLE[1]:
            break
        return after
    raise ValueError(
        f"clip should project texts into the space of pictures, but its file holds no trained {PROJECTION}. That of "
        f"an SD1.5 checkpoint holds none. Load a full text encoder of the same width with Load CLIP: {PARTNERS}."
    )


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= TOLERANCE * b.norm())


@contextmanager
def _watched(encoder: nn.Module) -> Iterator[list[_Pass]]:
    """Gives the list of all passes through a projection of texts while the context is open."""
    passes: list[_Pass] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passes.append(_Pass(inputs[0].detach().float(), output.detach().float()))

    named = [module for name, module in encoder.named_modules() if name.split(".")[-1] == PROJECTION]
    hooks = [module.register_forward_hook(note) for module in named]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
