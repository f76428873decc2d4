"""Regional prompts of other packs (attention couple): each method is right for every row, or says what to remove."""

from __future__ import annotations

from typing import get_args

import pytest
import reins.engine.guidance as guidance
import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.methods import METHODS, nag, pag, pladis
from reins.tests.helpers.references import entmax_by_bisection, nag_by_the_paper
from reins.tests.helpers.regions import NEGATIVE, RegionalPrompts, Told, attend, by_rows
from reins.tests.helpers.tiny_models import cond, denoise, nearly, noise, sample, text

TOLD = get_args(Told)
REGION = text(12)[0][0]
JOINING = ("pag", "seg", "tpg", "swg", "h-edit")  # they ask for more positives


@pytest.fixture
def model() -> ModelPatcher:
    return tiny_models.sd15(dtype=torch.float64)


def normalized(out, q, k, v, row, module, options):
    if row.label == NEGATIVE:
        return out
    own = text(3)[0][0].to(q).expand(len(q), -1, -1)
    negative = attend(q, module.to_k(own), module.to_v(own), options)
    return nag_by_the_paper(out, negative, 2.0, 2.5, 0.5)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("order", ["before", "after"])
def test_nag_acts_on_the_prompt_and_on_each_region(order, cfg, told, model):
    regions = RegionalPrompts(REGION, told)
    steered = nag(regions.on(model)) if order == "before" else regions.on(nag(model))
    expected = sample(by_rows(RegionalPrompts(REGION).on(model), normalized), cfg=cfg, batch=2)
    assert nearly(sample(steered, cfg=cfg, batch=2), expected)
    assert not nearly(expected, sample(regions.on(model), cfg=cfg, batch=2), 1e-2)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("tokens", [5, 7, 10])
def test_pladis_reads_each_text_in_its_own_length(tokens, told, model):
    regions = RegionalPrompts(text(12, tokens)[0][0], told)
    lengths = {"own": 5, "region": tokens}

    def sparse(out, q, k, v, row, module, options):
        k, v = (part[:, : lengths[row.text]] for part in (k, v))
        heads = options["n_heads"]
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        shares = entmax_by_bisection(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5)
        dense = attend(*(part.transpose(1, 2).flatten(2) for part in (q, k, v)), options)
        return out + 2.0 * ((shares @ v).transpose(1, 2).flatten(2) - dense)

    expected = sample(by_rows(RegionalPrompts(regions.region).on(model), sparse))
    assert nearly(sample(pladis(regions.on(model))), expected)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_an_ip_adapter_adds_the_same_term_to_each_region(cfg, told, sd15):
    """The regions' shares of the picture add up to 1, so the term comes out whole, once."""
    same = RegionalPrompts(text(1)[0][0], told)  # the region's text is the prompt
    settings = {"positive": text(1), "cfg": cfg, "batch": 2}
    assert nearly(sample(ip_adapter.apply(same.on(sd15)), **settings), sample(ip_adapter.apply(sd15), **settings))


@pytest.mark.parametrize("told", TOLD)
def test_a_perturbed_prediction_follows_the_regions_too(told, model):
    """The term by the formula, from two calls of the model in which nothing is joined."""
    regions = RegionalPrompts(REGION, told, knows_one=True)
    plain, perturbed = RegionalPrompts(REGION).on(model), RegionalPrompts(REGION).on(model)
    perturbed.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0, 0)
    x, positive, negative = 3 * noise(b=2), [cond(text(1)[0][0])], [cond(text(2)[0][0])]
    alone, without = (denoise(of_one, x, 3.0, positive, None, 1.0) for of_one in (plain, perturbed))
    expected = denoise(plain, x, 3.0, positive, negative, 5.0) + 3.0 * (alone - without)
    assert nearly(denoise(pag(regions.on(model)), x, 3.0, positive, negative, 5.0), expected)
    assert not nearly(alone, without, 1e-2)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", JOINING)
def test_a_pack_that_knows_one_positive_never_sees_two(name, cfg, model, monkeypatch):
    steer = METHODS[name]
    actual = sample(steer(RegionalPrompts(REGION, knows_one=True).on(model)), (16, 24), cfg=cfg)
    monkeypatch.setattr(guidance, "treat_chunks_apart", lambda *_: False)  # a pack that knows many is joined
    assert nearly(actual, sample(steer(RegionalPrompts(REGION).on(model)), (16, 24), cfg=cfg))
    with pytest.raises(IndexError):
        sample(steer(RegionalPrompts(REGION, knows_one=True).on(model)), (16, 24), cfg=cfg)


@pytest.mark.parametrize("name", ["pag", "h-edit", "nag", "pladis", "ip-adapter"])
def test_a_hook_on_the_prompt_may_bring_the_regions(name, model):
    regions = RegionalPrompts(REGION, knows_one=True)
    hooked = sample(METHODS[name](model), positive=regions.on_prompt(1), batch=2)
    assert nearly(hooked, sample(METHODS[name](regions.on(model)), positive=text(1), batch=2))
    assert not nearly(hooked, sample(METHODS[name](model), positive=text(1), batch=2), 1e-2)


@pytest.mark.parametrize("together", [("nag", "pag"), ("pladis", "h-edit"), ("ip-adapter", "seg", "nag")], ids=str)
def test_methods_together_follow_the_regions(together, model, monkeypatch):
    """The same with all positives in one call of a pack that tells its rows."""
    told = RegionalPrompts(REGION, "cond_or_uncond_couple").on(model)
    untold = RegionalPrompts(REGION, knows_one=True).on(model)
    for name in together:
        told, untold = METHODS[name](told), METHODS[name](untold)
    apart = sample(untold)
    monkeypatch.setattr(guidance, "treat_chunks_apart", lambda *_: False)
    assert nearly(apart, sample(told))


@pytest.mark.parametrize("told", TOLD)
def test_unicon_says_that_it_cannot_tell_regions_of_image_and_condition(told, sd15):
    with pytest.raises(RuntimeError, match="Remove that pack from the model"):
        sample(METHODS["unicon"](RegionalPrompts(REGION, told).on(sd15)))
