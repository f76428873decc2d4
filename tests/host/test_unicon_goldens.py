"""Stored results of the official code: single predictions, whole trajectories, and the schedule parser, by the nodes.

The stored UNet has one transformer at each of its four places; files of three models are stored as its folders.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from reins.models.unicon.two_clocks import RunSection, timetable
from reins.nodes.unicon.apply_node import UniConApply
from reins.nodes.unicon.joint_node import UniConApplyJoint
from reins.nodes.unicon.load_node import UniConLoader
from reins.nodes.unicon.two_clocks_node import UniConSampler
from reins.tests.helpers import tiny_models
from reins.tests.helpers.unicon import GOLDEN_UNET
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = load_file(FOLDER / "unicon.safetensors")
with safe_open(FOLDER / "unicon.safetensors", "pt") as opened:
    METADATA = {name: json.loads(text) for name, text in opened.metadata().items() if text.startswith("{")}
SCHEDULES = json.loads((FOLDER / "unicon_schedules.json").read_text())
TRAJECTORIES = sorted(name.removeprefix("traj.") for name in METADATA if name.startswith("traj."))
ONE_STEP, TRAJECTORY = 2e-5, 3e-4  # of single predictions and of latents of size 20 to 44
SEED = 5


@pytest.fixture(scope="module")
def model():
    made = tiny_models.sd15(kind=ModelType.EPS, **GOLDEN_UNET)
    table = comfy.utils.unet_to_diffusers(made.model.model_config.unet_config)
    weights = {name.removeprefix("base."): value for name, value in GOLDEN.items() if name.startswith("base.")}
    made.model.diffusion_model.load_state_dict({table[name]: value for name, value in weights.items()})
    return made


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each official folder, written and loaded through the node."""
    folder = tmp_path_factory.mktemp("unicon")
    for name in ("depth", "pose", "id"):
        (folder / name).mkdir()
        for part in ("xy_lora", "yx_lora", "y_lora", "model.pth"):
            prefix = f"{name}/{part}/"
            found = {key.removeprefix(prefix): value for key, value in GOLDEN.items() if key.startswith(prefix)}
            if part == "model.pth":
                torch.save({key: torch.nn.Parameter(value) for key, value in found.items()}, folder / name / part)
            elif found:
                (folder / name / part).mkdir()
                save_file(found, folder / name / part / "pytorch_lora_weights.safetensors")
    folder_paths.add_model_folder_path("unicon", str(folder))
    folder_paths.filename_list_cache.clear()
    return {name: UniConLoader.execute(name).result[0] for name in ("depth", "pose", "id")}


def prompt(rows):
    return [[rows, {}]]


def sigma_of(model, timestep):
    return float(model.model.model_sampling.sigmas[int(timestep)])


def as_partner(model, picture, timestep):
    """A LATENT that is this noised picture (1, c, h, w), as the official network sees it, at this time."""
    sigma = sigma_of(model, timestep)
    noise = comfy.sample.prepare_noise(picture, SEED)
    clean = picture * (1 + sigma**2) ** 0.5 - sigma * noise
    return {"samples": model.model.process_latent_out(clean)}


def prediction(model, x, sigmas, text, positive):
    """What the network says of the noise (b, c, h, w) as the positive or the negative, with a noise level per row."""
    conds = [[tiny_models.cond(text)], None] if positive else [None, [tiny_models.cond(text)]]
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    try:
        with torch.no_grad():
            denoised = comfy.samplers.calc_cond_batch(model.model, conds, x, sigmas, options)[0 if positive else 1]
    finally:
        model.cleanup()
    return (x - denoised) / sigmas[:, None, None, None]


class Case:
    """The positive's or the negative's half of a stored prediction, branch by branch."""

    def __init__(self, name, positive):
        told = METADATA[f"case.{name}"]
        self.pairs, self.times, self.images, self.positive = (
            told["pairs"],
            told["t"],
            told["images_per_input"],
            positive,
        )
        halves = 1 if told["cfg_order"] == "none" else 2
        stored = {part: GOLDEN[f"case.{name}.{part}"].chunk(halves) for part in ("x", "ctx", "eps")}
        self.parts = {part: rows[-1 if positive else 0].split(self.images) for part, rows in stored.items()}

    def prompts(self, branch):
        """Its text where it belongs, and another one where it must not be read."""
        own = self.parts["ctx"][branch]
        return [prompt(own), prompt(-own)] if self.positive else [prompt(-own), prompt(own)]

    def _texts(self, branches):
        """The sampler's conditioning has a row for each row of the latent."""
        return self.parts["ctx"][0].repeat(branches, 1, 1)

    def beside(self, model, unicon, branch, strengths):
        """The model with a branch of the case as its partner."""
        partner = as_partner(model, self.parts["x"][branch], self.times[branch])
        return UniConApply.execute(
            model, unicon, partner, "condition", *self.prompts(branch), *strengths,
            sigma_of(model, self.times[branch]), SEED,
        ).result[0]  # fmt: skip

    def assert_predicted(self, model, steered, sampled, compared):
        levels = torch.tensor([sigma_of(model, self.times[branch]) for branch in sampled for _ in range(self.images)])
        x = torch.cat([self.parts["x"][branch] for branch in sampled]) * (1 + levels[:, None, None, None] ** 2) ** 0.5
        found = prediction(steered, x, levels, self._texts(len(sampled)), self.positive).split(self.images)
        for branch in compared:
            assert (found[branch] - self.parts["eps"][branch]).abs().max() < ONE_STEP


CASES = [
    (name.removeprefix("case."), positive)
    for name, told in sorted(METADATA.items())
    for positive in ((True,) if told.get("cfg_order") == "none" else (True, False))
    if name.startswith("case.")
]
SEEING = [case for case in CASES if case[0] != "depth_jointoff"]


@pytest.mark.parametrize(("name", "positive"), SEEING)
def test_the_image_is_predicted_as_officially_beside_given_conditions(name, positive, model, loaded):
    case, steered = Case(name, positive), model
    for _, branch, x, y, of_model in case.pairs:
        steered = case.beside(steered, loaded[of_model], branch, (x, y))
    case.assert_predicted(model, steered, sampled=[0], compared=[0])


@pytest.mark.parametrize(("name", "positive"), SEEING)
def test_image_and_condition_are_predicted_as_officially_side_by_side(name, positive, model, loaded):
    case = Case(name, positive)
    (_, _, x, y, of_model), *others = case.pairs
    steered = UniConApplyJoint.execute(model, loaded[of_model], *case.prompts(1), x, y).result[0]
    for _, branch, x, y, of_model in others:
        steered = case.beside(steered, loaded[of_model], branch, (x, y))
    case.assert_predicted(model, steered, sampled=[0, 1], compared=[0, 1])


@pytest.mark.parametrize(("name", "positive"), [case for case in SEEING if "plus" not in case[0]])
def test_the_condition_is_predicted_as_officially_beside_a_given_image(name, positive, model, loaded):
    case = Case(name, positive)
    ((_, _, x, y, of_model),) = case.pairs
    case.parts = {part: rows[::-1] for part, rows in case.parts.items()}
    case.times = case.times[::-1]
    partner = as_partner(model, case.parts["x"][1], case.times[1])
    steered = UniConApply.execute(
        model, loaded[of_model], partner, "image", *case.prompts(1), x, y, sigma_of(model, case.times[1]), SEED
    ).result[0]  # fmt: skip
    case.assert_predicted(model, steered, sampled=[0], compared=[0])


@pytest.mark.parametrize("branch", [0, 1])
def test_a_branch_that_sees_nothing_is_predicted_as_officially_with_the_joint_off(branch, model, loaded):
    """The strength of the branch is 0; that of the other is not, for both at 0 turn the node off."""
    case = Case("depth_jointoff", True)
    strengths = [float(branch != 0), float(branch != 1)]
    steered = UniConApplyJoint.execute(model, loaded["depth"], *case.prompts(1), *strengths).result[0]
    case.assert_predicted(model, steered, sampled=[0, 1], compared=[branch])


@pytest.mark.parametrize("method", ["euler", "ddim_eta0"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_trajectory_is_the_official_one(name, method, model, loaded):
    told = METADATA[f"traj.{name}"]
    stored = {part: GOLDEN[f"traj.{name}.{part}"] for part in ("clean", "ctx", "noise")}
    expected = GOLDEN[f"traj.{name}.{method}.traj"]
    times = GOLDEN[f"traj.{name}.{method}.timesteps"]
    negative_x, negative_y, positive_x, positive_y = (row[None] for row in stored["ctx"])
    steered = UniConApplyJoint.execute(
        model, loaded[told["model"]], prompt(positive_y), prompt(negative_y), condition_guidance=told["cond_guidance"]
    ).result[0]
    ways = [f"{way} {start}-{end}" for way, (start, end) in zip("xy", told["sample_schedule"][0][:2], strict=True)]
    sampler = UniConSampler.execute(method.split("_")[0], 0.0, ", ".join(ways)).result[0]
    sigmas = torch.tensor([*(sigma_of(model, time) for time in times), 0.0])
    guider = comfy.samplers.CFGGuider(steered)
    guider.set_conds(prompt(positive_x), prompt(negative_x))
    guider.set_cfg(told["cfg"])
    states = []
    mask = GOLDEN.get(f"traj.{name}.mask")
    out = guider.sample(
        stored["noise"], model.model.process_latent_out(stored["clean"]), sampler, sigmas, denoise_mask=mask,
        callback=lambda step, denoised, x, total: states.append(x.clone()), disable_pbar=True, seed=0,
    )  # fmt: skip
    final = model.model.process_latent_in(out)
    if mask is None:
        levels = [torch.tensor([float(sigmas[i]) for i in row[:2]]) for row in told["parsed"]]
        for state, level, wanted in zip(states, levels, expected, strict=False):
            shrunk = state / (1 + level[:, None, None, None] ** 2) ** 0.5 if method != "euler" else state
            assert (shrunk - wanted).abs().max() < TRAJECTORY
    assert (final - expected[-1]).abs().max() < TRAJECTORY


def test_schedules_are_parsed_as_officially():
    for call, expected in SCHEDULES.items():
        segments, steps = ast.literal_eval(call)
        ways = [tuple(RunSection(*ends) for ends in segment[:-1]) for segment in segments]
        assert [[*row, 0] for row in timetable(ways, steps)] == expected
