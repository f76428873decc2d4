"""ControlNeXt (2408.06070): its files, known by their content, and the variants in which the official code uses them.

The tensors of a control file tell its layout. The variants SDXL, SD1.5-Training and SVD v2 share one layout, so the
model that the file is applied to decides between them. A training checkpoint holds the control network and the trained
part of the UNet, each under a prefix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from ..foreign_files import SHOWN, few, kind_among, without_wrapping
from .cross_normalization import Normalization
from .network import MIDDLE_GROUPS, STEM_GROUPS, Layout, Stage

Weights = Mapping[str, Tensor]
Family = Literal["SD1.x", "SDXL", "SVD"]
FeaturePlace = Literal["first", "first half", "deepest", "middle"]
CONTROL, UNET = ("controlnext.", "controlnet."), ("unet.",)  # in training checkpoints
WRAPPED = ("module.", "_orig_mod.")  # by training frameworks
SCALE = "scale"  # the learnt gain of two releases

# What to say to a user who chose another kind of file: the kind, and the names of its tensors.
OTHERS = {
    "an ordinary ControlNet: use Load ControlNet Model": (
        r"control_model\..*|(zero_convs|input_hint_block|controlnet_cond_embedding|controlnet_down_blocks)\..*"
        r"|lora_controlnet"
    ),
    "a T2I-Adapter: use Load ControlNet Model": r"(adapter\.)?body\..*",
    "a ControlNet-LLLite: use the node that was made for it": r"lllite_.*",
    "an IP-Adapter: use Load IP-Adapter": r"(image_proj|ip_adapter)\..*",
    "weights of a UNet: if they are a ControlNeXt's, choose it as unet_name": (
        r"(model\.)?(diffusion_model\.)?((down|up|input|output)_blocks?|mid(dle)?_block|conv_in|conv_out|time_embed)\..*"
    ),
}


class Variant(NamedTuple):
    """How the official code of one release uses its file.

    The gain of the added term is `factor` times the learnt scale. SVD v1 puts the scale through a sigmoid first.
    `uncond` is the gain of the negative, or None if it is that of the positive.
    """

    family: Family
    place: FeaturePlace
    normalization: Normalization
    factor: float = 1.0
    sigmoid: bool = False
    uncond: float | None = None
    stem_padding: int = 1
    first_frame_in_windows: bool = False

    def gain(self, scale: float) -> float:
        """The gain of the added term for the learnt `scale` of a file."""
        return self.factor * ((1 + math.tanh(scale / 2)) / 2 if self.sigmoid else scale)


SVD_V1_FACTOR = 1.3
VARIANTS: Mapping[str, Variant] = {
    "sd15": Variant("SD1.x", "middle", Normalization(pool_first=True, eps=1e-12)),
    "sd15-training": Variant("SD1.x", "first half", Normalization(pool_first=True, eps=1e-12)),
    "sdxl": Variant("SDXL", "first", Normalization(pool_first=False, eps=1e-12)),
    # the scale of the negative is zeroed before the sigmoid
    "svd-v1": Variant(
        "SVD", "deepest", Normalization(pool_first=False, eps=1e-5),
        factor=SVD_V1_FACTOR, sigmoid=True, uncond=SVD_V1_FACTOR / 2, stem_padding=0,
    ),
    "svd-v2": Variant(
        "SVD", "first half", Normalization(pool_first=False, eps=1e-5),
        factor=0.2, uncond=0.0, stem_padding=0, first_frame_in_windows=True,
    ),
}  # fmt: skip


class ControlNeXtParts(NamedTuple):
    """A control file taken apart. `variants` are the names of the variants that have its layout."""

    layout: Layout
    weights: dict[str, Tensor]
    scale: float
    variants: tuple[str, ...]


def control_part(weights: Weights, name: str) -> ControlNeXtParts:
    """The control network in the tensors of a file called `name`.

    Raises ValueError if the file is of another kind, or if a tensor is missing or has a wrong shape.
    """
    tensors = without_wrapping(weights, WRAPPED)
    part = _after(tensors, CONTROL) or tensors
    if not _is_control(part):
        raise ValueError(_refusal(part, name))
    content = dict(part)
    scale = _number(content.pop(SCALE, None), name)
    layout, variants = _layout(content, name)
    return ControlNeXtParts(layout, content, scale, variants)


def unet_part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The tensors for the UNet in a file called `name`, without the prefixes of training and of checkpoints.

    Raises ValueError if the file has no tensors for the UNet.
    """
    tensors = without_wrapping(weights, WRAPPED)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(CONTROL)}
    part = {**tensors, **_after(tensors, UNET)}
    part = {key: value for key, value in part.items() if not key.startswith(UNET)}
    if not part or _is_control(part):
        raise ValueError(
            f"{name} holds the control network of a ControlNeXt and no weights of the UNet. Choose it as control_name "
            f"alone, and none as unet_name."
        )
    return _after(part, ("model.diffusion_model.", "diffusion_model.")) or part


def holds_both(weights: Weights) -> bool:
    """Whether a file is a training checkpoint with a control network and weights of the UNet."""
    tensors = without_wrapping(weights, WRAPPED)
    return bool(_after(tensors, CONTROL) and _after(tensors, UNET))


def _is_control(weights: Weights) -> bool:
    return "time_embedding.linear_1.weight" in weights and any(key.startswith("down_res.") for key in weights)


def _number(scale: Tensor | None, name: str) -> float:
    """The learnt scale, or 1 if the release has none."""
    if scale is None:
        return 1.0
    if scale.numel() != 1 or not math.isfinite(scale.item()):
        raise ValueError(
            f"{name}: scale should be one finite number, but is {scale.flatten()[:SHOWN].tolist()}. Download the file "
            f"again."
        )
    return scale.item()


def _layout(weights: Weights, name: str) -> tuple[Layout, tuple[str, ...]]:
    """The layout by the number of stages, and its variants. The shapes of the tensors give all widths."""
    numbers = [int(found[1]) for key in weights if (found := re.match(r"down_res\.([0-9]{1,4})\.", key))]
    count = 1 + max(numbers, default=-1)
    has_stem = any(key.startswith("embedding.") for key in weights)
    groups = {(False, 3): (1, 8, 8), (True, 2): (4, 8), (True, 3): (4, 8, 8)}.get((has_stem, count))
    if groups is None:
        raise ValueError(
            f"{name} should have 3 stages, or a stem and 2 or 3 stages, as all released ControlNeXt have, but has "
            f"{count}{' and a stem' if has_stem else ''}. Choose a file of a release."
        )
    stages = []
    for i, of_stage in enumerate(groups):
        outputs, inputs = _shape(weights, f"down_res.{i}.conv1.weight", name)[:2]
        stages.append(Stage(inputs, outputs, of_stage))
    layout = Layout(
        stem=tuple(_shape(weights, f"embedding.{i}.weight", name)[0] for i in (0, 3, 6)) if has_stem else (),
        stages=tuple(stages),
        time=tuple(reversed(_shape(weights, "time_embedding.linear_1.weight", name))),
        outputs=_shape(weights, "mid_convs.1.weight", name)[0],
        residual_middle=has_stem,
        pooled_stem=has_stem and count == 3,
    )
    _check_groups(layout, name)
    if not has_stem:
        return layout, ("sd15",)
    return layout, ("svd-v1",) if count == 3 else ("sd15-training", "sdxl", "svd-v2")


def _check_groups(layout: Layout, name: str) -> None:
    """Raises ValueError if the groups of a normalisation do not divide its width."""
    normed = [(width, STEM_GROUPS) for width in layout.stem]
    normed += [(width, stage.groups) for stage in layout.stages for width in stage[:2]]
    normed += [(layout.stages[-1].outputs, MIDDLE_GROUPS)] if layout.residual_middle else []
    odd = [f"{width} by {groups}" for width, groups in normed if width % groups]
    if odd:
        raise ValueError(
            f"{name} has widths that its groups of channels do not divide ({', '.join(odd[:SHOWN])}). Choose a file "
            f"that ControlNeXt's code made."
        )


def _shape(weights: Weights, key: str, name: str) -> tuple[int, ...]:
    if key not in weights:
        raise ValueError(f"{name} is a ControlNeXt but lacks {key}. Download the file again.")
    shape, wanted = tuple(weights[key].shape), 2 if "linear" in key else 4
    if len(shape) != wanted or 0 in shape:
        raise ValueError(f"{name}: {key} should have {wanted} dimensions but is {shape}. Download the file again.")
    return shape


def _refusal(weights: Weights, name: str) -> str:
    if (what := kind_among(weights, OTHERS)) is not None:
        return f"{name} is not a ControlNeXt but {what}."
    return (
        f"{name} is not a ControlNeXt: it should hold time_embedding.* and down_res.*, but holds "
        f"{few(weights)}. Choose a file of a ControlNeXt release."
    )


def _after(weights: Weights, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors under the first of the prefixes that has any, with that prefix removed."""
    for prefix in prefixes:
        if part := {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}:
            return without_wrapping(part, WRAPPED)
    return {}
