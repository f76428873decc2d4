"""Prompt Diffusion files on disk: forms, faults, types, and the network that the host's parts make of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import comfy.model_management
import pytest
import torch
from reins.models.prompt_diffusion.files import control_part
from reins.nodes.prompt_diffusion.load import Outline, _config, _network, make_prompt_diffusion
from reins.nodes.prompt_diffusion.nodes import PromptDiffusionLoader
from reins.tests.helpers import controlnext, prompt_diffusion, tiny_models
from reins.tests.helpers.damaged_files import Bomb, truncated
from reins.tests.helpers.tiny_models import nearly
from safetensors.torch import save_file

TABLE = json.loads((Path(__file__).parents[1] / "golden" / "prompt_diffusion_files.json").read_text())
META = torch.device("meta")


@pytest.fixture
def folder(folder_of):
    """A models/controlnet of our own in front of the others."""
    return folder_of("controlnet")


@pytest.fixture(scope="module")
def weights():
    return prompt_diffusion.file_for()


def load(name):
    return PromptDiffusionLoader.execute(name).result[0]


def sample(control, model):
    return tiny_models.sample(
        model, (8, 8), steps=1, **prompt_diffusion.apply(control_net=prompt_diffusion.example(control))
    )


# --- good files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("bare.safetensors", ""),
        ("control.pth", "control_model."),
        ("whole.ckpt", "control_model."),
        ("dump.ckpt", "state_dict.control_model."),
    ],
)
def test_every_form_of_the_original_loads_and_works(name, prefix, folder, weights, sd15):
    content = {f"{prefix}{key}": value for key, value in weights.items()}
    if name == "whole.ckpt":
        content |= {
            "model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
            "first_stage_model.x": torch.ones(1),
        }
    if name == "dump.ckpt":
        content = {"state_dict": {key.removeprefix("state_dict."): value for key, value in content.items()}, "epoch": 3}
    (save_file if name.endswith("safetensors") else torch.save)(content, folder / name)
    assert name in PromptDiffusionLoader.define_schema().inputs[0].options
    control = load(name)
    assert control.pair is None and control.name == name
    assert torch.equal(sample(control, sd15), sample(make_prompt_diffusion(weights, "direct"), sd15))


def test_the_published_network_has_all_tensors_and_eight_heads():
    """At full width, where it costs no memory; the host's own detection would tell the same."""
    part = control_part({key: torch.empty(row[1], device="meta") for key, row in TABLE.items()}, "file")
    config = _config(part.for_host())
    network = _network(config, Outline, META, torch.float32)
    state = network.state_dict()
    assert {part.own_name(key): list(value.shape) for key, value in state.items()} == {
        key: row[1] for key, row in TABLE.items()
    }
    assert len(state) == 356 and sum(value.numel() for value in state.values()) == 362_366_032
    assert {network.input_blocks[i][1].transformer_blocks[0].attn1.heads for i in (1, 2, 4, 5, 7, 8)} == {8}


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (tiny_models.sd15, [4, 4, 4]),
        (lambda: tiny_models.sd2(model_channels=64), [1, 1, 2]),
        (lambda: tiny_models.sd15(model_channels=64), [8, 8, 8]),
    ],
    ids=["narrow", "linear", "wide"],
)
def test_heads_are_eight_or_what_the_widths_imply(model, heads):
    network = make_prompt_diffusion(prompt_diffusion.file_for(model()), "file").control_model
    assert [network.input_blocks[i][1].transformer_blocks[0].attn1.heads for i in (1, 3, 5)] == heads


def test_levels_of_other_depths_and_latents_of_other_channels_are_read_off():
    """As of the demo model."""
    model = tiny_models.sd15(
        num_res_blocks=[0, 1, 1], transformer_depth=[1, 1], transformer_depth_output=[0, 1, 1, 1, 1], in_channels=3
    )
    found, weights = make_prompt_diffusion(prompt_diffusion.file_for(model), "file"), prompt_diffusion.file_for(model)
    state = found.control_model.state_dict()
    assert torch.equal(state["input_hint_block.query.0.weight"], weights["input_cond_block.0.weight"])
    assert torch.equal(state["input_blocks.4.0.in_layers.2.weight"], weights["input_blocks.4.0.in_layers.2.weight"])
    assert found.control_model.input_blocks[0][0].in_channels == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_files_of_every_type_work(dtype, weights, sd15):
    control = make_prompt_diffusion({key: value.to(dtype) for key, value in weights.items()}, "file")
    expected, found = sample(make_prompt_diffusion(weights, "direct"), sd15), sample(control, sd15)
    assert found.isfinite().all() and nearly(found, expected, 0.2 if dtype.itemsize == 1 else 0.02)
    assert not any(value.requires_grad for value in control.control_model.parameters())


def test_the_host_owns_the_network_and_unloads_it(weights, sd15):
    control = make_prompt_diffusion(weights, "file")
    expected = sample(control, sd15)
    assert control.get_models()[0].model is control.control_model
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(control, sd15), expected)


def test_layers_that_wait_for_their_weights_are_compared_with_the_file_all_the_same(weights, sd15, monkeypatch):
    """As Linear does with DynamicVRAM, which the newest hosts have."""
    memory = pytest.importorskip("comfy.memory_management")
    expected = sample(make_prompt_diffusion(weights, "direct"), sd15)
    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    with monkeypatch.context() as patch:
        patch.setattr(memory, "aimdo_enabled", True)
        control = make_prompt_diffusion(weights, "file")
        with pytest.raises(ValueError, match=rf"{key} should be \(32, 32\) but is \(32, 31\)"):
            make_prompt_diffusion({**weights, key: weights[key][:, 1:]}, "file")
    assert torch.equal(sample(control, sd15), expected)


# --- bad files -----------------------------------------------------------------------------------------------------


QUERY = "input_cond_block.14.weight"


def but(**changes):
    """The tensors of a file with some changed or, where None, missing; a dot is written as two underscores."""
    changed = {**prompt_diffusion.file_for(), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in changed.items() if value is not None}


FILES = {
    "cut.safetensors": truncated,
    "bomb.ckpt": lambda path: path.write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2)),
    "bomb.pth": lambda path: torch.save({"input_cond_block.0.weight": Bomb()}, path),
    "text.ckpt": lambda path: path.write_text("hello"),
    "nan.safetensors": lambda path: save_file(but(zero_convs__0__0__bias=torch.full((32,), torch.nan)), path),
    "lost.safetensors": lambda path: save_file(but(**{QUERY: None}), path),
    "lost.bin": lambda path: torch.save(
        {f"control_model.{key}": value for key, value in but(middle_block__1__norm__bias=None).items()}, path
    ),
    "first.safetensors": lambda path: save_file(but(input_blocks__0__0__weight=None), path),
    "inner.safetensors": lambda path: save_file(but(input_blocks__1__0__out_layers__3__weight=None), path),
    "more.safetensors": lambda path: save_file(but(output_blocks__0__0__x=torch.ones(1)), path),
    "shape.safetensors": lambda path: save_file(but(input_hint_block__0__weight=torch.ones(16, 3, 3, 3)), path),
    "width.safetensors": lambda path: save_file(but(input_blocks__0__0__weight=torch.ones(5, 4, 3, 3)), path),
    "flat.safetensors": lambda path: save_file(but(input_blocks__0__0__weight=torch.ones(5)), path),
    "control.safetensors": lambda path: save_file(
        {key: value for key, value in prompt_diffusion.file_for().items() if "cond_block" not in key}, path
    ),
    "controlnext.safetensors": lambda path: save_file(controlnext.file("sdxl", 32), path),
    "adapter.safetensors": lambda path: save_file({"adapter.body.0.in_conv.weight": torch.zeros(1)}, path),
    "ip-adapter.bin": lambda path: torch.save(
        {"image_proj": {"proj.weight": torch.zeros(1)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}}, path
    ),
    "unet.safetensors": lambda path: save_file({"model.diffusion_model.out.0.bias": torch.zeros(1)}, path),
    "checkpoint.safetensors": lambda path: save_file(
        {"model.diffusion_model.input_blocks.0.0.bias": torch.zeros(1)}, path
    ),
}
WORDS = {
    "cut.safetensors": "cannot be read",
    "bomb.ckpt": "asks to run code",
    "bomb.pth": "asks to run code",
    "text.ckpt": "not",
    "nan.safetensors": "should hold finite numbers.*: zero_convs.0.0.bias",
    "lost.safetensors": f"lacks {QUERY}",
    "lost.bin": "lacks middle_block.1.norm.bias",
    "first.safetensors": "layout of a ControlNet.*input_blocks.0.0.weight",
    "inner.safetensors": "layout of a ControlNet.*input_blocks.1.0.out_layers.3.weight",
    "more.safetensors": "unknown output_blocks.0.0.x",
    "shape.safetensors": r"input_hint_block.0.weight should be \(16, 6, 3, 3\) but is \(16, 3, 3, 3\)",
    "width.safetensors": "layout of a ControlNet",
    "flat.safetensors": "layout of a ControlNet",
    "control.safetensors": "ordinary ControlNet, without tensors for a query.*use Load ControlNet Model",
    "controlnext.safetensors": "a ControlNeXt: use Load ControlNeXt",
    "adapter.safetensors": "a T2I-Adapter: use Load ControlNet Model",
    "ip-adapter.bin": "an IP-Adapter: use Load IP-Adapter",
    "unet.safetensors": "an image model: use Load Checkpoint",
    "checkpoint.safetensors": "an image model: use Load Checkpoint",
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_sentence(name, folder, capsys):
    FILES[name](folder / name)
    with pytest.raises(ValueError, match=WORDS[name]) as error:
        load(name)
    assert name in str(error.value) and "\n" not in str(error.value) and "executed" not in capsys.readouterr().out


def test_a_fault_of_a_diffusers_file_is_told_by_its_own_names():
    rows = {row[0]: torch.zeros(row[2]) for row in TABLE.values()}
    lost, spoilt = "down_blocks.1.resnets.0.conv_shortcut.bias", "controlnet_query_cond_embedding.blocks.2.weight"
    with pytest.raises(ValueError, match=f"lacks {lost}; {spoilt} should be") as error:
        make_prompt_diffusion({**{k: v for k, v in rows.items() if k != lost}, spoilt: torch.zeros(1)}, "file")
    assert "input_hint_block" not in str(error.value)


def test_a_name_outside_of_the_folder_is_refused():
    with pytest.raises(ValueError, match="not in the controlnet folders"):
        load("../secret.safetensors")
