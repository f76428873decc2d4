"""Stored results of diffusers' PAG for Stable Diffusion 3, on the tiny network of seed 0 without norms of queries.

diffusers leaves these norms out of its perturbed attention, so that only networks without them can be compared.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from reins.nodes.guidance.perturbed_attention import PerturbedAttentionGuidance
from reins.tests.helpers import tiny_transformers
from reins.tests.helpers.tiny_models import nearly
from safetensors import safe_open
from safetensors.torch import load_file

FILE = Path(__file__).parents[1] / "golden" / "sd3_pag.safetensors"


def model():
    return tiny_transformers.make("sd3", num_blocks=2, qk_norm=None)


def denoised(steered):
    """What a model predicts for the stored noise at the highest noise level, without CFG."""
    golden = load_file(FILE)
    text = [[golden["context"], {"pooled_output": golden["pooled"]}]]
    latent = tiny_transformers.sample("sd3", steered, cfg=1.0, steps=1, positive=text, start=golden["x"])
    return steered.model.process_latent_in(latent)


def test_the_weights_are_those_of_the_goldens():
    weights = model().model.diffusion_model.state_dict()
    digest = hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights))).hexdigest()
    with safe_open(FILE, "pt") as file:
        assert digest == file.metadata()["weights_sha256"]


def test_the_plain_prediction_equals_the_stored_one():
    golden = load_file(FILE)
    assert nearly(denoised(model()), golden["x"] - golden["plain"], 1e-5)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_perturbed_attention_equals_that_of_diffusers(block, scale):
    golden = load_file(FILE)
    steered = PerturbedAttentionGuidance.execute(model(), scale, 0.0, 1.0, f"b{block}").result[0]
    plain, perturbed = golden["x"] - golden["plain"], golden["x"] - golden[f"perturbed.{block}"]
    assert not nearly(perturbed, plain, 1e-2)
    assert nearly(denoised(steered), plain + scale * (plain - perturbed), 1e-5)


def test_the_form_without_text_is_another():
    steered = [
        PerturbedAttentionGuidance.execute(model(), 3.0, 0.0, 1.0, "b0", image_tokens=form).result[0]
        for form in ("see text", "themselves")
    ]
    see_text, themselves = map(denoised, steered)
    assert not torch.allclose(see_text, themselves, atol=1e-2)
