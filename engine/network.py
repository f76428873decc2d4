"""What the pack does around a call of the host's UNet.

One wrapper notes the conditioning of the call. One puts the chunks in order and adds the rows of partners. One puts the
layers of all methods into the host's slots and lists of patches. Methods add their layers here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .compiled import COMPILER, as_written, compiled_apart, compiler_of, others_act_in
from .dit.around import forward_with_layers, options_with_dit_layers
from .dit.own_texts import with_conds_of_texts
from .dit.text_rows import call_with_text_rows
from .effects import watch
from .entries import KEY, NetworkEntry, Signs, append, install_wrapper, next_order
from .layers.attention import ActingRows, AttentionLayer, Layer
from .layers.call import NETWORK, NetworkCall
from .layers.features import AddedTerm, FeatureLayer, FeatureSite, patches_with_layers
from .layers.others import may_add_rows
from .layers.slots import around_attentions, slots_with_layers
from .layers.texts import patched_texts
from .layers.tokens import token_patches
from .partners import call_with_partners, partners_in
from .rows.apart import APART, each_apart
from .rows.chunk import chunks_of, options_with
from .rows.conds import note_conds
from .rows.groups import GROUPS
from .rows.names import CondLists
from .rows.order import SAMPLING, negatives_first
from .run import RUN, STEP, Step, not_told, run_in, sigma_in, start_run
from .shared_rows import sharing_forward
from .sites import Site
from .span import WHOLE_RUN, Span


class Named(NamedTuple):
    """A layer of a method that should act in each step of its span. `name` is for people.

    A layer that notes itself whether it changes anything gives its `signs`. One that computes with tensors alone
    `is_traceable` by torch.compile.
    """

    name: str
    apply: Layer | AddedTerm
    signs: Signs | None = None
    is_traceable: bool = False


def add_attention_layer(
    model: ModelPatcher, sites: Iterable[Site], layer: Layer | Named, span: Span = WHOLE_RUN, rows: ActingRows = "open",
    depth: int = 0,
) -> ModelPatcher:  # fmt: skip
    """Returns a clone of `model` with one more layer on some attentions.

    At equal depth, the last added layer is the outermost.
    """
    model = model.clone()
    named = layer if isinstance(layer, Named) else None
    apply, signs = (layer, Signs()) if named is None else (named.apply, named.signs or Signs())
    entry = AttentionLayer(
        order=next_order(model), sites=tuple(sites), apply=apply, span=span, rows=rows, depth=depth, signs=signs,
        is_traceable=named is not None and named.is_traceable,
    )  # fmt: skip
    append(model, entry)
    if named is not None and entry.sites:
        watch(model, named.name, span, signs)
    install_layers(model)
    if any(site.kind == "attn2" for site in entry.sites):
        install_wrapper(model, WrappersMP.CALC_COND_BATCH, each_prompt_alone, APART)
    return model


def add_feature_layer(
    model: ModelPatcher, site: FeatureSite, term: AddedTerm | Named, span: Span = WHOLE_RUN
) -> ModelPatcher:  # fmt: skip
    """Returns a clone of `model` with one more term on the features of a site. Terms do not see each other."""
    model = model.clone()
    apply = term.apply if isinstance(term, Named) else term
    entry = FeatureLayer(order=next_order(model), site=site, apply=apply, span=span)
    append(model, entry)
    if isinstance(term, Named):
        watch(model, term.name, span, entry.signs)
    install_layers(model)
    return model


def install_layers(model: ModelPatcher) -> None:
    """Makes a clone of a UNet model put the layers of its list into each call."""
    install_wrapper(model, WrappersMP.OUTER_SAMPLE, start_run)
    for kind, wrapper in WRAPPERS.items():
        install_wrapper(model, kind, wrapper)


def options_of_call(model_options: dict[str, Any], step: Step) -> dict[str, Any]:
    """Returns the options of one call of the model that belongs to `step`.

    Code that samples without preparing the model's options has no wrappers in them. Then they are added.
    """
    options = {**model_options["transformer_options"], STEP: step}
    return {**model_options, "transformer_options": options if RUN in options else with_wrappers(options, WRAPPERS)}


def with_wrappers(transformer_options: dict[str, Any], wrappers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with some of the pack's wrappers, each once."""
    by_kind = dict(transformer_options.get("wrappers", {}))
    for kind, wrapper in wrappers.items():
        by_kind[kind] = {**by_kind.get(kind, {}), KEY: [wrapper]}
    return {**transformer_options, "wrappers": by_kind}


def without_wrapper(options: dict[str, Any], kind: str) -> dict[str, Any]:
    """Returns the options without the pack's wrapper of a kind."""
    by_kind = options.get("wrappers", {})
    if KEY not in by_kind.get(kind, {}):
        return options
    others = {key: wrappers for key, wrappers in by_kind[kind].items() if key != KEY}
    return {**options, "wrappers": {**by_kind, kind: others}}


def each_prompt_alone(
    executor: Any, model: Any, conds: CondLists, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:  # fmt: skip
    """CALC_COND_BATCH wrapper: gives each conditioning its own call if another pack may add rows to text attentions.

    Returns the predictions (b, c, h, w).
    """
    options = model_options.get("transformer_options", {})
    if may_add_rows(options, [*chain.from_iterable(of_list for of_list in conds if of_list)]):
        conds = [of_list if of_list is None else each_apart(of_list) for of_list in conds]
    return executor(model, conds, x, timestep, model_options)


def call_model(executor: Any, *arguments: Any, **conds: Any) -> Tensor:
    """APPLY_MODEL wrapper: puts the chunks in order and adds the rows of partners. Returns the result (b, c, h, w)."""
    if any(isinstance(value, dict) and GROUPS in value for value in arguments):
        return executor(*arguments, **conds)  # a hook has brought the wrapper a second time
    *inputs, options = arguments
    if not any(isinstance(entry, NetworkEntry) for entry in options.get(KEY, ())):
        return negatives_first(executor, *inputs, without_wrapper(options, WrappersMP.DIFFUSION_MODEL), **conds)
    compiler = compiler_of(options, executor.class_obj, run_in(options))
    if compiler is None:
        return negatives_first(_WithPartners(executor), *arguments, **conds)
    with as_written(compiler, options) as options:
        return negatives_first(_WithPartners(executor), *inputs, options, **conds)


@dataclass
class _WithPartners:
    """The host's executor, which adds the rows of partners to each call."""

    executor: Any

    @property
    def class_obj(self) -> Any:
        return self.executor.class_obj

    def __call__(
        self, x: Tensor, t: Tensor, c_concat: Any, c_crossattn: Any, control: Any, options: dict[str, Any], **conds: Any
    ) -> Tensor:  # fmt: skip
        arguments = (x, t, c_concat, c_crossattn, control, options)
        partners = partners_in(options, _span_test(options))
        if not partners:
            network = self.class_obj.diffusion_model
            if not isinstance(getattr(network, "_orig_mod", network), UNetModel):
                return self._call_transformer(arguments, conds)
            return self.executor(*arguments, **conds)
        return call_with_partners(self.executor, partners, options[SAMPLING], *arguments, **conds)

    def _call_transformer(self, arguments: tuple[Any, ...], conds: dict[str, Any]) -> Tensor:
        """Calls the model with the rows of further texts, and with the layers of the call in its options."""
        *inputs, options = arguments
        in_span = _span_test(options)
        options = with_conds_of_texts(options, self.class_obj, inputs[0], in_span)

        def call(x: Tensor, *others: Any, **conds: Any) -> Tensor:
            *inputs, control, options = others
            network = self.class_obj.diffusion_model
            with_layers = options_with_dit_layers(options, network, x, conds, control, in_span)
            return self.executor(x, *inputs, control, with_layers, **conds)

        return call_with_text_rows(call, self.class_obj, (*inputs, options), conds, in_span)


def put_layers(executor: Any, *arguments: Any, **kwargs: Any) -> Tensor:
    """DIFFUSION_MODEL wrapper: puts the layers of this call into it. Returns the network's output (b, c, h, w)."""
    unet = executor.class_obj
    if not isinstance(unet, UNetModel):  # a transformer, whose layers are already in its options
        return forward_with_layers(executor, *arguments, **kwargs)
    *inputs, options = arguments  # x, timesteps, context, y, control
    if NETWORK in options:  # a hook has brought the wrapper a second time
        return executor(*arguments, **kwargs)
    frames = kwargs.get("num_video_frames", unet.default_num_video_frames)
    is_apart = COMPILER in options and not others_act_in(options)
    forward = compiled_apart(executor, unet, options) if is_apart else None
    with_layers = options_with_layers(options, unet, inputs, frames, is_traced=forward is not None)
    if forward is None:
        forward = sharing_forward(executor, unet, with_layers, options, inputs[0], inputs[-1]) or executor
    return forward(*inputs, with_layers, **kwargs)


def options_with_layers(
    options: dict[str, Any], unet: UNetModel, inputs: Sequence[Any], frames: int | None = None, is_traced: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Returns the options of a call of the network in which the layers of the list act.

    The inputs of the call begin with x (b, c, h, w) and timesteps (b,). If torch.compile follows the call, it
    `is_traced`.
    """
    x, timesteps = inputs[:2]
    in_span = _span_test(options)
    # A plain function, for a copy of these options would copy an object that holds the network.
    texts = patched_texts(options, in_span) if "attn2_patch" in options.get("patches", {}) else None
    network = NetworkCall.of(options, lambda path: unet.get_submodule(path), texts, is_traced)
    options = {**options_with(options, chunks_of(options, len(timesteps))), NETWORK: network}
    if texts is not None:
        options["patches"] = texts.lists(options)
    around = around_attentions(options, unet)
    slots = slots_with_layers(options, in_span, frames, around)
    if slots is not None:
        options["patches_replace"] = slots
    patches = patches_with_layers(options, in_span, timesteps)
    if patches is not None:
        options["patches"] = patches
    if around:
        options["patches"] = around.patches(options)
    patches = token_patches(options, unet, x)
    if patches is not None:
        options["patches"] = patches
    return options


def _span_test(options: Mapping[str, Any]) -> Callable[[Span], bool]:
    """Returns a test of whether a span holds in this call. The device is read only if a span needs the noise level."""
    run = run_in(options)

    def in_span(span: Span) -> bool:
        if span == WHOLE_RUN:
            return True
        sampling = options.get(SAMPLING) or not_told(SAMPLING)
        return span.contains(sigma_in(options), run, sampling.percent_to_sigma)

    return in_span


WRAPPERS = {
    WrappersMP.CALC_COND_BATCH: note_conds,
    WrappersMP.APPLY_MODEL: call_model,
    WrappersMP.DIFFUSION_MODEL: put_layers,
}
