"""Self-Attention Guidance (2210.00939)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ..models.self_attention import attention_received, degrade
from .attention import Attend, Call
from .attention_maps import combine
from .groups import GROUPS, Group
from .guidance import Args, current_step, in_span, install_guidance
from .network import add_attention_layer, options_of_call
from .run import STEP, AttentionMap, Step
from .scope import add_post_cfg
from .sites import Site
from .span import Span


@dataclass(frozen=True)
class Settings:
    """Scale of the guidance, and how the attended places are blurred (`blur_sigma` in cells of the latent)."""

    scale: float
    blur_sigma: float
    threshold: float
    kernel_size: int
    span: Span


def add_self_attention_guidance(model: ModelPatcher, site: Site, settings: Settings) -> ModelPatcher:
    """A clone of `model` that is steered away from its prediction for a picture blurred where `site` looks."""

    def add_to_result(args: Args) -> Tensor:
        if args["cond"] is None or not in_span(settings.span, args):
            return args["denoised"]
        degraded = _degraded(args, settings)
        if degraded is None:
            return args["denoised"]
        return args["denoised"] + settings.scale * (degraded.denoised - degraded.predict(args))

    model = add_attention_layer(model, [site], watch, settings.span, rows="sampled")
    install_guidance(model)
    add_post_cfg(model, "SAG", add_to_result)
    return model


def watch(call: Call, below: Attend) -> Tensor:
    """Note how much each place is attended, for the chunks of a step that are not extra predictions."""
    step: Step | None = call.options.get(STEP)
    if step is not None and _rows_are_whole_pictures(call, step):
        plain = [i for i, chunk in enumerate(call.chunks) if chunk not in step.marks]
        if plain:
            _note_maps(call.only(plain), step)
    return below(call)


def _rows_are_whole_pictures(call: Call, step: Step) -> bool:
    """Whether each chunk has a row per picture; other packs may cut pictures into tiles, or split batches again."""
    chunks = len(set(_host_chunks(call)))
    window = call.options.get("context_window")
    # 0.33 may put one picture more before a window, as an anchor
    per_chunk = (len(step.x),) if window is None else (len(window.index_list), len(window.index_list) + 1)
    return len(call.q) == len(call.k) and len(call.k) in [rows * chunks for rows in per_chunk]


def _note_maps(call: Call, step: Step) -> None:
    h, w = call.grid(call.k)
    received = attention_received(call.q, call.k, call.options["n_heads"])
    maps = call.split(rearrange(received, "b (h w) -> b h w", h=h, w=w))
    size, window = tuple(call.options["original_shape"][-2:]), call.options.get("context_window")
    parts: dict[int, list[Tensor]] = {}
    named: dict[int, tuple[Any, int]] = {}
    for place, chunk, label, found in zip(
        _host_chunks(call), call.chunks, call.options["cond_or_uncond"], maps, strict=True
    ):  # fmt: skip
        parts.setdefault(place, []).append(found)
        named.setdefault(place, (chunk, label))  # of two branches the first has the name of the conditioning
    step.maps += [AttentionMap(*named[place], torch.cat(found), size, window) for place, found in parts.items()]


def _host_chunks(call: Call) -> Sequence[int]:
    """The number of the host's chunk that each chunk of the call is of: with partners it may have two branches."""
    groups: Sequence[Group] | None = call.options.get(GROUPS)
    return range(len(call.chunks)) if groups is None else [group.chunk for group in groups]


@dataclass(frozen=True)
class _Degraded:
    """The pass that CFG uses (the negative's, or the positive's without one), with its picture blurred."""

    conds: list[Any]  # as calc_cond_batch takes them: the negative keeps its place, hence its label
    denoised: Tensor
    change: Tensor  # of the prediction, (b, c, h, w)

    def predict(self, args: Args) -> Tensor:
        """The model's prediction for the degraded picture with the same noise (equation 7)."""
        sampling, x = args["model"].model_sampling, args["input"]
        # Only the share of the picture in x changes: all of it for eps, v and EDM, 1 - sigma for flow.
        x = x + sampling.noise_scaling(args["sigma"], torch.zeros_like(x), self.change)
        return comfy.samplers.calc_cond_batch(args["model"], self.conds, x, args["sigma"], args["model_options"])[-1]


def _degraded(args: Args, settings: Settings) -> _Degraded | None:
    step = current_step(args)
    # At cfg 1 another node may have asked for the negative all the same.
    guided = step.guided and args["uncond"] is not None and not isclose(args["cond_scale"], 1.0)
    choices = [([None, args["uncond"]], args["uncond_denoised"])] if guided else []
    for conds, denoised in [*choices, ([args["cond"]], args["cond_denoised"])]:
        received = _received(conds, step, args)
        if received is not None:  # None: this step is in the time range of none of the conds
            blurred = degrade(denoised, received, settings.blur_sigma, settings.threshold, settings.kernel_size)
            return _Degraded(conds, blurred, blurred - denoised)
    return None


def _received(conds: list[Any], step: Step, args: Args) -> Tensor | None:
    """How much each cell of the latent is attended in a pass, (b, h, w); None where no cond of it is active."""
    label, x, timestep = len(conds) - 1, args["input"], args["sigma"]
    ours = {(cond["uuid"], label) for cond in conds[-1]}
    maps = [found for found in step.maps if (found.chunk, found.label) in ours]
    if not maps:
        alone = step.for_another_call()
        options = options_of_call(args["model_options"], alone)
        comfy.samplers.calc_cond_batch(args["model"], conds, x, timestep, options)
        maps = alone.maps
    return combine(maps, conds[-1], x, timestep)
