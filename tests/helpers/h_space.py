"""Small h-space directions for the tiny models, seeded; runs of a sampler; and the paper's step by hand.

The steps by hand use the host alone: a patch on what enters the first output block, and a sampler that asks twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER, CFGGuider
from reins.models.h_space.files import parse_h_space, sort_directions
from reins.nodes.h_space.direction import BlockDirection, HDirection, PromptDirection, StoredDirection
from reins.nodes.h_space.direction_node import HDirectionFromPrompts
from reins.nodes.h_space.edit_node import AsyrpSampler, HSpaceEdit
from reins.nodes.h_space.load import _block_direction
from reins.tests.helpers import tiny_models
from reins.tests.helpers.tiny_models import text
from safetensors.torch import load_file
from torch import Tensor

CHANNELS = 64  # of h in the tiny models
GOLDEN = Path(__file__).parents[1] / "golden"
CASE = json.loads((GOLDEN / "asyrp.json").read_text())
SOURCE, TARGET = text(51), text(52)
LEVELS, FLOW = torch.tensor([9.0, 3.0, 1.0]), torch.tensor([0.9, 0.6, 0.3, 0.0])

Change = Callable[[Tensor, int, Mapping[str, Any]], Tensor]  # of h (b, c, h, w) with the host's label and options


def golden(part: str) -> dict[str, Tensor]:
    """The stored tensors of a part."""
    found = load_file(GOLDEN / "asyrp.safetensors")
    return {key.removeprefix(f"{part}."): value for key, value in found.items() if key.startswith(f"{part}.")}


def stored(
    seed: int = 0, channels: int = CHANNELS, size: tuple[int, int] = (2, 2), sigmas: tuple[float, ...] = (14.0, 0.1)
) -> StoredDirection:  # fmt: skip
    """A drawn direction (t, c, h, w) for these noise levels."""
    generator = torch.Generator().manual_seed(seed)
    return of(torch.randn((len(sigmas), channels, *size), generator=generator), sigmas)


def of(dh: Tensor, sigmas: tuple[float, ...] = (1.0,)) -> StoredDirection:
    """A direction of these numbers (t, c, h, w)."""
    return StoredDirection("drawn", sort_directions(dh, torch.tensor(sigmas), "drawn"), {})


def block(layout: str = "ddpm", time: bool = True) -> BlockDirection:
    """The stored delta block of a layout; it has the channels and the time embedding of the tiny models."""
    weights = golden(f"block.{layout}")
    kept = {key: value for key, value in weights.items() if time or not key.startswith(("temb_proj", "emb_layers"))}
    return _block_direction(parse_h_space(kept, layout), layout)


def live(positive: list | None = None, source: list = SOURCE, target: list = TARGET) -> PromptDirection:
    """The direction between two prompts, by the node."""
    return HDirectionFromPrompts.execute(text(1) if positive is None else positive, source, target).result[0]


def edit(
    model: ModelPatcher, direction: HDirection | None = None, strength: float = 0.5, start: float = 0.0,
    end: float = 1.0, **settings: object,
) -> ModelPatcher:  # fmt: skip
    """The edit node, by default with a drawn direction for the whole run."""
    direction = stored() if direction is None else direction
    return HSpaceEdit.execute(model, direction, strength, start, end, **settings).result[0]


def asyrp(
    direction: HDirection | None = None, strength: float = 0.5, edit_end: float = 1.0, boost_start: float = 1.0,
    boost_eta: float = 0.0, **settings: object,
) -> KSAMPLER:  # fmt: skip
    """The sampler node, by default for the whole run and without boosting."""
    direction = stored() if direction is None else direction
    return AsyrpSampler.execute(direction, strength, edit_end, boost_start, boost_eta, **settings).result[0]


def noise(b: int = 1, seed: int = 7) -> Tensor:
    """Of the smallest size that has an h of more than one row."""
    return tiny_models.noise(8, 8, b, seed)


def run(
    model: ModelPatcher, sampler: str | KSAMPLER = "euler", cfg: float = 5.0, sigmas: Tensor = LEVELS,
    start: Tensor | None = None, guider: CFGGuider | None = None, mask: Tensor | None = None,
    latent: Tensor | None = None, callback: Callable | None = None, **conds: list,
) -> Tensor:  # fmt: skip
    """A run of SamplerCustomAdvanced's core from seeded noise; `conds` beside positive and negative are only kept."""
    if guider is None:
        guider = CFGGuider(model)
        guider.inner_set_conds({"positive": text(1), "negative": text(2), **conds})
        guider.set_cfg(cfg)
    start = noise() if start is None else start
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return guider.sample(
        start, torch.zeros_like(start) if latent is None else latent, sampler, sigmas, denoise_mask=mask,
        callback=callback, disable_pbar=True, seed=7,
    )  # fmt: skip


def patched(model_options: dict[str, Any], change: Change) -> dict[str, Any]:
    """The host's options for a call in which `change` is added to h."""

    def add(h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if options["block"] != ("output", 0):
            return h, skip
        labels = options["cond_or_uncond"]
        parts = h.chunk(len(labels))
        return torch.cat([part + change(part, label, options) for part, label in zip(parts, labels, strict=True)]), skip

    options = model_options["transformer_options"]
    patches = options.get("patches", {})
    patches = {**patches, "output_block_patch": [*patches.get("output_block_patch", ()), add]}
    return {**model_options, "transformer_options": {**options, "patches": patches}}


def by_hand(
    change: Change, eta: Callable[[float], float] | float = 0.0, edited: Callable[[float], bool] = lambda sigma: True,
    before: Callable[..., None] | None = None, **inpaint: bool,
) -> KSAMPLER:  # fmt: skip
    """A sampler of the paper's steps (equations 5 to 7 with x / sqrt(alpha-bar) for x); `before` is told each step."""

    def loop(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool) -> Tensor:
        drawn = default_noise_sampler(x, seed=extra_args["seed"])
        options = extra_args["model_options"]
        for now, following in pairwise(sigmas.tolist()):
            level = x.new_full([len(x)], now)
            if before is not None:
                before(model.inner_model, x, level, options)
            plain = changed = model(x, level, **extra_args)
            if edited(now):
                changed = model(x, level, **{**extra_args, "model_options": patched(options, change)})
            renewed = eta(now) if callable(eta) else eta
            up = renewed * following * (1 - (following / now) ** 2) ** 0.5 if renewed else 0.0
            x = changed + (following**2 - up**2) ** 0.5 * (x - plain) / now
            if up:
                x = x + up * drawn(None, None)
        return x

    return KSAMPLER(loop, {}, inpaint)


def along(direction: StoredDirection, strength: float = 0.5, relative: bool = True, labels: tuple = (0, 1)) -> Change:
    """What one direction for all noise levels adds to h on the chunks with these labels."""
    (dh,) = direction.directions.dh

    def change(h: Tensor, label: int, options: Mapping[str, Any]) -> Tensor:
        own = dh.expand(dh.shape[0], *h.shape[-2:]).to(h)
        lengths = h.flatten(1).norm(dim=1)[:, None, None, None] / own.norm() if relative else 1.0
        return strength * lengths * own * (label in labels)

    return change
