"""A mask of zeros, as a detector that found nothing gives it: the node does nothing, and the log says so."""

from __future__ import annotations

import pytest
import torch
from reins.nodes.ip_adapter.apply_node import IPAdapterApply, IPAdapterSimple
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.tokens import load_tokens, save_tokens
from reins.tests.helpers import controlnext, h_space, ip_adapter, tiny_models
from reins.tests.helpers.methods import nag
from reins.tests.helpers.tiny_models import sample, text

NOTHING = torch.zeros(1, 24, 40)


def simple(model):
    made = ip_adapter.adapter(model)
    return IPAdapterSimple.execute(model, made, ip_adapter.encoder(), ip_adapter.picture(), mask=NOTHING).result[0]


def encoded(model, kind="linear", **inputs):
    made = ip_adapter.adapter(model, kind)
    inputs = {"clip_vision": ip_adapter.encoder(), "image": ip_adapter.picture(), **inputs}
    return made, IPAdapterEncode.execute(made, mask=torch.zeros(1, 64, 64), **inputs).result[0]


NODES = {
    "IP-Adapter": lambda model: ip_adapter.apply(model, mask=NOTHING),
    "IP-Adapter with a mask without a batch": lambda model: ip_adapter.apply(model, mask=NOTHING[0]),
    "IP-Adapter in one": simple,
    "IP-Adapter Encode": lambda model: IPAdapterApply.execute(model, *encoded(model)).result[0],
    "ControlNeXt Apply": lambda model: controlnext.apply(model, mask=NOTHING),
    "H-Space Edit": lambda model: h_space.edit(model, mask=NOTHING),
    "A text of NAG's negative": lambda model: nag(model, text(3, mask=NOTHING)),
}


@pytest.mark.parametrize("name", NODES)
def test_a_mask_of_zeros_is_no_node_and_a_warning(name, sd15, caplog):
    steered = NODES[name](sd15)
    assert caplog.text.count("0 everywhere") == 1
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.records[0].getMessage().startswith(name.split(" with")[0].split(" in one")[0])
    assert torch.equal(sample(steered), sample(sd15))


@pytest.mark.parametrize(("value", "acts"), [(1 / 256, False), (1 / 255, False), (2 / 255, True)])
def test_what_no_byte_can_show_counts_as_zero(value, acts, sd15, caplog):
    """ComfyUI 0.30 and newer give some opaque pictures an alpha of 255/256, so their mask is 1/256."""
    steered = ip_adapter.apply(sd15, mask=NOTHING + value)
    assert torch.equal(sample(steered), sample(sd15)) != acts
    assert caplog.text.count("0 everywhere") == (0 if acts else 1)


def test_one_text_of_two_with_a_mask_of_zeros_is_the_other_alone(sd15, caplog):
    found = sample(nag(sd15, text(3) + text(4, mask=NOTHING)))
    assert torch.equal(found, sample(nag(sd15, text(3))))
    assert caplog.text.count("does nothing") == 1


def test_a_mask_with_one_point_acts(sd15, caplog):
    mask = NOTHING.clone()
    mask[..., 5, 5] = 1
    assert not torch.equal(sample(ip_adapter.apply(sd15, mask=mask)), sample(sd15))
    assert not caplog.text


def test_one_mask_of_zeros_in_a_batch_is_for_its_picture_alone(sd15, caplog):
    masks = torch.stack([torch.zeros(24, 40), torch.ones(24, 40)])
    found, plain = (sample(model, batch=2) for model in (ip_adapter.apply(sd15, mask=masks), sd15))
    assert tiny_models.nearly(found[0], plain[0]) and not tiny_models.nearly(found[1], plain[1], 1e-3)
    assert not caplog.text


def test_tokens_of_a_hidden_picture_stay_so_in_a_file(sd15, tmp_path):
    made, tokens = encoded(sd15)
    save_tokens(tokens, tmp_path / "hidden.safetensors")
    steered = IPAdapterApply.execute(sd15, made, load_tokens(tmp_path / "hidden.safetensors")).result[0]
    assert torch.equal(sample(steered), sample(sd15))


def test_a_file_that_does_not_fit_is_refused_before_its_mask_counts(sd15, sdxl):
    with pytest.raises(ValueError, match="is a ControlNeXt for"):
        controlnext.ControlNeXtApply.execute(
            sd15, controlnext.control(sdxl, "sdxl"), controlnext.picture(), mask=NOTHING
        )  # fmt: skip


@pytest.mark.parametrize(
    "off",
    [
        lambda model: ip_adapter.apply(model, mask=NOTHING, weight=0.0),
        lambda model: controlnext.apply(model, mask=NOTHING, strength=0.0, unet_strength=0.0),
        lambda model: h_space.edit(model, mask=NOTHING, strength=0.0),
        lambda model: nag(model, text(3, mask=NOTHING), scale=0.0),
    ],
    ids=["IP-Adapter", "ControlNeXt Apply", "H-Space Edit", "NAG"],
)
def test_a_node_that_is_off_says_nothing_of_its_mask(off, sd15, caplog):
    assert torch.equal(sample(off(sd15)), sample(sd15))
    assert not caplog.text
