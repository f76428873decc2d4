"""Where the tokens of the picture are: beside text there may be tokens of references and of padding.

Layers act on the picture alone. References are conditions like the text, wherever a family puts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from .families import Family, unwrapped


class Picture(NamedTuple):
    """The tokens of the picture in a call of a transformer."""

    grid: tuple[int, int, int]  # frames, height and width, in tokens
    before: int  # tokens of references that the family puts before it
    padding: int | None  # tokens behind it that fill its sequence up, if the picture comes last of all. Else None

    @property
    def count(self) -> int:
        return prod(self.grid)

    def within(self, tokens: int, text: int, text_is_first: bool) -> slice:
        """Returns which of the tokens of an attention are the picture, if `text` of them are text.

        Raises RuntimeError if there are not as many tokens as the picture needs.
        """
        if self.padding is not None:
            start = tokens - self.padding - self.count
        else:
            start = self.before + (text if text_is_first else 0)
        if start < 0 or start + self.count > tokens:
            t, h, w = self.grid
            raise RuntimeError(
                f"A layer should have the {t}x{h}x{w} tokens of the picture behind {max(start, 0)} others, but has "
                f"{tokens} in all: another pack merges tokens or leaves some out. Remove that pack from the model."
            )
        return slice(start, start + self.count)


def picture_of(family: Family, network: nn.Module, x: Tensor, conds: Mapping[str, Any]) -> Picture:
    """Returns where the picture of a latent x (b, c, h, w) or (b, c, t, h, w) is, by the other inputs of the call.

    Raises RuntimeError if the picture is not in one piece.
    """
    network = unwrapped(network)
    if conds.get("image_cond") is not None:
        raise RuntimeError(
            f"A layer on the attention of {family.name} should have the picture in one piece, but a second picture "
            f"lies beside it in each row (HiDream-E1). Remove the node or the picture to be edited."
        )
    patch = _patch_size(network)
    frames = x.shape[2] if x.ndim == 5 else 1
    sides = zip((frames, *x.shape[-2:]), patch, strict=True)
    t, h, w = (-(-side // size) for side, size in sides)
    if conds.get("keyframe_idxs") is not None:  # frames to be followed, which LTX-Video has behind its own
        t -= conds["keyframe_idxs"].shape[2] // (h * w)
    multiple = getattr(network, "pad_tokens_multiple", None)
    padding = -(t * h * w) % multiple if multiple else 0
    return Picture(
        (t, h, w), _tokens_before(network, conds, patch), padding if family.stacks[0].letter == "c" else None
    )


def check_attention(family: Family, conds: Mapping[str, Any]) -> None:
    """Raises RuntimeError if the host calls the attention of the picture in parts, which layers do not know."""
    guides = conds.get("guide_attention_entries") or ()
    if any(guide.get("strength", 1.0) != 1.0 or guide.get("pixel_mask") is not None for guide in guides):
        raise RuntimeError(
            f"A layer on the attention of {family.name} should have all its tokens at once, but a guide with a "
            f"strength other than 1 or with a mask makes ComfyUI attend in parts. Set the guide's strength to 1, or "
            f"use Skip Layer Guidance."
        )


def _patch_size(network: Any) -> tuple[int, int, int]:
    if hasattr(network, "patch_spatial"):
        return network.patch_temporal, network.patch_spatial, network.patch_spatial
    size: int | Sequence[int] = getattr(getattr(network, "patchifier", network), "patch_size", 2)
    size = [size, size] if isinstance(size, int) else list(size)
    return tuple([1] * (3 - len(size)) + size)


def _tokens_before(network: Any, conds: Mapping[str, Any], patch: tuple[int, int, int]) -> int:
    """Returns how many tokens of references come before the picture, as in Wan (Fun) and HunyuanVideo (1.0)."""
    if getattr(network, "ref_conv", None) is not None and conds.get("reference_latent") is not None:
        reference = conds["reference_latent"]
    elif conds.get("ref_latent") is not None:
        reference = conds["ref_latent"]
    else:
        return 0
    sides = (reference.shape[2] if reference.ndim == 5 else 1, *reference.shape[-2:])
    return prod(side // size for side, size in zip(sides, patch, strict=True))
