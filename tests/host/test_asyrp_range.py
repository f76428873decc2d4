"""Asyrp Range: the curves against the paper's inversion by hand, the percents, and what happens without a file."""

from __future__ import annotations

import gc
import logging
import weakref
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.model_base import ModelType
from reins.demo.world.nodes import DemoModel, DemoScene
from reins.demo.world.scenes import SLOTS
from reins.models.h_space.ranges import crossing
from reins.nodes.h_space import range_node
from reins.nodes.h_space.range_node import AsyrpRange
from reins.nodes.h_space.ranges import Request, enlarged, levels_of, load_metric, measure
from reins.tests.helpers import tiny_models, tiny_transformers
from reins.tests.helpers.lpips import SmallVAE, by_hand, drawn, picture, real_folder
from reins.tests.helpers.predictions import KINDS, conds
from reins.tests.helpers.tiny_models import text
from safetensors.torch import save_file
from torch.nn import functional

WEIGHTS = drawn()
FACTOR = 0.18215  # between the latents of SD1.x and those of its VAE
STEPS = 5


VAE = SmallVAE()


def photo(h=72, w=88):
    """A picture (1, h, w, 3) in 0..1, of no whole number of cells by default."""
    return (picture(h, w) / 2 + 0.5).clamp(0, 1).movedim(1, -1)


@pytest.fixture
def folder(folder_of):
    """An empty models/lpips."""
    place = folder_of("lpips")
    assert not range_node.files_in("lpips")
    return place


@pytest.fixture
def file(folder, folder_of):
    save_file(WEIGHTS, folder / "drawn.safetensors")
    folder_of("lpips")
    return folder / "drawn.safetensors"


def curves(model, file, image=None, positive=None, is_drawn=False, steps=STEPS):
    request = Request(text(1) if positive is None else positive, steps, is_drawn)
    return measure(model, VAE, photo() if image is None else image, load_metric(file), request)


def run(model, image=None, steps=STEPS, **settings):
    given = {"edit_distance": 0.3, "boost_distance": 0.3, "positive": text(1), **settings}
    return AsyrpRange.execute(model, photo() if image is None else image, VAE, steps, **given).result


def gentle(x, sigma):
    """A prediction that is known, for errors of rounding grow on the way up through a network of random weights."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) / (1 + 0.3 * sigma)


def expected_curves(model, image, levels, predict, noise=None):
    """The paper's step in alphas (equations 3 and 4 with eta 0), and for flow models in their own time."""
    latent = VAE.encode(image)
    start = latent * FACTOR
    is_flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    data = getattr(model.get_model_object("model_sampling"), "sigma_data", 1.0)
    reference, x, rows = VAE.decode(latent), start * (1 - levels[0]) if is_flow else start, ([], [])
    for now, following in zip(levels, [*levels[1:], levels[-1]], strict=True):
        if noise is not None:
            x = (1 - now) * start + now * noise if is_flow else start + now * noise
        found = predict(x, now)
        alpha = data**2 / (data**2 + now**2)
        shown = x if is_flow else alpha**0.5 * x
        for row, latents in zip(rows, (found, shown), strict=True):
            pair = (each.movedim(-1, 1) * 2 - 1 for each in (reference, VAE.decode(latents / FACTOR)))
            row.append(by_hand(WEIGHTS, *pair).item())
        if is_flow:
            x = x + (following - now) * (x - found) / now
        else:
            eps = (shown - alpha**0.5 * found) / (1 - alpha) ** 0.5
            after = data**2 / (data**2 + following**2)
            x = (after**0.5 * found + (1 - after) ** 0.5 * eps) / after**0.5
    return rows


def check(found, predicted, noisy):
    assert min(max(predicted), max(noisy)) > 0.1
    assert found.predicted == pytest.approx(predicted, rel=5e-3, abs=1e-3)
    assert found.noisy == pytest.approx(noisy, rel=5e-3, abs=1e-3)


def known(model):
    """A clone whose predictions are known."""
    model = model.clone()
    model.set_model_unet_function_wrapper(lambda _, args: gentle(args["input"], float(args["timestep"][0])))
    return model


@pytest.mark.parametrize(("kind", "data"), [*((kind, 1.0) for kind in KINDS), (ModelType.EDM, 0.5)])
def test_inverted_pictures_go_the_papers_way(kind, data, file):
    """Some models scale their pictures to a deviation of 0.5, and say so beside their noise levels."""
    model = tiny_models.sd15(kind=kind)
    model.model.model_sampling.sigma_data = data
    found = curves(known(model), file)
    check(found, *expected_curves(model, photo(), found.sigmas, gentle))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_noise_is_drawn_once_and_what_the_model_predicts_is_measured(kind, file):
    model = tiny_models.sd15(kind=kind, dtype=torch.float64)
    found = curves(model, file, is_drawn=True)
    noise = torch.randn((1, 4, 9, 11), generator=torch.Generator().manual_seed(0))

    def predict(x, sigma):
        return tiny_models.denoise(model, x, sigma, conds(1), None, 1.0)

    check(found, *expected_curves(model, photo(), found.sigmas, predict, noise))


def test_the_levels_are_the_models_timesteps_and_the_percents_those_of_the_sampler(sd15):
    sampling = sd15.get_model_object("model_sampling")
    levels = levels_of(sd15, 4)
    assert [percent for percent, _ in levels] == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]
    timesteps = [float(sampling.timestep(torch.tensor(sigma))) for _, sigma in levels]
    assert timesteps == [0, 333, 666, 999]
    assert levels_of(sd15, 2) == [(1.0, float(sampling.sigma_min)), (0.0, float(sampling.sigma_max))]


CURVE = ((1.0, 0.75, 0.5, 0.25, 0.0), (0.0, 0.2, 0.6, 0.4, 0.9))


@pytest.mark.parametrize(
    ("threshold", "percent"),
    [(0.0, 1.0), (0.1, 0.875), (0.2, 0.75), (0.3, 0.6875), (0.6, 0.5), (0.7, 0.1), (0.9, 0.0), (0.91, None)],
)
def test_a_distance_is_reached_between_two_levels_the_first_time_it_is_as_large(threshold, percent):
    found = crossing(*CURVE, threshold)
    assert found == (None if percent is None else pytest.approx(percent))


def test_the_node_gives_the_crossings_of_its_curves(sd15, file):
    found = curves(sd15, file)
    wanted = [sum(sorted(values)[1:3]) / 2 for values in (found.predicted, found.noisy)]
    edit, boost, plot = run(sd15, edit_distance=wanted[0], boost_distance=wanted[1], lpips_name="drawn.safetensors")
    assert edit == pytest.approx(crossing(found.percents, found.predicted, wanted[0]), abs=1e-4)
    assert boost == pytest.approx(crossing(found.percents, found.noisy, wanted[1]), abs=1e-4)
    assert 0 < min(edit, boost) <= max(edit, boost) < 1
    assert plot.shape == (1, 640, 960, 3)
    assert 0 <= plot.min() < plot.max() <= 1
    again = run(sd15, edit_distance=wanted[0], boost_distance=wanted[1])
    assert again[:2] == (edit, boost)
    assert torch.equal(again[2], plot)


def test_a_batch_has_the_mean_of_its_pictures(sd15, file):
    """Of six pictures, which take two calls for each level."""
    images = torch.cat([photo().roll(8 * shift, 2) for shift in range(6)])
    with tiny_models.forwards(sd15) as rows:
        found = curves(sd15, file, images, steps=3)
    assert rows == [4, 4, 4, 2, 2, 2]
    assert found.pictures == 6
    alone = [curves(sd15, file, image[None], steps=3) for image in images]
    for name in ("predicted", "noisy"):
        mean = torch.tensor([getattr(each, name) for each in alone]).mean(0)
        assert torch.allclose(torch.tensor(getattr(found, name)), mean, rtol=1e-4, atol=1e-5)


def test_drawn_noise_has_the_number_of_the_picture_as_its_seed(sd15, file):
    found = curves(known(sd15), file, photo().repeat(6, 1, 1, 1), is_drawn=True, steps=3)
    rows = []
    for seed in range(6):
        noise = torch.randn((1, 4, 9, 11), generator=torch.Generator().manual_seed(seed))
        rows.append(expected_curves(sd15, photo(), found.sigmas, gentle, noise))
    check(found, *torch.tensor(rows).mean(0).tolist())


@pytest.mark.parametrize("size", [(64, 64), (65, 127), (40, 200), (48, 48)])
def test_pictures_of_every_size_are_measured(size, sd15, file):
    found = curves(sd15, file, photo(*size), steps=2)
    assert all(0 <= value < 10 for value in (*found.predicted, *found.noisy))
    assert found.noisy[-1] > found.noisy[0]


def test_small_pictures_are_enlarged_by_a_whole_number_until_lpips_knows_their_size():
    assert [tuple(enlarged(picture(*size)).shape[2:]) for size in ((8, 8), (32, 48), (63, 99), (64, 64))] == [
        (64, 64), (64, 96), (126, 198), (64, 64),
    ]  # fmt: skip
    assert torch.equal(enlarged(picture(32, 32))[..., ::2, ::2], picture(32, 32))


def test_an_alpha_channel_is_left_out(sd15, file):
    image = torch.cat([photo(), torch.zeros(1, 72, 88, 1)], -1)
    with_alpha, without = curves(sd15, file, image, steps=2), curves(sd15, file, steps=2)
    assert (with_alpha.predicted, with_alpha.noisy) == (without.predicted, without.noisy)


def test_without_a_prompt_the_text_is_zeros(model, file):
    """Like the host's ConditioningZeroOut; 77 tokens or five, attention over zeros is the same."""
    zeros = [[torch.zeros(1, 5, tiny_models.WIDTH), {"pooled_output": torch.zeros(1, tiny_models.POOLED)}]]
    metric = load_metric(file)
    found = [measure(model, VAE, photo(), metric, Request(prompt, 3, False)) for prompt in (None, zeros)]
    assert torch.allclose(*(torch.tensor(each.predicted) for each in found), rtol=1e-4)
    assert not torch.allclose(torch.tensor(found[0].predicted), torch.tensor(curves(model, file, steps=3).predicted))


# --- without a file, and with a wrong one ----------------------------------------------------------------------------


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if each.name.startswith("reins")]


def test_without_a_file_the_defaults_of_the_sampler_come_out_and_the_log_says_why(sd15, folder, caplog):
    with tiny_models.forwards(sd15) as rows, caplog.at_level(logging.WARNING):
        edit, boost, plot = run(sd15)
    assert (edit, boost) == (0.6, 0.8)
    assert not rows
    assert plot.shape == (1, 640, 960, 3)
    assert plot.min() < 0.5
    assert warnings(caplog) == [
        "Asyrp Range measures with LPIPS, but models/lpips holds no file. It returns the defaults of Asyrp Sampler, "
        "0.6 and 0.8; the help page says where the file is from."
    ]


def test_a_file_that_was_put_there_later_is_used_by_the_same_graph(folder, folder_of):
    before = AsyrpRange.fingerprint_inputs(steps=5, lpips_name="auto")
    save_file(WEIGHTS, folder / "drawn.safetensors")
    folder_of("lpips")
    assert (before, AsyrpRange.fingerprint_inputs()) == (None, "drawn.safetensors")


def test_a_distance_that_no_level_reaches_gives_the_default_and_the_log_says_so(sd15, file, caplog):
    with caplog.at_level(logging.WARNING):
        edit, boost, plot = run(sd15, edit_distance=9.0, boost_distance=0.001)
    assert edit == 0.6
    assert boost > 0.9
    assert warnings(caplog) == [
        "Asyrp Range: no noise level is as far from the pictures as 9, so edit_end_percent is the default, 0.6. Look "
        "at the plot, and set a smaller distance."
    ]
    assert not torch.equal(plot, run(sd15, edit_distance=0.001, boost_distance=0.001)[2])


def test_vgg_is_measured_but_the_log_says_that_the_distances_are_alexnets(sd15, file, caplog, monkeypatch):
    monkeypatch.setattr(range_node, "load_metric", lambda path: load_metric(path)._replace(backbone="VGG16"))
    with caplog.at_level(logging.WARNING):
        run(sd15, boost_distance=0.001, edit_distance=0.001)
    assert warnings(caplog) == [
        "Asyrp Range: drawn.safetensors holds VGG16, but the paper's distances are AlexNet's. Choose a file with "
        "AlexNet, or set your own distances."
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv.weight": torch.zeros(1)}, "should hold LPIPS .* but holds conv.weight"),
        ({key: value for key, value in WEIGHTS.items() if "lin" not in key}, "holds the network alone"),
        ({**WEIGHTS, "features.3.weight": torch.zeros(4, 4, 5, 5)}, r"features.3.weight should be \(192, 64, 5, 5\)"),
        ({**WEIGHTS, "lin2.weight": torch.full((1, 384, 1, 1), float("nan"))}, "are not .NaN.: lin2.weight"),
        ({key: value for key, value in WEIGHTS.items() if key != "lin4.weight"}, "lacks lin4.weight"),
    ],
)
def test_a_wrong_file_is_refused_before_the_model_is_called(content, message, sd15, file):
    save_file(content, file)
    with tiny_models.forwards(sd15) as rows, pytest.raises(ValueError, match=message):
        run(sd15)
    assert not rows


def test_a_file_that_is_gone_is_named(sd15, folder):
    with pytest.raises(ValueError, match=r"^gone\.pth is not in the lpips folders\."):
        run(sd15, lpips_name="gone.pth")


def test_a_pickle_of_tensors_is_read_too(sd15, folder, folder_of):
    torch.save({key.replace("features", "module.net.features"): value for key, value in WEIGHTS.items()},
               folder / "alex.pth")  # fmt: skip
    folder_of("lpips")
    assert run(sd15, lpips_name="alex.pth")[0] == pytest.approx(run(sd15)[0])


def test_the_vae_of_another_model_is_refused(sd15, file):
    other = SimpleNamespace(encode=lambda pixels: torch.zeros(1, 16, 9, 11), decode=VAE.decode)
    with pytest.raises(ValueError, match=r"^vae should make latents of pictures with 4 channels, .* \(1, 16, 9, 11\)"):
        AsyrpRange.execute(sd15, photo(), other)


def test_a_model_without_h_space_and_a_picture_of_nan_are_refused(sd15, file):
    with pytest.raises(ValueError, match=r"h-space is the bottleneck of a UNet\."):
        run(tiny_transformers.make("sd3"))
    with pytest.raises(ValueError, match=r"^image should hold numbers from 0 to 1"):
        run(sd15, photo() * float("nan"))


# --- in the host -----------------------------------------------------------------------------------------------------


def test_the_model_and_the_random_state_stay_as_they_were(sd15, file):
    before, state = tiny_models.sample(sd15, (8, 8), steps=1), torch.random.get_rng_state()
    run(sd15, noise="drawn")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(tiny_models.sample(sd15, (8, 8), steps=1), before)


def test_progress_goes_to_its_total(sd15, file):
    told = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: told.append((value, total)))
    try:
        run(sd15)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert told[0] == (1, 3 * STEPS)
    assert told[-1] == (3 * STEPS, 3 * STEPS)


def test_an_interrupt_stops_at_the_next_step_and_the_next_run_is_whole(sd15, file):
    whole, called = run(sd15), []

    def interrupt(*_):
        called.append(1)
        comfy.model_management.interrupt_current_processing(len(called) == 2)

    hook = sd15.model.diffusion_model.register_forward_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(sd15)
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(called) == 2
    assert torch.equal(run(sd15)[2], whole[2])


def test_nothing_stays_in_memory(sd15, file, monkeypatch):
    seen = []

    def watched(path):
        metric = load_metric(path)
        seen.append(weakref.ref(metric.network.model))
        return metric

    monkeypatch.setattr(range_node, "load_metric", watched)
    run(sd15)
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert seen
    assert seen[0]() is None


# --- the demo model and the real weights -----------------------------------------------------------------------------


def test_on_the_demo_model_with_real_weights_its_own_scenes_are_known_until_late():
    """Drawn scenes: the demo model predicts them well up to a sigma of about 15. A photograph is strange to it."""
    metric = load_metric(real_folder() / "lpips-alex.safetensors")
    model, vae, _ = DemoModel.execute("base").result
    scenes = DemoScene.execute(seed=3, batch_size=3, **{slot: next(iter(words)) for slot, words in SLOTS.items()})
    found = measure(model, vae, scenes.result[0], metric, Request(None, 15, False))
    assert crossing(found.percents, found.predicted, 0.33) < 0.3
    strange = measure(model, vae, photo(32, 32), metric, Request(None, 15, False))
    assert crossing(strange.percents, strange.predicted, 0.33) > 0.4
