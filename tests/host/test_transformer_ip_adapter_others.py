"""An IP-Adapter on a transformer beside the host's own nodes and other packs."""

from __future__ import annotations

import importlib

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from reins.tests.helpers.attention_by_hand import OVERRIDE
from reins.tests.helpers.other_packs import regrouped
from reins.tests.helpers.steered_transformers import (
    FORMS,
    MAIN,
    NOTHING,
    apply,
    begun,
    by_formula,
    file_of,
    read,
)
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import latent, noise_like, sample, text
from reins.tests.helpers.transformers_by_hand import both_texts, predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)
ON_FLUX = pytest.mark.parametrize("form", ["xlabs", "instantx"])


def with_override(model, override):
    model = model.clone()
    model.model_options["transformer_options"][OVERRIDE] = override
    return model


def shrinking(func, q, k, v, heads, *args, **kwargs):
    """Another pack's attention with another result, for all rows alike."""
    return func(q * 0.7, k, v, heads, *args, **kwargs)


@EACH
def test_another_attention_acts_below_the_adapter(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    expected = by_formula(form, with_override(model, shrinking), x, positive)
    for steered in (apply(form, with_override(model, shrinking)), with_override(apply(form, model), shrinking)):
        assert nearly(predict(family, steered, x, positive), expected, 1e-5)


@EACH
def test_an_override_above_that_hands_on_is_exact(form):
    """A pack that puts its function around the one that it finds in the options of a call."""
    family, model, x = begun(form)

    def around(executor, *args, **kwargs):
        options = next(value for value in [*args, *kwargs.values()] if isinstance(value, dict) and "uuids" in value)
        inner = options.get(OVERRIDE)

        def outer(func, *rest, **named):
            return func(*rest, **named) if inner is None else inner(func, *rest, **named)

        options[OVERRIDE] = outer
        return executor(*args, **kwargs)

    wrapped = apply(form, model)
    wrapped.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "another pack", around)
    positive = text(1, family=family)
    assert nearly(predict(family, wrapped, x, positive), by_formula(form, model, x, positive), 1e-5)


def in_slot(model, function, number=1, kind="double_block"):
    model = model.clone()
    model.set_model_patch_replace(function, "dit", kind, number)
    return model


def doubling(args, extra):
    """A pack that changes what a block makes."""
    out = extra["original_block"](args)
    return {**out, "img": 1.3 * out["img"]}


def twice(args, extra):
    """A pack that runs a block twice."""
    first = extra["original_block"]({**args, "img": args["img"].clone(), "txt": args["txt"].clone()})
    out = extra["original_block"](args)
    return {**out, "img": (first["img"] + out["img"]) / 2}


def quieter(args, extra):
    """A pack that gives a block less of the picture, and what it left out behind it."""
    rest = 0.3 * args["img"]
    out = extra["original_block"]({**args, "img": args["img"] - rest})
    return {**out, "img": out["img"] + rest}


def skipping(args, extra):
    """A pack that leaves a block out."""
    return {"img": args["img"], "txt": args["txt"]}


SLOTS = {"doubling": doubling, "twice": twice, "quieter": quieter, "skipping": skipping}


@EACH
@pytest.mark.parametrize("name", SLOTS)
def test_a_function_in_the_slot_of_a_block_is_around_the_term(form, name):
    family, model, x = begun(form)
    positive = text(1, family=family)
    expected = by_formula(form, in_slot(model, SLOTS[name]), x, positive)
    for steered in (apply(form, in_slot(model, SLOTS[name])), in_slot(apply(form, model), SLOTS[name])):
        assert nearly(predict(family, steered, x, positive), expected, 1e-5)


@ON_FLUX
def test_a_function_in_the_slot_of_a_single_block_is_around_the_term(form):
    family, model, x = begun(form)
    positive, other = text(1, family=family), in_slot(model, doubling, 1, "single_block")
    assert nearly(predict(family, apply(form, other), x, positive), by_formula(form, other, x, positive), 1e-5)


@ON_FLUX
def test_the_term_reads_queries_before_positions_that_another_pack_changes(form):
    family, model, x = begun(form)
    other, positive = model.clone(), text(1, family=family)
    other.set_model_patch(lambda q, k, v, pe, **kwargs: {"pe": pe.flip(2)}, "attn1_patch")
    if torch.equal(predict(family, other, x, positive), predict(family, model, x, positive)):
        pytest.skip("this ComfyUI has no such patches")
    expected = by_formula(form, other, x, positive)
    for steered in (apply(form, other), apply(form, model)):
        if steered.model_options["transformer_options"].get("patches", {}).get("attn1_patch") is None:
            steered.set_model_patch(lambda q, k, v, pe, **kwargs: {"pe": pe.flip(2)}, "attn1_patch")
        assert nearly(predict(family, steered, x, positive), expected, 1e-5)


@OF_MAIN
def test_the_hosts_own_skip_layer_guidance_adds_up_in_either_order(form):
    node = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiT
    family, model, x = begun(form)
    positive, negative = both_texts(family)

    def hosts(model):
        made = getattr(node, "execute", None) or node().skip_guidance
        out = made(model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="0", single_layers="")
        return out.result[0] if hasattr(out, "result") else out[0]

    a = by_formula(form, model, x, positive)
    b = by_formula(form, model, x, negative, NOTHING)

    def skip(args, extra):
        return args

    c = by_formula(form, in_slot(model, skip, 0), x, positive)
    expected = b + 4.0 * (a - b) + 2.0 * (a - c)
    for steered in (hosts(apply(form, model)), apply(form, hosts(model))):
        assert nearly(predict(family, steered, x, positive, 4.0, negative=negative), expected, 2e-5)


@ON_FLUX
def test_a_cache_of_the_host_keeps_the_adapter(form):
    module = pytest.importorskip("comfy_extras.nodes_easycache")
    family, model, _ = begun(form)

    def cached(model, threshold):
        return module.EasyCacheNode.execute(model, threshold, 0.0, 1.0, False).result[0]

    expected = sample(family, apply(form, model), steps=6)
    for never in (cached(apply(form, model), 0.0), apply(form, cached(model, 0.0))):
        assert nearly(sample(family, never, steps=6), expected, 1e-5)
    assert sample(family, cached(apply(form, model), 3.0), steps=6).isfinite().all()


@OF_MAIN
@pytest.mark.parametrize("place", ["input", "output"])
def test_residuals_of_a_control_net_come_behind_the_term(form, place):
    family, model, x = begun(form)
    wide = {"flux": 32, "sd3": 128}[family]
    residual = 0.5 * torch.randn((1, 24, wide), generator=torch.Generator().manual_seed(5))

    def send(apply_model, args):
        rows = len(args["input"])
        control = {"input": [], "output": [], place: [residual.expand(rows, -1, -1).clone()] * 2}
        return apply_model(args["input"], args["timestep"], **{**args["c"], "control": control})

    positive, other = text(1, family=family), regrouped(model, send)
    found = predict(family, apply(form, other), x, positive)
    assert nearly(found, by_formula(form, other, x, positive), 1e-5)


@EACH
def test_a_lora_changes_what_the_term_reads(form):
    """On projections and on norms of queries and keys, which SD3's term undoes."""
    family, model, x = begun(form)
    generator, changes = torch.Generator().manual_seed(4), {}
    for key, weight in model.model.state_dict().items():
        if "attn" in key and ("qkv.weight" in key or "ln_q" in key or "ln_k" in key or "norm.query" in key):
            changes[key] = (0.3 * torch.randn(weight.shape, generator=generator) / max(1, weight.ndim * 4),)
    patched = model.clone()
    patched.add_patches(changes, 1.0)
    positive = text(1, family=family)
    expected = by_formula(form, patched, x, positive)
    for steered in (apply(form, patched), (late := apply(form, model))):
        if steered is late:
            late.add_patches(changes, 1.0)
        assert nearly(predict(family, steered, x, positive), expected, 1e-5)
    assert not nearly(expected, by_formula(form, model, x, positive), 1e-3)


@pytest.mark.parametrize("form", ["sd3", "sd35m", "xlabs"])
def test_a_lora_of_a_hook_on_one_prompt_changes_its_norms_alone(form):
    family, model, x = begun(form)
    keys = [key for key in model.model.state_dict() if "x_block.attn" in key and ".ln_q.weight" in key]
    keys = keys or [key for key in model.model.state_dict() if "img_attn.qkv.weight" in key]
    generator = torch.Generator().manual_seed(4)
    changes = {key: (0.2 * torch.randn(model.model.state_dict()[key].shape, generator=generator),) for key in keys}
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights = changes
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    positive, negative = text(1, family=family, hooks=group), text(2, family=family)
    found = predict(family, apply(form, model), x, positive, 4.0, negative=negative)
    patched = model.clone()
    patched.add_patches(changes, 1.0)
    a = by_formula(form, patched, x, text(1, family=family))
    b = by_formula(form, model, x, negative, NOTHING)
    assert nearly(found, b + 4.0 * (a - b), 2e-5)
    assert not nearly(a, by_formula(form, model, x, text(1, family=family)), 1e-3)


@ON_FLUX
@pytest.mark.parametrize("method", ["offset", "index", "uxo"])
def test_reference_latents_get_no_term(form, method):
    family, model, x = begun(form)
    latents = [noise_like(latent(family, 4, 6), 3), noise_like(latent(family, 6, 4), 5)]
    settings = {"reference_latents": latents, "reference_latents_method": method}
    positive = text(1, family=family, **settings)
    found = predict(family, apply(form, model), x, positive)
    weights = torch.cat([torch.ones(24, 1), torch.zeros(12, 1)])
    with FORMS[form].added(
        model, file_of(form), read(form, 4), weights,
        **({"in_singles": torch.cat([torch.ones(5, 1), weights])} if form == "instantx" else {}),
    ):  # fmt: skip
        expected = predict(family, model, x, positive)
    assert nearly(found, expected, 1e-5)
    assert not nearly(found, predict(family, model, x, positive), 1e-3)
