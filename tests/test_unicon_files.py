"""UniCon files of every make, without the host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reins.models.unicon.files import POST, SETS, flat_names, parse_unicon
from reins.models.unicon.network import UniCon, places_of
from reins.models.unicon.stacks import stacked

TABLES = json.loads((Path(__file__).parent / "golden" / "unicon_files.json").read_text())
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def small(rank=2, width=4, context=3, post=8):
    """A model.pth with one block."""
    generator = torch.Generator().manual_seed(0)
    found = {f"{BLOCK}.conv1n.weight": torch.randn(post, post, generator=generator)}
    for attention, of_set in (("attn1n", "xy_lora"), ("attn1n", "yx_lora"), ("attn1", "y_lora"), ("attn2", "y_lora")):
        for projection in PROJECTIONS:
            inputs = context if attention == "attn2" and projection in ("to_k", "to_v") else width
            stem = f"{BLOCK}.{attention}.{projection}.lora_"
            found[f"{stem}A.{of_set}.weight"] = torch.randn(rank, inputs, generator=generator)
            found[f"{stem}B.{of_set}.weight"] = torch.randn(width, rank, generator=generator)
    return found


def renamed(change):
    return {change(key): value for key, value in small().items()}


def same(parts, other):
    return parts.sizes == other.sizes and all(
        torch.equal(parts.weights[key], other.weights[key]) for key in parts.weights
    )


@pytest.mark.parametrize("post", ["conv_fuse", "conv"])
def test_a_release_at_full_size_becomes_a_network_of_exactly_its_tensors(post):
    """By the tables of names and shapes of the official code's save route; nothing is allocated."""
    where = torch.device("meta")
    table = {key: torch.empty(shape, device=where) for key, shape in TABLES[f"model.pth ({post})"].items()}
    sets = {
        of_set: {key: torch.empty(shape, device=where) for key, shape in TABLES[of_set].items()}
        for of_set in SETS[: 3 if post == "conv_fuse" else 2]
    }
    parts = parse_unicon(table, "release", sets)
    network = UniCon(parts.sizes, torch.nn, device=where)
    found = stacked(parts.weights, places_of(parts.sizes))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in found.items()}
    for weights in (parts.weights, found):
        assert sum(value.numel() for value in weights.values()) == {"conv_fuse": 75096064, "conv": 25169920}[post]
    assert len(parts.joints) == 16 and len(parts.conditions) == (16 if post == "conv_fuse" else 0)
    assert {sizes.post for sizes in parts.sizes.joints} == {post}


SPELLINGS = {
    "prefix": lambda key: f"unet.{key}",
    "wrapped": lambda key: f"module.unet.{key}",
    "peft": lambda key: f"base_model.model.{key}",
    "renamed P": lambda key: key.replace("conv1n", "post1n.depth"),
    "lora_down": lambda key: key.replace("lora_A.", "lora_down.").replace("lora_B.", "lora_up."),
    "lora.down": lambda key: key.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."),
    "longer adapter": lambda key: key.replace(".xy_lora", ".depth_xy_lora").replace(".yx_lora", ".depth_yx_lora"),
    "y_lora unnamed": lambda key: key.replace(".y_lora.", "."),
    "y_lora default": lambda key: key.replace(".y_lora.", ".default."),
    "without number": lambda key: key.replace("to_out.0", "to_out"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_as_the_same(spelling):
    assert same(parse_unicon(renamed(SPELLINGS[spelling]), "file"), parse_unicon(small(), "file"))


@pytest.mark.parametrize("ends", [("lora.down", "lora.up"), ("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")])
def test_a_folder_is_read_as_its_one_file(ends):
    whole, sets = small(), {of_set: {} for of_set in SETS}
    for key in [key for key in whole if "lora" in key]:
        of_set = next(name for name in SETS if f".{name}." in key)
        stem, end = key.replace(f".{of_set}.weight", "").split(".lora_")
        sets[of_set][f"unet.{stem}.{ends['AB'.index(end)]}.weight"] = whole[key]
    posts = {key: value for key, value in whole.items() if "lora" not in key}
    assert same(parse_unicon(posts, "folder", sets), parse_unicon(whole, "folder"))
    stale = {key: value + 1 if "lora" in key else value for key, value in whole.items()}
    assert same(parse_unicon(stale, "folder", sets), parse_unicon(whole, "folder"))  # a folder's own files go before


def test_the_names_of_the_single_file_lead_back():
    parts = parse_unicon(small(), "file")
    names = flat_names(parts)
    assert {names[key]: value for key, value in parts.weights.items()}.keys() == small().keys()
    assert same(parse_unicon({names[key]: value for key, value in parts.weights.items()}, "again"), parts)


def test_alpha_over_rank_is_a_factor():
    key = f"{BLOCK}.attn1n.to_q.alpha.xy_lora"
    found = parse_unicon({**small(), key: torch.tensor(1.0)}, "file").weights["joints.0.xy.to_q.up.weight"]
    assert torch.equal(found, parse_unicon(small(), "file").weights["joints.0.xy.to_q.up.weight"] / 2)


def test_a_copy_of_the_models_own_attention_is_left_out():
    copy = {
        f"{BLOCK}.attn1n.to_q.base_layer.weight": torch.zeros(4, 4),
        f"{BLOCK}.attn1n.to_out.0.bias": torch.zeros(4),
    }
    assert same(parse_unicon({**small(), **copy}, "file"), parse_unicon(small(), "file"))


def test_parts_may_be_missing_as_a_whole():
    def without(*words):
        return {key: value for key, value in small().items() if not any(word in key for word in words)}

    assert (
        parse_unicon(without("y_lora.weight") | {k: v for k, v in small().items() if "xy_" in k}, "file").conditions
        == ()
    )
    assert parse_unicon(small(post=4), "file").sizes.joints[0].post == "conv"


def drop(part):
    return {key: value for key, value in small().items() if part not in key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "is not a UniCon"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, r"is not a UniCon: .*down_blocks\.0\.resnets"),
        (drop("conv1n"), "is not a UniCon"),
        (drop("attn1n.to_k.lora_A.xy_lora"), "lacks the xy_lora of .*to_k"),
        (drop("attn2.to_v"), "lacks the y_lora of .*attn2.to_v"),
        ({**small(), f"{BLOCK}.ff.weight": torch.zeros(1)}, "unknown tensors: .*ff.weight"),
        (small(post=5), "should be 4x4 or twice that, but is .5, 5."),
        ({**small(), f"{BLOCK}.attn1n.to_q.lora_A.xy_lora.weight": torch.zeros(3, 4)}, "two matrices of one rank"),
        ({**small(), f"{BLOCK}.attn1n.to_q.lora_A.xy_lora.weight": torch.zeros(2, 4, 1)}, "two matrices of one rank"),
        (
            {
                key.replace("mid_block.attentions.0", "down_blocks.0.attentions.0"): value
                for key, value in small().items()
                if "lora" in key
            }
            | small(),
            r"lacks down_blocks\.0\..*conv1n\.weight, though it has the LoRA",
        ),
        ({**small(), f"{BLOCK}.attn1n.to_q.alpha.xy_lora": torch.zeros(5)}, "alpha should be one number"),
        ({**small(), f"{BLOCK}.post1n.other.weight": torch.zeros(8, 8)}, "should hold one UniCon, but has both"),
        ({**small(), f"{BLOCK}.attn1n.to_q.lora_A.other_xy_lora.weight": torch.zeros(2, 4)}, "but has both"),
        (renamed(lambda key: key.replace(".xy_lora.", ".default.")), "unknown tensors"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_what_it_lacks(weights, message):
    with pytest.raises(ValueError, match=message):
        parse_unicon(weights, "file")


def test_blocks_are_told_from_everything_else():
    assert not POST.fullmatch("down_blocks.0.resnets.0.conv1.weight")
    assert POST.fullmatch("down_blocks.0.attentions.1.transformer_blocks.0.conv1n.weight")
