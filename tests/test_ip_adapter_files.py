"""Every released kind of IP-Adapter file is known by its tensors, at full size, and what is none is refused."""

from __future__ import annotations

import pytest
import torch
from reins.models.ip_adapter.files import take_apart
from reins.models.ip_adapter.network import ImageLayers
from reins.tests.helpers.released_files import RELEASED, TABLES, table
from torch import nn

# Not in the tables, by the sizes of their networks: tokens, dim, inner, width of what is read, context.
RESAMPLERS = {
    "kolors plus": ((16, 2048, 768, 1024, 2048), ("plus", "penultimate_hidden_states", 1024, 0)),
    "portrait unnorm": ((16, 1280, 1280, 512, 2048), ("face resampler", None, 0, 512)),
    "composition sd15": ((16, 768, 768, 1280, 768), ("plus", "penultimate_hidden_states", 1280, 0)),
    "composition sdxl": ((16, 1280, 1280, 1280, 2048), ("plus", "penultimate_hidden_states", 1280, 0)),
}


def small(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A linear file with two layers; None takes a tensor away."""
    weights = {
        "image_proj.proj.weight": torch.zeros(32, 6), "image_proj.proj.bias": torch.zeros(32),
        "image_proj.norm.weight": torch.zeros(8), "image_proj.norm.bias": torch.zeros(8),
        **{f"ip_adapter.{n}.to_{part}_ip.weight": torch.zeros(16, 8) for n in (1, 3) for part in "kv"},
    }  # fmt: skip
    weights |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in weights.items() if value is not None}


def fits(parts) -> bool:
    """Whether the networks that the parts ask for have exactly their tensors."""
    networks = {
        "projection": parts.make_projection(operations=nn, device="meta"),
        "layers": ImageLayers(parts.sizes, operations=nn, device="meta"),
    }
    return all(
        {key: value.shape for key, value in network.state_dict().items()}
        == {key: value.shape for key, value in getattr(parts, name).items()}
        for name, network in networks.items()
    )


def test_every_table_is_tested():
    assert set(RELEASED) == set(TABLES)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_known_and_its_networks_have_its_tensors(name):
    parts = take_apart(table(name), f"{name}.bin")
    *kind, layers = RELEASED[name]
    assert tuple(parts.kind[:6]) == tuple(kind)
    assert len(parts.sizes) == layers
    assert fits(parts)
    has_lora = name in ("faceid_sd15", "faceid_sdxl", "faceid_plusv2_sd15", "faceid_plusv2_sdxl")
    assert len(parts.lora) == (2 * layers * 4 * 2 if has_lora else 0)


@pytest.mark.parametrize("name", RESAMPLERS)
def test_a_resampler_is_told_by_what_it_reads(name):
    from reins.models.ip_adapter.network import Resampler

    (tokens, dim, inner, width, context), (kind, reads, read_width, face) = RESAMPLERS[name]
    network = Resampler(width, tokens, dim, inner, context, operations=nn, device="meta")
    source = table("sdxl" if context == 2048 else "sd15")
    weights = {key: value for key, value in source.items() if key.startswith("ip_adapter.")}
    weights |= {f"image_proj.{key}": value for key, value in network.state_dict().items()}
    parts = take_apart(weights, "file.safetensors")
    assert (parts.kind.name, parts.kind.reads, parts.kind.width, parts.kind.face) == (kind, reads, read_width, face)
    assert (parts.kind.tokens, parts.kind.context) == (tokens, context)
    assert fits(parts)


def test_the_face_file_of_kolors_has_six_tokens_and_the_newer_version():
    from reins.models.ip_adapter.network import FacePlusProjection

    network = FacePlusProjection(
        512, 1024, 6, 4096, operations=nn, clip_width=1024, perceiver_inner=4096, device="meta"
    )  # fmt: skip
    weights = {key: value for key, value in table("sdxl").items() if key.startswith("ip_adapter.")}
    weights |= {f"image_proj.{key}": value for key, value in network.state_dict().items()}
    parts = take_apart(weights, "ipa-faceid-plus.bin")
    assert (parts.kind.tokens, parts.kind.context, parts.kind.width, parts.kind.shortcut) == (6, 4096, 1024, True)
    assert parts.sizes[0][1] == 2048
    assert fits(parts)


@pytest.mark.parametrize(
    ("table_name", "file", "version", "shortcut"),
    [
        ("faceid_plusv2_sd15", "ip-adapter-faceid-plusv2_sd15.bin", "auto", True),
        ("faceid_plusv2_sd15", "ip-adapter-faceid-plus_sd15.bin", "auto", False),
        ("faceid_plusv2_sd15", "sub/IPAdapter FaceID Plus V2.bin", "auto", True),
        ("faceid_plusv2_sd15", "renamed.bin", "v2", True),
        ("faceid_plusv2_sd15", "ip-adapter-faceid-plusv2_sd15.bin", "v1", False),
        ("faceid_plusv2_sdxl", "renamed.bin", "auto", True),
        ("faceid_sdxl", "renamed-plusv2.bin", "auto", False),
    ],
)
def test_the_version_of_a_face_file(table_name, file, version, shortcut):
    assert take_apart(table(table_name), file, version).kind.shortcut is shortcut


@pytest.mark.parametrize("layers", ["ip_adapter.", "adapter_modules."])
@pytest.mark.parametrize("projection", ["image_proj.", "image_proj_model."])
def test_the_spellings_of_releases_and_training_dumps_mean_the_same(layers, projection):
    spelt = {
        key.replace("ip_adapter.", layers).replace("image_proj.", projection): value for key, value in small().items()
    }
    parts = take_apart(spelt | {"unet.conv_in.weight": torch.zeros(1)}, "dump.bin")
    assert parts.kind == take_apart(small(), "file.bin").kind
    assert fits(parts)


BAD = {
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": torch.zeros(1)}, "IP-Adapter but a ControlNet: use"),
    "a LoRA": ({"lora_unet_x.lora_up.weight": torch.zeros(1)}, "not an IP-Adapter but a LoRA: use Load LoRA"),
    "no layers": ({"image_proj.proj.weight": torch.zeros(4, 4)}, "is not an IP-Adapter"),
    "no projection": ({"ip_adapter.1.to_k_ip.weight": torch.zeros(4, 4)}, "is not an IP-Adapter"),
    "something left over": (small(extra=torch.zeros(1)), "but holds extra"),
    "v missing": (small(ip_adapter__3__to_v_ip__weight=None), "ip_adapter.3.to_v_ip.weight"),
    "a gap": (
        small(ip_adapter__1__to_k_ip__weight=None, ip_adapter__1__to_v_ip__weight=None), "odd numbers 1 to 1"
    ),
    "an even number": (small(ip_adapter__2__to_k_ip__weight=torch.zeros(4, 8)), "odd numbers"),
    "another context": (small(ip_adapter__3__to_k_ip__weight=torch.zeros(16, 9)), r"over 8 numbers but is \(16, 9\)"),
    "a vector": (small(ip_adapter__3__to_k_ip__weight=torch.zeros(16)), r"but is \(16,\)"),
    "parts of two files": (
        small() | {f"ip_adapter.{n}.to_{p}_ip.weight": torch.zeros(16, 9) for n in (1, 3) for p in "kv"},
        "makes tokens 8 wide, but its layers read 9",
    ),
    "an unknown part": (small(ip_adapter__1__to_x__weight=torch.zeros(1)), "that no known IP-Adapter has: 1.to_x"),
    "an unknown projection": (
        small(image_proj__proj__weight=None, image_proj__other=torch.zeros(1)), "of a kind that is not known here"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_adapter_is_refused_by_name(name):
    weights, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        take_apart(weights, "thing.safetensors")
    assert str(error.value).startswith("thing.safetensors")
    assert "\n" not in str(error.value)
