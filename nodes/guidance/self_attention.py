"""Self-Attention Guidance (2210.00939)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ...engine.effects import watch
from ...engine.guidance import Args, install_guidance
from ...engine.layers.attention import Attend, Call
from ...engine.network import add_attention_layer, options_of_call
from ...engine.rows.chunk import Chunk
from ...engine.run import Run, Step, run_of
from ...engine.scope import add_post_cfg
from ...engine.sites import Site
from ...engine.span import Span
from ...engine.step import current_step, in_span, plain_predictions
from ...engine.unet import find_sites
from ...models.guidance.self_attention import attention_received, degrade, enlarge, kernel_length
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, scale_input, schema

REASON = "Self-Attention Guidance reads the middle block of a UNet. Its paper names no layer of transformers (DiTs)."


class SelfAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_SelfAttentionGuidance",
            display_name="SAG – Self-Attention Guidance",
            category="reins/guidance",
            description="Brings out detail where the model looks: blurs the attended places, predicts again and steers "
            "away from that (SAG). One more evaluation per step, in a second call.",
            search_aliases=["SAG", "self-attention guidance", "guidance", "detail"],
            inputs=[
                model_input(), scale_input(0.75, minimum=-2.0, maximum=5.0),
                make_input(
                    io.Float, "blur_sigma", default=1.0, min=0.0, max=10.0, step=0.1,
                    tooltip="Width of the blur in cells of the latent (8 pixels each). 0: no blur, hence no guidance.",
                ),
                make_input(
                    io.Float, "threshold", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How much attention a place must get to be blurred: 1 is the average, higher blurs less of "
                    "the picture, 0 all of it.",
                ),
                *percent_inputs(),
                make_input(
                    io.Int, "kernel_size", default=0, min=0, max=63, advanced=True,
                    tooltip="Length of the blur kernel in cells; even numbers count as the next odd one. 0: long "
                    "enough for the whole Gaussian. 9: what ComfyUI's own SAG node and diffusers use.",
                ),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, scale: float, blur_sigma: float, threshold: float, start_percent: float,
        end_percent: float, kernel_size: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        site = next((site for site in find_sites(model, "attn1", REASON) if site.block == "middle"), None)
        if site is None:
            raise ValueError(
                "Self-Attention Guidance reads the self-attention of the UNet's middle block, but this model has none "
                "there. Use Perturbed-Attention Guidance with another layer instead."
            )
        if scale == 0 or blur_sigma == 0 or kernel_length(blur_sigma, kernel_size) == 1:
            return io.NodeOutput(model)
        settings = BlurSettings(scale, blur_sigma, threshold, kernel_size, Span(start_percent, end_percent))
        return io.NodeOutput(add_self_attention_guidance(model, site, settings))


@dataclass(frozen=True)
class BlurSettings:
    """Scale of the guidance, and how the attended places are blurred (`blur_sigma` in cells of the latent)."""

    scale: float
    blur_sigma: float
    threshold: float
    kernel_size: int
    span: Span


def add_self_attention_guidance(model: ModelPatcher, site: Site, settings: BlurSettings) -> ModelPatcher:
    """Returns a clone of `model` that is steered away from its prediction for a picture blurred where `site` looks."""

    def add_to_result(args: Args) -> Tensor:
        if args["cond"] is None or not in_span(settings.span, args):
            return args["denoised"]
        degraded = _degraded(args, settings)
        if degraded is None:
            return args["denoised"]
        return args["denoised"] + settings.scale * (degraded.denoised - degraded.predict(args))

    model = add_attention_layer(model, [site], note_attention, settings.span, rows="sampled")
    install_guidance(model)
    add_post_cfg(model, "SAG", add_to_result, watch(model, "SAG", settings.span))
    return model


class AttentionMap(NamedTuple):
    """How much the cells of one chunk were attended, (b, h, w).

    `label` is the chunk's place among the conds, because positive and negative may share a uuid. `size` is that of the
    latent in the call, and `images` tells the place in the batch of each row.
    """

    chunk: UUID | None
    label: int
    received: Tensor
    size: tuple[int, int]
    images: tuple[int, ...]


@dataclass
class Seen:
    """What was seen of the attention in a step: its maps, and whether some rows were no whole pictures."""

    maps: list[AttentionMap] = field(default_factory=list)
    in_parts: bool = False

    def of(self, conds: Sequence[dict], label: int) -> list[AttentionMap]:
        """Returns the maps of these conds."""
        ours = {(cond["uuid"], label) for cond in conds}
        return [attention for attention in self.maps if (attention.chunk, attention.label) in ours]


def seen_in(step: Step) -> Seen:
    """Returns what was seen in a step, to read it or to add to it."""
    return step.notes.setdefault(Seen, Seen())


def note_attention(call: Call, below: Attend) -> Tensor:
    """Returns the attention (b, tokens, c) unchanged, and notes how much each place of the picture is attended.

    Chunks of extra predictions are left out.
    """
    plain = [chunk.index for chunk in call.chunks if chunk.mark is None]
    if call.step is not None and plain:
        if _rows_are_whole_pictures(call):
            _note_maps(call.only(plain), call.step)
        else:
            seen_in(call.step).in_parts = True
    return below(call)


def _rows_are_whole_pictures(call: Call) -> bool:
    """Returns whether each row is another picture of its chunk. Other packs may cut pictures into tiles."""
    images = [chunk.images for chunk in call.chunks]
    rows = sum(len(of_chunk) for of_chunk in images)
    return len(call.q) == len(call.k) == rows and all(len({*of_chunk}) == len(of_chunk) for of_chunk in images)


def _note_maps(call: Call, step: Step) -> None:
    h, w = call.grid(call.k)
    received = attention_received(call.q, call.k, call.heads)
    parts: dict[int, list[Tensor]] = {}
    first_chunks: dict[int, Chunk] = {}
    for chunk, rows in zip(call.chunks, call.split(rearrange(received, "b (h w) -> b h w", h=h, w=w)), strict=True):
        parts.setdefault(chunk.group.chunk, []).append(rows)
        first_chunks.setdefault(chunk.group.chunk, chunk)  # of two branches the first is named as the conditioning
    for number, of_branches in parts.items():
        first, rows = first_chunks[number], torch.cat(of_branches)
        images = first.images if len(of_branches) == 1 else tuple(range(len(rows)))
        seen_in(step).maps.append(AttentionMap(first.uuid, first.label, rows, call.size, images))


@dataclass(frozen=True)
class _Degraded:
    """The prediction for the negative if CFG acts, else for the positive, with a blurred picture."""

    conds: list[Any]  # as calc_cond_batch takes them: the negative keeps its place, hence its label
    denoised: Tensor  # the blurred picture (b, c, h, w)
    change: Tensor  # of the prediction, (b, c, h, w)

    def predict(self, args: Args) -> Tensor:
        """Returns the model's prediction (b, c, h, w) for the degraded picture with the same noise (equation 7)."""
        sampling, x = args["model"].model_sampling, args["input"]
        # Only the part of the picture in x changes, whose factor is 1 for eps, v and EDM, and 1 - sigma for flow.
        x = x + sampling.noise_scaling(args["sigma"], torch.zeros_like(x), self.change)
        conds = _renamed(self.conds, run_of(args["model_options"]))
        return comfy.samplers.calc_cond_batch(args["model"], conds, x, args["sigma"], args["model_options"])[-1]


def _degraded(args: Args, settings: BlurSettings) -> _Degraded | None:
    step = current_step(args)
    # At CFG 1 another node may still have the negative predicted.
    guided = step.guided and args["uncond"] is not None and not isclose(args["cond_scale"], 1.0)
    plain = plain_predictions(args)
    choices = [([None, args["uncond"]], plain.negative)] if guided else []
    for conds, denoised in [*choices, ([args["cond"]], plain.positive)]:
        received = _received(conds, step, args)
        if received is not None:  # None: no cond of it has this step in its time range
            blurred = degrade(denoised, received, settings.blur_sigma, settings.threshold, settings.kernel_size)
            return _Degraded(conds, blurred, blurred - denoised)
    return None


def _received(conds: list[Any], step: Step, args: Args) -> Tensor | None:
    """Returns how much each cell of the latent is attended in a prediction, (b, h, w), or None if no cond is active."""
    label, x, timestep, run = len(conds) - 1, args["input"], args["sigma"], run_of(args["model_options"])
    was_asked = any(conds[-1] is of_list for of_list in step.asked)
    maps = _seen_or_last(conds[-1], label, step, run) if was_asked else []
    if not maps:
        conds = _renamed(conds, run)
        options = options_of_call(args["model_options"], step.for_another_call())
        comfy.samplers.calc_cond_batch(args["model"], conds, x, timestep, options)
        maps = _seen_or_last(conds[-1], label, step, run)
    return combine_maps(maps, conds[-1], x, timestep, seen_in(step).in_parts)


def _seen_or_last(conds: Sequence[dict], label: int, step: Step, run: Run) -> list[AttentionMap]:
    """Returns the maps of conds in this step. A cond whose prediction came from a cache has those of its last call."""
    last: dict[tuple[UUID, int, torch.Size], list[AttentionMap]] = run.once(_seen_or_last, dict)
    seen, found = seen_in(step), []
    for cond in conds:
        key = (cond["uuid"], label, step.x.shape)  # a sampler may change the size in mid-run
        maps = seen.of([cond], label)
        if maps:
            last[key] = maps
        elif not seen.in_parts:
            maps = last.get(key, [])
        found += maps
    return found


def _renamed(conds: list[Any], run: Run) -> list[Any]:
    """Returns conds under uuids that only this node uses, because caches of other packs go by the uuid."""
    renamed = [of_list and [{**cond, "uuid": uuid5(cond["uuid"], "SAG")} for cond in of_list] for of_list in conds]
    pairs = [(old["uuid"], new["uuid"]) for old, new in zip(conds[-1], renamed[-1], strict=True)]
    run.names = {**run.names, **{new: run.names[old] for old, new in pairs if old in run.names}}
    return renamed


TILED = (
    "Self-Attention Guidance needs to see where the network looks in the whole picture, but another node cuts the "
    "picture or its attention into tiles. Remove that node (tiled diffusion, HyperTile) from the model."
)


def combine_maps(
    maps: Sequence[AttentionMap], conds: Sequence[dict], x: Tensor, timestep: Tensor, in_parts: bool = True
) -> Tensor | None:  # fmt: skip
    """Returns how much each cell of the latent x (b, c, h, w) is attended, (b, h, w), or None if no cond is active.

    The maps have weights of areas, masks and strengths as the host's predictions have, so the order of conds has no
    effect. The map is 0 in places without a prediction. `in_parts` tells whether the network saw parts of pictures.
    Raises RuntimeError if there is no map of any of the conds.
    """
    total, weights = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    rest: Tensor | None = None
    active = False
    # Conds marked as default come last and share what the others leave.
    for cond in sorted(conds, key=lambda cond: "default" in cond):
        chunk = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if chunk is None:
            continue
        active = True
        if "default" in cond:
            rest = torch.relu(1 - weights) if rest is None else rest
        h, w, top, left = chunk.area or (*x.shape[-2:], 0, 0)
        mult = chunk.mult[:, 0] if rest is None else rest[:, top : top + h, left : left + w]
        received, has_map = _over_windows(
            [attention for attention in maps if attention.chunk == cond["uuid"]], x, (h, w)
        )
        total[:, top : top + h, left : left + w] += received * (mult * has_map)
        weights[:, top : top + h, left : left + w] += mult * has_map
    if active and not maps and in_parts:
        raise RuntimeError(TILED)
    if active and not maps:
        raise RuntimeError(
            "Self-Attention Guidance needs to see where the network looks in its middle block, but that block has not "
            "run yet: another pack leaves it out or answers from a cache (FBCache, DeepCache). Let the cache begin "
            "later, or remove it."
        )
    return total / weights.clamp_min(1e-37) if active else None


def _over_windows(maps: Sequence[AttentionMap], x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the mean of a chunk's maps over context windows, (b, h, w), and 1 for images that have one, (b, 1, 1)."""
    received, counts = x.new_zeros((len(x), *size)), x.new_zeros((len(x), 1, 1))
    for attention in maps:
        if attention.size != size:
            raise RuntimeError(TILED)
        rows = list(attention.images)
        received[rows] += enlarge(attention.received.to(x), size)
        counts[rows] += 1
    return received / counts.clamp_min(1), (counts > 0).to(x)
