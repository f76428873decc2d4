"""A pack for regional prompts (attention couple), and what other methods should give beside it, row by row."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm
from typing import Any, Literal, NamedTuple

import comfy.hooks
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from reins.engine.unet import find_transformers, unet_of
from torch import Tensor, nn

from .tiny_models import text

# How a pack tells of its rows: not at all, in a list of its own, or in the host's list while they are there.
Told = Literal["nothing", "cond_or_uncond_couple", "cond_or_uncond"]
NEGATIVE = 1


class Row(NamedTuple):
    """The rows of one text in an attention: their label, and which of the texts they read."""

    label: int
    text: Literal["own", "region"]


def rows_of(labels: list[int]) -> list[Row]:
    """The rows that the pack makes of a call with these labels: a region beside each positive."""
    kinds = {True: ["own"], False: ["own", "region"]}
    return [Row(label, kind) for label in labels for kind in kinds[label == NEGATIVE]]


class RegionalPrompts(NamedTuple):
    """The pack: the left half of the picture follows the prompt, the right half a text of a region.

    If `knows_one`, it fails in a call with two positives, as ComfyUI-ppm's does.
    """

    region: Tensor  # (1, tokens, c)
    told: Told = "nothing"
    knows_one: bool = False

    def enter(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        labels = list(options["cond_or_uncond"])
        longest, count = lcm(k.shape[1], self.region.shape[1]), len(labels)
        places = [i for i, label in enumerate(labels) for _ in rows_of([label])]
        texts = []
        for i, row in zip(places, rows_of(labels), strict=True):
            own = self.region.to(k).expand(len(k) // count, -1, -1) if row.text == "region" else k.chunk(count)[i]
            texts.append(own.repeat(1, longest // own.shape[1], 1))
        options["labels of the call"] = labels
        if self.told == "cond_or_uncond":
            options["cond_or_uncond"][:] = [row.label for row in rows_of(labels)]
        elif self.told != "nothing":
            options[self.told] = [row.label for row in rows_of(labels)]
        return torch.cat([q.chunk(count)[i] for i in places]), torch.cat(texts), torch.cat(texts)

    def leave(self, out: Tensor, options: dict[str, Any]) -> Tensor:
        options["cond_or_uncond"][:] = labels = options["labels of the call"]
        if self.knows_one and sum(label != NEGATIVE for label in labels) > 1:
            raise IndexError("the pack knows one positive of a call")
        h, w = options["activations_shape"][-2:]
        left = (torch.arange(w) < w // 2).to(out).repeat(h)[None, :, None]
        parts, joined = list(out.chunk(len(rows_of(labels)))), []
        for label in labels:
            own = parts.pop(0)
            joined.append(own if label == NEGATIVE else own * left + parts.pop(0) * (1 - left))
        return torch.cat(joined)

    def on(self, model: ModelPatcher) -> ModelPatcher:
        """A model with the pack's patches."""
        model = model.clone()
        model.set_model_attn2_patch(self.enter)
        model.set_model_attn2_output_patch(self.leave)
        return model

    def on_prompt(self, seed: int) -> list:
        """A prompt with a hook that brings the patches, as comfyui-prompt-control does."""
        patches = {"attn2_patch": [self.enter], "attn2_output_patch": [self.leave]}
        hook = comfy.hooks.TransformerOptionsHook({"patches": patches})
        hook.hook_scope = comfy.hooks.EnumHookScope.HookedOnly
        group = comfy.hooks.HookGroup()
        group.add(hook)
        return [[embedding, {**settings, "hooks": group}] for embedding, settings in text(seed)]


Change = Callable[[Tensor, Tensor, Tensor, Tensor, Row, nn.Module, dict[str, Any]], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])


def by_rows(model: ModelPatcher, change: Change) -> ModelPatcher:
    """A model whose text attentions are changed row by row, by hand: change(out, q, k, v, row, module, options)."""
    steered, unet = model.clone(), unet_of(model)
    for transformer in find_transformers(unet):
        module = unet.get_submodule(transformer.path).attn2

        def replaced(q: Tensor, k: Tensor, v: Tensor, options: dict, module: nn.Module = module) -> Tensor:
            rows = rows_of(options["cond_or_uncond"])
            parts = zip(*(part.chunk(len(rows)) for part in (attend(q, k, v, options), q, k, v)), rows, strict=True)
            return torch.cat([change(*part, module, options) for part in parts])

        steered.set_model_attn2_replace(replaced, transformer.block, transformer.number, transformer.index)
    return steered
