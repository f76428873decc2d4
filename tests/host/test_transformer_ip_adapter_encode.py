"""From pictures to tokens of adapters for transformers: SigLIP and its pooling head, empty pictures, combinations."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from reins.models.ip_adapter.combine import combine
from reins.nodes.ip_adapter import encode as module
from reins.nodes.ip_adapter.apply_node import IPAdapterApply, IPAdapterSimple
from reins.nodes.ip_adapter.encode import Pictures, encode_pictures
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.tests.helpers import ip_adapter, siglip, tiny_transformers
from reins.tests.helpers.ip_adapters_by_hand import instantx_flux_tokens, siglip_pooled, xlabs_tokens
from reins.tests.helpers.siglip import FAMILIES, FILES, adapter, encoder_for
from reins.tests.helpers.tiny_models import nearly


def encode(made, *args, **settings):
    return IPAdapterEncode.execute(made, *args, **settings).result[0]


def read_by_hand(name, output):
    """What a file reads of the host's output."""
    if name == "sd3":
        return output.penultimate_hidden_states
    return output.image_embeds if name == "xlabs" else siglip_pooled(siglip.head(), output.image_embeds)


def tokens_by_hand(name, read):
    if name == "sd3":
        return read
    return (xlabs_tokens if name == "xlabs" else instantx_flux_tokens)(FILES[name], read)


def test_hidden_states_of_siglip_are_those_of_the_hosts_node():
    picture = ip_adapter.picture(b=2, h=50, w=60)
    output = siglip.encoder().encode_image(picture)
    found = encode_pictures(siglip.encoder(), Pictures(picture))
    assert torch.equal(found.penultimate_hidden_states, output.penultimate_hidden_states)
    assert found.penultimate_hidden_states.shape == (2, siglip.PATCHES, siglip.WIDTH)
    assert torch.equal(found.image_embeds, output.image_embeds)
    # The host has no pooling head: its embeddings are the last hidden states behind the norm.
    assert torch.equal(found.image_embeds, output.last_hidden_state)
    assert not nearly(found.image_embeds, found.penultimate_hidden_states, 0.1)


@pytest.mark.parametrize("name", FILES)
def test_tokens_are_those_by_hand_of_what_the_hosts_encoder_says(name):
    made, picture = adapter(name), ip_adapter.picture(b=2, h=50, w=60)
    output = encoder_for(name).encode_image(picture)
    expected = tokens_by_hand(name, read_by_hand(name, output))
    for tokens in (encode(made, encoder_for(name), picture), encode(made, clip_vision_output=output)):
        assert nearly(tokens.cond, expected, 1e-6 if name == "instantx" else 1e-5)
        assert tokens.cond.shape == expected.shape
        assert tokens.fingerprint == made.fingerprint
        # Else tokens would keep all that the encoder computed.
        assert not any(part.requires_grad for part in (tokens.cond, tokens.uncond, tokens.black))


def test_the_pooling_head_gives_the_vector_by_hand():
    hidden = torch.randn((40, 9, siglip.WIDTH), generator=torch.Generator().manual_seed(1))
    pooled = module._pooled(adapter("instantx"), hidden)
    assert nearly(pooled, siglip_pooled(siglip.head(), hidden), 1e-6)
    assert not nearly(pooled, hidden.mean(1), 0.1)


UNCONDS = {
    ("sd3", "paper"): "zeros", ("sd3", "black"): "black", ("xlabs", "paper"): "black", ("xlabs", "black"): "black",
    ("instantx", "paper"): "zeros", ("instantx", "black"): "zeros",
}  # fmt: skip


@pytest.mark.parametrize(("name", "uncond"), UNCONDS)
def test_the_negative_reads_what_the_authors_of_the_file_show_it(name, uncond):
    """Zeros are in place of what is read; XLabs shows a black picture."""
    one = encoder_for(name, 3)
    black = read_by_hand(name, one.encode_image(torch.zeros(1, one.image_size, one.image_size, 3)))
    shown = torch.zeros_like(black) if UNCONDS[name, uncond] == "zeros" else black
    made = adapter(name)
    tokens = encode(made, one, ip_adapter.picture(), uncond=uncond)
    assert nearly(tokens.uncond, tokens_by_hand(name, shown), 1e-5) or torch.equal(tokens.uncond, shown)
    assert tokens.uncond.shape == tokens.cond.shape
    without = encode(made, clip_vision_output=one.encode_image(ip_adapter.picture()), uncond=uncond)
    assert nearly(without.uncond, tokens_by_hand(name, torch.zeros_like(black)), 1e-5) or not without.uncond.any()


@pytest.mark.parametrize("how", ["average", "norm average", "add", "subtract", "slerp"])
@pytest.mark.parametrize("name", FILES)
def test_several_pictures_become_one_before_the_projection(name, how):
    pictures, weights = ip_adapter.picture(b=3, h=42, w=42), torch.tensor([1.0, 2.0, 0.5])
    read = read_by_hand(name, encoder_for(name).encode_image(pictures))
    tokens = encode(adapter(name), encoder_for(name), pictures, image_weights="1, 2, 0.5", combine=how)
    assert nearly(tokens.cond, tokens_by_hand(name, combine(read, weights, how)), 1e-5)
    assert tokens.weights.tolist() == [1.0]


@pytest.mark.parametrize("name", FILES)
def test_several_pictures_may_stay_apart_and_a_negative_picture_is_their_mean(name):
    pictures, noisy = ip_adapter.picture(b=2, h=42, w=42), ip_adapter.picture(7, b=2, h=42, w=42)
    tokens = encode(adapter(name), encoder_for(name), pictures, negative_image=noisy, image_weights="1, 3")
    assert tokens.weights.tolist() == [1.0, 3.0]
    mean = read_by_hand(name, encoder_for(name).encode_image(noisy)).mean(0, keepdim=True)
    assert nearly(tokens.uncond, tokens_by_hand(name, mean), 1e-5)
    assert torch.equal(tokens.black, tokens.uncond)
    each = [encode(adapter(name), encoder_for(name), picture[None]).cond for picture in pictures]
    assert nearly(tokens.cond, torch.cat(each), 1e-5)


@pytest.mark.parametrize("name", FILES)
def test_what_a_mask_hides_is_the_mean_colour(name):
    one, made = encoder_for(name), adapter(name)
    size = one.image_size
    picture, mask = ip_adapter.picture(h=size, w=size), torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    hidden = picture.clone()
    hidden[:, :, size // 2 :] = torch.tensor(one.image_mean)
    found, expected = encode(made, one, picture, mask=mask), encode(made, one, hidden)
    assert nearly(found.cond, expected.cond, 0.05)
    assert not nearly(found.cond, encode(made, one, picture).cond, 0.05)
    nothing = encode(made, one, picture, mask=torch.zeros(1, size, size))
    assert nothing.is_empty


def test_only_what_is_read_of_many_pictures_is_kept():
    """Embeddings of SigLIP are all tokens, 3 MB a picture, and so are its hidden states."""
    pictures = Pictures(ip_adapter.picture(b=20, h=42, w=42))
    for part, other in (("image_embeds", "penultimate_hidden_states"), ("penultimate_hidden_states", "image_embeds")):
        found, whole = (encode_pictures(siglip.encoder(), pictures, reads) for reads in (part, None))
        assert torch.equal(getattr(found, part), getattr(whole, part))
        assert getattr(found, other) is None
    rows = []
    head = adapter("instantx")
    with mock.patch.object(
        type(head.pooling.model), "forward", lambda self, hidden: rows.append(len(hidden)) or hidden[:, 0]
    ):
        encode(head, siglip.encoder(), pictures.image)
    assert rows == [16, 4]


@pytest.mark.parametrize("name", FILES)
def test_one_node_does_all_and_changes_the_prediction(name):
    made, model = adapter(name), tiny_transformers.make(FAMILIES[name])
    picture = ip_adapter.picture()
    (simple,) = IPAdapterSimple.execute(model, made, encoder_for(name), picture, 0.7).result
    (whole,) = IPAdapterApply.execute(model, made, encode(made, encoder_for(name), picture), 0.7).result
    found, expected, plain = (
        tiny_transformers.sample(FAMILIES[name], one, steps=1) for one in (simple, whole, model)
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert not nearly(found, plain, 1e-3)
