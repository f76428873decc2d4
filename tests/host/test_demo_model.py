"""The demo model is an ordinary model to the host: stock samplers, LoRA, ControlNet and VAE work on it."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from reins.demo.judge import judge
from reins.demo.world import nodes as demo_model
from reins.demo.world.host_model import load_model
from reins.demo.world.model import BASE_FILE, CLIP_VISION_FILE, UNET, UNET_PREFIX, VOCABULARY, tokens, word_indices
from reins.demo.world.nodes import LARGEST_SEED, DemoModel, DemoPrompt, DemoScene
from reins.demo.world.scenes import SIZE, SLOTS
from reins.engine.loading import read_file

ANY = dict.fromkeys(SLOTS, "any")
RED = ANY | {"shape": "circle", "colour": "red", "place": "centre", "size": "large", "background": "white"}
SCENE = RED | {"texture": "plain"}


@pytest.fixture(scope="module")
def outputs():
    return DemoModel.execute("base").result


@pytest.fixture
def model(outputs):
    return outputs[0].clone()


def prompt(**words: str):
    (conditioning,) = DemoPrompt.execute("image", **(ANY | words)).result
    return conditioning


def run(model, steps=4, cfg=3.0, scheduler="karras", sampler="dpmpp_2m", positive=None, size=32, batch=1):
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(batch, 4, size, size))
    noise = comfy.sample.prepare_noise(latent, 5)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive or prompt(**RED), prompt(), latent,
        disable_pbar=True, seed=5,
    )  # fmt: skip


def test_it_is_the_hosts_own_unet_in_the_hosts_own_model(model):
    assert type(model.model) is comfy.model_base.BaseModel
    assert type(model.model.diffusion_model) is UNetModel
    assert model.model.model_type == comfy.model_base.ModelType.V_PREDICTION


def test_nothing_of_it_is_registered_with_the_host(model):
    known = [*comfy.supported_models.models, *vars(comfy.latent_formats).values()]
    assert not any(getattr(entry, "__module__", "").startswith("reins") for entry in known)
    assert type(model.model.latent_format).__module__.startswith("reins")


def test_an_empty_latent_for_256_pixels_becomes_32_by_32(model):
    result = run(model, steps=2)
    assert result.shape == (1, 3, 32, 32)


def test_a_drawn_scene_comes_back_out_of_noise_of_five_times_its_contrast(model):
    """v, the table of noise levels and the latent format belong together."""
    image, *_ = DemoScene.execute(0, 4, **SCENE).result
    latent = model.model.process_latent_in(image.movedim(-1, 1) * 2 - 1)
    sigma = model.model.model_sampling.sigmas[500].expand(4)
    x = latent + sigma[:, None, None, None] * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        denoised = model.model.apply_model(x, sigma, c_crossattn=prompt(**SCENE)[0][0].expand(4, -1, -1))
    noisy_error, error = ((other - latent).pow(2).mean().sqrt() for other in (x, denoised))
    assert noisy_error > 4 * latent.std()
    assert error < 0.3 * latent.std()  # with a latent factor of 0.5 it would be 0.7, with 2 as much


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_of_the_host_gives_finite_pictures(model, scheduler):
    steps = 6 if scheduler == "beta" else 3  # beta repeats levels with too few steps
    assert torch.isfinite(run(model, steps=steps, scheduler=scheduler)).all()


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m_sde", "ddim", "uni_pc", "lcm"])
def test_samplers_of_every_kind_give_finite_pictures(model, sampler):
    assert torch.isfinite(run(model, sampler=sampler, scheduler="normal")).all()


@pytest.mark.parametrize("size", [16, 24, 40])
def test_other_latent_sizes_run(model, size):
    assert run(model, steps=2, size=size).shape == (1, 3, size, size)


def test_the_vae_turns_pictures_into_latents_and_back_without_a_change(outputs):
    image, *_ = DemoScene.execute(1, 2, **SCENE).result
    vae = outputs[1]
    assert (vae.decode(vae.encode(image)) - image).abs().max() < 1e-5


def test_two_models_are_independent(outputs):
    other = DemoModel.execute("base").result[0]
    other.add_patches({"diffusion_model.out.2.bias": (torch.ones(3),)}, 1.0)
    assert not torch.equal(run(outputs[0].clone()), run(other))
    assert torch.equal(run(outputs[0].clone()), run(outputs[0].clone()))


def test_a_copy_for_control_is_built_by_the_stock_loader_and_counts(model):
    """A classic ControlNet starts as a copy of the base's encoder with silent outputs."""
    settings = {name: value for name, value in UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    settings = {name: value for name, value in settings.items() if not name.startswith("use_temporal")}
    copy = comfy.cldm.cldm.ControlNet(
        hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32, **settings
    )
    weights = {name: torch.zeros_like(value) for name, value in copy.state_dict().items()}
    for name, value in read_file(BASE_FILE).items():
        if name.removeprefix(UNET_PREFIX) in weights:
            weights[name.removeprefix(UNET_PREFIX)] = value.float()
    control = comfy.controlnet.load_controlnet_state_dict(dict(weights))
    image, *_ = DemoScene.execute(0, 1, **SCENE).result
    results = []
    for loudness in (0.0, 0.05):
        for name, value in control.control_model.named_parameters():
            if name.startswith(("zero_convs", "middle_block_out")):
                value.data.fill_(loudness)
        positive = [[prompt(**RED)[0][0], {"control": control.copy().set_cond_hint(image.movedim(-1, 1), 1.0, (0, 1)),
                                           "control_apply_to_uncond": True}]]  # fmt: skip
        results.append(run(model, positive=positive))
    assert torch.equal(results[0], run(model))
    assert (results[1] - results[0]).abs().max() > 1e-3


def test_half_precision_draws_the_same_picture(model):
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    context = prompt(**RED)[0][0].expand(2, -1, -1)
    timestep = torch.tensor([900.0, 200.0])
    network = load_model(read_file(BASE_FILE), BASE_FILE.name).model.diffusion_model.float()
    with torch.inference_mode():
        single = network(x, timestep, context)
        half = network.half()(x.half(), timestep, context.half()).float()
    assert (half - single).abs().max() < 0.02 * single.abs().max()


def test_a_prompt_is_a_row_of_words_and_the_empty_one_says_nothing():
    rows = tokens(word_indices(RED | {"texture": "striped", "place": "bottom left"}))
    said = [VOCABULARY[row] for row in rows[0]]
    assert said == ["circle", "red", "bottom", "left", "large", "white", "striped", "any"]
    assert tokens(word_indices(ANY)).eq(0).all()
    assert [VOCABULARY[row] for row in tokens(word_indices(ANY), depth=True)[0]][-1] == "depth"
    empty, image, depth = prompt()[0][0], prompt(**RED)[0][0], DemoPrompt.execute("depth", **RED).result[0][0][0]
    assert empty.shape == image.shape == (1, 8, 64)
    assert (empty == empty[:, :1]).all()
    assert torch.equal(image[:, :-1], depth[:, :-1]) and not torch.equal(image[:, -1], depth[:, -1])


def test_a_scene_is_what_its_words_say_and_comes_with_its_maps():
    image, depth, edge, mask = DemoScene.execute(7, 3, **SCENE | {"texture": "checked", "place": "top right"}).result
    assert image.shape == depth.shape == edge.shape == (3, 32, 32, 3)
    assert mask.shape == (3, 32, 32)
    verdict = judge(image.movedim(-1, 1))
    assert verdict.right(word_indices(SCENE | {"texture": "checked", "place": "top right"})).all()
    assert torch.equal(verdict.mask, mask)


def test_a_scene_of_a_batch_is_the_one_that_its_seed_draws_alone():
    together = DemoScene.execute(LARGEST_SEED, 3, **SCENE).result
    for index, seed in enumerate((LARGEST_SEED, 0, 1)):
        for batch, alone in zip(together, DemoScene.execute(seed, 1, **SCENE).result, strict=True):
            assert torch.equal(batch[index : index + 1], alone)


@pytest.mark.parametrize("file", [BASE_FILE, CLIP_VISION_FILE], ids=lambda file: file.stem)
def test_a_damaged_file_is_named_and_the_next_load_works(file, tmp_path, monkeypatch):
    broken = tmp_path / file.name
    broken.write_bytes(file.read_bytes()[:5000])
    with monkeypatch.context() as patch:
        if file == BASE_FILE:
            patch.setitem(demo_model.VARIANTS, "base", broken)
        else:
            patch.setattr(demo_model, "CLIP_VISION_FILE", broken)
        with pytest.raises(ValueError, match=rf"{file.name} cannot be read: .*Download the file again"):
            DemoModel.execute("base")
    assert len(DemoModel.execute("base").result) == 3


def test_a_file_with_other_tensors_is_refused_by_name():
    weights = read_file(BASE_FILE)
    key = UNET_PREFIX + "out.2.bias"
    with pytest.raises(ValueError, match=r"my\.safetensors does not fit: lacks out\.2\.bias"):
        load_model({name: value for name, value in weights.items() if name != key}, "my.safetensors")
    with pytest.raises(ValueError, match=r"out\.2\.bias should be \(3,\) but is \(4,\)"):
        load_model(weights | {key: torch.zeros(4)}, "my.safetensors")
