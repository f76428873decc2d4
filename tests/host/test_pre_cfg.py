"""Beside pre-CFG functions: other packs change positive and negative there, but not our extra predictions."""

from __future__ import annotations

import pytest
import torch
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from reins.tests.helpers import controlnext, h_space, ip_adapter, methods, unicon
from reins.tests.helpers.methods import pag, sag, seg, swg, tpg, weak
from reins.tests.helpers.tiny_models import guide, nearly, sample, text

ONE_STEP = torch.tensor([9.0, 3.0])
FAINT = 1e-7


def of_host(module, name, *settings):
    """A node of the host as a function of a model."""

    def put(model):
        node = getattr(pytest.importorskip(f"comfy_extras.{module}"), name)
        return (
            node.execute(model, *settings).result[0] if hasattr(node, "execute") else node().patch(model, *settings)[0]
        )

    return put


def in_place(model):
    """A pack that changes the host's tensors in place and returns the same list."""

    def halve(args):
        args["conds_out"][0].mul_(0.5)
        args["conds_out"][1].add_(0.25)
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(halve)
    return model


OTHERS = {
    "FreSca": of_host("nodes_fresca", "FreSca", 0.5, 2.0, 2),
    "TCFG": of_host("nodes_tcfg", "TCFG"),
    "host's APG": of_host("nodes_apg", "APG", 0.3, 5.0, 0.5),
    "in place": in_place,
}
TERMS = {
    "pag": pag, "seg": seg, "sag": sag, "tpg": tpg, "weak": weak, "h-edit": h_space.edit,
    "swg": lambda model: swg(model, tile=32, overlap=8),
    "h-edit, positive alone": lambda model: h_space.edit(model, apply_to="cond"),
}  # fmt: skip
VANISHING = {
    "pag": lambda model: pag(model, FAINT),
    "seg": lambda model: seg(model, FAINT),
    "sag": lambda model: sag(model, FAINT),
    "tpg": lambda model: tpg(model, FAINT),
    "swg": lambda model: swg(model, FAINT),
    "weak": lambda model: weak(model, scale=FAINT),
    "h-edit": lambda model: h_space.edit(model, strength=FAINT),
    "h-edit symmetric": lambda model: h_space.edit(model, strength=FAINT, mode="symmetric"),
    "h-edit from prompts": lambda model: h_space.edit(model, h_space.live(), FAINT),
    "nag": lambda model: methods.nag(model, scale=FAINT),
    "pladis": lambda model: methods.pladis(model, FAINT),
    "apg": lambda model: methods.apg(model, 1 - FAINT, 0.0, FAINT),
    "fdg": lambda model: methods.fdg(model, 1.0, 1 + FAINT),
    "image": lambda model: methods.image(model, scale=FAINT),
    "rescale": lambda model: methods.rescale(model, FAINT),
    "interval": lambda model: methods.interval(model, 0.0, 1.0),
    "scope": methods.scope,
    "ip-adapter": lambda model: ip_adapter.apply(model, weight=FAINT),
    "controlnext": lambda model: controlnext.apply(model, strength=FAINT, unet_strength=FAINT),
    "unicon": lambda model: unicon.apply(model, strength_x=FAINT, condition_guidance=FAINT),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", VANISHING)
def test_a_method_of_vanishing_strength_leaves_what_another_pack_does(name, other, sd15):
    put, method = OTHERS[other], VANISHING[name]
    expected = sample(put(sd15))
    assert not nearly(expected, sample(sd15), 1e-2)
    assert nearly(sample(put(method(sd15))), expected)
    assert nearly(sample(method(put(sd15))), expected)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_that_of_the_plain_predictions(name, other, sd15):
    """CFG is linear, so what a term adds to a step does not depend on what a pre-CFG function has done."""
    put, method = OTHERS[other], TERMS[name]

    def run(model):
        return h_space.run(model, sigmas=ONE_STEP)

    term = run(method(sd15)) - run(sd15)
    expected = run(put(sd15)) + term
    assert not nearly(expected, run(put(sd15)), 1e-3)
    assert nearly(run(put(method(sd15))), expected)
    assert nearly(run(method(put(sd15))), expected)


@pytest.mark.parametrize("other", OTHERS)
def test_condition_guidance_of_unicon_is_that_of_the_plain_predictions(other, sd15):
    put = OTHERS[other]
    without, with_term = (unicon.apply(sd15, condition_guidance=scale) for scale in (0.0, 2.0))
    expected = sample(put(without), steps=1) + sample(with_term, steps=1) - sample(without, steps=1)
    assert not nearly(expected, sample(put(without), steps=1), 1e-3)
    assert nearly(sample(put(with_term), steps=1), expected)


@pytest.mark.parametrize("name", ["pag", "seg", "sag", "tpg", "swg", "weak"])
def test_a_term_is_the_same_with_a_guider_that_skips_the_slot(name, sd15):
    """Perp-Neg calls the pre-CFG functions by itself."""

    def run(model):
        guider = Guider_PerpNeg(model)
        guider.set_conds(text(1), text(2), text(3))
        guider.set_cfg(5.0, 1.0)
        return guide(model, guider, steps=1)

    put, method = OTHERS["in place"], TERMS[name]
    expected = run(put(sd15)) + run(method(sd15)) - run(sd15)
    assert nearly(run(put(method(sd15))), expected)


@pytest.mark.parametrize("name", ["pag", "sag", "weak", "h-edit"])
def test_a_pre_cfg_function_is_called_once_a_step_and_sees_no_edit(name, sd15):
    seen = []

    def note(args):
        seen.append([prediction.clone() for prediction in args["conds_out"]])
        return args["conds_out"]

    def noted(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(note)
        return model

    h_space.run(noted(sd15), sigmas=ONE_STEP)
    h_space.run(noted(TERMS[name](sd15)), sigmas=ONE_STEP)
    without, with_term = seen
    assert all(nearly(a, b, 1e-9) for a, b in zip(without, with_term, strict=True))
