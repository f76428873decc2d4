"""Adapter files on disk and on models: formats, full-size layouts, LoRA inside, what other packs hand over, faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import folder_paths
import pytest
import torch
from reins.engine.folders import path_of
from reins.engine.unet import find_transformers
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import as_ip_adapter, in_file_order, make_ip_adapter
from reins.nodes.ip_adapter.load_node import IPAdapterLoader
from reins.nodes.ip_adapter.tokens_node import LoadImageTokens, SaveImageTokens
from reins.tests.helpers import full_size, ip_adapter, tiny_models
from reins.tests.helpers.damaged_files import Bomb, truncated
from reins.tests.helpers.tiny_models import nearly, sample
from safetensors.torch import save_file

MAPS = json.loads((Path(__file__).parents[1] / "golden" / "ip_adapter_files.json").read_text())["maps"]


@pytest.fixture
def folder(folder_of):
    """A models/ipadapter of our own in front of the others."""
    return folder_of("ipadapter")


def load(name, **settings):
    return IPAdapterLoader.execute(name, **settings).result[0]


def apply(model, made, tokens, **settings):
    return IPAdapterApply.execute(model, made, tokens, **settings).result[0]


@pytest.mark.parametrize("layout", full_size.LAYOUTS)
def test_the_layers_of_a_file_are_numbered_as_in_the_official_table(layout):
    """The real UNet, without memory for its weights; the middle comes last and the host calls it block 0."""
    unet = full_size.unet(layout)
    found = in_file_order(find_transformers(unet))
    ours = [
        [2 * i + 1, f"{one.path}.attn2", one.width, one.context, [one.block, one.number, one.index]]
        for i, one in enumerate(found)
    ]
    assert ours == [entry for entry in MAPS[layout] if entry[0] % 2]


@pytest.mark.parametrize("kind", ip_adapter.projections())
@pytest.mark.parametrize("form", ["safetensors", "bin", "adapter_modules", "training dump"])
def test_every_kind_in_every_form_loads_and_works(kind, form, folder, sd15):
    weights = ip_adapter.file_for(sd15, kind)
    if form == "safetensors":
        name = "file.safetensors"
        save_file(weights, folder / name)
    else:
        name = "file.bin"
        spelt = {"adapter_modules": ("image_proj", "adapter_modules"), "bin": ("image_proj", "ip_adapter")}
        projection, layers = spelt.get(form, ("image_proj_model", "adapter_modules"))
        groups = {
            projection: {k.removeprefix("image_proj."): v for k, v in weights.items() if k.startswith("image_proj.")},
            layers: {k.removeprefix("ip_adapter."): v for k, v in weights.items() if k.startswith("ip_adapter.")},
        }
        if form == "training dump":
            groups = {f"{group}.{k}": v for group, of in groups.items() for k, v in of.items()}
            groups["unet.conv_in.weight"] = torch.zeros(1)
        torch.save(groups, folder / name)
    made = load(name)
    face = torch.randn((1, ip_adapter.FACE), generator=torch.Generator().manual_seed(0))
    tokens, expected = (
        IPAdapterEncode.execute(one, ip_adapter.encoder(), ip_adapter.picture(), face_embeds=face).result[0]
        for one in (made, make_ip_adapter(weights, "direct"))
    )
    assert made.kind.name == kind
    assert nearly(tokens.cond, expected.cond)  # numbers that lie elsewhere in memory may be summed in another order
    assert not nearly(sample(apply(sd15, made, tokens)), sample(sd15), 1e-2)


FILES = {
    "bomb.bin": lambda path: path.write_bytes(pickle.dumps({"image_proj": Bomb()})),
    "cut.safetensors": truncated,
    "text.bin": lambda path: path.write_text("hello"),
    "control.safetensors": lambda path: save_file({"control_model.zero_convs.0.0.weight": torch.zeros(1)}, path),
    "numbers.bin": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bad_file_is_refused_by_name_and_nothing_of_it_runs(name, folder, capsys):
    FILES[name](folder / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        load(name)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors"])
def test_files_outside_the_folders_cannot_be_named(name, folder):
    (folder.parent / "secret.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not in the ipadapter folders"):
        path_of("ipadapter", name)


def test_a_file_for_another_model_is_refused_with_both_named(sd15, sdxl):
    made = ip_adapter.adapter(sdxl)
    before = str(sd15.model_options)
    with pytest.raises(
        ValueError, match=r"made for 11 text attentions 32, 64 wide.*but the model has 10 text"
    ) as error:
        apply(sd15, made, ip_adapter.tokens(made))
    assert "Choose an IP-Adapter that was made for this kind of model" in str(error.value)
    assert str(sd15.model_options) == before
    assert sample(sd15, steps=1).isfinite().all()


@pytest.mark.parametrize("other", [tiny_models.dit, tiny_models.flux], ids=["SD3", "Flux"])
def test_a_model_that_is_no_unet_is_refused(other, sd15):
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match=r"was made for a UNet with .* but the model is (SD3|Flux) \("):
        apply(other(), made, ip_adapter.tokens(made))


def test_a_cut_down_model_needs_a_file_of_its_own(sd15):
    """A relative without a middle block, as SSD-1B is one: other layers, so other files; its own work."""
    small = tiny_models.sd15(transformer_depth_middle=-1)
    with pytest.raises(ValueError, match="but the model has 9 text attentions"):
        made = ip_adapter.adapter(sd15)
        apply(small, made, ip_adapter.tokens(made))
    own = ip_adapter.adapter(small)
    assert not nearly(sample(apply(small, own, ip_adapter.tokens(own))), sample(small), 1e-2)


def face_file(model, rank=2):
    return {**ip_adapter.file_for(model, "face"), **ip_adapter.lora_for(model, rank)}


def merged(model, weights, strength):
    """The LoRA by hand: up @ down onto each matrix."""
    model = tiny_models.sd15(dtype=torch.float64)
    unet = model.model.diffusion_model
    for number, one in enumerate(in_file_order(find_transformers(unet))):
        for offset, kind in enumerate(("attn1", "attn2")):
            for part, path in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
                stem = f"ip_adapter.{2 * number + offset}.to_{part}_lora"
                change = weights[f"{stem}.up.weight"] @ weights[f"{stem}.down.weight"]
                with torch.no_grad():
                    unet.get_submodule(f"{one.path}.{kind}.{path}").weight.add_(strength * change)
    return model


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_m_the_lora_inside_a_face_file_is_applied_by_the_host(strength, sd15):
    weights = face_file(sd15)
    made = make_ip_adapter(weights, "face.bin")
    tokens = ip_adapter.tokens(made)
    plain = make_ip_adapter(ip_adapter.file_for(sd15, "face"), "face.bin")
    found = sample(apply(sd15, made, tokens, lora_strength=strength))
    expected = sample(apply(merged(sd15, weights, strength), plain, ip_adapter.tokens(plain)))
    assert nearly(found, expected, 1e-5)
    assert not nearly(found, sample(apply(sd15, plain, ip_adapter.tokens(plain))), 1e-2)
    assert torch.equal(
        sample(apply(sd15, made, tokens, lora_strength=0.0)), sample(apply(sd15, plain, ip_adapter.tokens(plain)))
    )
    assert torch.equal(sample(apply(sd15, made, tokens, weight=0.0)), sample(sd15))


def test_a_lora_that_does_not_fit_is_refused(sd15):
    weights = face_file(sd15)
    weights["ip_adapter.0.to_q_lora.down.weight"] = torch.zeros(2, 5)
    made = make_ip_adapter(weights, "face.bin")
    with pytest.raises(ValueError, match=r"face\.bin holds a LoRA that does not fit the model: 0\.to_q of 80 pairs"):
        apply(sd15, made, ip_adapter.tokens(made))


def test_two_nodes_with_one_face_file_have_one_lora_together(sd15):
    made = make_ip_adapter(face_file(sd15), "face.bin")
    mask = torch.ones(1, 8, 8)
    mask[..., :4] = 0
    once = apply(sd15, made, ip_adapter.tokens(made), mask=mask)
    twice = apply(once, made, ip_adapter.tokens(made, 3), mask=1 - mask)
    assert {len(patches) for patches in twice.patches.values()} == {1}
    assert set(twice.patches) == set(once.patches)
    assert not nearly(sample(twice), sample(once), 1e-2)
    other = make_ip_adapter({**ip_adapter.file_for(sd15, "face", 9), **ip_adapter.lora_for(sd15, seed=9)}, "other.bin")
    assert {len(patches) for patches in apply(twice, other, ip_adapter.tokens(other)).patches.values()} == {2}


def groups_of(weights):
    found = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        group, _, rest = key.partition(".")
        found[group][rest] = value
    return found


@pytest.mark.parametrize("form", ["pipe", "bare", "pipe with an encoder"])
def test_what_the_widely_used_pack_loaded_is_taken(form, sd15):
    weights = groups_of(ip_adapter.file_for(sd15))
    pipe = {"clipvision": {"file": None, "model": None}, "ipadapter": {"file": "x", "model": weights},
            "insightface": {"provider": None, "model": None}}  # fmt: skip
    if form == "pipe with an encoder":
        pipe["clipvision"]["model"] = ip_adapter.encoder()
    theirs = weights if form == "bare" else pipe
    ours = make_ip_adapter(ip_adapter.file_for(sd15), "ours")
    encoder = None if form == "pipe with an encoder" else ip_adapter.encoder()
    (found,) = IPAdapterEncode.execute(theirs, encoder, ip_adapter.picture()).result
    (expected,) = IPAdapterEncode.execute(ours, ip_adapter.encoder(), ip_adapter.picture()).result
    assert torch.equal(found.cond, expected.cond)
    assert torch.equal(sample(apply(sd15, theirs, found)), sample(apply(sd15, ours, expected)))


@pytest.mark.parametrize("form", ["flag", "file name", "neither"])
def test_the_marks_of_the_widely_used_pack_say_the_version_of_a_face_file(form, sd15):
    weights = groups_of(ip_adapter.file_for(sd15, "face plus"))
    if form == "flag":
        weights["faceidplusv2"] = True
    name = "models/ip-adapter-faceid-plusv2_sd15.bin" if form == "file name" else "models/renamed.bin"
    found = as_ip_adapter({"ipadapter": {"file": name, "model": weights}})
    assert found.kind.shortcut is (form != "neither")
    assert found.name == name.removeprefix("models/")
    unnorm = {**groups_of(ip_adapter.file_for(sd15, "face resampler")), "portraitunnorm": True}
    assert as_ip_adapter(unnorm).kind.name == "face resampler"


def test_numbers_that_are_not_finite_are_refused(sd15):
    for key in ("image_proj.proj.weight", "ip_adapter.3.to_v_ip.weight"):
        weights = ip_adapter.file_for(sd15)
        weights[key] = weights[key].clone()
        weights[key][0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"x\.bin should hold finite numbers, but some are not \(NaN\)"):
            make_ip_adapter(weights, "x.bin")
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match="weight should be a number, but is nan"):
        apply(sd15, made, ip_adapter.tokens(made), weight=float("nan"))
    tokens = ip_adapter.tokens(made)
    tokens.uncond[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="tokens hold numbers that are not finite"):
        apply(sd15, made, tokens)


@pytest.mark.parametrize("wrong", [None, {}, {"ipadapter": {"model": None}}, "text", {"ipadapter": None}], ids=str)
def test_an_empty_pipe_is_refused(wrong):
    with pytest.raises(ValueError, match="ipadapter should come from Load IP-Adapter"):
        as_ip_adapter(wrong)


@pytest.mark.parametrize(("theirs", "ours"), [("style transfer precise", "precise style"), ("standard", "linear"),
                                              ("prompt is more important", "ease out")])  # fmt: skip
def test_weight_types_of_the_widely_used_pack_are_taken(theirs, ours, sd15):
    assert IPAdapterApply.validate_inputs(weight_type=theirs, scaling="K+V w/ C penalty") is True
    assert "weight_type should be one of" in IPAdapterApply.validate_inputs(weight_type="nonsense", scaling="K+V")
    assert "scaling should be one of" in IPAdapterApply.validate_inputs(weight_type="linear", scaling="nonsense")
    if "style" not in theirs:
        made = ip_adapter.adapter(sd15)
        tokens = ip_adapter.tokens(made)
        found = sample(apply(sd15, made, tokens, weight_type=theirs, scaling="K+V w/ C penalty"))
        assert torch.equal(found, sample(apply(sd15, made, tokens, weight_type=ours, scaling="K+V with C penalty")))


def test_an_unknown_weight_type_is_refused_before_anything_happens(sd15):
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match=r"weight_type should be one of linear.*but is 'nonsense'"):
        apply(sd15, made, ip_adapter.tokens(made), weight_type="nonsense")


def kolors(model):
    """A model that narrows its text, and a file whose tokens are as wide as the text before that."""
    wide = make_ip_adapter(ip_adapter.file_for(model), "kolors.bin")
    narrow = torch.nn.Linear(24, tiny_models.WIDTH)
    ip_adapter.fill(narrow, 3)
    return wide, narrow


def test_tokens_of_kolors_faces_are_narrowed_by_the_model(sd15):
    from dataclasses import replace

    made, narrow = kolors(sd15)
    made = replace(made, kind=made.kind._replace(context=24))
    tokens = ip_adapter.tokens(made)
    with pytest.raises(ValueError, match=r"24 wide, which a Kolors model narrows to 16.*this model has none"):
        apply(sd15, made, tokens)
    model = tiny_models.sd15(dtype=torch.float64)
    model.model.diffusion_model.encoder_hid_proj = narrow
    plain = replace(made, kind=made.kind._replace(context=tiny_models.WIDTH))
    with torch.no_grad():
        by_hand = replace(tokens, cond=narrow(tokens.cond), uncond=narrow(tokens.uncond), black=narrow(tokens.black))
    assert torch.equal(sample(apply(model, made, tokens)), sample(apply(sd15, plain, by_hand)))


@pytest.fixture
def token_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    _, extensions = folder_paths.folder_names_and_paths["image_tokens"]
    place = tmp_path / "image_tokens"
    place.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "image_tokens", ([str(place)], extensions))
    folder_paths.filename_list_cache.clear()
    yield place
    folder_paths.filename_list_cache.clear()


def test_tokens_survive_their_file(token_folder, sd15):
    made = ip_adapter.adapter(sd15)
    (tokens,) = IPAdapterEncode.execute(
        made, ip_adapter.encoder(), ip_adapter.picture(b=2), image_weights="1, 2"
    ).result
    for prefix in ("look", "look", "sub/look"):
        SaveImageTokens.execute(tokens, prefix)
    files = sorted(path.relative_to(token_folder).as_posix() for path in token_folder.rglob("*.safetensors"))
    assert files == ["look_00001_.safetensors", "look_00002_.safetensors", "sub/look_00001_.safetensors"]
    (again,) = LoadImageTokens.execute(files[2]).result
    assert torch.equal(sample(apply(sd15, made, again)), sample(apply(sd15, made, tokens)))
    renamed = make_ip_adapter({k: v.half() for k, v in ip_adapter.file_for(sd15).items()}, "renamed half.safetensors")
    assert sample(apply(sd15, renamed, again)).isfinite().all()  # the file's name does not matter, its content does


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out", "", "."])
def test_tokens_are_saved_nowhere_else(prefix, token_folder, sd15):
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match="should name a file inside image_tokens"):
        SaveImageTokens.execute(ip_adapter.tokens(made), prefix)


def test_tokens_of_another_file_are_refused(sd15):
    made, other = ip_adapter.adapter(sd15), ip_adapter.adapter(sd15, seed=3, name="other.safetensors")
    with pytest.raises(ValueError, match=r"tiny\.safetensors reads its own tokens, 16 wide.*made by other"):
        apply(sd15, made, ip_adapter.tokens(other))


def test_n_embeds_of_ComfyUI_IPAdapter_plus_are_read_without_running_anything(token_folder, sd15, capsys):
    made = ip_adapter.adapter(sd15)
    output = ip_adapter.encoder().encode_image(ip_adapter.picture())
    torch.save(output.image_embeds, token_folder / "old.ipadpt")
    (found,) = LoadImageTokens.execute("old.ipadpt", made).result
    (expected,) = IPAdapterEncode.execute(made, clip_vision_output=output).result
    assert torch.equal(found.cond, expected.cond)
    with pytest.raises(ValueError, match="Connect an ipadapter to make tokens"):
        LoadImageTokens.execute("old.ipadpt")
    (token_folder / "bomb.ipadpt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"a": 1}, token_folder / "dict.ipadpt")
    save_file({"cond": torch.zeros(1, 2, 3)}, token_folder / "half.safetensors")
    for name, message in (("bomb.ipadpt", "not opened|cannot be read"), ("dict.ipadpt", "should hold one tensor"),
                          ("half.safetensors", "lacks uncond, black, weights")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            LoadImageTokens.execute(name, made)
    assert "executed" not in capsys.readouterr().out


def test_k_the_folder_of_another_pack_keeps_its_extensions_and_paths(monkeypatch):
    from reins.engine import folders

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", (["/theirs"], {".theirs"}))
    folders.register("ipadapter", [Path("/ours")])
    paths, extensions = folder_paths.folder_names_and_paths["ipadapter"]
    assert paths == ["/theirs", str(Path("/ours"))]
    assert {".theirs", ".safetensors", ".bin"} <= set(extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", (["/theirs"], set()))
    folders.register("ipadapter", [Path("/ours")])
    assert folder_paths.folder_names_and_paths["ipadapter"][1] == set()  # that pack lists every file
