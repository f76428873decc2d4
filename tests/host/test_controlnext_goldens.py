"""Stored results of the official code: control networks at full width, and small UNets from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from uuid import uuid4

import comfy.model_base
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from reins.engine.unet import unet_of
from reins.models.controlnext.files import VARIANTS
from reins.models.controlnext.network import Prepared
from reins.nodes.controlnext.hint import ControlNeXt, Hint
from reins.nodes.controlnext.nodes import ControlNeXtApply, ControlNeXtLoader
from reins.tests.helpers import controlnext
from reins.tests.helpers.calls import feature_call
from reins.tests.helpers.tiny_models import CPU
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = load_file(FOLDER / "controlnext.safetensors")
with safe_open(FOLDER / "controlnext.safetensors", "pt") as opened:
    METADATA = opened.metadata()
TABLES = json.loads((FOLDER / "controlnext_files.json").read_text())["control"]
SVD_NAMES = json.loads((FOLDER / "svd_unet_names.json").read_text())
SEED = 101
# the official folder: our variant, the padding that has to be chosen, whose table of tensors
OFFICIAL = {
    "sd15": ("sd15", "auto", "sd15"),
    "sd15_training": ("sd15-training", "auto", "sdxl"),
    "sdxl": ("sdxl", "auto", "sdxl"),
    "svd_v1": ("svd-v1", "auto", "svd_v1"),
    "svd_v2": ("svd-v2", "auto", "sdxl"),
    "svd_v2_training": ("svd-v2", "1", "sdxl"),
}
INJECTED = [name for name in OFFICIAL if f"{name}.h_odd" in GOLDEN]
VIDEO = ("svd_v1", "svd_v2")


def by_recipe(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights of the goldens: drawn in the order of their names."""
    generator = torch.Generator().manual_seed(SEED)
    found = {}
    for key in sorted(shapes):
        noise = torch.randn(tuple(shapes[key]) or (1,), generator=generator)
        if not shapes[key]:
            found[key] = 0.8 + 0.1 * noise[0]
        elif noise.ndim == 1:
            found[key] = 1 + 0.1 * noise if key.endswith(".weight") else 0.1 * noise
        else:
            found[key] = noise / noise[0].numel() ** 0.5
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each official file, written and loaded through the node."""
    folder = tmp_path_factory.mktemp("controlnext")
    folder_paths.add_model_folder_path("controlnext", str(folder))
    made = {}

    def load(name):
        if name not in made:
            variant, padding, table = OFFICIAL[name]
            weights = by_recipe(TABLES[table])
            total = sum(float(value.double().abs().sum()) for value in weights.values())
            assert total == pytest.approx(float(METADATA[f"{name}.weights_abs_sum"]), rel=1e-7)
            save_file(weights, folder / f"{name}.safetensors")
            made[name] = ControlNeXtLoader.execute(f"{name}.safetensors", variant=variant, stem_padding=padding).result[
                0
            ]
        return made[name]

    yield load
    folder_paths.folder_names_and_paths["controlnext"][0].remove(str(folder))


def of(name: str, key: str) -> Tensor:
    return GOLDEN[f"{name}.{key}"]


def largest(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_network_gives_the_stored_feature(name, loaded):
    control = loaded(name)
    variant = VARIANTS[OFFICIAL[name][0]]
    padding = variant.stem_padding if control.stem_padding is None else control.stem_padding
    network = control.network.model
    with torch.no_grad():
        out = network(network.prepare(of(name, "image").double(), padding), of(name, "timestep"))
    assert largest(out, of(name, "module_out")) < 1e-5
    assert control.scale == pytest.approx(float(of(name, "scale")) if "scale" in TABLES[OFFICIAL[name][2]] else 1.0)


def steered(name: str, control: ControlNeXt, feature: Tensor, image: Tensor, label: int) -> Tensor:
    """One chunk of one picture, by the rule of its number among the conds."""
    hint = Hint(control, VARIANTS[OFFICIAL[name][0]], image, 1.0, "auto", None)
    size = [length // 8 for length in image.shape[-2:]]
    options = {"uuids": [uuid4()], "cond_or_uncond": [label], "original_shape": [1, 4, *size]}
    with torch.no_grad():
        term = hint(feature_call(feature.double(), of(name, "timestep"), options))
    return feature if term is None else feature + term


@pytest.mark.parametrize("name", INJECTED)
def test_the_feature_is_added_as_it_was(name, loaded):
    out = steered(name, loaded(name), of(name, "h_odd")[:1], of(name, "image")[:1], 0)
    assert largest(out, of(name, "injected_odd")[:1]) < 1e-5


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("row", [0, 1], ids=["negative", "positive"])
def test_videos_steer_the_negative_as_the_official_code_does(name, row, loaded):
    one = slice(row, row + 1)
    out = steered(name, loaded(name), of(name, "h")[one], of(name, "image")[one], 1 - row)
    assert largest(out, of(name, "injected_cfg")[one]) < 1e-5


class Stored(nn.Module):
    """In place of a control network: the stored feature of each picture, which is as bright as its number."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def prepare(self, image: Tensor, stem_padding: int) -> Prepared:
        return Prepared(image, image)

    def forward(self, prepared: Prepared, timestep: Tensor) -> Tensor:
        numbers = (prepared.x.mean((1, 2, 3)) * len(self.features)).round().long()
        return self.features[numbers].to(prepared.x)


def golden_model(name: str) -> ModelPatcher:
    """A UNet of the official configuration, its weights drawn under diffusers' names and renamed."""
    unet = {**json.loads(METADATA[f"unet.{name}.config"]), "dtype": torch.float64}
    bases = {
        "sdxl": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
        "svd_v1": (comfy.supported_models.SVD_img2vid, comfy.model_base.SVD_img2vid),
        "svd_v2": (comfy.supported_models.SVD_img2vid, comfy.model_base.SVD_img2vid),
    }
    family, base = bases.get(name, (comfy.supported_models.SD15, comfy.model_base.BaseModel))
    config = family(unet)
    config.unet_config = unet
    model = base(config, ModelType.EPS, device=CPU)
    network = model.diffusion_model
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    names = SVD_NAMES if name in VIDEO else comfy.utils.unet_to_diffusers(unet)
    names = {theirs: ours for theirs, ours in names.items() if ours in shapes and "class_embedding" not in theirs}
    assert set(names.values()) == set(shapes) and len(names) == len(shapes)
    drawn = by_recipe({theirs: shapes[ours] for theirs, ours in names.items()})
    network.load_state_dict({names[theirs]: value for theirs, value in drawn.items()})
    network.eval().requires_grad_(False)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def with_stored(name: str, stored: dict[str, Tensor], rows: slice) -> ModelPatcher:
    """The Apply node with the stored features of some rows in place of a control network."""
    model, features = golden_model(name), stored["control"][rows]
    control = controlnext.control(
        model, OFFICIAL[name][0], scale=float(stored["scale_plain" if name in VIDEO else "scale"])
    )
    control = dataclasses.replace(control, network=ModelPatcher(Stored(features), CPU, CPU))
    h, w = (8 * length for length in stored["x"].shape[-2:])
    numbers = torch.arange(len(features)).view(-1, 1, 1, 1) / len(features)
    return ControlNeXtApply.execute(model, control, numbers.expand(-1, h, w, 3)).result[0]


@pytest.mark.parametrize("name", INJECTED)
def test_a_whole_unet_gives_the_stored_prediction(name):
    """Through ControlNeXt Apply; only the control network is replaced by its stored result."""
    stored = stored_unet(name)
    out = call(with_stored(name, stored, slice(None)), stored, [0])
    expected = stored["unet_plain"].flatten(0, 1) if name in VIDEO else stored["unet_control"]
    assert largest(out, expected) < (1e-4 if name in VIDEO else 1e-5)


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 6)], ids=["negative", "positive"])
def test_a_whole_unet_gives_the_stored_guided_prediction(name, rows):
    """The first video of the stored pair is the negative; each has a hint of its own."""
    stored = stored_unet(name)
    out = call(with_stored(name, stored, rows), stored, [1, 0])
    assert largest(out[rows], stored["unet_cfg"].flatten(0, 1)[rows]) < 1e-4


def stored_unet(name: str) -> dict[str, Tensor]:
    return {key.rsplit(".", 1)[1]: value for key, value in GOLDEN.items() if key.startswith(f"unet.{name}.")}


def call(model: ModelPatcher, stored: dict[str, Tensor], labels: list[int]) -> Tensor:
    """The network alone, with the wrappers that a sampler would bring."""
    x = stored["x"]
    frames = x.shape[1] if x.ndim == 5 else 1
    rows = x.shape[0] * frames
    options = {
        **model.model_options["transformer_options"],
        "wrappers": {WrappersMP.DIFFUSION_MODEL: model.wrappers[WrappersMP.DIFFUSION_MODEL]},
        "cond_or_uncond": labels,
        "uuids": [uuid4() for _ in labels],
        "sigmas": torch.ones(rows),
    }
    arguments = {"context": stored["context"].double().repeat_interleave(frames, 0)}
    if "adm" in stored:
        arguments["y"] = stored["adm"].double().repeat_interleave(frames, 0)
    if x.ndim == 5:
        arguments |= {"num_video_frames": frames, "image_only_indicator": torch.zeros(x.shape[:2])}
        x = x.flatten(0, 1)
    timesteps = stored["t"].expand(rows)
    with torch.no_grad():
        return unet_of(model)(x.double(), timesteps, transformer_options=options, **arguments)
