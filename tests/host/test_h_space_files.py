"""Where directions come from: captured on a model, files in all forms, faults, and models that they do not fit."""

from __future__ import annotations

import logging
import pickle
from itertools import pairwise

import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.samplers import KSAMPLER
from reins.nodes.h_space.direction import BlockDirection, StoredDirection
from reins.nodes.h_space.direction_node import METHODS, HDirectionCapture, HDirectionFromPrompts
from reins.nodes.h_space.files_node import HDirectionLoader, HDirectionSave
from reins.tests.helpers import h_space, tiny_models
from reins.tests.helpers.damaged_files import Bomb
from reins.tests.helpers.h_space import SOURCE, TARGET, asyrp, edit, golden, live, patched, run, stored
from reins.tests.helpers.methods import pag
from reins.tests.helpers.other_packs import VERSION, pass_through, windows
from reins.tests.helpers.tiny_models import nearly, text
from safetensors.torch import save_file

LATENT = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.fixture
def folder(folder_of):
    """A models/h_space of our own in front of the others."""
    return folder_of("h_space")


def load(name):
    return HDirectionLoader.execute(name).result[0]


# --- captured --------------------------------------------------------------------------------------------------------


def capture(model, positive=None, latent=LATENT, seed=3, steps=2, **settings):
    prompts = {} if settings.get("method") == METHODS[1] else {"source": SOURCE, "target": TARGET}
    positive = text(1) if positive is None else positive
    return HDirectionCapture.execute(model, positive, latent, seed, steps, **{**prompts, **settings}).result[0]


def recorded(model, of, seeds, b=1):
    """(runs, t, b, c, h, w): h of some prompts at each step of plain runs without guidance; and the noise levels."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    found = {name: [] for name in of}

    def note(h, label, options):
        found[now].append(h.clone())
        return torch.zeros_like(h)

    def loop(model, x, sigmas, extra_args, callback, disable):
        nonlocal now
        guider = model.inner_model
        for level, following in pairwise(sigmas.tolist()):
            at = x.new_full([len(x)], level)
            for now in of:
                options = patched(extra_args["model_options"], note)
                comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds[now]], x, at, options)
            x = x + (x - model(x, at, **extra_args)) / level * (following - level)
        return x

    now = ""
    for seed in seeds:
        start = comfy.sample.prepare_noise(torch.zeros(b, 4, 8, 8), seed)
        run(model, KSAMPLER(loop), 1.0, sigmas, start, source=SOURCE, target=TARGET)
    each = {name: torch.stack(rows).unflatten(0, (len(seeds), -1)) for name, rows in found.items()}
    return each, sigmas[:-1].tolist()


@pytest.mark.parametrize("pool", [False, True])
def test_a_captured_direction_is_the_mean_difference_along_the_runs(pool, model):
    h, sigmas = recorded(model, ("source", "target"), (3, 4))
    expected = (h["target"] - h["source"]).mean((0, 2))
    found = capture(model, samples=2, pool=pool)
    assert found.directions.sigmas == pytest.approx(sigmas)
    assert nearly(found.directions.dh, expected.mean((2, 3), keepdim=True) if pool else expected)
    assert found.metadata.items() >= {
        "latent": "8x8", "steps": "2", "samples": "2", "seed": "3", "cfg": "1", "pooled": str(pool)
    }.items()  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
def test_a_captured_component_is_that_of_the_pictures(number, sd15):
    """Two runs of two pictures are four; what guidance perturbs is not looked at."""
    sd15 = pag(sd15)
    h, _ = recorded(sd15, ("positive",), (3, 4), b=2)
    pictures = h["positive"].transpose(1, 2).flatten(0, 1).double()  # (pictures, t, c, h, w)
    centred = (pictures - pictures.mean(0)).flatten(1)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    found = capture(sd15, latent=latent, samples=2, method=METHODS[1], component=number).directions.dh.double()
    expected = (vectors[number - 1] * values[number - 1] / 3**0.5).reshape(found.shape)
    expected = expected * torch.sign((expected * found).sum())
    assert nearly(found, expected)


def test_a_capture_leaves_its_model_and_works_on_the_same_run(sd15):
    before, options = run(sd15), str(sd15.model_options)
    with tiny_models.forwards(sd15) as rows:
        found = capture(sd15, samples=1)
    assert rows == [3, 3]  # the picture's prompt and both others, without a negative
    assert torch.equal(run(sd15), before) and str(sd15.model_options) == options
    assert not nearly(run(edit(sd15, found, 0.2)), before, 1e-3)
    assert capture(sd15, samples=1, method=METHODS[0]).directions.dh.equal(found.directions.dh)


def test_a_capture_goes_along_the_model_as_it_is(sd15, monkeypatch):
    """With another pack in the slot, guidance, an edit, and too little memory for all rows at once."""
    steered = edit(pag(sd15), live())
    found = capture(steered, samples=1)
    assert nearly(capture(pass_through(steered), samples=1).directions.dh, found.directions.dh)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(capture(steered, samples=1).directions.dh, found.directions.dh)
    assert not nearly(capture(sd15, samples=1).directions.dh, found.directions.dh, 1e-3)


def test_the_last_seeds_are_followed_by_the_first(sd15):
    found = capture(sd15, seed=2**64 - 1, samples=2, steps=1).directions.dh
    each = [capture(sd15, seed=seed, samples=1, steps=1).directions.dh for seed in (2**64 - 1, 0)]
    assert nearly(found, sum(each) / 2)


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
def test_a_capture_needs_all_pictures_in_one_call(sd15):
    with pytest.raises(RuntimeError, match="needs all pictures in one call"):
        capture(windows(sd15), latent={"samples": torch.zeros(6, 4, 8, 8)}, samples=1)


CAPTURES = {
    "no source": ({"source": None}, "needs the prompts source and target, but one is missing"),
    "no target": ({"target": None}, "needs the prompts source and target, but one is missing"),
    "several targets": ({"target": TARGET + TARGET}, "target should be one prompt, but holds 2"),
    "nan": ({"source": [[torch.full((1, 5, 16), torch.nan), {}]]}, "source should hold finite numbers"),
    "no positive": ({"positive": []}, "positive should be a prompt"),
    "no positive for components": ({"positive": [], "method": METHODS[1]}, "positive should be a prompt"),
    "nan latent": ({"latent": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "latent should hold finite numbers"),
    "video": ({"latent": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "latent of pictures"),
    "too few samples": ({"method": METHODS[1], "samples": 2, "component": 2}, "2 pictures have 1 principal components"),
    "one sample": ({"method": METHODS[1], "samples": 1, "component": 1}, "1 pictures have 0 principal components"),
}


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_that_cannot_be_is_refused(name, sd15):
    settings, words = CAPTURES[name]
    with pytest.raises(ValueError, match=words):
        capture(sd15, **settings)


def test_a_direction_needs_two_prompts(sd15):
    for positive, source, words in (([], SOURCE, "positive"), (text(1), [], "source"), (text(1), None, "source")):
        with pytest.raises(ValueError, match=f"{words} should be"):
            HDirectionFromPrompts.execute(positive, source, TARGET)


# --- files -----------------------------------------------------------------------------------------------------------


def block_weights(layout):
    given = ("conv1", "conv2", "norm2", "temb_proj") if layout == "ddpm" else ("in_layers", "emb_layers", "out_layers")
    return {key: value for key, value in golden(f"block.{layout}").items() if key.startswith(given)}


def as_released(layout, path):
    """With the optimizer and the scheduler that the authors' training leaves beside it."""
    network = h_space.block(layout).network.model.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    content = {"0": block_weights(layout), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(content, path)


FORMS = {
    "released.pth": as_released,
    "flat.safetensors": lambda layout, path: save_file(
        {f"0.{key}": value for key, value in block_weights(layout).items()}, path
    ),
    "nested.pt": lambda layout, path: torch.save({0: block_weights(layout)}, path),
    "alone.pth": lambda layout, path: torch.save(block_weights(layout), path),
    "alone.safetensors": lambda layout, path: save_file(block_weights(layout), path),
}


@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_delta_block_loads(name, layout, folder):
    FORMS[name](layout, folder / name)
    assert name in HDirectionLoader.define_schema().inputs[0].options
    found, given = load(name), golden("block")
    assert isinstance(found, BlockDirection) and (found.name, found.channels, found.time) == (name, 64, 128)
    assert nearly(found.network.model(given["h"], given["temb"]), given[f"{layout}_out"])


@pytest.mark.parametrize("layout", ["ddpm", "iddpm"])
def test_a_delta_block_without_time_loads(layout, folder):
    weights = {key: value for key, value in block_weights(layout).items() if "emb" not in key}
    save_file(weights, folder / "file.safetensors")
    found, given = load("file.safetensors"), golden("block")
    assert found.time is None
    assert nearly(found.network.model(given["h"], given["temb"]), given[f"{layout}_out_notime"])


def test_directions_by_timestep_load(folder, sd15):
    rows = {step: torch.randn((64, 4, 4), generator=torch.Generator().manual_seed(step)) for step in (0, 100, 900)}
    torch.save(rows, folder / "steps.pt")
    found = load("steps.pt")
    assert len(found.directions.sigmas) == 2 and torch.equal(found.directions.dh[0], rows[900])
    torch.save({0: rows[0][None]}, folder / "mean.pt")
    found = load("mean.pt")
    assert torch.equal(found.directions.dh[0], rows[0])
    assert nearly(run(edit(sd15, found)), run(edit(sd15, h_space.of(rows[0][None]))), 1e-6)


def test_a_captured_direction_survives_its_file(folder, monkeypatch, sd15):
    """It is saved in output/h_space, which is one of the loader's folders; with what is said of it."""
    output = folder / "output"
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    found = capture(sd15, samples=1)
    for prefix in ("smile", "smile", "faces/smile"):
        HDirectionSave.execute(found, prefix)
    saved = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.safetensors"))
    assert saved == [f"h_space/{name}" for name in (
        "faces/smile_00001_.safetensors", "smile_00001_.safetensors", "smile_00002_.safetensors"
    )]  # fmt: skip
    again = load(f"output/{saved[0]}")
    assert isinstance(again, StoredDirection) and again.metadata == found.metadata
    assert torch.equal(again.directions.dh, found.directions.dh)
    assert again.directions.sigmas == found.directions.sigmas
    assert torch.equal(run(edit(sd15, again)), run(edit(sd15, found)))
    for prefix in ("../out", "/tmp/out", ""):
        with pytest.raises(ValueError, match="should name a file inside h_space"):
            HDirectionSave.execute(found, prefix)


def test_only_captured_directions_are_saved(folder, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    for direction in (h_space.block(), live()):
        with pytest.raises(ValueError, match="captured direction can be saved"):
            HDirectionSave.execute(direction, "name")
    with pytest.raises(ValueError, match="direction should come from one of the nodes"):
        HDirectionSave.execute("direction", "name")
    assert not list(folder.rglob("*.safetensors"))


def cut(path):
    save_file(block_weights("ddpm"), path.with_suffix(".whole"))
    path.write_bytes(path.with_suffix(".whole").read_bytes()[:-20])


def changed(layout, **tensors):
    """A file of a layout with some tensors in place of its own; None leaves one out."""
    named = {key.replace("__", "."): value for key, value in tensors.items()}
    kept = {**block_weights(layout), **named}
    return lambda path: save_file({key: value for key, value in kept.items() if value is not None}, path)


FILES = {
    "cut.safetensors": (cut, "cannot be read"),
    "bomb.pth": (lambda path: path.write_bytes(pickle.dumps({"0": Bomb()})), "asks to run code"),
    "bomb.pt": (lambda path: torch.save({"0": Bomb()}, path), "asks to run code"),
    "text.pth": (lambda path: path.write_text("hello"), "not opened|cannot be read"),
    "nothing.pth": (lambda path: torch.save({}, path), "should hold named tensors"),
    "nan.safetensors": (changed("ddpm", conv1__bias=torch.full((64,), torch.nan)), "not .*NaN.*conv1.bias"),
    "nan dh.safetensors": (
        lambda path: save_file({"dh": torch.full((1, 64, 4, 4), torch.nan), "sigmas": torch.ones(1)}, path),
        "finite numbers, but some are not .*: dh",
    ),
    "lost.safetensors": (changed("ddpm", norm2__bias=None), "lacks norm2.bias"),
    "lost time.safetensors": (changed("iddpm", emb_layers__1__weight=None), "unknown emb_layers.1.bias"),
    "more.safetensors": (changed("ddpm", extra=torch.zeros(1)), "unknown extra"),
    "shape.safetensors": (
        changed("iddpm", in_layers__0__bias=torch.zeros(5)), r"in_layers.0.bias should be \(64,\) but is \(5,\)"
    ),
    "two.pth": (lambda path: torch.save({"0": block_weights("ddpm"), "1": block_weights("ddpm")}, path), "holds 2"),
    "lora.safetensors": (lambda path: save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path), "holds lora_"),
    "control.safetensors": (
        lambda path: save_file({"control_model.zero_convs.0.0.weight": torch.zeros(1)}, path), "delta block of Asyrp"
    ),
    "steps.pt": (lambda path: torch.save({1: torch.zeros(4), 2: torch.zeros(4)}, path), "one direction of the same"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_sentence(name, folder, capsys):
    make, words = FILES[name]
    make(folder / name)
    with pytest.raises(ValueError, match=words) as error:
        load(name)
    assert name in str(error.value) and "executed" not in capsys.readouterr().out


def test_a_name_outside_of_the_folder_is_refused():
    with pytest.raises(ValueError, match="not in the h_space folders"):
        load("../secret.safetensors")


# --- models ----------------------------------------------------------------------------------------------------------


def released(tmp_path, channels=512, time=512):
    """A file of the size of the released ones."""
    shapes = {"conv1": (channels, channels, 1, 1), "temb_proj": (channels, time), "norm2": (channels,)}
    shapes["conv2"] = shapes["conv1"]
    weights = {f"0.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(weights | {f"0.{name}.bias": torch.zeros(channels) for name in shapes}, tmp_path / "released.safetensors")
    return load("released.safetensors")


def test_a_released_block_is_refused_with_both_numbers(folder, model):
    direction, options = released(folder), str(model.model_options)
    words = "h-space of this model has 64 channels, but the direction released.safetensors has 512"
    with pytest.raises(ValueError, match=words):
        edit(model, direction)
    assert str(model.model_options) == options
    with pytest.raises(ValueError, match=words):
        run(model, asyrp(direction))
    with pytest.raises(ValueError, match="has 64 channels, but the direction drawn has 32"):
        edit(model, stored(channels=32))


def test_a_block_for_another_time_embedding_is_refused_with_both_numbers(folder, sd15):
    with pytest.raises(ValueError, match=r"time embedding of this model has 128 numbers, but .* reads 512"):
        edit(sd15, released(folder, channels=64))


@pytest.mark.parametrize("make", [tiny_models.dit, tiny_models.flux])
def test_models_without_a_unet_are_refused(make):
    model = make()
    with pytest.raises(ValueError, match="steers a UNet"):
        edit(model, stored())
    with pytest.raises(ValueError, match="steers a UNet"):
        capture(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": text(1), "negative": text(2)})
    with pytest.raises(ValueError, match="steers a UNet"):
        run(model, asyrp(), guider=guider)


def test_a_direction_of_another_family_is_used_and_said(caplog, sd15, sdxl):
    found = capture(sd15, samples=1)
    with caplog.at_level(logging.WARNING):
        assert run(edit(sd15, found)).isfinite().all() and not caplog.text
        assert run(edit(sdxl, found)).isfinite().all()
    assert "captured on a model that is SD1.x. On this one, which is SDXL" in caplog.text


def test_another_socket_is_refused(sd15):
    for wrong in (torch.zeros(1), "direction", text(1)):
        for node in (lambda direction: edit(sd15, direction), asyrp):
            with pytest.raises(ValueError, match=f"nodes for h-space directions, but is {type(wrong).__name__}"):
                node(wrong)


@pytest.mark.parametrize("mask", [torch.full((1, 8, 8), torch.nan), torch.ones(3)], ids=["nan", "1d"])
def test_a_bad_mask_is_refused_and_the_model_stays(mask, sd15):
    options = str(sd15.model_options)
    with pytest.raises(ValueError, match="mask should"):
        edit(sd15, stored(), mask=mask)
    assert str(sd15.model_options) == options
