"""AutoGuidance (2406.02507): away from what a weaker model predicts for the same prompt and the same noisy latent.

The weak model is the host's: loaded beside the model, called with its own options, so that its LoRA, adapters and
quantisation count. Two patchers of one network cannot both be loaded; then the weak one gets a network of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .entries import Entry, append, entries, install_wrapper, next_order
from .guidance import current_step, in_span, install_guidance
from .loading import load_with
from .run import RUN, STEP, Run, Step, run_of
from .scope import Args, add_post_cfg
from .span import Span

WRAPPER = "reins_weak_model"
SHAPE = ("model_channels", "channel_mult", "num_res_blocks")  # of a UNet that takes the same residuals


@dataclass(frozen=True, eq=False, kw_only=True)
class WeakModel(Entry):
    """Another model of the same latents, and whether it is another patcher of the very same network."""

    model: ModelPatcher
    is_shared: bool

    def predict(self, args: Args) -> Tensor:
        """(b, c, h, w): its prediction for the positive."""
        run = run_of(args["model_options"])
        options = run.once((self, "options"), lambda: self._prepared(args, run))
        key = (self, "conds", tuple(cond["uuid"] for cond in args["cond"]))
        conds = run.once(key, lambda: self._conds(args))
        now = Step(x=args["input"], timestep=args["sigma"], sigma=current_step(args).sigma)
        options = {**options, "transformer_options": {**options["transformer_options"], STEP: now}}
        return comfy.samplers.calc_cond_batch(self.model.model, [conds], args["input"], args["sigma"], options)[0]

    def _prepared(self, args: Args, run: Run) -> Args:
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(self.model, {}, options)
        own = copy(run)  # the same sampling run with caches of its own, for its weights are others
        own.forget()
        own.names = {cond["uuid"]: "positive" for cond in args["cond"]}
        given = args["model_options"]["transformer_options"]
        kept = {name: given[name] for name in ("sample_sigmas",) if name in given}
        options["transformer_options"] = {**options["transformer_options"], **kept, RUN: own}
        run.at_end(own.clear)
        if not self.is_shared:
            self.model.pre_run()
            run.at_end(self.model.cleanup)
        return options

    def _conds(self, args: Args) -> list[dict]:
        """The positive as this model takes it. What stands on it for the other one's weights is left out."""
        model, x = self.model.model, args["input"]
        dropped = ("hooks",) if same_shape(model, args["model"]) else ("hooks", "control")
        conds = [{key: value for key, value in cond.items() if key not in dropped} for cond in args["cond"]]
        if type(model) is type(args["model"]):
            return conds
        return comfy.samplers.encode_model_conds(model.extra_conds, conds, x, x.device, "positive")


def same_shape(model: Any, other: Any) -> bool:
    """Whether the residuals of one model's ControlNet fit the other."""
    return all(_said(model, name) == _said(other, name) for name in SHAPE)


def _said(model: Any, name: str) -> Any:
    return model.model_config.unet_config.get(name)


def add_weak_model(model: ModelPatcher, weak: ModelPatcher, scale: float, span: Span) -> ModelPatcher:
    """A clone of `model` that is steered away from what `weak` predicts for the positive."""
    is_shared = model.is_clone(weak) and _same_weights(model, weak)
    if model.is_clone(weak) and not is_shared:
        weak = with_own_network(weak)
    entry = WeakModel(model=weak, is_shared=is_shared, order=next_order(model))

    def add_to_result(args: Args) -> Tensor:
        if args["cond"] is None or not in_span(span, args):
            return args["denoised"]
        return args["denoised"] + scale * (args["cond_denoised"] - entry.predict(args))

    beside = [*weak.model_patches_models(), *weak.get_nested_additional_models()]
    networks = beside if is_shared else [weak, *beside]
    model = load_with(model, *networks) if networks else model.clone()
    append(model, entry)
    add_post_cfg(model, "weak model", add_to_result)
    install_guidance(model)
    install_wrapper(model, WrappersMP.PREPARE_SAMPLING, check_weights, WRAPPER)
    return model


def check_weights(executor: Any, model: ModelPatcher, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING wrapper: ValueError where a network that two models share was changed for one of them."""
    for entry in entries(model.model_options["transformer_options"], WeakModel):
        if entry.is_shared and not _same_weights(model, entry.model):
            raise ValueError(
                "The weak model should have the weights it had at Weak Model Guidance, but a LoRA or another change of "
                "the weights comes after that node. Put it before the node, on the way to model."
            )
    return executor(model, *args, **kwargs)


def _same_weights(model: ModelPatcher, other: ModelPatcher) -> bool:
    """By the patches themselves: a hook on a prompt gives a patcher another uuid, and changes no weight for good."""
    keys = model.patches.keys()
    same = keys == other.patches.keys() and all(_same(model.patches[key], other.patches[key]) for key in keys)
    return same and model.object_patches == other.object_patches


def _same(patches: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(patches) == len(others) and all(a is b for a, b in zip(patches, others, strict=True))


def with_own_network(model: ModelPatcher) -> ModelPatcher:
    """A clone with the same patches on a copy of the network, which lies where the host keeps what is not in use."""
    if getattr(model, "cached_patcher_init", None) is not None:  # newer hosts can read the file again
        load, arguments, *part = model.cached_patcher_init
        found = load(*arguments)
        fresh = found[part[0]] if part else found
        own = model.clone(model_override=fresh.get_clone_model_override())
        own.hook_backup, own.clone_base_uuid = {}, uuid4()
        own.parent = None  # of another network: the host would take it for its owner
        return own
    loaded = comfy.model_management.current_loaded_models
    for i in reversed(range(len(loaded))):  # a network in use has its weights changed in place
        if loaded[i].model is not None and model.is_clone(loaded[i].model):
            loaded.pop(i).model_unload()
    own = model.clone()
    own.parent = None
    kept = (model.model.model_config, getattr(model.model, "current_patcher", None))  # not to be copied
    own.model = deepcopy(model.model, {id(value): value for value in kept})
    for name in ("backup", "backup_buffers", "object_patches_backup", "hook_backup"):
        if hasattr(own, name):
            setattr(own, name, {})
    if hasattr(own, "pinned"):
        own.pinned = set()
    if hasattr(own, "clone_base_uuid"):
        own.clone_base_uuid = uuid4()
    return own
