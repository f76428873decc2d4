"""Adapter files for transformers on disk: every form and type loads and gives the same prediction; harm is told."""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.nodes.ip_adapter.load_node import IPAdapterLoader
from reins.nodes.ip_adapter.prompt import ImageTokens, IPAdapter
from reins.nodes.ip_adapter.tokens_node import LoadImageTokens, SaveImageTokens
from reins.tests.helpers import ip_adapter, tiny_transformers
from reins.tests.helpers.damaged_files import Bomb
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.transformer_ip_adapters import (
    in_diffusers_names,
    instantx_flux_file,
    nested,
    sd3_file,
    xlabs_file,
)
from safetensors.torch import save_file

FILES = {"sd3": lambda: sd3_file(layers=3), "xlabs": xlabs_file, "instantx": instantx_flux_file}
FAMILY = {"sd3": "sd3", "xlabs": "flux", "instantx": "flux"}


def read(name: str, seed: int = 0, images: int = 1) -> torch.Tensor:
    """What an encoder might give: hidden states for SD3.5, one vector else."""
    shape = (images, 9, 20) if name == "sd3" else (images, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(made: IPAdapter, name: str, **settings: object) -> ImageTokens:
    return IPAdapterEncode.execute(made, clip_vision_output=read(name), **settings).result[0]


def predicted(model: ModelPatcher, name: str, made: IPAdapter | None = None, tokens: object = None) -> torch.Tensor:
    if made is not None:
        model = IPAdapterApply.execute(model, made, tokens, 0.7).result[0]
    return tiny_transformers.sample(FAMILY[name], model, steps=1)


@pytest.fixture
def folder(folder_of):
    """A models/ipadapter of our own in front of the others."""
    return folder_of("ipadapter")


@pytest.fixture(scope="module")
def models():
    return {family: tiny_transformers.make(family) for family in ("sd3", "flux")}


FORMS = {
    "safetensors": ("file.safetensors", lambda weights: weights),
    "bin": ("file.bin", nested),
    "flat bin": ("file.bin", lambda weights: weights),
    "names of diffusers": ("file.safetensors", in_diffusers_names),
    "training dump": (
        "file.bin",
        lambda weights: {
            **{key.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): value
               for key, value in weights.items()},
            "unet.conv_in.weight": torch.zeros(1),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FILES)
def test_every_form_of_a_file_gives_the_same_prediction(name, form, folder, models):
    if name == "xlabs" and form in ("bin", "training dump"):
        pytest.skip("XLabs has one flat form")
    path, spelt = FORMS[form]
    weights, model = FILES[name](), models[FAMILY[name]]
    (save_file if path.endswith("safetensors") else torch.save)(spelt(weights), folder / path)
    (made,) = IPAdapterLoader.execute(path).result
    direct = make_ip_adapter(weights, "direct")
    tokens = encoded(made, name)
    # Numbers that lie elsewhere in memory may be summed in another order.
    assert nearly(tokens.cond, encoded(direct, name).cond)
    found = predicted(model, name, made, tokens)
    assert nearly(found, predicted(model, name, direct, encoded(direct, name)))
    assert not nearly(found, predicted(model, name), 1e-3)
    assert made.fingerprint == direct.fingerprint


TYPES = {torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float8_e4m3fn: 0.5}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", FILES)
def test_weights_of_every_type_load_and_act_nearly_alike(name, dtype, folder, models):
    weights, model = FILES[name](), models[FAMILY[name]]
    save_file({key: value.to(dtype) for key, value in weights.items()}, folder / "typed.safetensors")
    (made,) = IPAdapterLoader.execute("typed.safetensors").result
    exact = make_ip_adapter(weights, "exact")
    found = predicted(model, name, made, encoded(made, name))
    expected = predicted(model, name, exact, encoded(exact, name))
    plain = predicted(model, name)
    assert found.isfinite().all()
    assert nearly(found - plain, expected - plain, TYPES[dtype])
    stored = {value.dtype for part in (made.projection, made.layers) for value in part.model.state_dict().values()}
    assert stored == {dtype}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["nan", "missing", "renamed", "wider", "bomb"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_refused_by_name(name, fault, folder, capsys):
    weights = {key: value.clone() for key, value in FILES[name]().items()}
    last = sorted(weights)[-1]
    match fault:
        case "nan":
            weights[last].view(-1)[0] = float("nan")
        case "missing":
            del weights[last]
        case "renamed":
            weights[f"{last}_"] = weights.pop(last)
        case "wider":
            weights[last] = torch.cat([weights[last]] * 2)
    path = "damaged.bin" if fault == "bomb" else "damaged.safetensors"
    if fault == "bomb":
        torch.save({**weights, "x": Bomb()}, folder / path)
    else:
        save_file(weights, folder / path)
    with pytest.raises(ValueError, match=path.replace(".", r"\.")) as error:
        IPAdapterLoader.execute(path)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_loading_holds_the_tensors_of_the_file_and_no_copy(name):
    weights = FILES[name]()
    made = make_ip_adapter(weights, "x")
    size = sum(value.nbytes for value in weights.values())
    held = made.projection.model_size() + made.layers.model_size()
    assert held == size
    theirs = {value.data_ptr() for value in weights.values()}
    parts = [value for patcher in (made.projection, made.layers) for value in patcher.model.state_dict().values()]
    assert theirs == {value.data_ptr() for value in parts}


@pytest.fixture
def token_folder(folder_of, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    _, extensions = folder_paths.folder_names_and_paths["image_tokens"]
    place = tmp_path / "image_tokens"
    place.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "image_tokens", ([str(place)], extensions))
    folder_paths.filename_list_cache.clear()
    yield place
    folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize("name", FILES)
def test_tokens_survive_their_file_and_serve_no_other_adapter(name, token_folder, models):
    made, model = make_ip_adapter(FILES[name](), "made.safetensors"), models[FAMILY[name]]
    (tokens,) = IPAdapterEncode.execute(made, clip_vision_output=read(name, images=2), image_weights="1, 3").result
    SaveImageTokens.execute(tokens, "look")
    (again,) = LoadImageTokens.execute("look_00001_.safetensors").result
    for part in ("cond", "uncond", "black", "weights"):
        assert torch.equal(getattr(again, part), getattr(tokens, part))
    assert torch.equal(predicted(model, name, made, again), predicted(model, name, made, tokens))
    if name == "sd3":
        assert torch.equal(again.cond, read(name, images=2))  # the hidden states, of which each step makes tokens
    drawn = {"sd3": sd3_file(3, layers=3), "xlabs": xlabs_file(3), "instantx": instantx_flux_file(3)}
    for other_name, file in drawn.items():
        other = make_ip_adapter(file, "other.safetensors")
        with pytest.raises(ValueError, match=r"other\.safetensors reads its own tokens.*made by made\.safetensors"):
            IPAdapterApply.execute(models[FAMILY[other_name]], other, again, 0.7)


@pytest.mark.parametrize("kind", ["linear", "plus"])
def test_an_adapter_for_a_unet_and_one_for_a_transformer_are_told_apart(kind, models, sd15):
    of_unet = ip_adapter.adapter(sd15, kind)
    for family, model in models.items():
        with pytest.raises(ValueError, match=r"was made for a UNet with .* but the model is (SD3|Flux) \("):
            IPAdapterApply.execute(model, of_unet, ip_adapter.tokens(of_unet), 0.7)
        for name, file in FILES.items():
            made = make_ip_adapter(file(), f"{name}.safetensors")
            if FAMILY[name] != family:
                for wrong in (model, sd15):
                    with pytest.raises(ValueError, match=rf"{name}\.safetensors was made for .*, but the model is"):
                        IPAdapterApply.execute(wrong, made, encoded(made, name), 0.7)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_of_another_depth_names_both_depths(name, models):
    weights = {"sd3": sd3_file(), "xlabs": xlabs_file(blocks=1), "instantx": instantx_flux_file(double=1)}[name]
    made = make_ip_adapter(weights, "short.safetensors")
    has, needs = {"sd3": (3, 2), "xlabs": (2, 1), "instantx": (4, 3)}[name]
    with pytest.raises(ValueError, match=rf"with {needs} attentions .* but the model has {has} attentions"):
        IPAdapterApply.execute(models[FAMILY[name]], made, encoded(made, name), 0.7)
