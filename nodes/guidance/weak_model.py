"""AutoGuidance (2406.02507): steers away from what a weaker model predicts for the same prompt and noisy latent.

The host loads the weak model beside the model and calls it with its own options, so that its LoRA, adapters and
quantisation count. If both are patchers of one network, they cannot both be loaded, so the weak one gets a copy of it.
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
from comfy.model_sampling import CONST
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor, nn

from ...engine.effects import watch
from ...engine.entries import Entry, append, entries, install_wrapper, next_order
from ...engine.guidance import install_guidance
from ...engine.hold import check_refresh, held
from ...engine.layers.others import treat_chunks_apart
from ...engine.loading import load_with
from ...engine.run import STEP, Run, Step, options_in_run, run_of
from ...engine.scope import Args, add_post_cfg
from ...engine.span import Span
from ...engine.step import current_step, in_span, plain_predictions
from ..inputs.schema import make_input, model_input, model_output, percent_inputs, refresh_input, scale_input, schema

WRAPPER = "reins_weak_model"
SAMPLED_AT = (0.0, 0.1, 0.5, 0.9)  # percents at which two schedules are compared
# Where the host's settings of a network say how wide the text is that it reads
TEXT_WIDTHS = (
    "context_dim", "context_in_dim", "joint_attention_dim", "text_dim", "cap_feat_dim", "caption_channels",
    "cond_seq_dim", "crossattn_emb_channels",
)  # fmt: skip
RESIDUAL_SETTINGS = ("model_channels", "channel_mult", "num_res_blocks")  # they decide which residuals fit a UNet


class WeakModelGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_WeakModelGuidance",
            display_name="AutoGuidance – Weak Model Guidance",
            category="reins/guidance",
            description="Steers away from what a weaker model makes of the same prompt: a smaller or less trained one, "
            "or the same without a LoRA or quantised (AutoGuidance). One evaluation of the weak model per step.",
            search_aliases=["autoguidance", "weak model guidance", "bad version of itself", "guidance"],
            inputs=[
                model_input(),
                make_input(
                    io.Model, "weak_model",
                    tooltip="The weaker model, for the same kind of latents, with its own LoRA and patches.",
                ),
                scale_input(2.0), *percent_inputs(), refresh_input(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, weak_model: ModelPatcher, scale: float, start_percent: float, end_percent: float,
        refresh: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        _check_same_kind(model, weak_model)
        if scale == 0:
            return io.NodeOutput(model)
        return io.NodeOutput(add_weak_model(model, weak_model, scale, Span(start_percent, end_percent), refresh))


@dataclass(frozen=True, eq=False, kw_only=True)
class WeakModel(Entry):
    """Another model of the same latents.

    `is_shared` tells whether it is a patcher of the same network, and `is_sampled_alike` whether both models had the
    same sampling when the node ran.
    """

    model: ModelPatcher
    is_shared: bool
    is_sampled_alike: bool

    def predict(self, args: Args) -> Tensor:
        """Returns its prediction (b, c, h, w) for the positive.

        The negative is in the call if other packs on the weak model may act on a positive beside it alone.
        """
        run, step = run_of(args["model_options"]), current_step(args)
        options = run.once((self, "options"), lambda: self._prepared(args, run))
        lists = [args["cond"]]
        if treat_chunks_apart(options["transformer_options"], args["cond"], self.model.model.diffusion_model):
            lists.append(step.uncond)
        key = (self, "conds", tuple(cond["uuid"] for of_list in lists for cond in of_list or ()))
        conds = run.once(key, lambda: [of_list and self._conds(args, of_list) for of_list in lists])
        now = Step(x=args["input"], timestep=args["sigma"], sigma=step.sigma)
        options = {**options, "transformer_options": {**options["transformer_options"], STEP: now}}
        return comfy.samplers.calc_cond_batch(self.model.model, conds, args["input"], args["sigma"], options)[0]

    def _prepared(self, args: Args, run: Run) -> Args:
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(self.model, {}, options)
        own = copy(run)  # the same sampling run with separate caches, because the weights differ
        own.forget()
        own.names = {cond["uuid"]: "positive" for cond in args["cond"]}
        given = args["model_options"]["transformer_options"]
        options["transformer_options"] = options_in_run(options["transformer_options"], given, own)
        run.at_end(own.clear)
        if not self.is_shared:
            self.model.pre_run()
            run.at_end(self.model.cleanup)
        return options

    def _conds(self, args: Args, of_list: list[dict]) -> list[dict]:
        """Returns conds as this model takes them. Drops hooks and ControlNets that belong to the other model."""
        model, x = self.model.model, args["input"]
        dropped = ("hooks",) if same_shape(model, args["model"]) else ("hooks", "control")
        conds = [{key: value for key, value in cond.items() if key not in dropped} for cond in of_list]
        if type(model) is type(args["model"]):
            return conds
        return comfy.samplers.encode_model_conds(model.extra_conds, conds, x, x.device, "positive")


def same_shape(model: Any, other: Any) -> bool:
    """Returns whether the residuals of one model's ControlNet fit the other."""
    return all(_unet_setting(model, name) == _unet_setting(other, name) for name in RESIDUAL_SETTINGS)


def _unet_setting(model: Any, name: str) -> Any:
    return model.model_config.unet_config.get(name)


def add_weak_model(
    model: ModelPatcher, weak: ModelPatcher, scale: float, span: Span, refresh: int = 1
) -> ModelPatcher:  # fmt: skip
    """Returns a clone of `model` that is steered away from what `weak` predicts for the positive.

    The difference is asked for in every `refresh` steps and held between. Raises ValueError if that is no number of
    steps.
    """
    check_refresh(refresh)
    is_shared = model.is_clone(weak) and _same_weights(model, weak)
    if model.is_clone(weak) and not is_shared:
        weak = with_own_network(weak)
    alike = _same_sampling(model, weak)
    entry = WeakModel(model=weak, is_shared=is_shared, is_sampled_alike=alike, order=next_order(model))

    def difference(args: Args) -> Tensor:
        return plain_predictions(args).positive - entry.predict(args)

    def add_to_result(args: Args) -> Tensor:
        if args["cond"] is None or not in_span(span, args):
            return args["denoised"]
        change = held(args, entry.id, args["cond"], refresh, lambda: difference(args))
        return args["denoised"] + scale * change

    additional = [*weak.model_patches_models(), *weak.get_nested_additional_models()]
    networks = additional if is_shared else [weak, *additional]
    model = load_with(model, *networks) if networks else model.clone()
    append(model, entry)
    add_post_cfg(model, "weak model", add_to_result, watch(model, "Weak Model Guidance", span))
    install_guidance(model)
    install_wrapper(model, WrappersMP.PREPARE_SAMPLING, check_models, WRAPPER)
    return model


def check_models(executor: Any, model: ModelPatcher, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING wrapper: checks again what nodes after Weak Model Guidance may have changed on the model alone.

    Raises ValueError if the two models differ in kind, in sampling, or in the weights of a network that they share.
    """
    for entry in entries(model.model_options["transformer_options"], WeakModel):
        _check_same_kind(model, entry.model)
        if entry.is_sampled_alike and not _same_sampling(model, entry.model):
            raise ValueError(
                "The weak model should be sampled as the model is, but a node after Weak Model Guidance changes the "
                "sampling of the model alone (ModelSamplingDiscrete and the like). Put it before that node, on both "
                "models."
            )
        if entry.is_shared and not _same_weights(model, entry.model):
            raise ValueError(
                "The weak model should have the weights it had at Weak Model Guidance, but a LoRA or another change of "
                "the weights comes after that node. Put it before the node, on the way to model."
            )
    return executor(model, *args, **kwargs)


def _same_sampling(model: ModelPatcher, other: ModelPatcher) -> bool:
    """Returns whether two models predict the same kind of thing at the same noise levels."""
    samplings = [patcher.get_model_object("model_sampling") for patcher in (model, other)]
    kinds = [[base.__name__ for base in type(sampling).__mro__[1:]] for sampling in samplings]
    levels = [
        [float(sampling.percent_to_sigma(percent)) for percent in SAMPLED_AT] for sampling in samplings
    ]  # fmt: skip
    return kinds[0] == kinds[1] and levels[0] == levels[1]


def _same_weights(model: ModelPatcher, other: ModelPatcher) -> bool:
    """Returns whether two patchers have the same patches.

    The uuids of patchers do not show it: a hook on a prompt changes the uuid, but no weight for good.
    """
    keys = model.patches.keys()
    same = keys == other.patches.keys() and all(_same_patches(model.patches[key], other.patches[key]) for key in keys)
    return same and model.object_patches == other.object_patches


def _same_patches(patches: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(patches) == len(others) and all(a is b for a, b in zip(patches, others, strict=True))


def with_own_network(model: ModelPatcher) -> ModelPatcher:
    """Returns a clone with the same patches on a copy of the network, which is on the host's offload device."""
    if getattr(model, "cached_patcher_init", None) is not None:  # newer hosts can read the file again
        load, arguments, *part = model.cached_patcher_init
        loaded = load(*arguments)
        fresh = loaded[part[0]] if part else loaded
        own = model.clone(model_override=fresh.get_clone_model_override())
        own.hook_backup, own.clone_base_uuid = {}, uuid4()
        own.parent = None  # the parent is a patcher of another network, but the host would take it for the owner
        return own
    loaded = comfy.model_management.current_loaded_models
    for i in reversed(range(len(loaded))):  # in a network in use the weights are changed in place
        if loaded[i].model is not None and model.is_clone(loaded[i].model):
            loaded.pop(i).model_unload()
    own = model.clone()
    own.parent = None
    own.model = _copied(model.model)
    for name in ("backup", "backup_buffers", "object_patches_backup", "hook_backup"):
        if hasattr(own, name):
            setattr(own, name, {})
    if hasattr(own, "pinned"):
        own.pinned = set()
    if hasattr(own, "clone_base_uuid"):
        own.clone_base_uuid = uuid4()
    return own


def _copied(network: nn.Module) -> nn.Module:
    not_copied = (network.model_config, getattr(network, "current_patcher", None))
    known = {id(value): value for value in not_copied}
    for weight in network.parameters():
        # A quantised tensor of the host is made of others. deepcopy would ask for a storage that it does not have.
        if hasattr(weight, "__tensor_flatten__"):
            known[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return deepcopy(network, known)


def _check_same_kind(model: ModelPatcher, weak: ModelPatcher) -> None:
    """Raises ValueError if the two models differ in latents, noise or text."""
    weak_format, model_format = (type(patcher.model.latent_format).__name__ for patcher in (weak, model))
    if weak_format != model_format:
        raise ValueError(
            f"weak_model should take the same latents as model ({model_format}), but takes {weak_format}. Choose a "
            f"weaker model of the same family."
        )
    flows = [isinstance(patcher.get_model_object("model_sampling"), CONST) for patcher in (weak, model)]
    if flows[0] != flows[1]:
        raise ValueError(
            "weak_model and model should be noised in the same way, but one is a flow model and the other is not. "
            "Choose a weaker model of the same family."
        )
    channels = [patcher.model.model_config.unet_config.get("in_channels") for patcher in (weak, model)]
    if channels[0] != channels[1]:
        raise ValueError(
            f"weak_model should take {channels[1]} channels, as model does, but takes {channels[0]}: one of the two is "
            f"for inpainting. Choose a weaker model of the same kind."
        )
    widths = [_text_width(patcher.model.model_config.unet_config) for patcher in (weak, model)]
    if None not in widths and widths[0] != widths[1]:
        raise ValueError(
            f"weak_model should read a text of {widths[1]} numbers per token, as model does, but reads {widths[0]}. "
            f"Choose a weaker model of the same family."
        )


def _text_width(config: dict) -> int | list[int] | None:
    """Returns how many numbers per token the text of a network has. None if its settings do not tell."""
    if "context_embedder_config" in config:  # SD3
        return config["context_embedder_config"]["params"]["in_features"]
    return next((config[name] for name in TEXT_WIDTHS if config.get(name) is not None), None)
