"""What an IP-Adapter on a transformer cannot do is said in words, before sampling."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers.steered_transformers import FORMS, MAIN, apply, begun, by_formula
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import latent, make, noise_like, text
from reins.tests.helpers.transformers_by_hand import predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_UNETS = (
    "style", "composition", "style and composition", "strong style", "weak input", "weak middle", "weak output",
    "strong middle", "strong style and composition", "precise style", "precise composition",
)  # fmt: skip


@EACH
@pytest.mark.parametrize("scaling", ["K+V with C penalty", "K+mean(V) with C penalty", "K+V w/ C penalty"])
def test_a_penalty_for_narrow_layers_is_refused(form, scaling):
    with pytest.raises(ValueError, match=r"weighs narrow layers of a UNet less.*Choose V only or K\+V"):
        apply(form, begun(form)[1], scaling=scaling)


@pytest.mark.parametrize("form", MAIN)
@pytest.mark.parametrize("weight_type", OF_UNETS)
def test_a_weight_type_of_a_unet_is_refused(form, weight_type):
    with pytest.raises(ValueError, match=r"means layers of a UNet, but this model is a transformer"):
        apply(form, begun(form)[1], weight_type=weight_type)


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
def test_norms_that_cannot_be_undone_are_named(form):
    model = make(FORMS[form].family, qk_norm="ln")
    with pytest.raises(
        ValueError,
        match=r"should be RMSNorm as in Stable Diffusion 3.5, but joint_blocks\.0\.x_block\.attn\.ln_q is LayerNorm",
    ):
        apply(form, model)


@pytest.mark.parametrize("form", ["sd3", "sd35m"])
@pytest.mark.parametrize("norm", ["ln_q", "ln_k"])
def test_a_norm_with_a_weight_of_0_is_named(form, norm):
    """What it multiplies by 0 is lost."""
    model = make(FORMS[form].family)
    with torch.no_grad():
        model.model.diffusion_model.joint_blocks[1].x_block.attn.get_submodule(norm).weight[3] = 0
    with pytest.raises(ValueError, match=rf"joint_blocks\.1\.x_block\.attn\.{norm}"):
        apply(form, model)


def test_small_weights_of_a_norm_are_undone():
    model, family = make("sd3"), "sd3"
    with torch.no_grad():
        model.model.diffusion_model.joint_blocks[1].x_block.attn.ln_q.weight[3] = 1e-6
    x, positive = noise_like(latent(family)), text(1)
    assert nearly(predict(family, apply("sd3", model), x, positive), by_formula("sd3", model, x, positive), 1e-5)
