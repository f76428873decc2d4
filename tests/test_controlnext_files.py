"""ControlNeXt files without a host: every released layout at full size, training checkpoints, and other kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reins.models.controlnext.cross_normalization import Normalization, match_statistics, standardise
from reins.models.controlnext.files import VARIANTS, control_part, unet_part
from reins.models.controlnext.network import ControlNeXt, sinusoids
from reins.models.unet_names import host_name

TABLES = json.loads((Path(__file__).parent / "golden" / "controlnext_files.json").read_text())
PARAMETERS = {"sd15": 5_352_327, "sdxl": 3_526_400, "svd_v1": 5_610_177}


def blank(table):
    return {key: torch.zeros(shape, device="meta") for key, shape in TABLES["control"][table].items() if shape} | {
        key: torch.tensor(0.7) for key, shape in TABLES["control"][table].items() if not shape
    }


@pytest.mark.parametrize(
    ("table", "variants"),
    [("sd15", ("sd15",)), ("sdxl", ("sd15-training", "sdxl", "svd-v2")), ("svd_v1", ("svd-v1",))],
)
def test_released_files_are_known_by_their_tensors(table, variants):
    parts = control_part(blank(table), "some name")
    assert parts.variants == variants
    network = ControlNeXt(parts.layout, torch.nn, device=torch.device("meta"))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == {
        key: shape for key, shape in TABLES["control"][table].items() if shape
    }
    total = sum(value.numel() for value in network.state_dict().values()) + (table != "sdxl")
    assert total == PARAMETERS[table]
    assert parts.scale == pytest.approx(1.0 if table == "sdxl" else 0.7)


@pytest.mark.parametrize(
    "prefix",
    ["controlnext.", "controlnet.", "module.", "module.controlnext.", "module._orig_mod.", "controlnext.module."],
)
def test_prefixes_of_training_come_off(prefix):
    weights = blank("sdxl")
    parts = control_part({prefix + key: value for key, value in weights.items()}, "dump")
    assert set(parts.weights) == set(weights)


def test_a_training_checkpoint_is_taken_apart():
    control = {f"module.controlnext.{key}": value for key, value in blank("sdxl").items()}
    both = {**control, "module.unet.mid_block.attentions.0.x.weight": torch.ones(1), "module.step": 3}
    assert set(control_part(both, "both").weights) == set(blank("sdxl"))
    assert set(unet_part(both, "both")) == {"mid_block.attentions.0.x.weight"}


def test_of_two_control_networks_the_first_kind_of_name_counts():
    weights = blank("sdxl")
    both = {**{f"controlnet.{key}": value for key, value in blank("sd15").items()},
            **{f"controlnext.{key}": value for key, value in weights.items()}}  # fmt: skip
    assert set(control_part(both, "both").weights) == set(weights)


def test_unet_tensors_count_with_and_without_a_prefix():
    control = {f"controlnext.{key}": value for key, value in blank("sdxl").items()}
    some = {"unet.out.0.weight": torch.ones(1), "out.0.bias": torch.ones(1)}
    assert set(unet_part({**control, **some}, "both")) == {"out.0.weight", "out.0.bias"}


@pytest.mark.parametrize("scale", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(2)], ids=str)
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="file: scale should be one finite number"):
        control_part({**blank("svd_v1"), "scale": scale}, "file")


def test_a_scale_may_be_a_list_of_one_and_of_any_size():
    assert control_part({**blank("svd_v1"), "scale": torch.tensor([0.25])}, "file").scale == 0.25
    assert VARIANTS["svd-v1"].gain(-800.0) == 0.0 and VARIANTS["svd-v1"].gain(800.0) == pytest.approx(1.3)
    assert VARIANTS["svd-v1"].gain(0.3) == pytest.approx(1.3 * torch.sigmoid(torch.tensor(0.3)).item())


@pytest.mark.parametrize("prefix", ["", "unet.", "diffusion_model.", "model.diffusion_model.", "module.unet."])
def test_prefixes_of_unet_files_come_off(prefix):
    assert set(unet_part({prefix + "input_blocks.0.0.bias": torch.ones(1)}, "unet")) == {"input_blocks.0.0.bias"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["zero_convs.0.0.weight", "input_blocks.0.0.weight"], "ordinary ControlNet"),
        (["control_model.input_blocks.0.0.weight"], "ordinary ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "ordinary ControlNet"),
        (["lora_controlnet"], "ordinary ControlNet"),
        (["body.0.block1.weight", "conv_in.weight"], "T2I-Adapter"),
        (["adapter.body.0.resnets.0.block1.weight"], "T2I-Adapter"),
        (["lllite_unet_input_blocks_4.conditioning1.0.weight"], "ControlNet-LLLite"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"], "choose it as unet_name"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "choose it as unet_name"),
        (["some.weight", "other.weight"], "should hold time_embedding"),
    ],
)
def test_other_files_are_refused_by_what_they_are(keys, words):
    with pytest.raises(ValueError, match="file is not a ControlNeXt") as error:
        control_part({key: torch.ones(1) for key in keys}, "file")
    assert words in str(error.value)


def test_a_control_file_as_unet_file_is_refused():
    with pytest.raises(ValueError, match="holds the control network of a ControlNeXt and no weights of the UNet"):
        unet_part(blank("sdxl"), "file")


@pytest.mark.parametrize("lost", ["mid_convs.1.weight", "down_res.0.conv1.weight", "embedding.3.weight"])
def test_a_lost_tensor_is_named(lost):
    weights = blank("sdxl")
    del weights[lost]
    with pytest.raises(ValueError, match=f"lacks {lost}"):
        control_part(weights, "file")


def test_a_tensor_of_another_rank_is_named():
    with pytest.raises(ValueError, match=r"mid_convs.1.weight should have 4 dimensions but is \(3,\)"):
        control_part({**blank("sdxl"), "mid_convs.1.weight": torch.zeros(3)}, "file")


def test_an_unknown_number_of_stages_is_refused():
    weights = {key: value for key, value in blank("sdxl").items() if not key.startswith("down_res.1")}
    with pytest.raises(ValueError, match="has 1 and a stem"):
        control_part(weights, "file")


def test_widths_that_the_groups_do_not_divide_are_refused():
    weights = blank("sdxl")
    weights["embedding.0.weight"] = torch.zeros(65, 3, 3, 3)
    with pytest.raises(ValueError, match="65 by 2"):
        control_part(weights, "file")


def test_retrained_widths_come_from_the_shapes():
    weights = {
        key: torch.zeros([{64: 8, 128: 16, 256: 32, 320: 48}.get(length, length) for length in shape])
        for key, shape in TABLES["control"]["sdxl"].items()
    }
    layout = control_part(weights, "file").layout
    assert (layout.stem, layout.outputs, layout.time) == ((8, 8, 16), 48, (16, 32))
    ControlNeXt(layout, torch.nn).load_state_dict(weights)


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool_first", [True, False])
@pytest.mark.parametrize("size", [(8, 6), (4, 3), (5, 7), (12, 9)])
def test_cross_normalization_is_that_of_the_official_code(pool_first, size):
    generator = torch.Generator().manual_seed(0)
    c, h = 3 * torch.randn((2, 5, 8, 6), generator=generator) + 1, 2 * torch.randn((2, 5, *size), generator=generator)
    pool = torch.nn.functional.adaptive_avg_pool2d
    expected = pool(c, size) if pool_first else c
    mean_c, std_c = expected.mean((1, 2, 3), keepdim=True), expected.std((1, 2, 3), keepdim=True)
    mean_h, std_h = h.mean((1, 2, 3), keepdim=True), h.std((1, 2, 3), keepdim=True)
    expected = (expected - mean_c) * (std_h / (std_c + 1e-5)) + mean_h
    expected = expected if pool_first else pool(expected, size)
    found = match_statistics(standardise(c, size, Normalization(pool_first, 1e-5)), h)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_the_two_orders_differ_as_pooling_does():
    """Averaging noise in pairs of pairs halves its deviation, unless it is normalised afterwards."""
    c = torch.randn((1, 8, 32, 32), generator=torch.Generator().manual_seed(0))
    assert standardise(c, (16, 16), Normalization(True, 0.0)).std() == pytest.approx(1.0, abs=1e-3)
    assert standardise(c, (16, 16), Normalization(False, 0.0)).std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.3, -700.0])
def test_a_constant_feature_becomes_zero(dtype, value):
    """Also where rounding has left traces of a deviation, which would be blown up to 1."""
    traces = 1 + 1e-7 * torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    for feature in (torch.full((1, 4, 8, 8), value), value * traces):
        assert not standardise(feature.to(dtype), (4, 4), Normalization(pool_first=True, eps=1e-12)).any()


def test_a_small_but_real_feature_is_kept():
    c = 1e-5 * torch.randn((1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    assert standardise(c, (8, 8), Normalization(True, 1e-12)).std() == pytest.approx(1.0, abs=1e-3)


def test_half_precision_is_normalised_in_single():
    c = torch.randn((1, 64, 64, 64), generator=torch.Generator().manual_seed(0)).half()
    found = standardise(c, (64, 64), Normalization(True, 1e-12))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, standardise(c.float(), (64, 64), Normalization(True, 1e-12)))


def test_sinusoids_are_cosines_before_sines():
    found = sinusoids(torch.tensor([0.0, 2.0]), 4)
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0], [-0.41615, 0.9998, 0.9093, 0.02]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("table", TABLES["control"])
def test_the_part_that_is_kept_does_not_depend_on_the_noise_level(table):
    layout = control_part(blank(table), "file").layout
    network = ControlNeXt(layout, torch.nn).eval()
    with torch.no_grad():
        image = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        prepared = network.prepare(image)
        early, late = (network(prepared, torch.tensor([t])) for t in (900.0, 10.0))
        again = network(network.prepare(image), torch.tensor([10.0]))
    assert torch.equal(late, again) and not torch.allclose(early, late)


# --- names of the UNet's tensors -----------------------------------------------------------------------------------


def test_host_names_pass_and_unknown_ones_are_none():
    assert host_name("output_blocks.3.1.norm.weight", {}) == "output_blocks.3.1.norm.weight"
    for key in ("nonsense", "up_blocks.0.attentions.0.nonsense", "down_blocks.0.resnets.0.nonsense.weight"):
        assert host_name(key, {}) is None
