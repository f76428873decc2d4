"""ControlNeXt in the sampling loop: the formula, its neighbours, pictures and frames, and what it costs."""

from __future__ import annotations

from unittest import mock

import comfy.controlnet
import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.t2i_adapter.adapter import Adapter
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from reins.engine.run import RUN, Run
from reins.models.controlnext.files import VARIANTS
from reins.models.controlnext.network import ControlNeXt as Network
from reins.nodes.controlnext import hint as module
from reins.nodes.controlnext.hint import stretched
from reins.nodes.controlnext.nodes import ControlNeXtApply
from reins.tests.helpers import controlnext, ip_adapter, tiny_models
from reins.tests.helpers.calls import feature_call
from reins.tests.helpers.conds import controlled
from reins.tests.helpers.methods import METHODS, pag, sag
from reins.tests.helpers.other_packs import VERSION, hook_with, regrouped, tiled, windows
from reins.tests.helpers.tiny_models import nearly, sample, text
from torch.nn import functional

# where the released variants add their feature, on the tiny models
PLACES = {
    "sd15": ("output", 0),
    "sd15-training": ("input", 2),
    "sdxl": ("input", 0),
    "svd-v1": ("input", 5),
    "svd-v2": ("input", 2),
}

VIDEO = ("svd-v1", "svd-v2")


def apply(model, made, image, **settings):
    return ControlNeXtApply.execute(model, made, image, **settings).result[0]


def model_of(name):
    return {"sd15": tiny_models.sd15, "sdxl": tiny_models.sdxl}.get(name[:4], tiny_models.video)(
        **{} if name.startswith("svd") else {"dtype": torch.float64}
    )


def hints(image, size):
    """(n, 3, h, w) for a latent of some size."""
    return stretched(image.movedim(-1, 1), 8 * size[0], 8 * size[1])


def reference(model, made, name, image, gains=None, mask=None):
    """The method as the official code writes it: every call, every row, nothing remembered.

    `gains` are those of the positive and of the negative; the hint of row i is picture i.
    """
    model, times, variant = model.clone(), [], VARIANTS[name]
    gains = (variant.gain(made.scale),) * 2 if gains is None else gains
    network = made.network.model

    def note_time(executor, x, timesteps, *rest, **kwargs):
        times[:] = [timesteps]
        return executor(x, timesteps, *rest, **kwargs)

    def add(h, options):
        if options["block"] != PLACES[name]:
            return h
        labels = options["cond_or_uncond"]
        b = len(h) // len(labels)
        rows = hints(image, options["original_shape"][-2:]).to(h)
        rows = rows.expand(b, -1, -1, -1) if len(rows) == 1 else rows[:b]
        c = network(network.prepare(rows, variant.stem_padding), times[0][:b]).repeat(len(labels), 1, 1, 1)
        size, dims = h.shape[-2:], (1, 2, 3)
        if variant.normalization.pool_first:
            c = functional.adaptive_avg_pool2d(c, size)
        ratio = h.std(dims, keepdim=True) / (c.std(dims, keepdim=True) + variant.normalization.eps)
        c = (c - c.mean(dims, keepdim=True)) * ratio + h.mean(dims, keepdim=True)
        gain = torch.tensor([gains[label == 1] for label in labels]).to(h).repeat_interleave(b)[:, None, None, None]
        c = functional.adaptive_avg_pool2d(c, size) * gain
        return h + (c if mask is None else c * functional.interpolate(mask[:, None], size=size, mode="bilinear").to(h))

    if PLACES[name][0] == "input":
        model.set_model_input_block_patch_after_skip(add)
    else:
        model.set_model_output_block_patch(lambda h, skip, options: (add(h, options), skip))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note_time)
    return model


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_result_is_that_of_the_formula(name, cfg):
    model = model_of(name)
    made, image = controlnext.control(model, name, scale=0.8), controlnext.picture(1, b=3)
    batch = {"batch": 3, "start": tiny_models.noise(b=3)}
    uncond = VARIANTS[name].uncond
    gain = VARIANTS[name].gain(0.8)
    expected = sample(reference(model, made, name, image, (gain, gain if uncond is None else uncond)), cfg=cfg, **batch)
    # a video begins at sigma 700, where single precision rounds latents to 2e-4
    assert nearly(sample(apply(model, made, image), cfg=cfg, **batch), expected, 1e-4 if name in VIDEO else 1e-5)
    assert not nearly(sample(model, cfg=cfg, **batch), expected, 1e-2)


def test_the_gains_are_those_of_the_official_code():
    assert VARIANTS["sd15"].gain(0.8) == VARIANTS["sdxl"].gain(0.8) == 0.8
    assert VARIANTS["svd-v1"].gain(1.0) == pytest.approx(0.95, abs=5e-3)
    assert VARIANTS["svd-v1"].uncond == pytest.approx(0.65)
    assert VARIANTS["svd-v2"].gain(1.0) == 0.2 and VARIANTS["svd-v2"].uncond == 0.0


@pytest.mark.parametrize("name", ["sd15-training", "svd-v1", "svd-v2"])
@pytest.mark.parametrize("uncond", ["both", "cond only"])
def test_the_negative_follows_as_asked(name, uncond):
    model = model_of(name)
    made, image, batch = controlnext.control(model, name), controlnext.picture(1, b=3), {"batch": 3}
    gain = VARIANTS[name].gain(1.0)
    expected = reference(model, made, name, image, (gain, gain if uncond == "both" else 0.0))
    assert nearly(sample(apply(model, made, image, uncond=uncond), **batch), sample(expected, **batch), 1e-4)


@pytest.mark.parametrize("strength", [0.35, -0.5, 2.0])
@pytest.mark.parametrize("name", ["sd15-training", "svd-v1"])
def test_strength_multiplies_the_whole_term(name, strength):
    model = model_of(name)
    made, image = controlnext.control(model, name, scale=0.8), controlnext.picture(1)
    gains = (strength * VARIANTS[name].gain(0.8), strength * (VARIANTS[name].uncond or VARIANTS[name].gain(0.8)))
    expected = sample(reference(model, made, name, image, gains), batch=3)
    assert nearly(sample(apply(model, made, image, strength=strength), batch=3), expected, 1e-4)


def test_strength_0_leaves_the_very_model_and_unet_strength_0_its_weights(sd15):
    made = controlnext.control(sd15, unet=controlnext.unet_file(sd15))
    assert apply(sd15, made, controlnext.picture(), strength=0, unet_strength=0) is sd15
    assert not apply(sd15, made, controlnext.picture(), unet_strength=0).patches
    only_weights = apply(sd15, made, controlnext.picture(), strength=0)
    assert "reins" not in only_weights.model_options["transformer_options"]
    assert not nearly(sample(only_weights), sample(sd15), 1e-4)


# --- hints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (5, 24)])
@pytest.mark.parametrize("shape", [(128, 128), (50, 300)])
def test_a_hint_of_any_size_is_stretched_to_eight_times_the_latent(size, shape, model):
    image, seen, prepare = controlnext.picture(1, h=shape[0], w=shape[1]), [], Network.prepare

    def note(self, hint, *rest):
        seen.append(hint)
        return prepare(self, hint, *rest)

    with mock.patch.object(Network, "prepare", note):
        sample(apply(model, controlnext.control(model), image), size, steps=1)
    h, w = (8 * length for length in size)
    expected = image.movedim(-1, 1)
    if shape != (h, w):
        expected = comfy.utils.common_upscale(expected, w, h, "lanczos", "disabled")
    assert torch.equal(seen[0], expected.to(seen[0]))


def pictures(model, made, image, count, **settings):
    """One run for each picture with its own hint, from the noise of a batch."""
    start = tiny_models.noise(b=count)
    return torch.cat([
        sample(apply(model, made, image[i % len(image)][None], **settings), start=start[i : i + 1])
        for i in range(count)
    ])  # fmt: skip


@pytest.mark.parametrize("given", [1, 2, 3, 5])
def test_each_picture_of_a_batch_has_its_hint(given, model):
    """Too few begin again, as with the host's ControlNet; those beyond the batch are not looked at."""
    made, image = controlnext.control(model), controlnext.picture(1, b=given)
    found = sample(apply(model, made, image), batch=3, start=tiny_models.noise(b=3))
    assert nearly(found, pictures(model, made, image, 3))
    assert given == 1 or not nearly(found, pictures(model, made, image.flip(0), 3), 1e-3)


def test_a_prompt_of_an_area_sees_its_part_of_the_hint(sd15):
    """One prediction: inside the area it is that of a smaller picture with the part as its hint."""
    made, image = controlnext.control(sd15), controlnext.picture(1)
    x, area = 3 * tiny_models.noise(), (16, 8, 0, 8)
    embedding = text(1)[0][0]
    steered = apply(sd15, made, image)
    whole = tiny_models.denoise(steered, x, 3.0, [tiny_models.cond(embedding, area=area)], None, 1.0)
    part = apply(sd15, made, image[:, :, 64:])
    assert nearly(whole[..., 8:], tiny_models.denoise(part, x[..., 8:], 3.0, [tiny_models.cond(embedding)], None, 1.0))
    squeezed = tiny_models.denoise(steered, x[..., 8:], 3.0, [tiny_models.cond(embedding)], None, 1.0)
    assert not nearly(whole[..., 8:], squeezed, 1e-3)


def test_two_areas_of_one_size_see_different_parts(sd15):
    made, image = controlnext.control(sd15), controlnext.picture(1)
    x, embedding = 3 * tiny_models.noise(), text(1)[0][0]
    both = [tiny_models.cond(embedding, area=(16, 8, 0, left)) for left in (0, 8)]
    found = tiny_models.denoise(apply(sd15, made, image), x, 3.0, both, None, 1.0)
    for left in (0, 8):
        part = apply(sd15, made, image[:, :, 8 * left : 8 * left + 64])
        columns = slice(left, left + 8)
        assert nearly(
            found[..., columns],
            tiny_models.denoise(part, x[..., columns], 3.0, [tiny_models.cond(embedding)], None, 1.0),
        )


@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
def test_a_mask_multiplies_the_term_and_leaves_the_statistics(size, sd15):
    mask = torch.rand((1, 20, 30), generator=torch.Generator().manual_seed(0))
    made, image = controlnext.control(sd15), controlnext.picture(1)
    expected = reference(sd15, made, "sd15-training", image, mask=mask)
    assert nearly(sample(apply(sd15, made, image, mask=mask), size), sample(expected, size))
    ones = torch.ones(1, 7, 9)
    assert nearly(sample(apply(sd15, made, image, mask=ones), size), sample(apply(sd15, made, image), size))


def test_a_mask_is_cut_to_areas_and_given_picture_by_picture(sd15):
    made, image = controlnext.control(sd15), controlnext.picture(1)
    masks = torch.rand((2, 16, 16), generator=torch.Generator().manual_seed(0))
    start = tiny_models.noise(b=2)
    found = sample(apply(sd15, made, image, mask=masks), batch=2, start=start)
    for i in range(2):
        alone = apply(sd15, made, image, mask=masks[i : i + 1])
        assert nearly(found[i : i + 1], sample(alone, start=start[i : i + 1]))
    x, embedding = 3 * tiny_models.noise(), text(1)[0][0]
    half = tiny_models.denoise(
        apply(sd15, made, image, mask=masks[:1]), x, 3.0, [tiny_models.cond(embedding, area=(16, 8, 0, 8))], None, 1.0
    )
    part = apply(sd15, made, image[:, :, 64:], mask=masks[:1, :, 8:])
    assert nearly(half[..., 8:], tiny_models.denoise(part, x[..., 8:], 3.0, [tiny_models.cond(embedding)], None, 1.0))


def test_a_hint_beyond_black_and_white_is_cut_at_every_size(sd15):
    made, image = controlnext.control(sd15), 3 * controlnext.picture(1) - 1
    for size in ((16, 16), (12, 20)):
        found = sample(apply(sd15, made, image), size)
        assert nearly(found, sample(apply(sd15, made, image.clamp(0, 1)), size))


def test_a_hint_that_changes_afterwards_changes_nothing(sd15):
    made, image = controlnext.control(sd15), controlnext.picture(1)
    steered = apply(sd15, made, image)
    expected = sample(steered)
    image.zero_()
    assert torch.equal(sample(steered), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
def test_a_hint_without_any_content_is_finite_in_every_precision(dtype, brightness):
    model = tiny_models.sd15(dtype=dtype)
    image = torch.full((1, 64, 64, 3), brightness)
    found = sample(apply(model, controlnext.control(model), image), steps=2)
    assert found.isfinite().all()


# --- video ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svd-v1", "svd-v2"])
@pytest.mark.parametrize("given", [1, 2, 3, 4])
def test_each_frame_has_its_hint_and_the_last_is_repeated(name, given):
    model, image = tiny_models.video(), controlnext.picture(1, b=4)
    made = controlnext.control(model, name)
    frames = image[[min(i, given - 1) for i in range(3)]]
    found = sample(apply(model, made, image[:given]), batch=3)
    gain, uncond = VARIANTS[name].gain(1.0), VARIANTS[name].uncond
    assert nearly(found, sample(reference(model, made, name, frames, (gain, uncond)), batch=3), 1e-4)


def svd_text(seed):
    """As SVD's own node makes it: a vector of the picture, its latent beside the noise, and three numbers."""
    picture = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(9))
    numbers = {"concat_latent_image": picture, "fps": 6, "motion_bucket_id": 127, "augmentation_level": 0.0}
    return text(seed, tokens=1, **numbers)


@pytest.mark.parametrize(
    "guide", [lambda m: m, lambda m: VideoLinearCFGGuidance().patch(m, 1.0)[0]], ids=["", "linear"]
)
@pytest.mark.parametrize("name", ["svd-v1", "svd-v2"])
def test_the_hosts_own_video_model_follows_the_formula(name, guide):
    model, image = tiny_models.svd(), controlnext.picture(1, b=4)
    made, batch = controlnext.control(model, name), {"batch": 4, "start": tiny_models.noise(b=4), "cfg": 2.5}
    batch |= {"positive": svd_text(1), "negative": svd_text(2)}
    gains = (VARIANTS[name].gain(1.0), VARIANTS[name].uncond)
    expected = sample(guide(reference(model, made, name, image, gains)), **batch)
    assert nearly(sample(guide(apply(model, made, image)), **batch), expected, 1e-4)
    assert not nearly(sample(guide(model), **batch), expected, 1e-2)


@pytest.mark.parametrize(("name", "first"), [("svd-v1", 3), ("svd-v2", 0)])
@pytest.mark.parametrize("pack", ["host", "animatediff"])
def test_windows_take_the_hints_of_their_frames(name, first, pack):
    """v2 shows each window the hint of the very first frame, the reference, in the place of its own first."""
    model, image, seen, prepare = tiny_models.video(), controlnext.picture(1, b=6), [], Network.prepare
    steered = apply(model, controlnext.control(model, name), image)
    window = mock.Mock(dim=0, index_list=[3, 4, 5])
    told = {"context_window": window} if pack == "host" else {"ad_params": {"sub_idxs": [3, 4, 5]}}
    steered.model_options["transformer_options"].update(told)

    def note(self, hint, *rest):
        seen.extend(hint)
        return prepare(self, hint, *rest)

    with mock.patch.object(Network, "prepare", note):
        sample(steered, batch=3, steps=1)
    expected = hints(image, (16, 16))[[first, 4, 5]]
    assert torch.equal(torch.stack(seen), expected.to(seen[0]))


def test_too_few_hints_for_the_frames_are_reported_once(caplog):
    model = tiny_models.video()
    sample(apply(model, controlnext.control(model), controlnext.picture(1, b=2)), batch=3)
    assert caplog.text.count("2 hints are too few: the last is repeated") == 1
    caplog.clear()
    sample(apply(model, controlnext.control(model), controlnext.picture(1)), batch=3)
    assert "too few" not in caplog.text


@pytest.mark.parametrize(
    ("name", "padding", "cells"),
    [("svd-v2", None, 15), ("svd-v2", 0, 15), ("svd-v2", 1, 16), ("sd15-training", None, 16), ("sd15-training", 0, 15)],
)
def test_the_padding_of_the_stem_is_the_releases_or_the_users(name, padding, cells):
    model, sizes, forward = model_of(name), [], Network.forward
    made = controlnext.control(model, name, stem_padding=padding)

    def note(self, *arguments):
        out = forward(self, *arguments)
        sizes.append(out.shape[-1])
        return out

    with mock.patch.object(Network, "forward", note):
        sample(apply(model, made, controlnext.picture()), batch=3, steps=1)
    assert set(sizes) == {cells}


def test_video_gets_the_time_that_its_unet_gets():
    """A quarter of the logarithm of sigma, where a model has that clock."""
    model, times, forward = tiny_models.video(), [], Network.forward
    made = controlnext.control(model, "svd-v2")

    def note(self, prepared, timestep):
        times.append(timestep)
        return forward(self, prepared, timestep)

    with mock.patch.object(Network, "forward", note):
        x = tiny_models.noise(b=3)
        tiny_models.denoise(
            apply(model, made, controlnext.picture()), x, 2.5, [tiny_models.cond(text(1)[0][0])], None, 1.0
        )
    assert torch.allclose(times[0], 0.25 * torch.tensor(2.5).log())


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
@pytest.mark.parametrize("order", ["windows first", "windows last"])
def test_pictures_keep_their_hints_in_context_windows(order, sd15):
    made, start, image = controlnext.control(sd15), tiny_models.noise(b=6), controlnext.picture(1, b=6)
    mask = torch.rand((6, 16, 16), generator=torch.Generator().manual_seed(0))

    def steer(model):
        return apply(model, made, image, mask=mask)

    steered = steer(windows(sd15)) if order == "windows first" else windows(steer(sd15))
    assert nearly(sample(steered, batch=6, start=start), sample(steer(sd15), batch=6, start=start))


# --- several, and neighbours ---------------------------------------------------------------------------------------


def test_several_add_up_in_any_order_each_from_the_same_feature(model):
    first, second = controlnext.control(model), controlnext.control(model, seed=1)
    one, two = controlnext.picture(1), controlnext.picture(2)
    name = "sd15-training" if model.model.diffusion_model.num_classes is None else "sdxl"
    x, conds = 3 * tiny_models.noise(), ([tiny_models.cond(text(1)[0][0])], [tiny_models.cond(text(2)[0][0])])

    def both(a, b):
        return tiny_models.denoise(b(a(model)), x, 3.0, *conds, 5.0)

    def with_first(model):
        return apply(model, first, one)

    def with_second(model):
        return apply(model, second, two)

    assert nearly(both(with_first, with_second), both(with_second, with_first))
    terms = [record_term(model, made, image, x, conds) for made, image in ((first, one), (second, two))]
    summed = patched(model, name, sum(terms))
    assert nearly(both(with_first, with_second), tiny_models.denoise(summed, x, 3.0, *conds, 5.0))


def record_term(model, made, image, x, conds):
    kept, call = [], module.Hint.__call__

    def note(self, *arguments):
        kept.append(call(self, *arguments))
        return kept[-1]

    with mock.patch.object(module.Hint, "__call__", note):
        tiny_models.denoise(apply(model, made, image), x, 3.0, *conds, 5.0)
    return kept[0]


def patched(model, name, term):
    model = model.clone()
    model.set_model_input_block_patch_after_skip(lambda h, options: h + term if options["block"] == PLACES[name] else h)
    return model


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["sd15", "sd15-training"])
def test_another_packs_patch_works_on_the_steered_feature(before, name, sd15):
    made, image = controlnext.control(sd15, name), controlnext.picture(1)

    def theirs(model):
        model = model.clone()
        if name == "sd15":  # as FreeU does
            model.set_model_output_block_patch(
                lambda h, skip, options: (h.tanh() if options["block"] == PLACES[name] else h, skip)
            )
        else:
            model.set_model_input_block_patch_after_skip(
                lambda h, options: h.tanh() if options["block"] == PLACES[name] else h
            )
        return model

    steered = apply(theirs(sd15), made, image) if before else theirs(apply(sd15, made, image))
    assert nearly(sample(steered), sample(theirs(reference(sd15, made, name, image))))


@pytest.mark.parametrize("neighbour", [lambda m: ip_adapter.apply(m), pag, sag], ids=["ip-adapter", "pag", "sag"])
def test_neighbours_see_the_steered_model(neighbour, sd15):
    made, image = controlnext.control(sd15), controlnext.picture(1)
    expected = sample(neighbour(reference(sd15, made, "sd15-training", image)))
    assert nearly(sample(neighbour(apply(sd15, made, image))), expected)
    assert nearly(sample(apply(neighbour(sd15), made, image)), expected)


def test_a_control_net_of_the_host_acts_beside_it(sd15):
    made = controlnext.control(sd15)
    image = controlnext.picture(1)
    conds = {"positive": controlled(1), "negative": controlled(2)}
    for name in ("sd15", "sd15-training"):
        made = controlnext.control(sd15, name)
        found = sample(apply(sd15, made, image), **conds)
        assert nearly(found, sample(reference(sd15, made, name, image), **conds))
        assert not nearly(found, sample(apply(sd15, made, image)), 1e-3)


def t2i_adapter():
    """The host's T2I-Adapter, tiny, for a UNet with the blocks of SD1.5."""
    network = Adapter(channels=[32] * 4, nums_rb=1, cin=3 * 64, ksize=1, sk=True, use_conv=False, xl=False)
    tiny_models.randomise(network, 3)
    adapter = comfy.controlnet.T2IAdapter(
        network.eval().requires_grad_(False), 3, 8, "nearest-exact", device=tiny_models.CPU
    )
    return adapter.set_cond_hint(controlnext.picture(5).movedim(-1, 1), strength=0.5)


@pytest.mark.parametrize("name", ["sd15", "sd15-training"])
def test_a_t2i_adapter_enters_the_statistics(name):
    """Its residuals join on the way down, before the term is made."""
    model = tiny_models.sd15(
        channel_mult=[1, 1, 1, 1], num_res_blocks=[2] * 4, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3, dtype=torch.float64,
    )  # fmt: skip
    made, image = controlnext.control(model, name), controlnext.picture(1)
    adapter = t2i_adapter()
    conds = {"positive": text(1, control=adapter), "negative": text(2, control=adapter), "size": (16, 16)}
    places = {**PLACES, "sd15-training": ("input", 3)}
    with mock.patch.dict(PLACES, places):
        expected = sample(reference(model, made, name, image), **conds)
    assert nearly(sample(apply(model, made, image), **conds), expected)
    assert not nearly(sample(apply(model, made, image)), expected, 1e-3)


def test_a_hook_that_brings_it_is_refused(sd15):
    """Nothing tells it of areas; it would squeeze the whole hint into one."""
    group = hook_with(apply(sd15, controlnext.control(sd15), controlnext.picture(1)))
    with pytest.raises(RuntimeError, match="A ControlNeXt that a hook brings cannot know which part"):
        sample(sd15, positive=text(1, hooks=group), negative=text(2, hooks=group))


def test_a_pack_that_splits_rows_within_a_call_is_named(sd15):
    def halves(executor, x, t, c_concat=None, c_crossattn=None, *rest, **conds):
        parts = [executor(x[i : i + 1], t[i : i + 1], c_concat, c_crossattn[i : i + 1], *rest, **conds)
                 for i in range(len(x))]  # fmt: skip
        return torch.cat(parts)

    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1))
    steered.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", halves)
    with pytest.raises(RuntimeError, match="as many rows for each of its 2 prompts, but another pack sends 1 rows"):
        sample(steered)


def test_in_a_guider_of_three_conds_the_negative_is_the_one_that_is_called_so(sd15):
    made, image = controlnext.control(sd15), controlnext.picture(1)

    def guided(model):
        guider = Guider_PerpNeg(model)
        guider.set_conds(text(1), text(2), text(3))
        guider.set_cfg(5.0, 1.0)
        return tiny_models.guide(model, guider)

    gains, labels = {0: 1.0, 1: 0.0, 2: 0.0}, []
    model = reference(sd15, made, "sd15-training", image, (1.0, 0.0))

    def note(executor, x, timesteps, context, y, control, options, **kwargs):
        labels.append(options["cond_or_uncond"])
        shown = [0 if gains[label] else 1 for label in options["cond_or_uncond"]]
        return executor(x, timesteps, context, y, control, {**options, "cond_or_uncond": shown}, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "roles", note)
    assert nearly(guided(apply(sd15, made, image, uncond="cond only")), guided(model))
    assert {label for call in labels for label in call} == {0, 1, 2}


def test_the_methods_of_the_table_include_this_one():
    assert "controlnext" in METHODS


def test_a_tiling_pack_is_refused(sd15):
    with pytest.raises(RuntimeError, match="The hint of a ControlNeXt belongs to the whole picture"):
        sample(apply(regrouped(sd15, tiled), controlnext.control(sd15), controlnext.picture()))


# --- cost ----------------------------------------------------------------------------------------------------------


class Counted:
    """Rows of every call of the network and of its part that is kept, inside the block."""

    def __enter__(self):
        self.calls, self.prepared = [], []
        forward, prepare = Network.forward, Network.prepare

        def note_forward(network, prepared, timestep):
            self.calls.append(len(prepared.x))
            return forward(network, prepared, timestep)

        def note_prepare(network, image, *rest):
            self.prepared.append(len(image))
            return prepare(network, image, *rest)

        self.patches = [mock.patch.object(Network, "forward", note_forward),
                        mock.patch.object(Network, "prepare", note_prepare)]  # fmt: skip
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


@pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("neighbour", [lambda m: m, pag, sag], ids=["alone", "pag", "sag"])
def test_the_network_runs_once_per_step_on_each_different_hint(split, given, neighbour, sd15, monkeypatch):
    steered = neighbour(apply(sd15, controlnext.control(sd15), controlnext.picture(1, b=given)))
    with Counted() as counted:
        if split:
            with tiny_models.little_memory(monkeypatch, sd15):
                sample(steered, batch=4, steps=3, start=tiny_models.noise(b=4))
        else:
            sample(steered, batch=4, steps=3, start=tiny_models.noise(b=4))
    assert counted.calls == [given] * 3
    assert counted.prepared == [given]


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
@pytest.mark.parametrize("given", [1, 6])
def test_in_context_windows_too_the_network_runs_once_on_each_hint(given, sd15):
    """Two windows of four pictures share two: of each step the second asks for what is new."""
    steered = windows(apply(sd15, controlnext.control(sd15), controlnext.picture(1, b=given)))
    with Counted() as counted:
        sample(steered, batch=6, steps=2, start=tiny_models.noise(b=6))
    assert sum(counted.calls) == 2 * given and sum(counted.prepared) == given


def halves(seed):
    return text(seed, area=(16, 8, 0, 0)) + text(seed + 10, area=(16, 8, 0, 8))


def test_what_is_kept_in_a_run_changes_nothing(sd15):
    """Two nodes, masks picture by picture, two areas of one size and the whole, two sizes of latent."""
    mask = torch.rand((2, 16, 16), generator=torch.Generator().manual_seed(0))
    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1, b=2), mask=mask)
    steered = apply(steered, controlnext.control(sd15, seed=1), controlnext.picture(2))
    conds = {"positive": halves(1) + text(5), "negative": halves(2)}
    found = sample(steered, batch=2, start=tiny_models.noise(b=2), **conds)
    with (
        mock.patch.object(Run, "once", lambda self, key, make: make()),
        mock.patch.object(Run, "once_at", lambda self, now, key, make: make()),
    ):
        assert nearly(sample(steered, batch=2, start=tiny_models.noise(b=2), **conds), found)


def test_without_room_the_first_third_is_made_at_every_step(sd15, monkeypatch):
    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1))
    expected = sample(steered, steps=3)
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    with Counted() as counted:
        assert torch.equal(sample(steered, steps=3), expected)
    assert counted.prepared == counted.calls == [1] * 3


def test_many_hints_go_through_in_pieces(sd15, monkeypatch):
    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1, b=5))
    start = tiny_models.noise(b=5)
    expected = sample(steered, batch=5, start=start)
    monkeypatch.setattr(module, "PIECE_PIXELS", 2 * 128 * 128)
    with Counted() as counted:
        assert nearly(sample(steered, batch=5, start=start), expected)
    assert counted.calls == [2, 2, 1] * 2 and counted.prepared == [2, 2, 1]


def test_outside_of_its_range_nothing_runs(sd15):
    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1), start_percent=0.3, end_percent=0.6)
    with Counted() as counted:
        sample(steered, steps=10)
    assert counted.calls == [1] * 3


@pytest.mark.parametrize("settings", [{}, {"end_percent": 0.5}, {"mask": torch.ones(1, 4, 4)}], ids=str)
def test_a_step_reads_nothing_from_the_device_but_sigma_where_there_is_a_range(settings, sd15):
    steered = apply(sd15, controlnext.control(sd15), controlnext.picture(1, b=2), **settings)

    def reads(model, steps):
        with tiny_models.DeviceReads() as found:
            sample(model, steps=steps, batch=2)
        return found.count

    extra = [reads(steered, steps) - reads(sd15, steps) for steps in (2, 6)]
    assert extra[1] - extra[0] == (4 if "end_percent" in settings else 0)


def test_the_host_loads_the_network_with_the_model(sd15):
    made = controlnext.control(sd15)
    steered = apply(sd15, made, controlnext.picture())
    comfy.model_management.unload_all_models()
    sample(steered)
    assert any(model.model is made.network.model for model in comfy.model_management.loaded_models())


def test_a_sampler_that_changes_the_size_within_a_run_gets_a_hint_of_that_size(sd15):
    made, image, run = controlnext.control(sd15), controlnext.picture(1), Run()
    hint = module.Hint(made, VARIANTS["sd15-training"], image.movedim(-1, 1), 1.0, "auto", None)

    def term(size, run):
        feature = torch.randn((1, 32, *size), generator=torch.Generator().manual_seed(0))
        return hint(feature_call(feature, torch.tensor([5.0]), {"original_shape": (1, 4, *size), RUN: run}))

    for size in ((16, 16), (8, 24)):
        assert torch.equal(term(size, run), term(size, Run()))
