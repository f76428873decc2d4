"""Runs that are not one run from noise: two halves, a second pass, and samplers that change the size."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from reins.engine.run import Run
from reins.nodes.guidance.adaptive_projection import Momentum
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import COVERED, METHODS, apg, cfg_zero
from reins.tests.helpers.predictions import in_one_run
from reins.tests.helpers.tiny_models import nearly, noise, text
from torch import Tensor

EMPTY = torch.zeros(2, 4, 16, 16)
SAMPLING = ("sampler", "scheduler")


def run(model: ModelPatcher, latent: Tensor = EMPTY, **settings: Any) -> Tensor:
    """A KSampler (Advanced) of six steps. With `disable_noise` the latent already holds what noise there is."""
    start = torch.zeros_like(latent) if settings.get("disable_noise") else noise(16, 16, len(latent))
    way = {name: settings.pop(name, value) for name, value in zip(SAMPLING, ("euler", "normal"), strict=True)}
    return comfy.sample.sample(
        model, start, settings.pop("steps", 6), 5.0, *way.values(), text(1), text(2), latent,
        seed=7, disable_pbar=True, **settings,
    )  # fmt: skip


def halves(model: ModelPatcher, first: Tensor | None = None) -> Tensor:
    if first is None:
        first = run(model, last_step=3, force_full_denoise=False)
    return run(model, first, start_step=3, disable_noise=True, force_full_denoise=True)


@pytest.mark.parametrize("name", COVERED)
def test_two_halves_are_one_run(name, sd15):
    steer = METHODS[name] if name != "apg" else lambda model: apg(model, momentum=0.0)
    assert nearly(halves(steer(sd15)), run(steer(sd15)), 1e-4)


def test_the_momentum_of_apg_starts_anew_in_each_half(sd15):
    """As the help page says: the average belongs to a run."""
    first = run(apg(sd15), last_step=3, force_full_denoise=False)
    assert nearly(halves(apg(sd15), first), run(apg(sd15), first, start_step=3, disable_noise=True), 1e-5)
    assert not nearly(halves(apg(sd15)), run(apg(sd15)), 1e-4)


@pytest.mark.parametrize("kind", ["second half", "second pass", "image to image", "image to image of an empty latent"])
@pytest.mark.parametrize("still", [1, 2])
def test_still_steps_belong_to_pure_noise(still, kind, sd15):
    first = run(sd15, last_step=3, force_full_denoise=False)
    steps = {
        "second half": lambda model: halves(model, first),
        "second pass": lambda model: run(model, 3 * first, denoise=0.5),
        "image to image": lambda model: run(model, noise(16, 16, 2, seed=3), denoise=0.7),
        "image to image of an empty latent": lambda model: run(model, denoise=0.7),
    }[kind]
    assert torch.equal(steps(cfg_zero(sd15, still)), steps(cfg_zero(sd15, 0)))


@pytest.mark.parametrize("scheduler", ["normal", "ddim_uniform", "beta", "karras"])
def test_still_steps_hold_at_the_start_of_every_schedule(scheduler, sd15):
    """ddim_uniform begins below the model's greatest noise level, with an empty latent."""
    still, moving = (run(cfg_zero(sd15, number), scheduler=scheduler, steps=8) for number in (1, 0))
    assert not nearly(still, moving, 1e-3)


def test_still_steps_hold_for_flow_models():
    model = tiny_models.sd15(kind=ModelType.FLOW)
    assert isinstance(model.get_model_object("model_sampling"), CONST)
    assert not nearly(*(run(cfg_zero(model, steps)) for steps in (0, 1)), 1e-3)
    image = noise(16, 16, 2, seed=3)
    assert torch.equal(*(run(cfg_zero(model, steps), image, denoise=0.5) for steps in (0, 1)))


def enlarging(model: ModelPatcher, steps: int = 3) -> Tensor:
    """A run of the host's sampler that enlarges the latent in the middle."""
    module = pytest.importorskip("comfy_extras.nodes_advanced_samplers")
    sampler = module.SamplerLCMUpscale.execute(1.5, 1, "bislerp").result[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text(1), text(2))
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    latent = torch.zeros(1, 4, 16, 16)
    return guider.sample(noise(), latent, sampler, sigmas, seed=7, disable_pbar=True)


@pytest.mark.parametrize("name", COVERED)
def test_a_sampler_may_enlarge_the_latent(name, sd15):
    if name == "unicon":
        with pytest.raises(RuntimeError, match="Encode a picture of the same size"):
            enlarging(METHODS[name](sd15))
        return
    enlarged, plain = enlarging(METHODS[name](sd15)), enlarging(sd15)
    assert enlarged.shape == plain.shape == (1, 4, 24, 24)
    assert enlarged.isfinite().all() and not nearly(enlarged, plain, 1e-4)


def test_the_average_of_apg_starts_anew_in_another_size():
    average, steps = Momentum(0.5), Run()
    steps.sigmas = (3.0, 2.0, 1.0, 0.0)
    small, large = torch.ones(1, 4, 8, 8), torch.ones(1, 4, 12, 12)
    assert torch.equal(average(small, 3.0, steps), small)
    assert torch.equal(average(large, 2.0, steps), large)
    assert torch.equal(average(large, 1.0, steps), 1.5 * large)


def test_a_picture_under_full_noise_counts_as_noise(sd15):
    picture = 3 * noise(16, 16, 2, seed=9)
    assert not nearly(run(cfg_zero(sd15, 2), picture), run(cfg_zero(sd15), picture), 1e-3)


@pytest.mark.parametrize("sizes", [((16, 16), (24, 24)), ((16, 24), (24, 16))], ids=["larger", "turned"])
def test_a_step_after_a_change_of_size_is_as_if_all_steps_had_that_size(method, sizes, sd15):
    """Apart from APG, whose average starts anew, no step knows of the one before."""
    if method is METHODS["unicon"]:
        pytest.skip("a partner has a fixed size")
    first, later = 9 * noise(*sizes[0]), 3 * noise(*sizes[1])
    changed = in_one_run(method(sd15), [(first, 9.0), (later, 3.0)])[1]
    (alone,) = in_one_run(method(sd15), [(later, 3.0)])
    assert nearly(changed, alone)
