"""What other packs, and the host's context windows, do to a model: they take its slots and regroup its rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import comfy.hooks
import comfy.samplers
import comfyui_version
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

VERSION = tuple(int(part) for part in comfyui_version.__version__.split(".")[:2])  # of the host
Wrapper = Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]  # round the host's call of the network


def pass_through(model: ModelPatcher) -> ModelPatcher:
    """A model on which another pack sits in the host's slot and hands its conds on."""
    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(
        lambda args: comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )
    )
    return model


def tiled(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Stacks the left and the right half of all pictures in one call, and tells nobody, as tiling packs do."""
    x, t, rows = args["input"], args["timestep"], len(args["input"])
    doubled = {k: torch.cat([v, v]) if torch.is_tensor(v) and len(v) == rows else v for k, v in args["c"].items()}
    left, right = apply_model(torch.cat(x.chunk(2, -1)), torch.cat([t, t]), **doubled).chunk(2)
    return torch.cat([left, right], -1)


def one_by_one(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Sends each chunk through the network by itself with the options of all."""
    n, out = len(args["cond_or_uncond"]), []
    for i in range(n):
        rows = slice(i * len(args["input"]) // n, (i + 1) * len(args["input"]) // n)
        conds = {k: v[rows] if torch.is_tensor(v) else v for k, v in args["c"].items()}
        out.append(apply_model(args["input"][rows], args["timestep"][rows], **conds))
    return torch.cat(out)


def tiled_by_name(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Stacks tiles as `tiled` does, but repeats only the tensors that it knows by name."""
    x, t = args["input"], args["timestep"]
    named = ("c_crossattn", "y", "c_concat")
    doubled = {name: torch.cat([value, value]) if name in named else value for name, value in args["c"].items()}
    left, right = apply_model(torch.cat(x.chunk(2, -1)), torch.cat([t, t]), **doubled).chunk(2)
    return torch.cat([left, right], -1)


def labelled(alone: bool, names: Sequence[str] = ("cond_or_uncond", "uuids")) -> Wrapper:
    """Sends each chunk alone, or all of them in reverse, labels them truly in these lists, and knows texts alone."""

    def send(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        options, count = args["c"]["transformer_options"], len(args["cond_or_uncond"])
        order = list(reversed(range(count)))
        outs: dict[int, Tensor] = {}
        for group in [[i] for i in order] if alone else [order]:

            def picked(tensor: Tensor, group: list[int] = group) -> Tensor:
                return torch.cat([tensor.chunk(count)[i] for i in group])

            lists = {name: [options[name][i] for i in group] for name in names}
            conds = {**args["c"], "c_crossattn": picked(args["c"]["c_crossattn"])}
            conds["transformer_options"] = {**options, **lists}
            out = apply_model(picked(args["input"]), picked(args["timestep"]), **conds)
            outs.update(zip(group, out.chunk(len(group)), strict=True))
        return torch.cat([outs[i] for i in range(count)])

    return send


def regrouped(model: ModelPatcher, wrapper: Wrapper) -> ModelPatcher:
    """A model whose rows go through one of the wrappers above."""
    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def coupled(model: ModelPatcher, copies: int, option: str | None) -> ModelPatcher:
    """A pack for regional prompts: copies of the positive's rows enter the text attention, their mean leaves it.

    The labels of the rows are told under the name `option` for as long as they are there; None tells nobody.
    """
    told: list[list[int]] = []

    def enlarge(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        labels = options["cond_or_uncond"]
        told.append(labels)
        chosen = [i for i, label in enumerate(labels) for _ in range(1 if label == 1 else copies)]
        if option:
            options[option] = [labels[i] for i in chosen]
        return tuple(torch.cat([part.chunk(len(labels))[i] for i in chosen]) for part in (q, k, v))

    def merge(out: Tensor, options: dict[str, Any]) -> Tensor:
        options["cond_or_uncond"] = labels = told.pop()
        parts = list(out.chunk(sum(1 if label == 1 else copies for label in labels)))
        return torch.cat([
            parts.pop(0) if label == 1 else torch.stack([parts.pop(0) for _ in range(copies)]).mean(0)
            for label in labels
        ])  # fmt: skip

    model = model.clone()
    model.set_model_attn2_patch(enlarge)
    model.set_model_attn2_output_patch(merge)
    return model


def turned(count: int, *values: Any, lists: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Tensors and lists of `count` chunks with their chunks in reverse."""
    tensors = [
        torch.cat(value.chunk(count)[::-1])
        if torch.is_tensor(value) and value.ndim and len(value) % count == 0
        else value
        for value in values
    ]
    return tensors, {name: list(reversed(of_all)) for name, of_all in lists.items()}


def turned_inside(model: ModelPatcher) -> ModelPatcher:
    """A pack inside the pack's own wrappers that sends the chunks in reverse and says so in the host's lists."""

    def send(executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Any, control: Any, options: dict, **kwargs: Any):
        names = {name: options[name] for name in ("cond_or_uncond", "uuids")}
        count = len(names["uuids"])
        inputs, lists = turned(count, x, t, context, y, lists=names)
        out = executor(*inputs, control, {**options, **lists}, **kwargs)
        return torch.cat(out.chunk(count)[::-1])

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", send)
    return model


def turned_in_attention(model: ModelPatcher, kind: str) -> ModelPatcher:
    """A pack whose patches turn the chunks of an attention round, and say so for as long as they are turned."""
    before: list[dict[str, Any]] = []

    def turn(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        before.append({name: options[name] for name in ("cond_or_uncond", "uuids")})
        tensors, lists = turned(len(options["uuids"]), q, k, v, lists=before[-1])
        options.update(lists)
        return tuple(tensors)

    def turn_back(out: Tensor, options: dict[str, Any]) -> Tensor:
        options.update(before.pop())
        return torch.cat(out.chunk(len(options["uuids"]))[::-1])

    model = model.clone()
    getattr(model, f"set_model_{kind}_patch")(turn)
    getattr(model, f"set_model_{kind}_output_patch")(turn_back)
    return model


def hook_with(steered: ModelPatcher) -> comfy.hooks.HookGroup:
    """A hook that brings what the pack put on a model: its list and its wrappers."""
    options = {
        "reins": list(steered.model_options["transformer_options"].get("reins", [])),
        "wrappers": {kind: {key: list(w) for key, w in of.items()} for kind, of in steered.wrappers.items()},
    }
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(options, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))
    return group


def windows(model: ModelPatcher, length: int = 4, overlap: int = 1) -> ModelPatcher:
    """A model with the host's context windows over the pictures of a batch; skips the test on a host without them."""
    node = pytest.importorskip("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    settings = {
        "context_length": length, "context_overlap": overlap, "context_schedule": "standard_static",
        "context_stride": 1, "closed_loop": False, "fuse_method": "flat", "dim": 0, "freenoise": False,
    }  # fmt: skip
    known = inspect.signature(node.execute).parameters
    return node.execute(model, **{key: value for key, value in settings.items() if key in known}).result[0]


def motion_windows(model: ModelPatcher, length: int = 3) -> ModelPatcher:
    """A pack that predicts a few pictures of the batch at a time, as AnimateDiff-Evolved does.

    It skips the host's slot and its pre-CFG functions, and stands in for the host's function until CFG is over.
    """
    whole = comfy.samplers.calc_cond_batch

    def in_windows(inner: Any, conds: list, x: Tensor, t: Tensor, model_options: dict[str, Any]) -> list[Tensor]:
        totals, counts = [torch.zeros_like(x) for _ in conds], x.new_zeros((len(x), 1, 1, 1))
        for start in sorted({min(i, len(x) - length) for i in range(0, len(x), length - 1)}):
            images = list(range(start, start + length))
            told = {**model_options["transformer_options"], "ad_params": {"sub_idxs": images, "full_length": len(x)}}
            options = {**model_options, "transformer_options": told}
            for total, part in zip(totals, whole(inner, conds, x[images], t[images], options), strict=True):
                total[images] += part
            counts[images] += 1
        return [total / counts for total in totals]

    def predict(executor: Any, x: Tensor, t: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        guider = executor.class_obj
        positive, negative = guider.conds["positive"], guider.conds["negative"]
        with mock.patch.object(comfy.samplers, "calc_cond_batch", in_windows):
            out = in_windows(guider.inner_model, [positive, negative], x, t, model_options)
            return comfy.samplers.cfg_function(
                guider.inner_model, *out, guider.cfg, x, t, model_options, positive, negative
            )  # fmt: skip

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "motion", predict)
    return model


def cached(model: ModelPatcher, answers: Callable[[dict[str, Any]], bool]) -> ModelPatcher:
    """A pack that answers some calls of the network with its last output for the same prompts, by the options."""
    kept: dict[tuple, Tensor] = {}

    def answer(executor: Any, *arguments: Any, **kwargs: Any) -> Tensor:
        options = arguments[-1]
        key = tuple(options["uuids"])
        if not answers(options):
            kept[key] = executor(*arguments, **kwargs)
        return kept.get(key, arguments[0])

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", answer)
    return model
