"""Which image encoder an adapter for a transformer reads, and the pooling head of SigLIP from the encoder's file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from reins.models.ip_adapter.kinds import ENCODERS, Kind
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.nodes.ip_adapter.load_node import IPAdapterLoader
from reins.tests.helpers import ip_adapter, siglip
from reins.tests.helpers.ip_adapters_by_hand import instantx_flux_tokens
from reins.tests.helpers.siglip import FILES, adapter
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.transformer_ip_adapters import instantx_flux_file, sd3_file, xlabs_file
from safetensors.torch import save_file


def encode(made, *args, **settings):
    return IPAdapterEncode.execute(made, *args, **settings).result[0]


SIGLIP = r"sigclip_vision_patch14_384 \(SigLIP so400m\)"


def full_width(name):
    """A file that reads as many numbers as the released one, small else."""
    make = {
        "sd3": partial(sd3_file, layers=3, width=1152), "xlabs": partial(xlabs_file, width=768),
        "instantx": partial(instantx_flux_file, width=1152),
    }[name]  # fmt: skip
    return make_ip_adapter(make(), f"{name}.safetensors")


def outputs(width, tokens, embeds):
    """What an encoder gives: hidden states (1, tokens, width), and embeddings of that shape or of `embeds` numbers."""
    hidden = torch.randn(1, tokens, width)
    return mock.Mock(
        image_embeds=torch.randn(1, embeds) if embeds else hidden, penultimate_hidden_states=hidden
    )  # fmt: skip


SEEN = {
    "SigLIP 384": (1152, 729, 0), "SigLIP 512": (1152, 1024, 0), "SigLIP 2 NaFlex": (1152, 256, 0),
    "CLIP H": (1280, 257, 1024), "CLIP bigG": (1664, 257, 1280), "CLIP L": (1024, 257, 768),
}  # fmt: skip
MESSAGES = {
    ("sd3", "SigLIP 512"): f"reads 729 hidden states of a picture, but this image encoder makes 1024.*Load {SIGLIP}",
    ("sd3", "SigLIP 2 NaFlex"): f"reads 729 hidden states of a picture, but this image encoder makes 256.*{SIGLIP}",
    ("sd3", "CLIP H"): f"1152 wide, but this image encoder's are 1280 wide. Load {SIGLIP}",
    ("sd3", "CLIP bigG"): f"1152 wide, but this image encoder's are 1664 wide. Load {SIGLIP}",
    ("sd3", "CLIP L"): f"1152 wide, but this image encoder's are 1024 wide. Load {SIGLIP}",
    ("xlabs", "SigLIP 384"): "768 wide, but this image encoder's are 1152 wide. Load clip-vit-large-patch14 as",
    ("xlabs", "SigLIP 512"): "768 wide, but this image encoder's are 1152 wide. Load clip-vit-large-patch14 as",
    ("xlabs", "SigLIP 2 NaFlex"): "768 wide, but this image encoder's are 1152 wide. Load clip-vit-large-patch14 as",
    ("xlabs", "CLIP H"): "768 wide, but this image encoder's are 1024 wide. Load clip-vit-large-patch14 as",
    ("xlabs", "CLIP bigG"): "768 wide, but this image encoder's are 1280 wide. Load clip-vit-large-patch14 as",
    ("instantx", "SigLIP 384"): "ComfyUI's image encoder has no such head. Choose the encoder's file as pooling_head",
    ("instantx", "SigLIP 512"): f"729 hidden states of a picture, but this image encoder makes 1024.*Load {SIGLIP}",
    ("instantx", "SigLIP 2 NaFlex"): f"729 hidden states of a picture, but .* makes 256.*Load {SIGLIP}",
    ("instantx", "CLIP H"): f"1152 wide, but this image encoder's are 1024 wide. Load {SIGLIP}",
    ("instantx", "CLIP bigG"): f"1152 wide, but this image encoder's are 1280 wide. Load {SIGLIP}",
    ("instantx", "CLIP L"): f"1152 wide, but this image encoder's are 768 wide. Load {SIGLIP}",
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("name", FILES)
def test_another_encoder_is_refused_with_the_right_one_by_name(name, seen):
    """SigLIP at 512 pixels is as wide as that at 384, and has other features."""
    made, output = full_width(name), outputs(*SEEN[seen])
    if (name, seen) in MESSAGES:
        with pytest.raises(ValueError, match=MESSAGES[name, seen]):
            encode(made, clip_vision_output=output)
    else:
        assert encode(made, clip_vision_output=output).cond.isfinite().all()


def test_embeddings_with_a_token_axis_are_no_embedding():
    made = make_ip_adapter(xlabs_file(width=siglip.WIDTH), "x.safetensors")
    with pytest.raises(ValueError, match=r"image_embeds with 2 axes, but this image encoder's are \(1, 9, 32\)"):
        encode(made, siglip.encoder(), ip_adapter.picture())


@pytest.mark.parametrize("name", FILES)
def test_an_encoder_for_pictures_of_any_size_is_refused_before_it_runs(name):
    try:
        encoder = siglip.naflex()
    except TypeError:
        pytest.skip("this host has no SigLIP 2")
    with pytest.raises(ValueError, match=rf"{name}\.safetensors reads an image encoder for pictures of one size"):
        encode(adapter(name), encoder, ip_adapter.picture())
    output = (ip_adapter if name == "xlabs" else siglip).encoder().encode_image(ip_adapter.picture())
    with pytest.raises(ValueError, match="but clip_vision takes them in any size"):
        encode(adapter(name), encoder, clip_vision_output=output)


def test_no_encoder_is_named_twice_for_what_it_gives():
    """The demo's encoder is told by widths that no released encoder has."""
    demo = [key for key, name in ENCODERS.items() if "Demo Model" in name]
    released = {width for (_, width), name in ENCODERS.items() if "Demo Model" not in name}
    assert {width for _, width in demo}.isdisjoint(released)
    patches = {
        (form, width): Kind("timed", 4, width, "penultimate_hidden_states", width, form=form).patches
        for form, width in (("sd3", 1152), ("instantx", 1152), ("unet", 1152), ("sd3", 128))
    }
    assert patches == {("sd3", 1152): 729, ("instantx", 1152): 729, ("unet", 1152): 0, ("sd3", 128): 0}


# --- the pooling head ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(folder_of):
    return folder_of("ipadapter"), folder_of("clip_vision")


def load(**settings):
    return IPAdapterLoader.execute("file.safetensors", **settings).result[0]


def test_the_loader_takes_the_head_from_the_encoders_file(folders):
    adapters, encoders = folders
    save_file(FILES["instantx"], adapters / "file.safetensors")
    save_file({key: value.half() for key, value in siglip.head().items()}, encoders / "encoder.safetensors")
    assert "encoder.safetensors" in IPAdapterLoader.define_schema().inputs[2].options
    made, picture = load(pooling_head="encoder.safetensors"), ip_adapter.picture()
    assert nearly(
        encode(made, siglip.encoder(), picture).cond, encode(adapter("instantx"), siglip.encoder(), picture).cond, 0.02
    )
    assert made.fingerprint == load().fingerprint
    with pytest.raises(ValueError, match=r"file\.safetensors reads one vector of a picture.*Choose the encoder's file"):
        encode(load(), siglip.encoder(), picture)


HEADS = {
    "no head": ({"vision_model.post_layernorm.weight": torch.ones(4)}, "should hold a SigLIP image encoder with its"),
    "another width": (siglip.head(48), r"pooled to 32 numbers, but the head of encoder\.safetensors makes 48"),
    "odd width": (siglip.head(40), "should hold a SigLIP image encoder with its pooling head"),
    "a part missing": (
        {key: value for key, value in siglip.head().items() if "fc2" not in key}, r"lacks mlp\.fc2\.weight"
    ),
    "not a number": (
        {**siglip.head(), "vision_model.head.probe": torch.full((1, 1, 32), torch.nan)}, "should hold finite numbers"
    ),
    "other axes": ({**siglip.head(), "vision_model.head.probe": torch.ones(32)}, "should hold a SigLIP image encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_does_not_serve_is_refused(name, folders):
    adapters, encoders = folders
    weights, message = HEADS[name]
    save_file(FILES["instantx"], adapters / "file.safetensors")
    save_file(weights, encoders / "encoder.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load(pooling_head="encoder.safetensors")
    assert "encoder.safetensors" in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("name", ["sd3", "xlabs"])
def test_a_head_for_a_file_that_needs_none_is_refused(name, folders):
    adapters, encoders = folders
    save_file(FILES[name], adapters / "file.safetensors")
    save_file(siglip.head(), encoders / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"file\.safetensors needs no pooling head.*Set pooling_head to none"):
        load(pooling_head="encoder.safetensors")


def test_a_vector_that_is_pooled_already_needs_no_head():
    """As a later host, or another pack, may give it."""
    made = replace(adapter("instantx"), pooling=None)
    pooled = torch.randn(1, siglip.WIDTH)
    assert nearly(encode(made, clip_vision_output=pooled).cond, instantx_flux_tokens(FILES["instantx"], pooled), 1e-5)
