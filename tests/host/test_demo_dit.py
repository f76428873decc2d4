"""The demo model's transformer is an ordinary SD3 to the host, and draws what words ask for."""

from __future__ import annotations

import os

import comfy.ldm.modules.attention
import comfy.model_base
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from reins.demo.evaluate import Score, conditioning, prompts, sample, score
from reins.demo.training.data import ask_flow
from reins.demo.training.dit import DiTTask, fused_attention
from reins.demo.training.dit_numbers import BURNT, FLOW, FREE, corrected
from reins.demo.training.guidance_numbers import clipped
from reins.demo.training.numbers import load_base
from reins.demo.world import nodes as demo_model
from reins.demo.world.dit import DIT_FILE
from reins.demo.world.host_model import dit_config, load_model
from reins.demo.world.model import UNET_PREFIX, pooled_text
from reins.demo.world.nodes import DemoModel, DemoPrompt, DemoScene
from reins.demo.world.scenes import SIZE, SLOTS
from reins.engine.loading import read_file

ANY = dict.fromkeys(SLOTS, "any")
RED = ANY | {"shape": "circle", "colour": "red", "place": "centre", "size": "large", "background": "white"}
COUNT = 8 if os.environ.get("REINS_BRIEF") else 64 if os.environ.get("REINS_FULL") else 16
ONE = 1 / COUNT


@pytest.fixture(scope="module")
def dit():
    return DemoModel.execute("dit").result[0]


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_base()[1]


def prompt(**words: str):
    return DemoPrompt.execute("image", **(ANY | words)).result[0]


def run(model, sampler="euler", scheduler="simple", steps=3, size=SIZE):
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, size, size))
    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(latent, 5), steps, 3.0, sampler, scheduler, prompt(**RED), prompt(), latent,
        disable_pbar=True, seed=5,
    )  # fmt: skip


def test_it_is_the_hosts_own_sd3(dit):
    assert type(dit.model) is comfy.model_base.SD3
    assert type(dit.model.diffusion_model) is OpenAISignatureMMDITWrapper
    assert dit.model.model_type == comfy.model_base.ModelType.FLOW
    assert len(dit.model.diffusion_model.joint_blocks) == 8


def test_its_file_is_small_enough_to_ship():
    assert DIT_FILE.stat().st_size < 8e6


def test_a_drawn_scene_comes_back_out_of_noise_of_its_own_strength(dit):
    """The velocity, the noise levels and the latent format belong together."""
    image, *_ = DemoScene.execute(0, 4, **RED | {"texture": "plain"}).result
    latent = image.movedim(-1, 1) * 2 - 1
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((4,), 0.5)
    x = dit.model.model_sampling.noise_scaling(sigma, noise, latent)
    text, pooled = prompt(**RED | {"texture": "plain"})[0]
    with torch.inference_mode():
        denoised = dit.model.apply_model(
            x, sigma, c_crossattn=text.expand(4, -1, -1), y=pooled["pooled_output"].expand(4, -1)
        )
    assert (x - 0.5 * latent).std() > 0.45
    assert (denoised - latent).pow(2).mean().sqrt() < 0.2 * latent.std()


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_of_the_host_gives_finite_pictures(dit, scheduler):
    assert torch.isfinite(run(dit, scheduler=scheduler, steps=6 if scheduler == "beta" else 3)).all()


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "uni_pc", "lcm"])
def test_samplers_of_every_kind_give_finite_pictures(dit, sampler):
    assert torch.isfinite(run(dit, sampler=sampler)).all()


@pytest.mark.parametrize("size", [24, 40])
def test_other_latent_sizes_run(dit, size):
    assert run(dit, size=size).shape == (1, 3, size, size)


def test_the_pooled_text_is_for_the_transformer_alone(dit, table):
    """It is zeros, so that words reach the picture by attention. The UNet draws the same bits without it."""
    text, values = prompt(**RED)[0]
    assert torch.equal(values["pooled_output"], torch.zeros(1, 64))
    assert conditioning(table, prompts(2))[0][1].keys() == pooled_text().keys()
    unet = load_base()[0]
    latent = torch.zeros(1, 3, SIZE, SIZE)
    drawn = [
        comfy.sample.sample(
            unet, comfy.sample.prepare_noise(latent, 5), 3, 3.0, "euler", "normal", [[text, with_values]], prompt(),
            latent, disable_pbar=True, seed=5,
        )
        for with_values in ({}, values)
    ]  # fmt: skip
    assert torch.equal(*drawn)


def test_a_damaged_or_foreign_file_is_named(tmp_path, monkeypatch):
    broken = tmp_path / DIT_FILE.name
    broken.write_bytes(DIT_FILE.read_bytes()[:5000])
    with monkeypatch.context() as patch:
        patch.setitem(demo_model.VARIANTS, "dit", broken)
        with pytest.raises(ValueError, match=rf"{DIT_FILE.name} cannot be read: .*Download the file again"):
            DemoModel.execute("dit")
    weights = read_file(DIT_FILE)
    lacking = {name: value for name, value in weights.items() if name != UNET_PREFIX + "final_layer.linear.bias"}
    with pytest.raises(ValueError, match=r"my\.safetensors does not fit: lacks final_layer\.linear\.bias"):
        load_model(lacking, "my.safetensors", dit_config)


# --- what it has learnt ---


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    return prompts(COUNT)


@pytest.fixture(scope="module")
def with_cfg(dit, table, words) -> Score:
    return score(sample(dit, table, words, FLOW), words)


@pytest.mark.parametrize(("slot", "least"), [*((slot, 0.95) for slot in SLOTS), ("all", 0.9)])
def test_with_cfg_the_words_are_followed(with_cfg, slot, least):
    assert with_cfg.rates[slot] >= least - ONE


def test_the_words_of_other_prompts_are_not_what_was_drawn(with_cfg, words):
    wrong = score(with_cfg.image, words.roll(1, 0)).rates
    assert wrong["all"] <= ONE
    assert all(wrong[slot] < 0.7 for slot in ("shape", "colour", "place", "background"))


def test_without_words_it_draws_what_it_likes(dit, table, words):
    free = torch.full_like(words, -1)
    found = score(sample(dit, table, free, FREE), words)
    assert found.rates["all"] <= ONE
    assert all(len(found.verdict.words[:, index].unique()) > 1 for index in range(5))  # not one and the same picture


def test_apg_keeps_a_high_cfg_from_clipping_and_keeps_the_words(dit, table, words):
    few = words[:8]
    plain, apg = (score(sample(model, table, few, BURNT), few) for model in (dit, corrected(dit)["APG"]))
    assert clipped(apg.image) < 0.5 * clipped(plain.image)
    assert apg.quality > plain.quality + 1
    assert apg.rates["all"] >= plain.rates["all"] - 1 / 8


# --- its training ---


def test_the_question_is_the_hosts_flow_and_the_velocity_gives_the_picture_back():
    sampling = dit_config().get_model({}, device=torch.device("meta")).model_sampling
    latent = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    asked = ask_flow(latent, 3.0, torch.Generator().manual_seed(2))
    assert sampling.shift == 3.0
    sigma = asked.sigma.flatten()
    assert torch.allclose(sampling.timestep(sigma), asked.timestep)
    assert torch.allclose(sampling.calculate_denoised(sigma, asked.target, asked.x), latent, atol=1e-5)
    noise = asked.target + latent
    assert torch.allclose(sampling.noise_scaling(sigma, noise, latent), asked.x, atol=1e-5)
    time = sigma / (3 - 2 * sigma)  # the shift undone: one row in each 64th of the time
    assert torch.equal((time * 64).floor(), torch.arange(64.0))


def test_the_attention_of_training_is_the_hosts():
    q, k = torch.randn(2, 2, 10, 128, generator=torch.Generator().manual_seed(0)).unbind(0)
    v = torch.randn(2, 10, 2, 64, generator=torch.Generator().manual_seed(1))
    expected = comfy.ldm.modules.attention.attention_basic(q, k, v, 2)
    assert torch.allclose(fused_attention(None, q, k, v, 2), expected, atol=1e-5)


def test_every_layer_learns_once_the_modulations_speak():
    task = DiTTask(torch.device("cpu"))
    named = task.parameters()
    assert set(named) == set(read_file(DIT_FILE))
    for parameter in named.values():
        parameter.requires_grad_(True)
    with torch.no_grad():
        for name, value in named.items():
            if name.endswith(("linear.weight", "adaLN_modulation.1.weight")):
                value.normal_(0, 0.02)
    task.loss(2, torch.Generator().manual_seed(0)).backward()
    silent = {name.removeprefix(UNET_PREFIX) for name, value in named.items() if not value.grad.abs().sum() > 0}
    # the pooled text is zeros, and what text tokens ask in the last block is not used
    assert silent == {"y_embedder.mlp.0.weight", "joint_blocks.7.context_block.attn.ln_q.weight"}
