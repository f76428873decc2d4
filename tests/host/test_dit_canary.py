"""What the pack takes for granted of each family: the order of its attentions, where the picture is, and its slots.

The tables are written by hand. A host that moves the text, drops a slot or changes the order of calls fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.engine.dit.families import attentions_of, blocks_of, family_of
from reins.engine.find import all_sites
from reins.engine.network import add_attention_layer
from reins.tests.helpers.attention_by_hand import calls_of, shape_of
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, VIDEO, latent, make, noise_like, sample, text

H, W, TEXT = 8, 12, 5  # of the latent, and tokens of the text
SELF_AND_TEXT = 2  # calls of a block that attends to the picture, then to the text


def blocks(name: str, count: int, tokens: int) -> list[tuple[str, int, int]]:
    return [(f"{name}.{i}", tokens, tokens) for i in range(count)]


def crossed(name: str, tokens: int) -> list[tuple[str, int, int]]:
    """Three blocks that attend to the picture and then to the text."""
    return [(f"{name}.{i}", tokens, keys) for i in range(3) for keys in (tokens, TEXT)]


# The calls of attention of one call of the network: block, queries, keys. A picture has 4 x 6 tokens in each frame.
CALLS = {
    "sd3": blocks("joint_blocks", 3, 29),
    "sd35m": [
        ("joint_blocks.0", 29, 29), ("joint_blocks.0", 24, 24), ("joint_blocks.1", 29, 29), ("joint_blocks.1", 24, 24),
        ("joint_blocks.2", 29, 29),
    ],
    "flux": blocks("double_blocks", 2, 29) + blocks("single_blocks", 2, 29),
    "chroma": blocks("double_blocks", 2, 29) + blocks("single_blocks", 2, 29),
    "lumina": [("context_refiner.0", 5, 5), ("noise_refiner.0", 24, 24), *blocks("layers", 3, 29)],
    "zimage": [("context_refiner.0", 32, 32), ("noise_refiner.0", 32, 32), *blocks("layers", 3, 64)],
    "hidream": blocks("double_stream_blocks", 1, 39) + blocks("single_stream_blocks", 2, 39),
    "aura": blocks("double_layers", 1, 37) + blocks("single_layers", 2, 37),  # eight registers in front of the text
    "qwen": blocks("transformer_blocks", 3, 29),
    "wan": crossed("blocks", 72),
    "hunyuan_video": [("", 5, 5), ("", 5, 5), *blocks("double_blocks", 1, 77), *blocks("single_blocks", 2, 77)],
    "predict2": crossed("blocks", 24),
    "ltxv": crossed("transformer_blocks", 288),
}  # fmt: skip
FIRST = {"lumina": 1, "zimage": 1, "hunyuan_video": 2}  # the first call with the picture in it, if not the first of all
BEFORE = {"sd3": 5, "sd35m": 5, "flux": 5, "chroma": 5, "qwen": 5, "aura": 13}  # tokens in front of the picture in it
SLOTS = {
    "sd3": {("double_block", i) for i in range(3)},
    "sd35m": {("double_block", i) for i in range(3)},
    "flux": {(kind, i) for kind in ("double_block", "single_block") for i in range(2)},
    "chroma": {(kind, i) for kind in ("double_block", "single_block") for i in range(2)},
    "aura": {("double_block", 0), ("single_block", 0), ("single_block", 1)},
    "qwen": {("double_block", i) for i in range(3)},
    "wan": {("double_block", i) for i in range(3)},
    "hunyuan_video": {("double_block", 0), ("single_block", 0), ("single_block", 1)},
    "ltxv": {("double_block", i) for i in range(3)},
}
STREAMS = {"double_block": ("img", "txt"), "single_block": ("img",)}  # what a slot is given
APART = ("wan", "ltxv")  # families whose double blocks give the text to a slot, but take no text back


def one_call(family: str, model: ModelPatcher, x: torch.Tensor, **conds: Any) -> Any:
    """One step without CFG, hence one call of the network."""
    positive = text(1, family=family, **conds)
    return sample(family, model, cfg=1.0, steps=1, h=x.shape[-2], w=x.shape[-1], start=x, positive=positive,
                  frames=x.shape[2] if x.ndim == 5 else None)  # fmt: skip


def host_takes(family: str, x: torch.Tensor) -> bool:
    """Whether the host itself takes a latent of this size. HunyuanVideo takes no odd sizes, nor did Predict2."""
    try:
        one_call(family, MODELS[family](), x)
    except (AssertionError, RuntimeError):
        return False
    return True


def patch(family: str) -> int:
    return 1 if family == "ltxv" else 2


def changed(family: str, model: ModelPatcher, call: int, x: torch.Tensor, other: torch.Tensor, **conds: Any) -> list:
    """Which queries of one call of attention differ between two latents."""
    seen = [calls_of(model, lambda model, x=x: one_call(family, model, x, **conds))[call].q for x in (x, other)]
    return (seen[0] != seen[1]).any(-1).any(1)[0].nonzero().flatten().tolist()


def told(family: str, model: ModelPatcher, site: int, x: torch.Tensor, **conds: Any) -> tuple[slice, tuple]:
    """Where the pack's layers are told that the picture is, at one of the attentions of the picture."""
    calls = []

    def look(call: Any, below: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        calls.append((call.picture, call.grid))
        return below(call)

    one_call(family, add_attention_layer(model, [all_sites(model, "attn1")[site]], look), x, **conds)
    assert len(calls) == 1
    return calls[0]


def tokens(where: slice) -> list[int]:
    return list(range(where.start, where.stop))


@pytest.mark.parametrize("family", GUIDED)
def test_a_network_calls_its_attentions_in_this_order(family):
    model = MODELS[family]()
    calls = calls_of(model, lambda model: one_call(family, model, noise_like(latent(family))))
    assert [shape_of(call) for call in calls] == CALLS[family]


@pytest.mark.parametrize("family", GUIDED)
def test_the_pack_knows_the_same_attentions_in_the_same_order(family):
    network = MODELS[family]().model.diffusion_model
    known = family_of(network)
    found = [
        (f"{place.stack.attribute}.{place.number}", None if site is None else site.kind)
        for place, block in blocks_of(network, known)
        for site in attentions_of(place, block)
    ]
    assert [block for block, _ in found] == [block for block, *_ in CALLS[family] if block]
    for (_, kind), (block, queries, keys) in zip(found, [call for call in CALLS[family] if call[0]], strict=True):
        expected = "text" if block.startswith("context") else "attn1" if queries == keys else "attn2"
        assert kind == expected


@pytest.mark.parametrize("family", GUIDED)
@pytest.mark.parametrize("size", [(8, 12), (7, 10)], ids=["even", "odd"])
def test_the_pack_finds_the_picture_where_the_latent_changes_the_queries(family, size):
    model = MODELS[family]()
    x = noise_like(latent(family, *size))
    if not host_takes(family, x):
        pytest.skip("this ComfyUI takes no odd sizes of the family")
    call, (where, _) = FIRST.get(family, 0), told(family, model, 0, x)
    assert changed(family, model, call, x, noise_like(x, 8)) == tokens(where)
    if size == (H, W):
        assert where.start == BEFORE.get(family, TEXT if _is_behind_its_text(family) else 0)


def _is_behind_its_text(family: str) -> bool:
    """HunyuanVideo had its text behind the picture on older hosts, which said so."""
    if family != "hunyuan_video":
        return False
    return not getattr(MODELS[family]().model.diffusion_model.double_blocks[0], "flipped_img_txt", False)


@pytest.mark.parametrize("family", GUIDED)
def test_the_tokens_of_the_picture_fill_its_grid_in_order(family):
    model, p = MODELS[family](), patch(family)
    x = noise_like(latent(family))
    other = x.clone()
    row, column, frame = 5, 2, VIDEO.get(family, 1) - 1
    other[(0, 0, frame, row, column) if family in VIDEO else (0, 0, row, column)] += 1.0
    where, (t, h, w) = told(family, model, 0, x)
    assert (t, h, w) == (VIDEO.get(family, 1), H // p, W // p)
    expected = where.start + (frame * h + row // p) * w + column // p
    assert changed(family, model, FIRST.get(family, 0), x, other) == [expected]


@pytest.mark.parametrize(("family", "before"), [("lumina", 5), ("zimage", 32)])
def test_behind_the_refiners_text_comes_first_and_padding_last(family, before):
    model = MODELS[family]()
    x = noise_like(latent(family))
    count = CALLS[family][2][1]
    assert changed(family, model, 2, x, noise_like(x, 8)) == list(range(before, count))
    assert told(family, model, 1, x) == (slice(before, before + 24), (1, 4, 6))


@pytest.mark.parametrize(("family", "expected"), [("flux", 5), ("chroma", 5), ("aura", 13), ("hidream", 0)])
def test_single_blocks_have_the_picture_where_double_blocks_have_it(family, expected):
    model = MODELS[family]()
    where, _ = told(family, model, -1, noise_like(latent(family)))
    assert where == slice(expected, expected + 24)


def test_the_second_attention_of_stable_diffusion_35_medium_has_the_picture_alone():
    model = MODELS["sd35m"]()
    assert all_sites(model, "attn1")[1].index == 1
    assert told("sd35m", model, 1, noise_like(latent("sd35m"))) == (slice(0, 24), (1, 4, 6))


def reference(family: str, h: int = 4, w: int = 6, seed: int = 3) -> torch.Tensor:
    return noise_like(latent(family, h, w, frames=1), seed)


# Conditionings whose tokens lie beside the picture: settings of the network, conds, where the picture begins.
REFERENCES = {
    "flux behind": ("flux", {}, lambda: {"reference_latents": [reference("flux")]}, 5, 29 + 6),
    "qwen behind": ("qwen", {}, lambda: {"reference_latents": [reference("qwen")]}, 5, 29 + 6),
    "wan in front": ("wan", {"in_dim_ref_conv": 16}, lambda: {"reference_latents": [reference("wan", 8, 12)]}, 24, 96),
    "wan behind": ("wan", {}, lambda: {"context_latents": [reference("wan")]}, 0, 72 + 6),
    "hunyuan_video in front": ("hunyuan_video", {}, lambda: {"ref_latent": reference("hunyuan_video")}, None, 77 + 6),
    "zimage in front": ("zimage", {}, lambda: {"reference_latents": [reference("zimage")]}, 32, 64),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_no_part_of_the_picture(name):
    family, settings, conds, before, count = REFERENCES[name]
    model = make(family, **settings)
    call, x = FIRST.get(family, 0), noise_like(latent(family))
    seen = [calls_of(model, lambda model, of=of: one_call(family, model, x, **of))[call] for of in ({}, conds())]
    if seen[0].q.shape == seen[1].q.shape:
        pytest.skip("this ComfyUI has no such reference")
    where, grid = told(family, model, 0, x, **conds())
    if before is None:
        before = 6 + (TEXT if _is_behind_its_text(family) else 0)
    assert seen[1].q.shape[2] == count
    assert where.start == before
    assert grid == (VIDEO.get(family, 1), 4, 6)
    assert changed(family, model, call, x, noise_like(x, 8), **conds()) == tokens(where)


def test_frames_to_be_followed_are_no_part_of_the_video():
    """LTX-Video has keyframes behind its own frames, in the latent."""
    model, x = MODELS["ltxv"](), noise_like(latent("ltxv", frames=4))
    assert told("ltxv", model, 0, x, **keyframes(model)) == (slice(0, 288), (3, 8, 12))


def keyframes(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """Conds by which the last frame of four is one to be followed."""
    ends = [2] if getattr(model.model.diffusion_model.patchifier, "start_end", False) else []
    return {"keyframe_idxs": torch.zeros((1, 3, 96, *ends)), "concat_mask": torch.ones((1, 1, 4, 8, 12))}


@pytest.mark.parametrize("family", GUIDED)
def test_a_family_has_these_slots_of_blocks(family):
    model, seen = MODELS[family](), {}

    def slot(kind: str, number: int) -> Callable[..., dict]:
        def run(args: dict, extra: dict) -> dict:
            seen[kind, number] = {*args}
            return extra["original_block"](args)

        return run

    for kind in STREAMS:
        for number in range(4):
            model.set_model_patch_replace(slot(kind, number), "dit", kind, number)
    one_call(family, model, noise_like(latent(family)))
    assert {*seen} == SLOTS.get(family, set())
    for (kind, _), names in seen.items():
        assert {*STREAMS[kind], "transformer_options"} <= names
    known = family_of(model.model.diffusion_model)
    assert {place.stack.slot for place, _ in blocks_of(model.model.diffusion_model, known)} - {None} == {
        kind for kind, _ in seen
    }
    assert all("txt" not in stack.streams for stack in known.stacks) or family not in APART
