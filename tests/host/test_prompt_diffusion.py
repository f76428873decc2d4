"""Prompt Diffusion through the host's own Apply node, inside of whole runs of a tiny SD1.5."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import comfy.controlnet
import comfy.utils
import pytest
import torch
from reins.nodes.prompt_diffusion.control import PromptDiffusion
from reins.tests.helpers import controlnext, prompt_diffusion, tiny_models
from reins.tests.helpers.conds import areas, masks
from reins.tests.helpers.methods import pag, sag
from reins.tests.helpers.tiny_models import nearly, noise, text

SIZE = (8, 8)
SIZES = [(5, 7), (13, 6)]
PLUGS = {"alone": lambda model: model, "pag": pag, "sag": sag, "pag+sag": lambda model: sag(pag(model))}


@pytest.fixture(scope="module")
def shared():
    """What a loader gives."""
    return prompt_diffusion.loaded()


@pytest.fixture
def control(shared):
    """With an example."""
    return prompt_diffusion.example(shared)


def sample(model, size=SIZE, steps=2, **settings):
    return tiny_models.sample(model, size, steps=steps, **settings)


@contextmanager
def stem_runs(control):
    """Rows of every time that a stem is computed inside the block."""
    rows: list[int] = []
    first = control.control_model.input_hint_block.pair[0]
    hook = first.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    try:
        yield rows
    finally:
        hook.remove()


def hints_of(control, sd15, **settings):
    """The nine channels that the network gets."""
    seen = []
    stems = control.control_model.input_hint_block
    hook = stems.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        sample(sd15, (16, 16), steps=1, **prompt_diffusion.apply(control_net=control, **settings))
    finally:
        hook.remove()
    return seen[0]


def planes(picture):
    return picture.movedim(-1, 1).double()


# --- one control ---------------------------------------------------------------------------------------------------


def test_it_steers_by_the_example_by_its_order_and_by_the_query(shared, control, sd15):
    found = sample(sd15, **prompt_diffusion.apply(control_net=control))
    assert not nearly(found, sample(sd15), 1e-2)
    swapped = prompt_diffusion.example(shared, source=controlnext.picture(20), target=controlnext.picture(10))
    others = [
        {"control_net": prompt_diffusion.example(shared, 1)},
        {"control_net": swapped},
        {"image": controlnext.picture(31)},
    ]
    for other in others:
        assert not nearly(sample(sd15, **prompt_diffusion.apply(**{"control_net": control, **other})), found, 1e-3)


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"start": 0.9, "end": 0.91}], ids=["strength", "range"])
def test_off_is_absence_to_the_bit(off, control, sd15):
    assert torch.equal(sample(sd15, **prompt_diffusion.apply(control_net=control, **off)), sample(sd15))


def test_strength_and_range_are_the_hosts(control, sd15):
    whole, half, early = (
        sample(sd15, steps=3, **prompt_diffusion.apply(control_net=control, **settings))
        for settings in ({}, {"strength": 0.5}, {"end": 0.5})
    )
    for found in (half, early):
        assert not nearly(found, whole, 1e-4) and not nearly(found, sample(sd15, steps=3), 1e-4)


def test_a_run_repeats_itself_bit_by_bit(control, sd15):
    applied = prompt_diffusion.apply(control_net=control)
    first = sample(sd15, **applied)
    assert torch.equal(sample(sd15, **applied), first)
    assert torch.equal(sample(sd15, **prompt_diffusion.apply(control_net=prompt_diffusion.control())), first)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_works_with_pictures_of_any_shape(size, shared, sd15):
    wide = prompt_diffusion.example(
        shared, source=controlnext.picture(1, h=40, w=100), target=controlnext.picture(2, h=40, w=100)
    )
    applied = prompt_diffusion.apply(control_net=wide, image=controlnext.picture(3, h=70, w=50))
    assert sample(sd15, size, **applied).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    model, control = tiny_models.sd15(dtype=dtype), prompt_diffusion.control(dtype=dtype)
    found = sample(model, steps=2, **prompt_diffusion.apply(control_net=control))
    assert found.isfinite().all() and not nearly(found, sample(model, steps=2), 1e-3)


def test_pixels_reach_the_network_in_their_range_and_order(shared, sd15):
    pictures = [controlnext.picture(30), controlnext.picture(10), controlnext.picture(20)]  # query, source, target
    plain = torch.cat([planes(picture) for picture in pictures], 1)
    for pixel_range, expected in {
        "-1..1 (as trained)": plain * 2 - 1,
        "0..1 (diffusers example)": plain,
    }.items():
        torch.testing.assert_close(hints_of(prompt_diffusion.example(shared, pixel_range=pixel_range), sd15), expected)


def test_transparency_is_left_out(shared, control, sd15):
    with_alpha = {
        name: torch.cat([controlnext.picture(seed), torch.rand(1, 128, 128, 1)], -1)
        for name, seed in {"image": 30, "source": 10, "target": 20}.items()
    }
    image = with_alpha.pop("image")
    found = hints_of(prompt_diffusion.example(shared, **with_alpha), sd15, image=image)
    assert torch.equal(found, hints_of(control, sd15))


def test_a_target_of_another_size_is_stretched_to_its_source(shared):
    small, half = controlnext.picture(20, h=64, w=96), torch.zeros(1, 128, 128, 3)
    half[:, :, 64:] = 1
    pair = prompt_diffusion.example(shared, target=small).pair
    assert pair.shape == (1, 6, 128, 128)
    expected = comfy.utils.common_upscale(small.movedim(-1, 1), 128, 128, "lanczos", "disabled")
    assert torch.equal(pair[:, 3:], expected * 2 - 1)
    narrow = torch.zeros(1, 128, 32, 3)
    narrow[:, :, 16:] = 1  # as the other: no edge may move
    stretched = prompt_diffusion.example(shared, source=half, target=narrow).pair
    assert (stretched[:, :3] - stretched[:, 3:]).abs().mean() < 0.1


# --- groups --------------------------------------------------------------------------------------------------------


def test_a_batch_of_three_is_three_of_one(control, sd15):
    applied, start = prompt_diffusion.apply(control_net=control), noise(*SIZE, b=3)
    together = sample(sd15, batch=3, start=start, **applied)
    for i in range(3):
        assert nearly(together[i : i + 1], sample(sd15, start=start[i : i + 1], **applied))


@pytest.mark.parametrize("queries", [1, 2])
def test_several_examples_are_for_as_many_pictures(queries, shared, sd15):
    sources, start = controlnext.picture(10, b=2), noise(*SIZE, b=2)
    images = controlnext.picture(30, b=queries)
    many = prompt_diffusion.apply(control_net=prompt_diffusion.example(shared, source=sources), image=images)
    together = sample(sd15, batch=2, start=start, **many)
    for i in range(2):
        one = prompt_diffusion.apply(
            control_net=prompt_diffusion.example(shared, source=sources[i : i + 1]), image=images[i % queries :][:1]
        )
        assert nearly(together[i : i + 1], sample(sd15, start=start[i : i + 1], **one))


@pytest.mark.parametrize(("plug", "conds"), [("alone", text), ("alone", areas), ("alone", masks), ("pag+sag", text)])
def test_split_batches_are_joined_ones(plug, conds, control, sd15, monkeypatch):
    model = PLUGS[plug](sd15)
    applied = prompt_diffusion.apply(conds(1), conds(2), control)
    settings = {"steps": 2} if conds is text else {"size": (16, 16), "steps": 1}
    together = sample(model, **settings, **applied)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(sample(model, **settings, **applied), together)
    if plug == "alone":
        assert not nearly(together, sample(model, **settings, positive=conds(1), negative=conds(2)), 1e-3)


@pytest.mark.parametrize("other", ["another example", "a ControlNet"])
def test_in_a_chain_the_order_does_not_matter(other, shared, control, sd15):
    stock = tiny_models.controlnet()
    second = stock if other == "a ControlNet" else prompt_diffusion.example(shared, 1)

    def both(first, then):
        applied = prompt_diffusion.apply(control_net=first, strength=0.7)
        return sample(
            sd15, **prompt_diffusion.apply(**applied, control_net=then, image=controlnext.picture(40), strength=0.4)
        )

    def swapped():
        applied = prompt_diffusion.apply(control_net=second, image=controlnext.picture(40), strength=0.4)
        return sample(sd15, **prompt_diffusion.apply(**applied, control_net=control, strength=0.7))

    found = both(control, second)
    assert nearly(swapped(), found)
    for alone in (
        prompt_diffusion.apply(control_net=control, strength=0.7),
        prompt_diffusion.apply(control_net=second, image=controlnext.picture(40)),
    ):
        assert not nearly(sample(sd15, **alone), found, 1e-3)


def test_strengths_in_a_chain_add_up(control, sd15):
    chained = prompt_diffusion.apply(
        **prompt_diffusion.apply(control_net=control, strength=0.5), control_net=control, strength=0.25
    )
    assert nearly(sample(sd15, **chained), sample(sd15, **prompt_diffusion.apply(control_net=control, strength=0.75)))


def test_the_example_and_its_absence_share_a_network_but_nothing_else(shared, control, sd15):
    """One example for one prompt, another for the other: each row follows its own."""
    other = prompt_diffusion.example(shared, 1)
    mixed = {
        "positive": prompt_diffusion.apply(control_net=control)["positive"],
        "negative": prompt_diffusion.apply(control_net=other)["negative"],
    }
    with stem_runs(shared) as rows:
        found = sample(sd15, **mixed)
    assert rows == [1, 1]
    alone = [sample(sd15, steps=1, cfg=1.0, positive=conds) for conds in (mixed["positive"], mixed["negative"])]
    assert nearly(sample(sd15, steps=1, cfg=5.0, **mixed), alone[1] + 5.0 * (alone[0] - alone[1]))
    assert not nearly(found, sample(sd15, **prompt_diffusion.apply(control_net=control)), 1e-3)


# --- guidance by the example ---------------------------------------------------------------------------------------


def denoised(model, conds):
    """One prediction by these conds alone: what one step of Euler down to zero leaves."""
    return sample(model, steps=1, cfg=1.0, positive=conds)


def test_without_the_example_on_the_negative_guidance_strengthens_it_too(shared, control, sd15):
    """e = e(null, null) + s * (e(txt, pair) - e(null, null)); predictions of a step are linear in e."""
    with_pair = prompt_diffusion.apply(control_net=control)
    without = prompt_diffusion.apply(control_net=prompt_diffusion.example(shared, drop=True))
    conds = {"positive": with_pair["positive"], "negative": without["negative"]}
    null, both = denoised(sd15, conds["negative"]), denoised(sd15, conds["positive"])
    found = sample(sd15, steps=1, cfg=4.0, **conds)
    assert nearly(found, null + 4.0 * (both - null))
    assert not nearly(found, sample(sd15, steps=1, cfg=4.0, **with_pair), 1e-3)


def test_with_the_example_on_both_sides_only_the_text_is_guided(control, sd15):
    """And both prompts share one control, hence one batch."""
    conds = prompt_diffusion.apply(control_net=control)
    assert conds["positive"][0][1]["control"] is conds["negative"][0][1]["control"]
    null, both = denoised(sd15, conds["negative"]), denoised(sd15, conds["positive"])
    with tiny_models.forwards(sd15) as rows:
        assert nearly(sample(sd15, steps=1, cfg=4.0, **conds), null + 4.0 * (both - null))
    assert rows == [2]


def test_a_dropped_example_is_mid_grey(shared, control, sd15):
    found = hints_of(prompt_diffusion.example(shared, drop=True), sd15)
    assert not found[:, 3:].any() and torch.equal(found[:, :3], hints_of(control, sd15)[:, :3])
    grey = torch.full((1, 64, 64, 3), 0.5)
    assert torch.equal(found, hints_of(prompt_diffusion.example(shared, source=grey, target=grey), sd15))


# --- what is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plug", "batch"), [("alone", 1), ("alone", 3), ("pag", 2), ("sag", 1), ("pag+sag", 3)])
def test_the_stems_run_once_in_a_run(plug, batch, control, sd15):
    model, applied = PLUGS[plug](sd15), prompt_diffusion.apply(control_net=control)
    with stem_runs(control) as rows:
        sample(model, steps=3, batch=batch, **applied)
        assert rows == [1]
        sample(model, steps=2, **applied)
        assert rows == [1, 1]


def test_the_stems_run_once_when_batches_are_split(control, sd15, monkeypatch):
    with tiny_models.little_memory(monkeypatch, sd15), stem_runs(control) as rows:
        sample(sag(pag(sd15)), **prompt_diffusion.apply(control_net=control))
    assert rows == [1]


def test_what_is_kept_changes_nothing(control, sd15, monkeypatch):
    model, applied = sag(pag(sd15)), prompt_diffusion.apply(control_net=control)
    expected = sample(model, **applied)
    stems = control.control_model.input_hint_block
    monkeypatch.setattr(stems, "forward", lambda hint, *_: stems.features(hint))
    assert torch.equal(sample(model, **applied), expected)


def test_a_run_of_another_size_computes_its_own(control, sd15):
    applied = prompt_diffusion.apply(control_net=control)
    first = sample(sd15, **applied)
    fresh = sample(sd15, (6, 10), **prompt_diffusion.apply(control_net=prompt_diffusion.control()))
    assert torch.equal(sample(sd15, (6, 10), **applied), fresh)
    assert torch.equal(sample(sd15, **applied), first)


def test_after_a_run_nothing_is_left(shared, sd15):
    applied, kept = prompt_diffusion.apply(control_net=prompt_diffusion.example(shared)), []
    stems = shared.control_model.input_hint_block
    hook = stems.register_forward_hook(lambda _, inputs, out: kept.extend(map(weakref.ref, (inputs[0], out))))
    try:
        sample(sd15, **applied)
    finally:
        hook.remove()
    gc.collect()
    assert kept and not any(reference() is not None for reference in kept)
    assert not stems.cache.features and applied["positive"][0][1]["control"].cond_hint is None


# --- copies --------------------------------------------------------------------------------------------------------


def test_the_node_and_apply_work_on_copies(shared, sd15):
    first = prompt_diffusion.example(shared)
    second = prompt_diffusion.example(first, 1, pixel_range="0..1 (diffusers example)")
    assert shared.pair is None and not torch.equal(first.pair, second.pair)
    before = sample(sd15, **prompt_diffusion.apply(control_net=first))
    applied = prompt_diffusion.apply(control_net=second)["positive"][0][1]["control"]
    assert type(applied) is PromptDiffusion and applied.pair is second.pair
    assert applied.control_model is shared.control_model
    assert second.cond_hint_original is None and not second.extra_concat_orig
    assert torch.equal(sample(sd15, **prompt_diffusion.apply(control_net=first)), before)


def test_what_a_caller_adds_to_the_hint_stays(control):
    added = [torch.ones(1, 1, 8, 8)]
    found = control.copy().set_cond_hint(controlnext.picture().movedim(-1, 1), extra_concat=added).extra_concat_orig
    assert found[0] is added[0] and found[1] is control.pair and len(added) == 1


@pytest.mark.skipif(not hasattr(comfy.controlnet.ControlNet, "deepclone_multigpu"), reason="this host has one GPU")
def test_a_copy_for_another_gpu_has_its_own_network_and_the_example(control, sd15):
    applied = prompt_diffusion.apply(control_net=control)
    expected = sample(sd15, **applied)
    original = applied["positive"][0][1]["control"]
    clone = original.deepclone_multigpu(tiny_models.CPU, autoregister=True)
    assert type(clone) is PromptDiffusion and clone.pair is control.pair
    assert clone.control_model is not original.control_model and not clone.control_model.input_hint_block.cache.features
    conds = {name: [[applied[name][0][0], {**applied[name][0][1], "control": clone}]] for name in applied}
    original.multigpu_clones.clear()
    assert torch.equal(sample(sd15, **conds), expected)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_apply_without_an_example_says_where_it_goes(shared):
    with pytest.raises(ValueError, match="connect Prompt Diffusion Example between the loader and Apply"):
        prompt_diffusion.apply(control_net=shared)


def test_a_query_without_colours_is_refused(control):
    with pytest.raises(ValueError, match="image should have red, green and blue, but has 1 channels"):
        prompt_diffusion.apply(control_net=control, image=torch.rand(1, 8, 8, 1))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (tiny_models.controlnet, "is an ordinary ControlNet"),
        (lambda: "control", "is str"),
        (lambda: None, "is NoneType"),
    ],
)
def test_another_control_is_refused(found, words):
    with pytest.raises(ValueError, match=f"control_net should come from Load Prompt Diffusion, but {words}"):
        prompt_diffusion.example(found())


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.zeros(8, 8, 3), "should be pictures of shape"),
        (torch.zeros(1, 8, 8, 1), "should be pictures of shape"),
        (torch.zeros(0, 8, 8, 3), "should be pictures of shape"),
        (torch.full((1, 8, 8, 3), torch.nan), "NaN"),
    ],
    ids=["no batch", "grey", "none", "nan"],
)
def test_a_bad_example_is_refused(picture, words, name, shared):
    with pytest.raises(ValueError, match=f"^{name} .*{words}"):
        prompt_diffusion.example(shared, **{name: picture})
    assert shared.pair is None


@pytest.mark.parametrize(("sources", "targets", "examples"), [(1, 3, 3), (3, 1, 3), (2, 2, 2)])
def test_one_picture_goes_with_many(sources, targets, examples, shared):
    source, target = controlnext.picture(1, b=sources, h=16, w=16), controlnext.picture(2, b=targets, h=16, w=16)
    pair = prompt_diffusion.example(shared, source=source, target=target).pair
    for i in range(examples):
        own = [planes(picture[i % len(picture)][None]).float() * 2 - 1 for picture in (source, target)]
        assert torch.equal(pair[i : i + 1], torch.cat(own, 1))


def test_unequal_numbers_of_pictures_are_refused(shared):
    with pytest.raises(ValueError, match=r"source and target should be the same number of pictures.* but are 2 and 3"):
        prompt_diffusion.example(shared, source=controlnext.picture(1, b=2), target=controlnext.picture(2, b=3))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: tiny_models.sd15(context_dim=24), "BaseModel has 32 and 24"),
        (lambda: tiny_models.sd15(model_channels=64), "BaseModel has 64 and 16"),
    ],
    ids=["text", "width"],
)
def test_a_model_of_another_family_is_refused_before_the_first_step(model, found, control):
    with pytest.raises(ValueError, match=f"made for models with 32 channels and texts of 16 numbers, but {found}"):
        sample(model(), **prompt_diffusion.apply(control_net=control))


def test_a_transformer_is_refused_before_the_first_step_because_the_file_is_for_a_unet(control):
    with pytest.raises(ValueError, match=r"steers the UNet of SD1\.5, but the model is SD3 \(.+\)\. A ControlNet adds"):
        sample(tiny_models.dit(), **prompt_diffusion.apply(control_net=control))
