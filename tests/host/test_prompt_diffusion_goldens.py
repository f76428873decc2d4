"""Stored results of the official network, narrow, from files of both layouts through the nodes and the host's Apply."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import folder_paths
import numpy as np
import pytest
import torch
from reins.nodes.prompt_diffusion.nodes import PromptDiffusionExample, PromptDiffusionLoader
from reins.tests.helpers import prompt_diffusion, tiny_models
from reins.tests.helpers.tiny_models import nearly
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = load_file(FOLDER / "prompt_diffusion.safetensors")  # every fourth channel
with safe_open(FOLDER / "prompt_diffusion.safetensors", "pt") as opened:
    CASES = {name: json.loads(case) for name, case in opened.metadata().items()}
TABLE = json.loads((FOLDER / "prompt_diffusion_files.json").read_text())
LAYOUTS = ("original", "diffusers")
RESULTS = 13


def random(tag: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((crc32(tag.encode()) + seed) % 2**32)


def weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """By the recipe of the goldens."""
    drawn = random(key, seed).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(drawn) / np.prod(shape[1:]) ** 0.5
    return torch.from_numpy(1 + 0.1 * drawn if key.endswith(".weight") else 0.1 * drawn).float()


def drawn(tag: str, seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(random(tag, seed).standard_normal(shape).astype(np.float32))


def picture(tag: str, case: dict) -> Tensor:
    """(1, h, w, 3) in 0..1, as the host's pictures."""
    shape = (1, 3, 8 * case["h"], 8 * case["w"])
    return torch.from_numpy(random(tag, case["seed"]).random_sample(shape).astype(np.float32)).movedim(1, -1)


@pytest.fixture(scope="module", params=LAYOUTS)
def loaded(request, tmp_path_factory):
    """A file of each layout, written and loaded through the node."""
    folder = tmp_path_factory.mktemp("controlnet")
    folder_paths.add_model_folder_path("controlnet", str(folder))
    names = {key: row[0] if request.param == "diffusers" else f"control_model.{key}" for key, row in TABLE.items()}
    seed = CASES["a"]["seed"]
    save_file(
        {names[key]: weight(key, tuple(row[2]), seed) for key, row in TABLE.items()}, folder / "golden.safetensors"
    )
    yield PromptDiffusionLoader.execute("golden.safetensors").result[0]
    folder_paths.folder_names_and_paths["controlnet"][0].remove(str(folder))


@pytest.mark.parametrize("strengths", [(1.0,), (0.5, 0.25)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_all_results_are_the_stored_ones(name, strengths, loaded):
    """At the full strength, and of two in a chain, which add up."""
    case = CASES[name]
    example = PromptDiffusionExample.execute(
        loaded, picture("source", case), picture("target", case), drop=case["drop_pair"]
    ).result[0]
    text = tiny_models.text(0)
    for strength in strengths:
        text = prompt_diffusion.apply(text, [], example, picture("query", case), strength)["positive"]
    found = results(text[0][1]["control"], case)
    for i in range(RESULTS):
        assert nearly(found[i][:, ::4], sum(strengths) * GOLDEN[f"{name}.out_{i:02d}"], 1e-4)


def results(control, case: dict) -> list[Tensor]:
    """What a step of the host gets; its latent is scaled back to what the network shall see."""
    model = tiny_models.sd15(context_dim=case["config"]["context_dim"]).model
    timesteps, size = torch.tensor(case["timesteps"]), (case["B"], 4, case["h"], case["w"])
    sigmas = model.model_sampling.sigma(timesteps)
    x = drawn("x", case["seed"], *size) * (sigmas[:, None, None, None] ** 2 + 1) ** 0.5
    text = drawn("context", case["seed"], case["B"], 7, case["config"]["context_dim"])
    control.pre_run(model, lambda percent: 1e9 if percent < 0.5 else 0.0)
    with torch.no_grad():
        found = control.get_control(x, sigmas, {"c_crossattn": text}, 1, {})
    control.cleanup()
    return [*found["output"], *found["middle"]]


@pytest.mark.parametrize("name", CASES)
def test_both_stems_give_the_stored_features(name, loaded):
    case = CASES[name]
    source, target, query = (picture(tag, case).movedim(-1, 1) * 2 - 1 for tag in ("source", "target", "query"))
    pair = torch.cat([source, target], 1) * (0 if case["drop_pair"] else 1)
    network = loaded.control_model.input_hint_block
    with torch.no_grad():
        assert nearly(network.pair(pair)[:, ::4], GOLDEN[f"{name}.pair_hint"], 1e-4)
        assert nearly(network.query(query)[:, ::4], GOLDEN[f"{name}.query_hint"], 1e-4)
