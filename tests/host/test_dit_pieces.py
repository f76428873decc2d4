"""Transformers that another pack calls in pieces, and whose prediction is differentiated."""

from __future__ import annotations

from collections.abc import Callable

import comfy.sample
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER, calculate_sigmas
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import MODELS, latent, noise_like, sample, text
from reins.tests.helpers.transformer_terms import EACH, term
from torch import Tensor

EVERY = pytest.mark.parametrize(("family", "name"), [pair for pair in EACH if pair[0] != "sd3"])
ROWS = "rows of its call, but has"
STEP = 1e-2


def in_halves(model: ModelPatcher, names: Callable[[dict, int], dict]) -> ModelPatcher:
    """A wrapper of another pack around the network, which calls it for each half of the rows."""

    def split(executor, *args, **kwargs):
        rows = len(args[0])
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict))

        def half(value, number):
            if value is options:
                return names(options, number)
            if isinstance(value, Tensor) and value.ndim and len(value) == rows:
                return value.chunk(2)[number]
            return value

        return torch.cat([
            executor(*(half(value, i) for value in args), **{name: half(kwargs[name], i) for name in kwargs})
            for i in range(2)
        ])  # fmt: skip

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", split)
    return model


@EVERY
def test_a_pack_that_calls_the_network_in_pieces_without_their_names_is_named(family, name):
    """Positive and extra prediction have two rows each, so a half has as many rows as there are chunks."""
    pieces = in_halves(MODELS[family](), lambda options, number: options)
    with pytest.raises(RuntimeError, match=ROWS):
        sample(family, term(name, family, pieces), cfg=1.0, batch=2)


@EVERY
def test_pieces_with_the_names_of_their_prompts_give_the_same(family, name):
    def named(options, number):
        lists = {key: [options[key][number]] for key in ("cond_or_uncond", "uuids")}
        return {**options, **lists}

    model = MODELS[family]()
    found = sample(family, term(name, family, in_halves(model, named)), cfg=1.0, batch=2)
    assert nearly(found, sample(family, term(name, family, model), cfg=1.0, batch=2), 1e-4)


@EVERY
def test_a_pack_may_run_the_network_once_more_without_layers(family, name):
    """A pack below this one hands on a call, and makes another with options that hold nothing of other packs."""
    model, plain = MODELS[family](), []

    def bare(value):
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key in ("sigmas", "sample_sigmas")}
        return value.clone() if isinstance(value, Tensor) else value

    def twice(executor, *args, **kwargs):
        plain.append(executor(*map(bare, args), **{key: bare(value) for key, value in kwargs.items()}))
        return executor(*args, **kwargs)

    steered = term(name, family, model)
    expected = sample(family, steered, cfg=1.0)
    steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", twice)
    assert nearly(sample(family, steered, cfg=1.0), expected, 1e-4)
    assert all(nearly(*rows.chunk(2)) for rows in plain)  # positive and extra prediction are the same without layers


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["pag", "seg", "slg"])
def test_a_guided_prediction_has_a_gradient_on_stable_diffusion_3(name, share):
    """In backward the host would run a block in a slot once more, but without the layers.

    So the gradient along a direction is compared with the difference of two predictions.
    """
    found, direction = {}, noise_like(latent("sd3"), seed=11)

    def differentiate(denoise, x, sigmas, extra_args=None, callback=None, disable=None):
        def product(x):
            return (denoise(x, sigmas[:1].expand(len(x)), **extra_args) * direction).sum()

        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(product(x), x)
        found["slope"] = (slope * direction).sum()
        found["rise"] = (product(x.detach() + STEP * direction) - product(x.detach() - STEP * direction)) / (2 * STEP)
        return x.detach()

    model = term(name, "sd3", MODELS["sd3"](), share=share)
    sigmas = calculate_sigmas(model.model.model_sampling, "normal", 1)
    empty = latent("sd3")
    comfy.sample.sample_custom(
        model, noise_like(empty), 4.0, KSAMPLER(differentiate), sigmas, text(1), text(2), empty, disable_pbar=True,
        seed=7,
    )  # fmt: skip
    assert float(found["slope"]) == pytest.approx(float(found["rise"]), rel=1e-2)
