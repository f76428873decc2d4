"""Blocks of a transformer that predictions have in common are computed once, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from comfy.patcher_extension import WrappersMP
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, latent, make, noise_like, sample, text
from reins.tests.helpers.transformer_terms import EACH, TERMS, rows_of_blocks, slg, term
from reins.tests.helpers.transformers_by_hand import LAYERS, both_texts, predict

WITHOUT_ROPE = ("sd3", "sd35m", "aura")
ALL = [(family, name) for family in GUIDED for name in TERMS if not (name == "tpg" and family in WITHOUT_ROPE)]


def rows_along(family, steered, steps=1, **settings):
    with rows_of_blocks(family, steered) as rows, forwards(steered) as calls:
        sample(family, steered, steps=steps, **settings)
    return rows, calls


def split_at(rows, blocks):
    """The rows of the blocks before the first of these, and from it on."""
    names = list(rows)
    first = names.index(blocks[0])
    return [rows[name] for name in names[:first]], {name: rows[name] for name in names[first:]}


@pytest.mark.parametrize(("family", "name"), ALL)
def test_blocks_before_the_first_change_run_for_two_of_three_predictions(family, name):
    model = MODELS[family]()
    rows, calls = rows_along(family, term(name, family, model))
    before, behind = split_at(rows, LAYERS[family][1])
    assert calls == [3]
    assert all(of_block == [2] for of_block in before)
    for block, of_block in behind.items():
        is_changed = block in LAYERS[family][1] and name in ("slg", "tpg")
        assert of_block == ([3] if not is_changed else [2] if name == "slg" else [2, 1])


@pytest.mark.parametrize(("family", "name"), ALL)
def test_shared_blocks_change_nothing(family, name):
    model, x = MODELS[family](), noise_like(latent(family, 6, 10, batch=2))
    positive, negative = both_texts(family, (5, 5))
    shared, plain = (
        predict(family, term(name, family, model, share=share), x, positive, 4.0, negative=negative)
        for share in (True, False)
    )
    assert nearly(shared, plain, 2e-5)


@pytest.mark.parametrize("family", ["sd3", "flux", "lumina", "wan"])
def test_without_sharing_each_block_runs_for_all(family):
    model = MODELS[family]()
    rows, calls = rows_along(family, term("pag", family, model, share=False))
    assert calls == [3]
    assert all(of_block == [3] for of_block in rows.values())


def test_several_terms_share_what_each_has_in_common():
    """Positive, negative, and three terms that begin at blocks of their own."""
    model = MODELS["qwen"]()
    steered = TERMS["seg"](TERMS["pag"](TERMS["pag"](model, layers="b0"), layers="b1"), layers="b2")
    rows, calls = rows_along("qwen", steered)
    assert calls == [5]
    assert [rows[f"transformer_blocks.{i}"] for i in range(3)] == [[3], [4], [5]]
    apart = TERMS["seg"](
        TERMS["pag"](TERMS["pag"](model, layers="b0", share=False), layers="b1", share=False), layers="b2", share=False
    )
    assert nearly(sample("qwen", steered), sample("qwen", apart))


@pytest.mark.parametrize(("family", "name"), EACH)
def test_texts_of_another_length_have_their_own_call(family, name):
    model = MODELS[family]()
    positive, negative = both_texts(family, (5, 9))
    rows, calls = rows_along(family, term(name, family, model), positive=positive, negative=negative)
    assert sorted(calls) == [1, 2]
    before, _ = split_at(rows, LAYERS[family][1])
    assert all(of_block == [1, 1] for of_block in before)


@pytest.mark.parametrize("where", ["wrapper", "patch", "slot before", "attention patch"])
@pytest.mark.parametrize("family", ["sd3", "flux", "qwen", "wan"])
def test_beside_another_pack_nothing_is_shared(family, where):
    """It may treat rows by their place."""
    model = MODELS[family]()
    expected = sample(family, term("pag", family, model), steps=1)
    other, kind = model.clone(), "double_block"
    if where == "wrapper":
        other.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "another pack", lambda executor, *args, **kwargs: executor(*args, **kwargs)
        )
    elif where == "patch":
        other.set_model_patch(lambda args: args, kind)
    elif where == "attention patch":
        other.set_model_patch(lambda *args, **kwargs: {}, "attn1_patch")
    else:
        other.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", kind, 0)
    if where == "attention patch" and family in ("sd3", "wan"):
        pytest.skip("the family has no such patches, or others of this name")
    rows, calls = rows_along(family, term("pag", family, other))
    assert calls == [3]
    assert all(of_block == [3] for of_block in rows.values())
    assert nearly(sample(family, term("pag", family, other), steps=1), expected)


def test_a_slot_behind_the_first_change_hinders_nothing():
    model = MODELS["qwen"]()
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 2)
    rows, _ = rows_along("qwen", TERMS["pag"](model, layers="b1"))
    assert [rows[f"transformer_blocks.{i}"] for i in range(3)] in ([[2], [3], [3]], [[3], [3], [3]])


@pytest.mark.parametrize("name", ["pag", "slg"])
def test_references_of_timestep_0_are_not_shared(name):
    """The host gives Qwen-Image's blocks two modulations for each row then."""
    model = MODELS["qwen"]()
    conds = {
        "reference_latents": [noise_like(latent("qwen", 4, 6), 3)],
        "reference_latents_method": "index_timestep_zero",
    }
    positive, negative = both_texts("qwen", **conds)
    rows, calls = rows_along("qwen", term(name, "qwen", model), positive=positive, negative=negative)
    assert calls == [3]
    first = rows["transformer_blocks.0"]
    found, plain = (
        sample("qwen", term(name, "qwen", model, share=share), steps=1, positive=positive, negative=negative)
        for share in (True, False)
    )
    assert nearly(found, plain)
    assert first in ([2], [3])  # older hosts know no such method


@pytest.mark.parametrize("name", ["pag", "slg", "tpg"])
def test_masked_texts_of_qwen_are_not_shared(name):
    """The host hands the mask to blocks past their slots."""
    model, mask = MODELS["qwen"](), torch.tensor([[1, 1, 1, 0, 0]])
    positive, negative = both_texts("qwen", attention_mask=mask)
    if torch.equal(
        sample("qwen", model, steps=1, positive=positive, negative=negative), sample("qwen", model, steps=1)
    ):
        pytest.skip("this ComfyUI hands no mask to Qwen-Image")
    rows, _ = rows_along("qwen", term(name, "qwen", model), positive=positive, negative=negative)
    assert rows["transformer_blocks.0"] == [3]
    found, apart = (
        sample("qwen", term(name, "qwen", of), steps=1, positive=positive, negative=negative)
        for of in (model, pass_through(model))
    )
    assert nearly(found, apart)


@pytest.mark.parametrize(("name", "layers"), [("pag", "b2"), ("seg", "b0"), ("slg", "b1"), ("slg", "b2")])
@pytest.mark.parametrize("family", ["sd3", "sd35m"])
def test_blocks_of_stable_diffusion_3_are_not_checkpointed(family, name, layers, monkeypatch):
    """The host runs a block in a slot so that it could be trained, which takes longer."""
    counted = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *args, **kwargs: counted.append(1) or checkpoint(*args, **kwargs)
    )
    sample(family, TERMS[name](MODELS[family](), layers=layers), steps=1)
    assert not counted
    model = MODELS[family]()
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    sample(family, model, steps=1)
    assert counted == [1]  # the host alone


@pytest.mark.parametrize("name", ["pag", "slg"])
@pytest.mark.parametrize("family", ["sd3", "flux", "lumina", "wan"])
def test_an_area_of_the_positive_alone_stays_with_it(family, name):
    """The host gives the negative a copy of it, with the positive's uuid."""
    model = MODELS[family]()
    area = (3, 4, 8, 0, 0, 0) if family == "wan" else (4, 8, 0, 0)
    positive = text(1, family=family) + text(3, family=family, area=area, strength=0.7)
    negative = text(2, family=family)
    found, apart, plain = (
        sample(family, steered, positive=positive, negative=negative, h=8, w=12)
        for steered in (term(name, family, model), term(name, family, pass_through(model)), model)
    )
    assert nearly(found, apart, 2e-5)
    assert not nearly(found, plain, 1e-3)


@pytest.mark.parametrize("batch", [1, 2])
def test_residuals_of_shared_rows_are_the_same(batch):
    """A block that adds to its input in place must not reach rows that were repeated."""
    model = MODELS["flux"]()
    found, plain = (
        sample("flux", slg(model, layers="s1", share=share), batch=batch, steps=3) for share in (True, False)
    )
    assert nearly(found, plain)


def test_a_network_of_one_block_shares_nothing():
    model = make("qwen", num_layers=1)
    rows, calls = rows_along("qwen", TERMS["pag"](model, layers="b0"))
    assert calls == [3]
    assert rows["transformer_blocks.0"] == [3]
