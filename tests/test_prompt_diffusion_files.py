"""Prompt Diffusion files without a host: both released layouts at full size, other kinds of files, and the stems."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from reins.models.prompt_diffusion.files import control_part
from reins.models.prompt_diffusion.network import Stems

TABLE = json.loads((Path(__file__).parent / "golden" / "prompt_diffusion_files.json").read_text())
CONTROLNEXT = json.loads((Path(__file__).parent / "golden" / "controlnext_files.json").read_text())["control"]
PARAMETERS = 362_366_032
LAYOUTS = {"original": dict(zip(TABLE, TABLE, strict=True)), "diffusers": {key: row[0] for key, row in TABLE.items()}}


def blank(layout: str, width: int = 1) -> dict[str, torch.Tensor]:
    """The tensors of a file at full width (1) or at the reduced one (2), by the names of a layout."""
    return {LAYOUTS[layout][key]: torch.empty(row[width], device="meta") for key, row in TABLE.items()}


def host_names() -> dict[str, str]:
    """What the host is to call each tensor of the original."""
    stems = {"input_hint_block.": "input_hint_block.pair.", "input_cond_block.": "input_hint_block.query."}
    return {key: next((key.replace(a, b) for a, b in stems.items() if key.startswith(a)), key) for key in TABLE}


@pytest.mark.parametrize("prefix", ["", "control_model.", "state_dict.control_model.", "module.", "state_dict.module."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_become_the_hosts_names_one_to_one(layout, prefix):
    weights = {f"{prefix}{key}": value for key, value in blank(layout).items()}
    part = control_part(weights, "file")
    found = part.for_host()
    assert len(found) == 356 and sum(value.numel() for value in found.values()) == PARAMETERS
    expected = {ours: list(TABLE[key][1]) for key, ours in host_names().items()}
    assert {key: list(value.shape) for key, value in found.items()} == expected
    # the very tensor, not one of the same shape; and back
    own = blank(layout)
    for key, ours in host_names().items():
        assert found[ours] is weights[f"{prefix}{LAYOUTS[layout][key]}"]
        assert part.own_name(ours) == LAYOUTS[layout][key]
    assert set(part.weights) == set(own)


def test_of_the_originals_checkpoint_only_the_control_part_is_taken():
    beside = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", "cond_stage_model.y", "betas"]
    whole = {f"control_model.{key}": value for key, value in blank("original").items()}
    whole |= {key: torch.ones(1) for key in beside} | {"global_step": 4999}
    for prefix in ("", "state_dict."):
        part = control_part({f"{prefix}{key}": value for key, value in whole.items()}, "file")
        assert set(part.weights) == set(blank("original"))


def test_levels_may_have_different_numbers_of_blocks():
    """The names count over all blocks: a level without residual blocks still halves."""
    keys = ["controlnet_query_cond_embedding.conv_in.weight", "down_blocks.0.downsamplers.0.conv.bias"]
    keys += ["down_blocks.1.resnets.0.conv1.bias", "down_blocks.1.downsamplers.0.conv.bias"]
    keys += ["down_blocks.2.resnets.0.conv2.bias", "down_blocks.2.attentions.0.norm.bias"]
    assert list(control_part(dict.fromkeys(keys, torch.ones(1)), "file").for_host()) == [
        "input_hint_block.query.0.weight", "input_blocks.1.0.op.bias", "input_blocks.2.0.in_layers.2.bias",
        "input_blocks.3.0.op.bias", "input_blocks.4.0.out_layers.3.bias", "input_blocks.4.1.norm.bias",
    ]  # fmt: skip


def without_query(layout: str) -> list[str]:
    return [key for key in blank(layout) if "input_cond_block" not in key and "query" not in key]


KINDS = {
    "six channels": (without_query("original"), "an ordinary ControlNet, without tensors for a query"),
    "the same of diffusers": (without_query("diffusers"), "an ordinary ControlNet, without tensors for a query"),
    "a checkpoint with one": ([f"control_model.{key}" for key in without_query("original")], "an ordinary ControlNet"),
    "a control lora": (["lora_controlnet", "input_blocks.0.0.up"], "an ordinary ControlNet"),
    "a newer one": (["controlnet_blocks.0.weight", "transformer_blocks.0.x"], "an ordinary ControlNet"),
    "controlnext": (list(CONTROLNEXT["sdxl"]), "a ControlNeXt: use Load ControlNeXt"),
    "controlnext in training": (["controlnext.down_res.0.x", "unet.conv_in.bias"], "a ControlNeXt"),
    "t2i adapter": (["adapter.body.0.in_conv.weight"], "a T2I-Adapter: use Load ControlNet Model"),
    "lllite": (["lllite_unet_input_blocks_1_1.down.0.weight"], "a ControlNet-LLLite"),
    "ip-adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter: use Load IP-Adapter"),
    "unicon": (["down_blocks.0.attn1n.to_q.lora_A.xy_lora.weight"], "a UniCon: use Load UniCon"),
    "lora": (["lora_unet_down_blocks_0.alpha"], "a LoRA: use Load LoRA"),
    "lora of diffusers": (["unet.down_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA: use Load LoRA"),
    "checkpoint": (["model.diffusion_model.input_blocks.0.0.weight"], "an image model: use Load Checkpoint"),
    "unet of diffusers": (["down_blocks.0.x", "time_embedding.linear_1.bias"], "an image model: use Load Checkpoint"),
    "anything": (["a", "b"], "it should hold input_cond_block.* or controlnet_query_cond_embedding.*, but holds a, b"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_called_by_their_name(kind):
    keys, words = KINDS[kind]
    with pytest.raises(ValueError, match=r"^the file is not a Prompt Diffusion") as error:
        control_part(dict.fromkeys(keys, torch.ones(1)), "the file")
    assert words in str(error.value)


# --- stems ---------------------------------------------------------------------------------------------------------


def stems(width: int = 8, trained: bool = False) -> Stems:
    torch.manual_seed(0)
    return Stems(width, torch.nn).requires_grad_(trained)


def hints(b: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand((b, 9, 16, 24), generator=torch.Generator().manual_seed(seed))


def test_the_stems_are_the_published_ones():
    found = Stems(320, torch.nn, device=torch.device("meta")).state_dict()
    expected = {ours: TABLE[key][1] for key, ours in host_names().items() if ours.startswith("input_hint_block.")}
    assert {f"input_hint_block.{key}": list(value.shape) for key, value in found.items()} == expected


def test_the_query_comes_first_and_the_pair_after_it():
    made, hint = stems(), hints(2)
    with torch.no_grad():
        found = made(hint, torch.ones(3), torch.ones(5))
        assert torch.equal(found, made.pair(hint[:, 3:]) + made.query(hint[:, :3]))
    assert found.shape == (2, 8, 2, 3)


def test_a_hint_is_computed_once_and_no_other_for_it():
    made, hint = stems(), hints()
    with torch.no_grad():
        first = made(hint)
        assert made(hint) is first
        assert torch.equal(made(hint.clone()), first) and made(hint.clone()) is not first
        assert not torch.equal(made(hints(seed=1)), first)


def test_nothing_outlives_its_hint():
    made, hint = stems(), hints()
    with torch.inference_mode():
        kept = weakref.ref(made(hint))
    assert kept() is not None and len(made.cache.features) == 1
    del hint
    gc.collect()
    assert kept() is None and not made.cache.features


def test_weights_in_training_are_computed_anew():
    made, hint = stems(trained=True), hints()
    made(hint).sum().backward()
    assert made.pair[0].weight.grad is not None
    with torch.no_grad():
        before = made(hint)
        made.pair[0].weight += 1
        assert not torch.equal(made(hint), before)


def test_a_copy_keeps_nothing_of_the_original():
    made, hint = stems(), hints()
    with torch.no_grad():
        first = made(hint)
        for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert not copied.cache.features
            assert torch.equal(copied(hint), first) and copied(hint) is not first
    assert list(made.cache.features.values()) == [first]
