"""A method that did nothing in a whole run although it should have acted says so once, by name; no other one does."""

from __future__ import annotations

import logging

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from reins.engine.unet import find_transformers, unet_of
from reins.tests.helpers import controlnext, h_space, inert, ip_adapter, tiny_models, unicon
from reins.tests.helpers.methods import METHODS, OFF, apg, nag, pag, pladis, rescale, seg
from reins.tests.helpers.tiny_models import reads_per_step, sample

NAMES = {
    "pag": "PAG", "seg": "SEG", "seg-narrow": "SEG", "sag": "SAG", "tpg": "TPG", "swg": "SWG", "nag": "NAG",
    "pladis": "PLADIS", "weak": "Weak Model Guidance", "apg": "APG", "fdg": "FDG", "cfg-zero": "CFG-Zero*",
    "image": "Image Guidance", "rescale": "Guidance Rescale", "ip-adapter": "IP-Adapter",
    "controlnext": "The hint of ControlNeXt", "unicon": "UniCon", "h-edit": "H-Space Edit",
    "ip-adapter-masked": "IP-Adapter",
}  # fmt: skip
LAYERS = ("nag", "pladis", "ip-adapter", "ip-adapter-masked", "controlnext", "unicon")  # with wrappers alone
# Without the weights of the UNet, which act in any case.
STEERS = {**METHODS, "controlnext": lambda model: controlnext.apply(model, unet_strength=0.0)}


@pytest.fixture
def told(caplog):
    """The names of the methods that said that they did nothing."""
    caplog.set_level(logging.WARNING)

    def names():
        found = [record.getMessage() for record in caplog.records if "did nothing in this run" in record.getMessage()]
        return [message.partition(" did nothing")[0] for message in found]

    return names


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_that_passes_by_the_nodes_makes_each_method_say_so_once(name, sd15, told):
    found = inert.run(STEERS[name](sd15), inert.past_guidance)
    assert told() == [NAMES[name]]
    assert torch.equal(found, inert.run(sd15, inert.past_guidance))


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_with_unprepared_options_makes_the_layers_say_so_and_nothing_else(name, sd15, told):
    steered = STEERS[name](sd15)
    found, plain = inert.run(steered, inert.unprepared), inert.run(sd15, inert.unprepared)
    assert told() == ([NAMES[name]] if name in LAYERS else [])
    assert torch.equal(found, plain) == (name in LAYERS)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_acts_says_nothing(name, cfg, sd15, told):
    sample(METHODS[name](sd15), cfg=cfg)
    inert.run(METHODS[name](sd15), None, cfg=cfg)
    assert told() == []


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", OFF)
def test_a_method_that_is_off_says_nothing(name, cfg, sd15, told):
    steered = OFF[name](sd15)
    sample(steered, cfg=cfg, batch=2 if "joint" in name else 1)
    assert told() == []


def test_all_methods_that_did_nothing_are_named(sd15, told):
    inert.run(pladis(nag(ip_adapter.apply(controlnext.apply(unicon.beside(sd15))))), inert.unprepared)
    assert sorted(told()) == ["IP-Adapter", "NAG", "PLADIS", "The hint of ControlNeXt", "UniCon"]


def test_two_nodes_of_one_method_are_named_once(sd15, told):
    inert.run(pladis(pladis(sd15)), inert.unprepared)
    assert told() == ["PLADIS"]


def test_two_equal_prompts_do_not_make_a_method_of_cfg_speak(sd15, told):
    sample(apg(sd15), positive=tiny_models.text(1), negative=tiny_models.text(1))
    assert told() == []


def test_each_run_counts_for_itself(sd15, told):
    steered = nag(sd15)
    sample(steered)
    inert.run(steered, inert.unprepared)
    sample(steered)
    assert told() == ["NAG"]


def test_a_term_whose_layers_another_pack_passes_by_says_that_it_added_nothing(sd15, told, monkeypatch):
    """As a pack does that replaces the forward of the blocks with one that asks no slots."""
    forward = BasicTransformerBlock.forward

    def without_slots(self, x, context=None, transformer_options={}):  # noqa: B006
        return forward(self, x, context, {**transformer_options, "patches_replace": {}, "patches": {}})

    monkeypatch.setattr(BasicTransformerBlock, "forward", without_slots)
    for steer, name in ((pag, "PAG"), (seg, "SEG"), (METHODS["tpg"], "TPG"), (nag, "NAG"), (pladis, "PLADIS")):
        before = len(told())
        sample(steer(sd15))
        assert told()[before:] == [name]


@pytest.mark.parametrize("steer", [pag, nag, controlnext.apply, h_space.edit, apg])
def test_a_run_without_a_step_in_the_span_says_nothing(steer, sd15, told):
    settings = (
        {"start_percent": 0.9, "end_percent": 0.91} if steer is controlnext.apply else {"start": 0.9, "end": 0.91}
    )
    steered = steer(sd15, **settings)
    inert.run(steered, inert.past_guidance)
    assert told() == []


@pytest.mark.parametrize("steer", [apg, rescale])
def test_a_method_of_cfg_says_nothing_at_cfg_1(steer, sd15, told):
    inert.run(steer(sd15), inert.past_guidance, cfg=1.0)
    assert told() == []


def test_a_prompt_for_a_part_of_the_run_does_not_make_a_method_speak(sd15, told):
    late = tiny_models.text(1, start_percent=0.5) + tiny_models.text(3, end_percent=0.5)
    sample(pag(nag(sd15)), steps=4, positive=late)
    assert told() == []


def test_a_name_that_no_prompt_has_does_not_make_a_method_speak(sd15, told):
    sample(ip_adapter.apply(sd15, only_for="nobody"))
    assert told() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_does_not_end_well_says_nothing_and_leaves_no_sign(error, sd15, told):
    steered = nag(sd15)

    def failing(guider, x, sigma, options):
        raise error

    with pytest.raises(error):
        inert.run(steered, failing)
    assert told() == []
    inert.run(steered, inert.unprepared)
    assert told() == ["NAG"]


@pytest.mark.parametrize("name", ["pag", "sag", "weak", "image", "nag", "h-edit"])
def test_watching_reads_nothing_from_the_device_in_a_step(name, sd15, monkeypatch):
    steered = METHODS[name](sd15)
    watched = reads_per_step(lambda steps: sample(steered, steps=steps))
    unwatched = [entry for entry in steered.model_options["transformer_options"]["reins"]
                 if type(entry).__name__ != "Watched"]  # fmt: skip
    steered.model_options["transformer_options"]["reins"] = unwatched
    assert watched == reads_per_step(lambda steps: sample(steered, steps=steps))


def test_nag_says_that_another_pack_gives_every_text_the_same_attention(sd15, told):
    """Packs for regional prompts may hold the slots and read texts that only they know."""
    other = sd15.clone()
    for transformer in find_transformers(unet_of(sd15)):
        other.set_model_attn2_replace(
            lambda q, k, v, options: q, transformer.block, transformer.number, transformer.index
        )  # fmt: skip
    sample(nag(other))
    assert told() == ["NAG"]
