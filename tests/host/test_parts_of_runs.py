"""Second passes over a picture, and steps after a change of size."""

from __future__ import annotations

import comfy.sample
import pytest
import torch
from reins.tests.helpers.methods import METHODS, cfg_zero
from reins.tests.helpers.predictions import in_one_run
from reins.tests.helpers.tiny_models import nearly, noise, text


@pytest.mark.parametrize("denoise", [0.5, 0.8])
def test_image_to_image_has_no_still_steps(denoise, sd15):
    picture = 3 * noise(seed=9)

    def run(model, latent):
        return comfy.sample.sample(
            model, noise(), 6, 5.0, "euler", "normal", text(1), text(2), latent, denoise=denoise, seed=7,
            disable_pbar=True,
        )  # fmt: skip

    assert torch.equal(run(cfg_zero(sd15, 2), picture), run(cfg_zero(sd15), picture))


def test_a_picture_under_full_noise_counts_as_noise(sd15):
    def run(model):
        return comfy.sample.sample(
            model, noise(), 4, 5.0, "euler", "normal", text(1), text(2), 3 * noise(seed=9), seed=7, disable_pbar=True
        )

    assert not nearly(run(cfg_zero(sd15, 2)), run(cfg_zero(sd15)), 1e-3)


@pytest.mark.parametrize("sizes", [((16, 16), (24, 24)), ((16, 24), (24, 16))], ids=["larger", "turned"])
def test_a_step_after_a_change_of_size_is_as_if_all_steps_had_that_size(method, sizes, sd15):
    """Apart from APG, whose average starts anew, no step knows of the one before."""
    if method is METHODS["unicon"]:
        pytest.skip("a partner has a fixed size")
    first, later = 9 * noise(*sizes[0]), 3 * noise(*sizes[1])
    changed = in_one_run(method(sd15), [(first, 9.0), (later, 3.0)])[1]
    (alone,) = in_one_run(method(sd15), [(later, 3.0)])
    assert nearly(changed, alone)
