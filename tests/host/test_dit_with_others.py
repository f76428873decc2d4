"""Terms on transformers beside the host's own nodes and other packs."""

from __future__ import annotations

import importlib

import comfy.patcher_extension
import pytest
import torch
from reins.tests.helpers.attention_by_hand import OVERRIDE
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like, sample, text
from reins.tests.helpers.transformer_terms import EACH, TERMS, slg, term
from reins.tests.helpers.transformers_by_hand import LAYERS, around_blocks, both_texts, predict

EVERY = pytest.mark.parametrize(("family", "name"), EACH)


def with_override(model, override):
    model = model.clone()
    model.model_options["transformer_options"][OVERRIDE] = override
    return model


def slower(func, q, k, v, heads, *args, **kwargs):
    """Another pack's kernel with the same result."""
    return func(q, k, v, heads, *args, **kwargs)


def shrinking(func, q, k, v, heads, *args, **kwargs):
    """Another pack's attention with another result, for all rows alike."""
    return func(q * 0.7, k, v, heads, *args, **kwargs)


@EVERY
def test_another_override_below_is_kept_exactly(family, name):
    model = MODELS[family]()
    plain = sample(family, term(name, family, model))
    assert torch.equal(sample(family, term(name, family, with_override(model, slower))), plain)
    assert torch.equal(sample(family, with_override(term(name, family, model), slower)), plain)


@pytest.mark.parametrize("name", ["slg", "tpg"])
@pytest.mark.parametrize("family", ["flux", "lumina", "wan"])
def test_another_attention_acts_below_layers_of_blocks(family, name):
    model = MODELS[family]()
    forth = sample(family, term(name, family, with_override(model, shrinking)))
    assert torch.equal(sample(family, with_override(term(name, family, model), shrinking)), forth)
    apart = term(name, family, pass_through(with_override(model, shrinking)))
    assert nearly(sample(family, apart), forth, 1e-4)
    assert not nearly(sample(family, term(name, family, model)), forth, 1e-3)


@EVERY
def test_an_override_above_that_hands_on_is_exact(family, name):
    """A pack that puts its function around the one that it finds in the options of a call."""
    model = MODELS[family]()
    calls = []

    def around(executor, *args, **kwargs):
        options = next(value for value in [*args, *kwargs.values()] if isinstance(value, dict) and "uuids" in value)
        inner = options.get(OVERRIDE)

        def outer(func, *rest, **named):
            calls.append(1)
            return func(*rest, **named) if inner is None else inner(func, *rest, **named)

        options[OVERRIDE] = outer
        return executor(*args, **kwargs)

    steered = term(name, family, model)
    wrapped = steered.clone()
    wrapped.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "another pack", around)
    assert nearly(sample(family, wrapped), sample(family, steered), 1e-4)
    assert calls or family == "sd3"  # whose forward calls no such wrappers


@pytest.mark.parametrize("family", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("name", ["pag", "seg", "slg"])
def test_the_hosts_own_skip_layer_guidance_adds_up_in_either_order(family, name):
    node = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiT
    model = MODELS[family]()

    def hosts(model):
        made = getattr(node, "execute", None) or node().skip_guidance
        out = made(model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="0", single_layers="")
        return out.result[0] if hasattr(out, "result") else out[0]

    plain, ours, theirs, forth, back = (
        sample(family, one, steps=1)
        for one in (
            model, term(name, family, model), hosts(model), hosts(term(name, family, model)),
            term(name, family, hosts(model)),
        )
    )  # fmt: skip
    assert not nearly(theirs, plain, 1e-3)
    assert nearly(forth, ours + theirs - plain, 1e-4)
    assert nearly(back, forth, 1e-4)


@EVERY
def test_a_cache_of_the_host_keeps_terms(family, name):
    """EasyCache answers some steps of a run. With a threshold of 0 it answers none."""
    module = pytest.importorskip("comfy_extras.nodes_easycache")
    model = MODELS[family]()
    if family == "sd3":
        pytest.skip("its forward calls no wrappers, so that the host's cache fails without the pack too")

    def cached(model, threshold):
        return module.EasyCacheNode.execute(model, threshold, 0.0, 1.0, False).result[0]

    steered = term(name, family, model)
    expected = sample(family, steered, steps=6)
    for never in (cached(steered, 0.0), term(name, family, cached(model, 0.0))):
        assert nearly(sample(family, never, steps=6), expected, 1e-4)
    with forwards(model) as rows:
        found = sample(family, cached(steered, 3.0), steps=6)
    assert found.isfinite().all()
    assert set(rows) == {3}


@pytest.mark.parametrize("name", ["pag", "seg", "slg"])
@pytest.mark.parametrize(("family", "place"), [("flux", "input"), ("flux", "output"), ("sd3", "output")])
def test_residuals_of_a_control_net_reach_all_rows(family, place, name):
    """A control net for both prompts that adds to the tokens of the picture behind each block."""
    model = MODELS[family]()
    wide = {"flux": 32, "sd3": 128}[family]
    residual = 0.5 * torch.randn((1, 24, wide), generator=torch.Generator().manual_seed(5))

    def controlled(model):
        def send(apply_model, args):
            rows = len(args["input"])
            control = {"input": [], "output": [], place: [residual.expand(rows, -1, -1).clone()] * 2}
            return apply_model(args["input"], args["timestep"], **{**args["c"], "control": control})

        clone = model.clone()
        clone.set_model_unet_function_wrapper(send)
        return clone

    found = sample(family, controlled(term(name, family, model)))
    apart = sample(family, controlled(term(name, family, pass_through(model))))
    assert nearly(found, apart, 1e-4)
    assert nearly(sample(family, term(name, family, controlled(model))), found, 1e-5)
    assert not nearly(found, sample(family, term(name, family, model)), 1e-3)


@EVERY
def test_patched_weights_are_those_of_the_layers(family, name):
    """A LoRA is a patch of weights: the same as another network with these weights."""
    model, block = MODELS[family](), LAYERS[family][1][0]
    key = next(
        key for key, weight in model.model.state_dict().items()
        if block in key and key.endswith("weight") and weight.ndim == 2
    )  # fmt: skip
    change = 0.3 * torch.randn(model.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(4))
    patched = model.clone()
    patched.add_patches({key: (change,)}, 1.0)
    found = sample(family, term(name, family, patched))
    other = MODELS[family]()
    with torch.no_grad():
        dict(other.model.named_parameters())[key].add_(change)
    assert nearly(found, sample(family, term(name, family, other)), 1e-5)
    assert not nearly(found, sample(family, term(name, family, model)), 1e-3)


@pytest.mark.parametrize("name", ["pag", "tpg"])
def test_a_compiled_flux_gives_the_same(name):
    """By torch's backend that compiles nothing: the code that torch makes of the forward is run as it is."""
    counts = []

    def backend(graph, inputs):
        counts.append(1)
        return graph.forward

    torch._dynamo.reset()
    model = MODELS["flux"]()
    plain = sample("flux", term(name, "flux", model), steps=2)
    compiled = term(name, "flux", model)
    compiled.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend)
    )
    assert nearly(sample("flux", compiled, steps=2), plain, 1e-6)
    after_two = len(counts)
    assert after_two
    assert nearly(sample("flux", compiled, steps=5), sample("flux", term(name, "flux", model), steps=5), 1e-6)
    assert len(counts) == after_two
    torch._dynamo.reset()


@pytest.mark.parametrize("name", TERMS)
def test_the_hosts_nag_keeps_its_effect_on_flux(name):
    module = pytest.importorskip("comfy_extras.nodes_nag")
    model = MODELS["flux"]()
    with_nag = module.NAGuidance.execute(model, 5.0, 0.5, 1.5).result[0]
    alone = sample("flux", with_nag, steps=1)
    if torch.equal(alone, sample("flux", model, steps=1)):
        pytest.skip("this ComfyUI has no such guidance on Flux")
    found, apart = (sample("flux", term(name, "flux", one), steps=1) for one in (with_nag, pass_through(with_nag)))
    assert nearly(found, apart, 1e-4)
    assert not nearly(found, sample("flux", term(name, "flux", model), steps=1), 1e-3)


def test_another_pack_that_replaces_the_forward_of_a_network_without_slots_is_named():
    model = MODELS["lumina"]()
    network = model.model.diffusion_model
    forward = network._forward
    network._forward = lambda *args, **kwargs: forward(*args, **kwargs)
    steered = TERMS["slg"](model, layers="b1")
    with pytest.raises(RuntimeError, match=r"inside the forward of Lumina2 and Z-Image, but another pack has replaced"):
        sample("lumina", steered)
    del network._forward
    assert sample("lumina", steered).isfinite().all()


def test_a_slot_of_another_pack_on_a_skipped_block_is_skipped_too():
    """It changes what its block makes. The prediction without the block has no part of it."""
    model = MODELS["qwen"]()

    def double(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": 1.3 * out["img"]}

    other = model.clone()
    other.set_model_patch_replace(double, "dit", "double_block", 1)
    x, (positive, negative) = noise_like(latent("qwen")), both_texts("qwen")
    found = predict("qwen", slg(other, layers="b1", scale=2.0), x, positive, 4.0, negative=negative)
    a, b = (predict("qwen", other, x, of) for of in (positive, negative))
    given = {}
    with around_blocks(
        model, ["transformer_blocks.1"],
        lambda name, args, kwargs: given.update(kwargs),
        lambda name, out: (given["encoder_hidden_states"], given["hidden_states"]),
    ):  # fmt: skip
        c = predict("qwen", model, x, text(1, family="qwen"))
    assert nearly(found, b + 4.0 * (a - b) + 2.0 * (a - c), 2e-5)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("family", ["sd3", "flux", "qwen", "wan"])
def test_a_slot_of_another_pack_may_run_its_block_twice(family, name):
    """It runs the block once to look, and once more for its result."""
    if (family, name) == ("sd3", "tpg"):
        pytest.skip("SD3 has no positions in attention")
    model, number = MODELS[family](), int(LAYERS[family][1][0][-1])

    def look(args, extra):
        extra["original_block"](
            {key: value.clone() if torch.is_tensor(value) else value for key, value in args.items()}
        )
        return extra["original_block"](args)

    other = model.clone()
    other.set_model_patch_replace(look, "dit", "double_block", number)
    expected = sample(family, term(name, family, model))
    assert nearly(sample(family, term(name, family, other)), expected, 1e-5)
    assert not nearly(expected, sample(family, model), 1e-3)


def guides(strength):
    """Conds of LTX-Video by which the last frame of four is one to be followed, with a strength."""
    entry = {"pre_filter_count": 96, "strength": strength, "pixel_mask": None, "latent_shape": (1, 8, 12)}
    ends = [2] if getattr(MODELS["ltxv"]().model.diffusion_model.patchifier, "start_end", False) else []
    return {"keyframe_idxs": torch.zeros((1, 3, 96, *ends)), "concat_mask": torch.ones((1, 1, 4, 8, 12)),
            "guide_attention_entries": [entry]}  # fmt: skip


def test_guides_of_some_strength_pass_skipped_blocks():
    """The host gives blocks an object that has no rows, and blocks of LTX-Video add to their input in place."""
    model, x = MODELS["ltxv"](), noise_like(latent("ltxv", frames=4))
    positive, negative = both_texts("ltxv", **guides(0.5))
    found, apart = (
        predict("ltxv", slg(one, layers="b1"), x, positive, 4.0, negative=negative)
        for one in (model, pass_through(model))
    )
    assert nearly(found, apart, 1e-5)
    assert not nearly(found, predict("ltxv", model, x, positive, 4.0, negative=negative), 1e-3)


@pytest.mark.parametrize("name", ["pag", "seg"])
def test_guides_of_some_strength_are_refused_by_layers_of_attention(name):
    module = importlib.import_module("comfy.ldm.lightricks.model")
    if not hasattr(module, "GuideAttentionMask"):
        pytest.skip("this ComfyUI has no strength of guides")
    model, x = MODELS["ltxv"](), noise_like(latent("ltxv", frames=4))
    positive, negative = both_texts("ltxv", **guides(0.5))
    with pytest.raises(RuntimeError, match=r"should have all its tokens at once, but a guide with a strength other"):
        predict("ltxv", term(name, "ltxv", model), x, positive, 4.0, negative=negative)
    positive, negative = both_texts("ltxv", **guides(1.0))
    found = predict("ltxv", term(name, "ltxv", model), x, positive, 4.0, negative=negative)
    assert not nearly(found, predict("ltxv", model, x, positive, 4.0, negative=negative), 1e-3)
