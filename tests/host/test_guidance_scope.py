"""Guidance Scope and Guidance Plot: what is noted is what happened, and noting changes nothing."""

from __future__ import annotations

import gc
import math
import weakref

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from reins.engine.scope import record_of
from reins.nodes.look.nodes import GuidancePlot
from reins.nodes.look.plot import curves
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import apg, cfg_zero, fdg, fit, image, interval, pag, rescale, sag, scope, swg, weak
from reins.tests.helpers.predictions import denoise
from reins.tests.helpers.tiny_models import nearly, sample, text

SMALL = (8, 8)
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}


def plot(model=None):
    return GuidancePlot.execute(LATENT, model).result[0]


def noted(model):
    """The name, length and cosine of each change of the latest call, as a plot shows them."""
    sigmas, found = curves(record_of(model))
    return sigmas, [(curve.name, curve.norms[-1], curve.cosines[-1]) for curve in found]


def test_a_scope_changes_no_bit(method, sd15):
    method = fit(method, SMALL)
    plain = sample(method(sd15), SMALL, steps=1)
    assert torch.equal(sample(scope(method(sd15)), SMALL, steps=1), plain)
    assert torch.equal(denoise(method(scope(sd15)), 1.0, size=SMALL), denoise(method(sd15), 1.0, size=SMALL))


NAMED = {
    "PAG": pag, "SAG": sag, "SWG": lambda m: swg(m, tile=64), "APG": apg, "FDG": fdg, "CFG-Zero*": cfg_zero,
    "weak model": weak, "image: low frequencies": image, "Rescale": rescale,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_is_noted_of_a_method_is_its_change_by_hand(name, sd15):
    """Its change of one result with CFG: root of the mean square, and the mean of each image's cosine."""
    steered = scope(NAMED[name](sd15))
    after, before = denoise(steered, b=2), denoise(sd15, b=2)
    positive, negative = denoise(sd15, 1.0, b=2), denoise(sd15, 0.0, b=2)
    sigmas, ((cfg, cfg_norm, cfg_cosine), (found, norm, cosine)) = noted(steered)
    change, direction = (after - before).flatten(1), (positive - negative).flatten(1)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(change, direction, strict=True)]
    assert (cfg, found, sigmas[-1]) == ("CFG", name, 3.0)
    assert math.isclose(norm, float(change.square().mean() ** 0.5), rel_tol=1e-3)
    assert math.isclose(cosine, sum(cosines) / 2, rel_tol=1e-3, abs_tol=1e-4)
    assert math.isclose(cfg_norm, 4 * float(direction.square().mean() ** 0.5), rel_tol=1e-3)
    assert math.isclose(cfg_cosine, 1.0, rel_tol=1e-4)


def test_at_cfg_one_there_is_no_direction_to_compare_with(sd15):
    steered = scope(pag(sd15))
    change = (denoise(steered, 1.0) - denoise(sd15, 1.0)).square().mean() ** 0.5
    by_name = {name: (norm, cosine) for name, norm, cosine in noted(steered)[1]}
    assert math.isclose(by_name["PAG"][0], float(change), rel_tol=1e-3) and math.isnan(by_name["PAG"][1])
    assert by_name["CFG"][0] == 0


def test_methods_before_and_after_the_scope_are_noted_alike(sd15):
    readings = []
    for steered in (scope(pag(sag(sd15))), pag(scope(sag(sd15))), pag(sag(scope(sd15)))):
        denoise(steered)
        readings.append({name: norm for name, norm, _ in noted(steered)[1]})
    assert set(readings[0]) == {"CFG", "PAG", "SAG"}
    for other in readings[1:]:
        assert all(math.isclose(other[name], norm, rel_tol=1e-4) for name, norm in readings[0].items())


def test_two_nodes_of_a_kind_are_noted_apart_and_none_outside_its_range(sd15):
    steered = scope(pag(pag(sd15, 1.0), 2.0, start=0.5))
    sample(steered, SMALL, steps=4)
    _, found = curves(record_of(steered))
    by_name = {curve.name: curve.norms for curve in found}
    assert set(by_name) == {"CFG", "PAG", "PAG (2)"} and len(by_name["CFG"]) == 4
    assert all(math.isfinite(value) for value in by_name["PAG"])
    assert [math.isnan(value) for value in by_name["PAG (2)"]].count(True) in (1, 2, 3)


def test_a_scope_reads_nothing_from_the_device_but_the_noise_level(sd15):
    counts = []
    for model in (sd15, scope(sd15), scope(apg(fdg(sd15))), apg(fdg(sd15))):
        of_steps = []
        for steps in (1, 2):
            with tiny_models.DeviceReads() as reads:
                sample(model, SMALL, steps=steps)
            of_steps.append(reads.count)
        counts.append(of_steps[1] - of_steps[0])
    plain, alone, steered, without = counts
    assert alone - plain <= 1 and steered == without


def test_without_a_scope_nothing_is_computed(sd15):
    steered, compared = pag(sd15), []
    own = torch.cosine_similarity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cosine_similarity", lambda *args, **kwargs: (compared.append(1), own(*args, **kwargs))[1])
        denoise(steered)
        assert not compared
        denoise(scope(steered))
        assert compared


def test_a_plot_is_a_picture_that_shows_the_run(sd15):
    steered = scope(pag(sd15))
    sample(steered, SMALL)
    first = plot(steered)
    assert first.ndim == 4 and first.shape[0] == 1 and first.shape[-1] == 3 and first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
    sample(steered, SMALL)
    assert torch.equal(plot(steered), first) and torch.equal(plot(), first)
    sample(steered, SMALL, cfg=3.0, seed=8)
    assert not torch.equal(plot(steered), first)


def test_a_plot_of_a_run_that_goes_on_for_long_or_is_not_finite_is_drawn(sd15):
    steered = scope(interval(pag(pag(pag(sd15))), 0.2, 0.4))
    sample(steered, SMALL, steps=12)
    assert plot(steered).isfinite().all()
    broken = sd15.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    broken = scope(pag(broken))
    denoise(broken)
    assert plot(broken).isfinite().all()


def test_each_run_is_noted_anew_and_the_last_scope_is_drawn_without_a_model(sd15):
    one, other = scope(pag(sd15)), scope(sd15)
    sample(one, SMALL, steps=3)
    sample(one, SMALL, steps=2)
    assert len(record_of(one).moments) == 2
    of_one = plot(one)
    sample(other, SMALL, steps=3)
    assert len(record_of(one).moments) == 2
    assert torch.equal(plot(), plot(other)) and torch.equal(plot(one), of_one)
    clone = one.clone()
    sample(clone, SMALL, steps=2)
    assert len(record_of(clone).moments) == 2 and torch.equal(plot(clone), of_one)


def test_without_a_record_a_plot_says_what_it_needs(sd15):
    fresh = scope(sd15)
    for model in (fresh, sd15):
        with pytest.raises(ValueError, match="Guidance Scope"):
            plot(model)
    sample(fresh, SMALL, steps=1)
    assert plot(fresh).isfinite().all()


def test_a_scope_that_nobody_has_any_more_leaves_no_record(sd15):
    steered = scope(sd15)
    sample(steered, SMALL, steps=1)
    found = weakref.ref(record_of(steered))
    comfy.model_management.unload_all_models()
    del steered
    gc.collect()
    assert found() is None


def test_after_a_run_only_numbers_are_kept(sd15):
    """Pictures of every step would fill the device's memory until the next run."""
    steered, seen = scope(pag(sd15)), []
    watched = steered.clone()
    watched.set_model_sampler_post_cfg_function(
        lambda args: (seen.append(args["denoised"].numel()), args["denoised"])[1]
    )
    sample(watched, SMALL, steps=2)
    gc.collect()
    kept = [one for one in _tensors_of(record_of(watched)) if one.numel() > 1]
    assert seen and not kept


def _tensors_of(record):
    for moment in record.moments:
        for value in (*vars(moment).values(), *(part for reading in moment.readings for part in reading)):
            if isinstance(value, torch.Tensor):
                yield value


def test_after_an_interrupt_the_next_run_is_noted_whole(sd15):
    steered = scope(pag(sd15))

    def stop(*_):
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(steered, SMALL, callback=stop)
    sample(steered, SMALL, steps=3)
    assert len(record_of(steered).moments) == 3


@pytest.mark.parametrize("kind", [Guider_PerpNeg, Guider_DualCFG, Guider_Basic])
def test_a_scope_works_under_other_guiders(kind, sd15):
    def guided(model):
        guider = kind(model)
        guider.set_conds(*([text(1)] if kind is Guider_Basic else [text(1), text(2), text(3)]))
        if kind is not Guider_Basic:
            guider.set_cfg(4.0, 0.7)
        return tiny_models.guide(model, guider, SMALL, steps=2)

    steered = scope(pag(sd15))
    assert torch.equal(guided(steered), guided(pag(sd15)))
    assert len(record_of(steered).moments) == 2 and nearly(plot(steered), plot(steered))
