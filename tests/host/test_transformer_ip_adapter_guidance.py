"""An IP-Adapter on a transformer beside guidance: it is the outermost layer, and extra predictions have its term.

Hooks of torch put it around all attentions of all rows. So they give what should be found, at cfg 1.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from reins.nodes.guidance.perturbed_attention import SEE_TEXT, THEMSELVES, PerturbedAttentionGuidance
from reins.tests.helpers.methods import apg, cfg_zero, fdg, interval, nag, pladis, rescale, seg, swg, tpg, weak
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.steered_transformers import FORMS, MAIN, NOTHING, added, apply, begun, by_formula, family_of
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import MODELS, sample, text
from reins.tests.helpers.transformer_terms import rows_of_blocks, slg
from reins.tests.helpers.transformers_by_hand import LAYERS, both_texts, predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)


def pag(tokens, model, layers, share):
    return PerturbedAttentionGuidance.execute(
        model, 3.0, 0.0, 1.0, layers, share_layers=share, image_tokens=tokens
    ).result[0]  # fmt: skip


PERTURBED = {
    "pag see text": partial(pag, SEE_TEXT),
    "pag themselves": partial(pag, THEMSELVES),
    "seg": lambda model, layers, share: seg(model, layers=layers, share=share),
    "slg": lambda model, layers, share: slg(model, layers=layers, share=share),
    "tpg": lambda model, layers, share: tpg(model, layers=layers, share=share),
}
CASES = [(form, name) for form in FORMS for name in PERTURBED if not (name == "tpg" and form.startswith("sd3"))]


@pytest.mark.parametrize(("form", "name"), CASES)
@pytest.mark.parametrize("share", [True, False])
def test_a_perturbed_prediction_has_the_plain_term(form, name, share):
    family, model, x = begun(form, batch=2)
    guided, positive = partial(PERTURBED[name], layers=LAYERS[family][0]), text(1, family=family)
    expected = by_formula(form, guided(model, share=False), x, positive)
    for steered in (apply(form, guided(model, share=share)), guided(apply(form, model), share=share)):
        assert nearly(predict(family, steered, x, positive), expected, 2e-5)
    assert not nearly(expected, by_formula(form, model, x, positive), 1e-3)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_beside_cfg_a_perturbed_prediction_reads_the_picture(form, name):
    family, model, x = begun(form)
    guided = partial(PERTURBED[name], layers=LAYERS[family][0])
    positive, negative = both_texts(family)
    found = predict(family, apply(form, guided(model, share=True)), x, positive, 4.0, negative=negative)
    with_term = by_formula(form, guided(model, share=False), x, positive)
    a, b = by_formula(form, model, x, positive), by_formula(form, model, x, negative, NOTHING)
    assert nearly(found, b + 4.0 * (a - b) + with_term - a, 2e-5)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_the_adapter_leaves_shared_blocks_shared(form, name):
    family, model, x = begun(form)
    guided = PERTURBED[name](model, LAYERS[family][0], True)
    seen = []
    for steered in (guided, apply(form, guided)):
        with rows_of_blocks(family, steered) as rows, forwards(steered) as calls:
            predict(family, steered, x, text(1, family=family), 4.0)
        seen.append((rows, calls))
    assert seen[0] == seen[1]
    assert seen[0][1] == [3]


@EACH
def test_a_perturbed_prediction_in_a_call_of_its_own_gives_the_same(form):
    family, model, _ = begun(form)
    layers = LAYERS[family][0]
    whole = sample(family, PERTURBED["pag themselves"](apply(form, model), layers, True), batch=2)
    apart = sample(family, PERTURBED["pag themselves"](apply(form, pass_through(model)), layers, True), batch=2)
    assert nearly(apart, whole, 2e-5)


@EACH
@pytest.mark.parametrize("tokens", [5, 9])
def test_nag_does_not_push_away_from_the_picture(form, tokens):
    family, model, x = begun(form, batch=2)
    other, positive = text(3, tokens, family=family), text(1, family=family)
    with_nag = nag(model, other, 4.0)
    expected = by_formula(form, with_nag, x, positive)
    for steered in (apply(form, with_nag), nag(apply(form, model), other, 4.0)):
        assert nearly(predict(family, steered, x, positive), expected, 2e-5)
    assert not nearly(expected, by_formula(form, model, x, positive), 1e-3)


@EACH
def test_nag_and_pag_and_an_adapter_act_together(form):
    family, model, x = begun(form)
    other, layers = text(3, 7, family=family), LAYERS[family][0]
    positive = text(1, family=family)
    guided = PERTURBED["pag see text"](nag(model, other, 4.0), layers, False)
    expected = by_formula(form, guided, x, positive)
    steered = nag(PERTURBED["pag see text"](apply(form, model), layers, True), other, 4.0)
    assert nearly(predict(family, steered, x, positive), expected, 2e-5)


@OF_MAIN
@pytest.mark.parametrize("of_weak", [False, True], ids=["the model alone", "both"])
def test_a_weak_model_has_the_adapter_that_is_on_it(form, of_weak):
    family, model, x = begun(form)
    other, positive = MODELS[family](1), text(1, family=family)
    weak_model = apply(form, other, weight=0.6) if of_weak else other
    a = by_formula(form, model, x, positive)
    b = by_formula(form, other, x, positive, weight=0.6) if of_weak else predict(family, other, x, positive)
    for steered in (weak(apply(form, model), weak_model, 2.0), apply(form, weak(model, weak_model, 2.0))):
        assert nearly(predict(family, steered, x, positive), a + 2.0 * (a - b), 2e-5)


def test_a_weak_model_with_other_norms_has_its_own():
    """The same adapter and tokens, on a clone whose norms of queries a LoRA changes."""
    family, model, x = begun("sd3")
    positive, steered = text(1, family=family), apply("sd3", model)
    keys = [key for key in model.model.state_dict() if key.endswith("x_block.attn.ln_q.weight")]
    change = {key: (0.5 * torch.randn(64, generator=torch.Generator().manual_seed(i)),) for i, key in enumerate(keys)}
    weak_model = steered.clone()
    weak_model.add_patches(change, 1.0)
    patched = model.clone()
    patched.add_patches(change, 1.0)
    a, b = by_formula("sd3", model, x, positive), by_formula("sd3", patched, x, positive)
    assert not nearly(a, b, 1e-3)
    assert nearly(predict(family, weak(steered, weak_model, 2.0), x, positive), a + 2.0 * (a - b), 2e-5)


CORRECTIONS = {
    "apg": partial(apg, norm_threshold=5.0), "fdg": fdg, "cfg-zero": partial(cfg_zero, zero_init_steps=0),
    "interval": partial(interval, start=0.4, end=1.0), "rescale": rescale,
}  # fmt: skip


@EACH
@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_correction_reads_predictions_with_the_adapter(form, name):
    """The host's CFG with these two predictions, on a model that answers with them."""
    family, model, x = begun(form)
    correct = CORRECTIONS[name]
    positive, negative = both_texts(family)
    for steered in (apply(form, correct(model)), correct(apply(form, model))):
        found = predict(family, steered, x, positive, 4.0, negative=negative)
        with added(form, model, NOTHING, 4) if name != "interval" else added(form, model, 4):
            expected = predict(family, correct(model), x, positive, 4.0, negative=negative)
        assert nearly(found, expected, 2e-5)


@pytest.mark.parametrize("form", ["xlabs", "instantx", "sd3"])
def test_windows_of_swg_read_the_picture(form):
    family, model, x = begun(form)
    positive = text(1, family=family)
    guided = partial(swg, scale=2.0, tile=48, overlap=16)
    expected = by_formula(form, guided(model), x, positive)
    assert nearly(predict(family, apply(form, guided(model)), x, positive), expected, 2e-5)


@OF_MAIN
def test_pladis_refuses_as_it_does_without_an_adapter(form):
    family = family_of(form)
    with pytest.raises(ValueError, match=r"text"):
        pladis(apply(form, MODELS[family]()), 2.0)
