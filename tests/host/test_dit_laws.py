"""What holds for every term on transformers, alone and in pairs."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import comfy.hooks
import comfy.model_management
import pytest
import torch
from reins.tests.helpers.other_packs import one_by_one, pass_through, regrouped
from reins.tests.helpers.tiny_models import forwards, little_memory, nearly
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like, sample, text
from reins.tests.helpers.transformer_terms import EACH, FAMILIES, TERMS, term

PAIRS = [
    (family, pair)
    for family in FAMILIES
    for pair in itertools.combinations(TERMS, 2)
    if family != "sd3" or "tpg" not in pair
]
EVERY = pytest.mark.parametrize(("family", "name"), EACH)


def areas(family, seed):
    """Two conds: one for the left part, one for the rest."""
    left, right = ((3, 8, 6, 0, 0, 0), (3, 8, 8, 0, 0, 4)) if family == "wan" else ((8, 6, 0, 0), (8, 8, 0, 4))
    return text(seed, family=family, area=left) + text(seed + 10, family=family, area=right, strength=0.6)


@EVERY
@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_a_term_of_scale_0_changes_no_bit(family, name, cfg):
    model = MODELS[family]()
    assert torch.equal(sample(family, term(name, family, model, scale=0.0), cfg), sample(family, model, cfg))


@EVERY
def test_a_term_outside_of_its_span_changes_no_bit(family, name):
    model = MODELS[family]()
    steered = term(name, family, model, start=0.9, end=0.91)
    with forwards(model) as rows:
        assert torch.equal(sample(family, steered, steps=3), sample(family, model, steps=3))
    assert set(rows) == {2}


@EVERY
def test_a_term_acts_in_its_span_alone(family, name):
    model = MODELS[family]()
    with forwards(model) as rows:
        sample(family, term(name, family, model, start=0.0, end=0.3), steps=4)
    assert rows[0] == 3 and rows[-1] == 2


@EVERY
@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_a_batch_of_two_is_two_of_one(family, name, cfg):
    steered, start = term(name, family, MODELS[family]()), noise_like(latent(family, batch=2))
    both = sample(family, steered, cfg, batch=2, start=start)
    for row in range(2):
        if name != "tpg" or row == 0:
            alone = sample(family, steered, cfg, start=start[row : row + 1])
            assert nearly(both[row : row + 1], alone, 1e-4)


@pytest.mark.parametrize(("family", "pair"), PAIRS)
def test_the_order_of_two_terms_is_without_effect(family, pair):
    model = MODELS[family]()
    first, second = pair
    forth = sample(family, term(second, family, term(first, family, model)))
    back = sample(family, term(first, family, term(second, family, model)))
    assert nearly(forth, back, 1e-4)
    assert not nearly(forth, sample(family, term(first, family, model)), 1e-3)


@pytest.mark.parametrize(("family", "pair"), PAIRS)
def test_two_terms_are_the_sum_of_their_effects(family, pair):
    """In one step."""
    model = MODELS[family]()
    a, b = (term(name, family, model) for name in pair)
    both = term(pair[1], family, a)
    plain, of_a, of_b, of_both = (sample(family, one, steps=1) for one in (model, a, b, both))
    assert nearly(of_both, of_a + of_b - plain, 5e-5)


@EVERY
def test_a_term_twice_acts_twice(family, name):
    model = MODELS[family]()
    once = term(name, family, model)
    plain, of_once, of_twice = (sample(family, one, steps=1) for one in (model, once, term(name, family, once)))
    assert nearly(of_twice - plain, 2 * (of_once - plain), 1e-4)


@EVERY
def test_split_batches_give_the_same(family, name, monkeypatch):
    model = MODELS[family]()
    steered = term(name, family, model)
    whole = sample(family, steered)
    with little_memory(monkeypatch, model), forwards(model) as rows:
        split = sample(family, steered)
    assert set(rows) == {1}
    assert nearly(split, whole, 1e-4)


@EVERY
def test_calls_of_their_own_give_the_same(family, name):
    model = MODELS[family]()
    assert nearly(
        sample(family, term(name, family, pass_through(model))), sample(family, term(name, family, model)), 1e-4
    )


@EVERY
def test_a_pack_that_sends_chunks_one_by_one_changes_nothing(family, name):
    model = MODELS[family]()
    alone = sample(family, term(name, family, regrouped(model, one_by_one)), batch=2)
    assert nearly(alone, sample(family, term(name, family, model), batch=2), 1e-4)


@EVERY
def test_the_input_model_stays_as_it_was(family, name):
    model = MODELS[family]()
    before, options = sample(family, model), str(model.model_options)
    steered = term(name, family, model)
    other = term(name, family, steered)
    sample(family, other)
    assert str(model.model_options) == options
    assert torch.equal(sample(family, model), before)
    assert torch.equal(sample(family, steered), sample(family, steered.clone().clone()))


@EVERY
def test_a_term_repeats_itself_bit_by_bit(family, name):
    steered = term(name, family, MODELS[family]())
    assert torch.equal(sample(family, steered), sample(family, steered))


@EVERY
@pytest.mark.parametrize("stop", [comfy.model_management.InterruptProcessingException, RuntimeError])
def test_a_run_that_ends_early_leaves_nothing_behind(family, name, stop):
    model = MODELS[family]()
    steered = term(name, family, model)
    expected = sample(family, steered)

    def end(*_):
        raise stop

    block = next(part for part in model.model.diffusion_model.modules() if isinstance(part, torch.nn.ModuleList))[-1]
    hook = block.register_forward_hook(end)
    with pytest.raises(stop):
        sample(family, steered)
    hook.remove()
    assert torch.equal(sample(family, steered), expected)
    with pytest.raises(stop):
        sample(family, steered, callback=end)
    assert torch.equal(sample(family, steered), expected)
    assert not [key for key in steered.model_options["transformer_options"] if key.startswith("optimized")]


@EVERY
def test_areas_give_the_same_however_rows_are_grouped(family, name, monkeypatch):
    model = MODELS[family]()
    positive, negative = areas(family, 1), areas(family, 2)
    steered = term(name, family, model)
    found = sample(family, steered, positive=positive, negative=negative)
    with little_memory(monkeypatch, model):
        assert nearly(sample(family, steered, positive=positive, negative=negative), found, 1e-4)
    apart = term(name, family, pass_through(model))
    assert nearly(sample(family, apart, positive=positive, negative=negative), found, 1e-4)
    assert not nearly(sample(family, model, positive=positive, negative=negative), found, 1e-3)


@EVERY
def test_conds_with_hooks_keep_them(family, name):
    """A hook of the positive alone, that changes attention by the host's override."""
    model = MODELS[family]()

    def shrink(func, q, k, v, heads, *args, **kwargs):
        return func(q * 0.5, k, v, heads, *args, **kwargs)

    group = comfy.hooks.HookGroup()
    group.add(
        comfy.hooks.TransformerOptionsHook(
            {"optimized_attention_override": shrink}, hook_scope=comfy.hooks.EnumHookScope.HookedOnly
        )
    )
    positive = text(1, family=family, hooks=group)
    found = sample(family, term(name, family, model), positive=positive)
    assert nearly(found, sample(family, term(name, family, pass_through(model)), positive=positive), 1e-4)
    assert not nearly(found, sample(family, term(name, family, model)), 1e-3)
    with_hook = model.clone()
    with_hook.model_options["transformer_options"]["optimized_attention_override"] = shrink
    alone = sample(family, term(name, family, with_hook), 1.0)
    assert nearly(sample(family, term(name, family, model), 1.0, positive=positive), alone, 1e-4)


@EVERY
def test_a_wrapper_of_another_pack_that_copies_options_changes_nothing(family, name):
    model = MODELS[family]()

    def send(apply_model, args):
        conds = {**args["c"], "transformer_options": copy.deepcopy(args["c"]["transformer_options"])}
        return apply_model(args["input"], args["timestep"], **conds)

    found = sample(family, term(name, family, regrouped(model, send)))
    assert nearly(found, sample(family, term(name, family, model)), 1e-5)


@EVERY
def test_the_order_of_several_conds_is_without_effect(family, name):
    steered = term(name, family, MODELS[family]())
    positive, negative = (text(i, family=family) + text(i + 10, family=family) for i in (1, 2))
    forth = sample(family, steered, positive=positive, negative=negative)
    assert nearly(sample(family, steered, positive=positive[::-1], negative=negative[::-1]), forth, 1e-4)


@EVERY
def test_a_sampled_model_is_let_go_at_once(family, name):
    gc.collect()
    gc.disable()
    try:
        model = term(name, family, MODELS[family]())
        sample(family, model)
        steered = weakref.ref(model)
        del model
        assert steered() is None
    finally:
        gc.enable()


@EVERY
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc"])
def test_samplers_of_every_kind_work(family, name, sampler):
    assert sample(family, term(name, family, MODELS[family]()), steps=4, sampler=sampler).isfinite().all()
