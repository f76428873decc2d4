"""A difference that is asked for in every so many steps and held between: from which step it comes, and what it costs.

Each call of the model by a sampler is noted. The plain model and the method without `refresh` are asked at the same
points, one by one. So the reference knows nothing of what is held.
"""

from __future__ import annotations

import copy
from functools import partial

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from reins.engine.guidance import install_guidance
from reins.engine.hold import check_refresh
from reins.engine.network import install_layers
from reins.engine.run import Run
from reins.engine.scope import record_of
from reins.nodes.h_space.asyrp import with_edit
from reins.tests.helpers import h_space, tiny_models, tiny_transformers
from reins.tests.helpers.holding import Way, asked_at, levels
from reins.tests.helpers.methods import pag, rescale, sag, scope, seg, swg, tpg, weak
from reins.tests.helpers.tiny_models import nearly, noise, sample, text
from reins.tests.helpers.transformer_terms import term
from torch import Tensor

METHODS = {"pag": pag, "seg": seg, "tpg": tpg, "swg": swg, "weak": weak}
STEPS = 5
ASKED = {1: [0, 1, 2, 3, 4], 2: [0, 0, 2, 2, 4], 3: [0, 0, 0, 3, 3], 100: [0, 0, 0, 0, 0]}


def sources(way: Way, steer, plain, refresh: int) -> list[list[int]]:
    """For each call of a run at scale 1, the calls that its difference may come from."""
    return asked_at(way, steer(plain, scale=1.0), plain, way.noted(steer(plain, scale=1.0, refresh=refresh)))


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("refresh", ASKED)
@pytest.mark.parametrize("name", METHODS)
def test_the_difference_is_that_of_the_step_that_asked(name, refresh, cfg, sd15):
    way = Way("euler", levels(sd15, STEPS), cfg)
    assert sources(way, METHODS[name], sd15, refresh) == [[i] for i in ASKED[refresh]]


@pytest.mark.parametrize("name", METHODS)
def test_a_euler_run_by_hand_gives_the_same_picture(name, sd15):
    """At scale 2, with every second step held."""
    way = Way("euler", levels(sd15, STEPS))
    seen = way.noted(METHODS[name](sd15, scale=2.0, refresh=2))
    x, difference = way.x.to(seen[0].x) * way.sigmas[0], None
    for i, (sigma, following) in enumerate(zip(way.sigmas[:-1], way.sigmas[1:], strict=True)):
        point = [seen[i]._replace(x=x, sigma=float(sigma))]
        assert nearly(seen[i].x, x, 1e-6)
        (plain,) = way.at(sd15, point)
        if i % 2 == 0:
            difference = way.at(METHODS[name](sd15, scale=1.0), point)[0] - plain
        denoised = plain + 2.0 * difference
        x = x + (x - denoised) / sigma * (following - sigma)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_a_refresh_of_one_changes_no_bit(name, cfg, sd15):
    assert torch.equal(*(sample(steer(sd15), cfg=cfg, steps=3) for steer in (
        METHODS[name], partial(METHODS[name], refresh=1)
    )))  # fmt: skip


@pytest.mark.parametrize(("cfg", "plain", "asking"), [(5.0, [2], [3]), (1.0, [1], [2])])
@pytest.mark.parametrize("name", ["pag", "seg", "tpg"])
def test_a_held_step_has_no_row_more_than_a_plain_one(name, cfg, plain, asking, sd15):
    way = Way("euler", levels(sd15, STEPS), cfg)
    for refresh in (2, 3):
        rows = [one.rows for one in way.noted(METHODS[name](sd15, refresh=refresh))]
        assert rows == [asking if i % refresh == 0 else plain for i in range(STEPS)]


def test_a_held_step_has_no_windows(sd15):
    way = Way("euler", levels(sd15, STEPS))
    rows = [sum(one.rows) for one in way.noted(swg(sd15, refresh=2))]
    assert rows == [2 + 4, 2, 2 + 4, 2, 2 + 4]


def test_a_held_step_does_not_call_the_weak_model(sd15):
    other = tiny_models.sd15(seed=1, dtype=torch.float64)
    way = Way("euler", levels(sd15, STEPS))
    assert [one.rows for one in way.noted(weak(sd15, other, refresh=2), other)] == [[1], [], [1], [], [1]]


# A second call inside a step is of that step. heun's is at the level of the next step, and belongs to that.
SECOND_ORDER = {
    "heun": [0, 0, 0, 3, 4, 4, 4, 7, 8],
    "dpm_2": [0, 1, 1, 1, 4, 5, 5, 5, 8],
    "dpmpp_sde": [0, 1, 1, 1, 4, 5, 5, 5, 8],
}


@pytest.mark.parametrize("name", ["pag", "weak"])
@pytest.mark.parametrize("sampler", SECOND_ORDER)
def test_further_calls_in_a_step_that_asked_ask_too(sampler, name, sd15):
    way = Way(sampler, levels(sd15, STEPS))
    assert sources(way, METHODS[name], sd15, 2) == [[i] for i in SECOND_ORDER[sampler]]


@pytest.mark.parametrize("name", METHODS)
def test_a_range_begins_by_asking_and_ends_the_holding(name, sd15):
    """Of eight steps 2 to 5 lie in it."""
    sigmas = levels(sd15, 8)
    way = Way("euler", sigmas)
    start, end = share_of(sd15, sigmas[1:3]), share_of(sd15, sigmas[5:7])
    steer = partial(METHODS[name], start=start, end=end)
    assert sources(way, steer, sd15, 3) == [[], [], [2], [2], [2], [5], [], []]


def share_of(model, between: Tensor) -> float:
    """The percent of the run at a noise level between two."""
    sampling, wanted = model.get_model_object("model_sampling"), float(between.mean())
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > wanted else (low, middle)
    return low


@pytest.mark.parametrize("name", ["pag", "seg"])
def test_a_held_difference_has_the_scale_of_its_new_step(name, sd15):
    way = Way("euler", levels(sd15, STEPS))
    steer = partial(METHODS[name], scale=1.0, fade="linear", end=0.9)
    seen = way.noted(steer(sd15, refresh=2))
    before, alone, full = (way.at(m, seen) for m in (sd15, steer(sd15), METHODS[name](sd15, scale=1.0)))
    for i, asked in enumerate([0, 0, 2, 2]):
        factor = (alone[i] - before[i]).norm() / (full[i] - before[i]).norm()
        assert factor < 1 or i == 0
        assert nearly(seen[i].result - before[i], factor * (full[asked] - before[asked]), 1e-3)


def test_methods_are_held_each_by_its_own_number(sd15):
    way = Way("euler", levels(sd15, 7))
    seen = way.noted(weak(swg(pag(sd15, 1.0, refresh=2), 1.0, refresh=3), scale=1.0))
    before = way.at(sd15, seen)
    parts = [way.at(steer(sd15, scale=1.0), seen) for steer in (pag, swg, weak)]
    for i, asked in enumerate(zip([0, 0, 2, 2, 4, 4, 6], [0, 0, 0, 3, 3, 3, 6], range(7), strict=True)):
        expected = sum(part[j] - before[j] for part, j in zip(parts, asked, strict=True))
        assert nearly(seen[i].result - before[i], expected, 1e-3)


def test_two_of_a_kind_are_held_apart(sd15):
    way = Way("euler", levels(sd15, 4))
    other = partial(pag, layers="u0", scale=1.0)
    seen = way.noted(other(pag(sd15, 1.0, refresh=3), refresh=2))
    before, first, second = (way.at(model, seen) for model in (sd15, pag(sd15, 1.0), other(sd15)))
    for i, (a, b) in enumerate([(0, 0), (0, 0), (0, 2), (3, 2)]):
        assert nearly(seen[i].result - before[i], first[a] + second[b] - before[a] - before[b], 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_two_is_two_of_one(name, sd15):
    steer, x = partial(METHODS[name], refresh=2), noise(12, 12, 2)
    both, first, second = (
        Way("euler", levels(sd15, 4), x=part).noted(steer(sd15)) for part in (x, x[:1], x[1:])
    )  # fmt: skip
    for two, one, other in zip(both, first, second, strict=True):
        assert nearly(two.result, torch.cat([one.result, other.result]), 1e-4)


@pytest.mark.parametrize("name", ["pag", "seg", "slg", "tpg"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_terms_are_held_on_transformers(family, name):
    if (family, name) == ("sd3", "tpg"):
        pytest.skip("refused, for it has no effect there")
    model = tiny_transformers.make(family, dtype=torch.float64)
    way = Way(
        "euler", levels(model, STEPS), 4.0, tiny_transformers.noise_like(tiny_transformers.latent(family)),
        *(tiny_transformers.text(seed, family=family) for seed in (1, 2)),
    )  # fmt: skip
    steer = lambda model, **settings: term(name, family, model, **settings)  # noqa: E731
    assert sources(way, steer, model, 2) == [[i] for i in ASKED[2]]
    rows = [one.rows for one in way.noted(steer(model, refresh=2))]
    assert rows == [[3], [2], [3], [2], [3]]


@pytest.mark.parametrize("name", METHODS)
def test_each_run_starts_anew(name, sd15):
    """The first has another seed's noise, and holds a difference when it ends."""
    steered = METHODS[name](sd15, refresh=100)
    fresh = sample(METHODS[name](sd15, refresh=100), steps=3)
    sample(steered, steps=3, start=noise(seed=3))
    assert nearly(sample(steered, steps=3), fresh)


@pytest.mark.parametrize("fault", [ValueError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("name", ["pag", "weak"])
def test_a_broken_run_leaves_nothing_for_the_next(name, fault, sd15):
    steered = METHODS[name](sd15, refresh=100)

    def stop(step: int, *_: object) -> None:
        if step == 1:
            raise fault

    with pytest.raises(fault):
        sample(steered, steps=3, start=noise(seed=3), callback=stop)
    assert nearly(sample(steered, steps=3), sample(METHODS[name](sd15, refresh=100), steps=3))


def test_a_sampler_that_goes_back_asks_anew(sd15):
    """As restart samplers do. Within the steps that a difference is held for, it may go up and down."""
    way = Way("euler", levels(sd15, 6))
    order, asked = [0, 1, 2, 3, 1, 3, 2, 4, 3], [0, 0, 0, 3, 4, 4, 4, 7, 8]

    def there_and_back(guided, x: Tensor, sigmas: Tensor, extra_args: dict, **_: object) -> Tensor:
        for number, i in enumerate(order):
            guided(sigmas[i] * noise(12, 12, seed=number).to(x), x.new_full([1], sigmas[i]), **extra_args)
        return x

    seen = way.noted(pag(sd15, 1.0, refresh=3), loop=there_and_back)
    assert asked_at(way, pag(sd15, 1.0), sd15, seen) == [[i] for i in asked]


def test_a_sampler_that_calls_the_model_in_two_ways_holds_two_differences(sd15):
    """As the Asyrp Sampler does, which edits every second call."""
    way = Way("euler", levels(sd15, 4))

    def in_pairs(guided, x: Tensor, sigmas: Tensor, extra_args: dict, **_: object) -> Tensor:
        ways = extra_args, {**extra_args, "model_options": with_edit(extra_args["model_options"], edit, Run())}
        for number, sigma in enumerate(sigmas[:-1]):
            for settings in ways:
                guided(sigma * noise(16, 16, seed=number).to(x), x.new_full([1], sigma), **settings)
        return x

    edit = h_space.asyrp(strength=3.0).extra_options["asyrp"].edit
    plain, every, held = (
        [one.result for one in way.noted(model, loop=in_pairs)]
        for model in (install(sd15), pag(sd15, 1.0), pag(sd15, 1.0, refresh=2))
    )
    differences = [after - before for after, before in zip(every, plain, strict=True)]
    assert not nearly(differences[0], differences[1], 0.01)
    for i, asked in enumerate([0, 1, 0, 1, 4, 5, 4, 5]):
        assert nearly(held[i] - plain[i], differences[asked], 1e-3)


def install(model):
    """The model with the pack's wrappers and slots alone."""
    model = model.clone()
    install_guidance(model)
    install_layers(model)
    return model


def test_a_run_of_unknown_noise_levels_asks_each_time(sd15):
    """As code without a guider has it."""
    x = noise()
    prompts = [tiny_models.cond(text(seed)[0][0]) for seed in (1, 2)]
    for sigma in (3.0, 2.0):
        expected, found = (
            tiny_models.denoise(model, sigma * x, sigma, prompts[:1], prompts[1:], 5.0)
            for model in (pag(sd15), pag(sd15, refresh=5))
        )
        assert torch.equal(found, expected)


def test_a_copied_run_holds_nothing_and_an_ended_one_no_more():
    run = Run()
    run.sigmas = (3.0, 2.0, 0.0)
    run.held["a term"] = torch.ones(1)
    assert copy.deepcopy({"options": run})["options"].held == {}
    other = copy.copy(run)
    other.forget()
    assert other.held == {} and run.held
    run.clear()
    assert run.held == {}


def test_a_pack_that_copies_the_options_of_each_step_is_answered_anew(sd15):
    """Nothing is lost in it but time: its runs are new ones."""

    def copying(args: dict) -> Tensor:
        return args["denoised"]

    steered = pag(sd15, refresh=2)
    steered.set_model_sampler_post_cfg_function(copying)
    original = comfy.samplers.sampling_function

    def sampling(model, x, timestep, uncond, cond, cond_scale, model_options=None, seed=None):
        own = {**model_options, "transformer_options": copy.deepcopy(model_options["transformer_options"])}
        return original(model, x, timestep, uncond, cond, cond_scale, own, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.samplers, "sampling_function", sampling)
        found = sample(steered, steps=4)
    assert nearly(found, sample(pag(sd15), steps=4))


@pytest.mark.parametrize("name", ["pag", "weak"])
def test_a_latent_of_another_size_asks_anew(name, sd15):
    """As with samplers that enlarge the latent on the way."""
    way, steer = Way("euler", levels(sd15, 4)), METHODS[name]
    sizes = [(12, 12), (12, 12), (16, 16), (16, 16)]

    def growing(guided, x: Tensor, sigmas: Tensor, extra_args: dict, **_: object) -> Tensor:
        for sigma, size in zip(sigmas[:-1], sizes, strict=True):
            guided((sigma * noise(*size)).to(x), x.new_full([1], sigma), **extra_args)
        return x

    seen = way.noted(steer(sd15, scale=1.0, refresh=100), loop=growing)
    for size, part in (((12, 12), seen[:2]), ((16, 16), seen[2:])):
        assert part[0].x.shape[-2:] == size
        assert asked_at(way, steer(sd15, scale=1.0), sd15, part) == [[0], [0]]


def test_a_prompt_that_takes_over_is_asked_for(sd15):
    sigmas = levels(sd15, 6)
    half = share_of(sd15, sigmas[2:4])
    (first, _), (second, _) = text(1)[0], text(3)[0]
    prompt = [[first, {"end_percent": half}], [second, {"start_percent": half}]]
    way = Way("euler", sigmas, positive=prompt)
    assert sources(way, pag, sd15, 100) == [[0], [0], [0], [3], [3], [3]]


def test_a_method_behind_a_held_one_reads_the_same_predictions(sd15):
    """SAG shares the step's answers with PAG, and Rescale the sum."""
    steered = rescale(sag(pag(sd15, refresh=2)))
    every = rescale(sag(pag(sd15)))
    way = Way("euler", levels(sd15, 4))
    seen = way.noted(steered)
    alone = way.at(every, seen)
    assert nearly(seen[0].result, alone[0]) and nearly(seen[2].result, alone[2])
    assert not nearly(seen[1].result, alone[1], 1e-4)


def test_a_held_change_is_shown_by_the_scope_and_counts_as_an_effect(sd15, caplog):
    steered = scope(pag(sd15, refresh=3))
    sample(steered, steps=6)
    moments = record_of(steered).moments
    assert [[reading.name for reading in moment.readings] for moment in moments] == [["CFG", "PAG"]] * 6
    norms = [float(moment.readings[1].norm) for moment in moments]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) == pytest.approx(norms[2], rel=1e-4)
    assert norms[3] == pytest.approx(norms[4], rel=1e-3) and abs(norms[3] / norms[2] - 1) > 1e-2
    assert "did nothing" not in caplog.text


def test_a_held_step_reads_the_device_no_more_than_another(sd15):
    counts = [
        tiny_models.reads_per_step(lambda steps, model=model: sample(model, steps=steps))
        for model in (pag(sd15), pag(sd15, refresh=2), swg(pag(sd15, refresh=3), refresh=2))
    ]  # fmt: skip
    assert counts[1] == counts[0] and counts[2] == counts[0]


@pytest.mark.parametrize("kind", [ModelType.V_PREDICTION, ModelType.FLOW])
def test_other_kinds_of_noise_hold_alike(kind):
    model = tiny_models.sd15(kind=kind, dtype=torch.float64)
    assert sources(Way("euler", levels(model, STEPS)), pag, model, 2) == [[i] for i in ASKED[2]]


@pytest.mark.parametrize("refresh", [0, -1, 1.5])
@pytest.mark.parametrize("name", METHODS)
def test_another_number_of_steps_is_refused(name, refresh, sd15):
    message = f"refresh should be a whole number of steps, 1 or more, but is {refresh}. Set it to 1 to predict in every"
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        METHODS[name](sd15, refresh=refresh)
    assert check_refresh(1) == 1
