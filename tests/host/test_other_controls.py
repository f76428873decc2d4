"""Beside Advanced-ControlNet: its ControlNets have their code on the object, its attention tells layers less."""

from __future__ import annotations

import comfy.controlnet
import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention
from reins.engine.layers import of_host
from reins.engine.network import add_attention_layer
from reins.engine.shared_control import foreign_in
from reins.engine.unet import find_sites
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import METHODS, pag, seg, swg
from reins.tests.helpers.other_controls import Reference, careless, on_the_object, prompts
from reins.tests.helpers.tiny_models import sample

SHARING = ("pag", "seg", "tpg", "h-edit")
WITH_SLOTS = ("nag", "pag", "pladis", "sag", "seg", "ip-adapter", "unicon")
WITH_PATCHES = ("controlnext", "h-edit", "tpg", "unicon")


class _Foreign(comfy.controlnet.ControlNet):
    """The same ControlNet under a class that the pack does not know."""

    def get_control(self, *arguments):
        return super().get_control(*arguments)


def foreign():
    made = _Foreign(tiny_models.controlnet().control_model, load_device=tiny_models.CPU)
    return made.set_cond_hint(tiny_models.controlnet().cond_hint_original, strength=0.5)


def reference():
    return Reference(tiny_models.controlnet())


def injected():
    return on_the_object(tiny_models.controlnet())


@pytest.mark.parametrize("make", [reference, injected, foreign])
@pytest.mark.parametrize("name", SHARING)
def test_a_control_net_with_code_of_another_pack_is_asked_for_every_chunk(name, make, sd15):
    steered = METHODS[name](sd15)
    rows = []
    control = make()
    asked = control.get_control
    control.get_control = lambda x, *more: (rows.append(len(x)), asked(x, *more))[1]
    found = sample(steered, **prompts(control))
    assert rows == ([4, 4] if name == "h-edit" else [3, 3])
    assert torch.equal(found, sample(steered, **prompts(foreign())))


@pytest.mark.parametrize("make", [reference, injected, foreign])
def test_a_control_net_with_code_of_another_pack_is_not_cut_into_windows(make, sd15):
    control = make()
    with pytest.raises(RuntimeError, match=f"cannot cut the hint of a {type(control).__name__} of another pack"):
        sample(swg(sd15), **prompts(control))


def test_the_error_names_the_control_net_of_the_other_pack_in_a_chain(sd15):
    control = tiny_models.controlnet().set_previous_controlnet(reference())
    with pytest.raises(RuntimeError, match="hint of a Reference of"):
        sample(swg(sd15), **prompts(control))


def test_the_host_asks_its_own_control_nets():
    assert foreign_in(tiny_models.controlnet()) is None


@pytest.mark.parametrize(
    "missing", [("attn_precision",), ("attn_precision", "n_heads"), ("activations_shape",)], ids="+".join
)
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_what_attention_is_not_told_is_read_from_the_network(name, missing, sd15):
    steered = METHODS[name](sd15)
    assert torch.equal(sample(careless(steered, missing)), sample(steered))


def test_attention_has_the_precision_of_the_network_if_nobody_tells(sd15, monkeypatch):
    for module in sd15.model.diffusion_model.modules():
        if isinstance(module, CrossAttention):
            monkeypatch.setattr(module, "attn_precision", torch.float32)
    found, attention = [], of_host.optimized_attention

    def note(*arguments, attn_precision=None, **kwargs):
        found.append(attn_precision)
        return attention(*arguments, attn_precision=attn_precision, **kwargs)

    monkeypatch.setattr(of_host, "optimized_attention", note)
    sample(careless(seg(sd15), ("attn_precision",)), steps=1)
    assert found and set(found) == {torch.float32}


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_an_attention_whose_size_nobody_tells_is_refused(name, sd15):
    steered = careless(METHODS[name](sd15), ("activations_shape", "original_shape"))
    with pytest.raises(RuntimeError, match="should be told 'activations_shape'"):
        sample(steered)


@pytest.mark.parametrize("name", WITH_PATCHES)
def test_a_patch_that_is_not_told_its_block_refuses(name, sd15):
    with pytest.raises(RuntimeError, match="should be told 'block'"):
        sample(careless(METHODS[name](sd15), ("block",)))


def test_tokens_of_a_reference_are_attended_to(sd15):
    """A layer that only hands on, against the host's own attention with the same tokens behind k and v."""
    tokens = torch.randn((1, 3, 32), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sites = find_sites(sd15, "attn1")
    handed_on = add_attention_layer(sd15, sites, lambda call, below: below(call))
    attended = sample(careless(handed_on, ("attn_precision",), tokens))
    own = sd15.clone()
    for site in sites:
        own.set_model_attn1_replace(of_host.host_attention, site.block, site.number, site.index)
    assert torch.equal(attended, sample(careless(own, (), tokens)))
    assert not torch.equal(attended, sample(sd15))


def test_identity_attention_refuses_tokens_of_a_reference(sd15):
    tokens = torch.randn((1, 3, 64), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="adds tokens of other pictures"):
        sample(careless(pag(sd15), ("attn_precision",), tokens))
