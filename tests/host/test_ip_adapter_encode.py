"""From pictures to tokens: what the encoder is shown, what the negative sees, how several become one, and faults."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import folder_paths
import numpy as np
import pytest
import torch
from reins.models.ip_adapter.combine import combine
from reins.nodes.ip_adapter import encode as module
from reins.nodes.ip_adapter.apply_node import IPAdapterApply, IPAdapterSimple
from reins.nodes.ip_adapter.encode import Pictures, encode_pictures
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.faces_node import FaceEmbeds
from reins.tests.helpers import ip_adapter
from reins.tests.helpers.tiny_models import nearly, sample

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.48145466, 0.4578275, 0.40821073],
                                                               [0.26862954, 0.26130258, 0.27577711]))  # fmt: skip


def encode(made, *args, **settings):
    return IPAdapterEncode.execute(made, *args, **settings).result[0]


def shown(run):
    """Pixel values that the encoder was shown."""
    seen, forward = [], type(ip_adapter.encoder().model).forward

    def note(self, pixel_values=None, **kwargs):
        seen.append(pixel_values)
        return forward(self, pixel_values=pixel_values, **kwargs)

    with mock.patch.object(type(ip_adapter.encoder().model), "forward", note):
        run()
    return seen


@pytest.mark.parametrize("kind", ["linear", "plus", "full"])
def test_tokens_are_the_projection_of_what_the_hosts_encoder_says(kind, sd15):
    made, image = ip_adapter.adapter(sd15, kind), ip_adapter.picture(b=2, h=40, w=30)
    output = ip_adapter.encoder().encode_image(image)
    read = output["image_embeds" if kind == "linear" else "penultimate_hidden_states"].float()
    with torch.no_grad():
        assert torch.equal(encode(made, ip_adapter.encoder(), image).cond, made.projection.model(read))
    assert torch.equal(encode(made, clip_vision_output=output).cond, encode(made, ip_adapter.encoder(), image).cond)
    assert torch.equal(encode(made, clip_vision_output=read).cond, encode(made, ip_adapter.encoder(), image).cond)


def test_l_the_uncond_of_the_paper_is_zero_after_normalisation_and_black_is_another(sd15):
    made, encoder = ip_adapter.adapter(sd15, "plus"), ip_adapter.encoder(seed=1)
    black = encoder.encode_image(torch.zeros(1, 28, 28, 3)).penultimate_hidden_states.float()
    zeros = encoder.model(pixel_values=torch.zeros(1, 3, 28, 28), intermediate_output=-2)[1].float()
    with torch.no_grad():
        of_paper, of_black = made.projection.model(zeros), made.projection.model(black)
    paper = encode(made, encoder, ip_adapter.picture())
    assert torch.equal(paper.uncond, of_paper)
    assert torch.equal(paper.black, of_black)
    assert torch.equal(encode(made, encoder, ip_adapter.picture(), uncond="black").uncond, of_black)
    assert not nearly(of_paper, of_black, 1e-2)
    linear = encode(ip_adapter.adapter(sd15), encoder, ip_adapter.picture())
    with torch.no_grad():
        assert torch.equal(linear.uncond, ip_adapter.adapter(sd15).projection.model(torch.zeros(1, ip_adapter.EMBEDS)))
    assert torch.equal(linear.uncond, linear.black)


def test_the_empty_picture_is_encoded_once_for_each_encoder(sd15):
    made, encoder = ip_adapter.adapter(sd15, "plus"), ip_adapter.encoder(seed=2)
    assert len(shown(lambda: encode(made, encoder, ip_adapter.picture()))) == 3  # the picture, and both unconds
    assert len(shown(lambda: encode(made, encoder, ip_adapter.picture(5)))) == 1
    assert len(shown(lambda: encode(made, ip_adapter.encoder(seed=3), ip_adapter.picture(5)))) == 3
    throwaway = ip_adapter.blank_encoder()
    module.empty_picture(throwaway, "paper")
    count = len(module._EMPTY)
    del throwaway
    assert len(module._EMPTY) == count - 1


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_fitting_shows_the_middle_all_of_it_or_all_of_it_on_nothing(fit):
    """A wide picture with a white band in the middle third."""
    image = torch.zeros(1, 28, 84, 3)
    image[:, :, 28:56] = 1
    (pixels,) = shown(lambda: encode_pictures(ip_adapter.encoder(), Pictures(image, fit)))
    colours = (pixels[0] * STD + MEAN).mean(0)
    white = (colours > 0.9).float()
    assert pixels.shape == (1, 3, 28, 28)
    if fit == "crop":
        assert white.mean() == 1
    elif fit == "squash":
        assert 0.25 < white.mean() < 0.4
        assert white[:, 14].all()
    else:
        assert 0.05 < white.mean() < 0.15
        assert pixels[0, :, 0].abs().max() < 0.01  # above: nothing, which is zero after normalisation


def test_a_mask_hides_the_rest_of_the_reference(sd15):
    image, mask = ip_adapter.picture(h=56, w=56), torch.zeros(1, 7, 7)
    mask[:, :, :4] = 1
    (pixels,) = shown(lambda: encode_pictures(ip_adapter.encoder(), Pictures(image, "crop", mask)))
    (whole,) = shown(lambda: encode_pictures(ip_adapter.encoder(), Pictures(image)))
    assert torch.equal(pixels[..., 18:], torch.zeros_like(pixels[..., 18:]))
    assert torch.allclose(pixels[..., :13], whole[..., :13], atol=1e-5)
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match="there are 2 for 3 images"):
        encode(made, ip_adapter.encoder(), ip_adapter.picture(b=3), mask=torch.ones(2, 8, 8))


def test_a_mask_is_fitted_as_its_picture_is():
    image, mask = torch.ones(1, 28, 84, 3), torch.zeros(1, 28, 84)
    mask[:, :, 28:56] = 1
    (pixels,) = shown(lambda: encode_pictures(ip_adapter.encoder(), Pictures(image, "crop", mask)))
    assert pixels.abs().min() > 0.5  # the crop is what the mask lets through
    (padded,) = shown(lambda: encode_pictures(ip_adapter.encoder(), Pictures(image, "pad", mask)))
    assert padded[..., :9].abs().max() < 0.01
    assert padded[0, :, 14, 14].abs().min() > 0.5


@pytest.mark.parametrize("how", ["average", "norm average", "add", "subtract", "slerp"])
@pytest.mark.parametrize("kind", ["linear", "plus"])
def test_several_pictures_are_combined_before_the_projection(how, kind, sd15):
    made, image, weights = ip_adapter.adapter(sd15, kind), ip_adapter.picture(b=3), torch.tensor([1.0, 0.5, 2.0])
    output = ip_adapter.encoder().encode_image(image)
    read = output["image_embeds" if kind == "linear" else "penultimate_hidden_states"].float()
    found = encode(made, ip_adapter.encoder(), image, combine=how, image_weights="1, 0.5, 2")
    with torch.no_grad():
        assert torch.allclose(found.cond, made.projection.model(combine(read, weights, how)))
    assert found.uncond.shape == found.cond.shape
    assert torch.equal(found.weights, torch.ones(1))


def test_concat_keeps_pictures_and_their_weights(sd15):
    made = ip_adapter.adapter(sd15)
    found = encode(made, ip_adapter.encoder(), ip_adapter.picture(b=3), image_weights="1, 0.5")
    assert found.cond.shape == (3, ip_adapter.TOKENS, 16)
    assert found.weights.tolist() == [1.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="weights must be 0 or more and not all 0"):
        encode(made, ip_adapter.encoder(), ip_adapter.picture(b=2), image_weights="1, -1")
    with pytest.raises(ValueError, match="3 numbers for 2 images"):
        encode(made, ip_adapter.encoder(), ip_adapter.picture(b=2), image_weights="1,2,3")


def test_a_negative_picture_is_what_the_negative_sees(sd15):
    for kind in ("linear", "plus"):
        made = ip_adapter.adapter(sd15, kind)
        found = encode(made, ip_adapter.encoder(), ip_adapter.picture(), negative_image=ip_adapter.picture(9))
        assert torch.equal(found.uncond, encode(made, ip_adapter.encoder(), ip_adapter.picture(9)).cond)


def test_several_negative_pictures_are_averaged_and_many_pictures_all_seen(sd15):
    made = ip_adapter.adapter(sd15, "plus")
    negatives = ip_adapter.picture(4, b=3)
    hidden = ip_adapter.encoder().encode_image(negatives).penultimate_hidden_states.float()
    found = encode(made, ip_adapter.encoder(), ip_adapter.picture(b=19), negative_image=negatives)
    with torch.no_grad():
        assert torch.allclose(found.uncond, made.projection.model(hidden.mean(0, keepdim=True)), atol=1e-6)
    assert len(found.cond) == 19
    for i in (0, 15, 16, 18):
        alone = encode(made, ip_adapter.encoder(), ip_adapter.picture(b=19)[i : i + 1])
        assert torch.allclose(found.cond[i : i + 1], alone.cond, atol=1e-5)


def test_the_node_for_pictures_says_what_a_face_file_needs(sd15):
    made = ip_adapter.adapter(sd15, "face")
    with pytest.raises(ValueError, match=r"but this node has no input for it\. Use Face Embeds"):
        IPAdapterSimple.execute(sd15, made, ip_adapter.encoder(), ip_adapter.picture())


def test_faces_are_projected_normalised_or_not_as_the_file_wants(sd15):
    faces = 20 * torch.randn(2, ip_adapter.FACE, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(faces, dim=-1)
    for kind, given, count in (("face", unit, 2), ("face resampler", faces[None], 1)):
        made = ip_adapter.adapter(sd15, kind)
        found = encode(made, face_embeds=faces)
        with torch.no_grad():
            assert torch.equal(found.cond, made.projection.model(given))
            assert torch.equal(found.uncond, made.projection.model(torch.zeros_like(given[:1])))
        assert len(found.cond) == count
    assert torch.allclose(encode(ip_adapter.adapter(sd15, "face"), face_embeds=unit).cond,
                          encode(ip_adapter.adapter(sd15, "face"), face_embeds=faces).cond, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_face_plus_looks_at_the_identity_and_the_picture(version, sd15):
    from reins.nodes.ip_adapter.load import make_ip_adapter

    made = make_ip_adapter(ip_adapter.file_for(sd15, "face plus"), "x.bin", version)
    face = torch.nn.functional.normalize(torch.randn(1, ip_adapter.FACE), dim=-1)
    found = encode(made, ip_adapter.encoder(), ip_adapter.picture(), face_embeds=face)
    hidden = ip_adapter.encoder().encode_image(ip_adapter.picture()).penultimate_hidden_states.float()
    with torch.no_grad():
        expected = made.projection.model(face, hidden, 1.0 if version == "v2" else None)
    assert torch.allclose(found.cond, expected, atol=1e-6)
    with pytest.raises(ValueError, match="one picture for each face, but got 2 pictures and 1 faces"):
        encode(made, ip_adapter.encoder(), ip_adapter.picture(b=2), face_embeds=face)


BAD = {
    "no encoder": ("linear", {"image": ip_adapter.picture()}, "An image needs a clip_vision"),
    "nothing at all": ("linear", {}, "reads the image_embeds of an image encoder, but none was given"),
    "wrong encoder": (
        "linear", {"clip_vision": ip_adapter.encoder(projection_dim=40), "image": ip_adapter.picture()},
        "reads image_embeds 24 wide, but this image encoder's are 40 wide. Load an encoder whose",
    ),
    "wrong hidden": ("plus", {"clip_vision_output": torch.zeros(1, 5, 99)}, "reads penultimate_hidden_states 32 wide"),
    "embeds for a plus file": ("plus", {"clip_vision_output": torch.zeros(1, 24)}, "reads the penultimate"),
    "a flat output": ("linear", {"clip_vision_output": torch.zeros(24)}, r"but is \(24,\)"),
    "NaN": (
        "linear", {"clip_vision": ip_adapter.encoder(), "image": ip_adapter.picture() * float("nan")},
        "image .* not finite",
    ),
    "no pictures": (
        "linear", {"clip_vision": ip_adapter.encoder(), "image": torch.zeros(0, 8, 8, 3)}, r"but is \(0, 8, 8, 3",
    ),
    "a latent": (
        "linear", {"clip_vision": ip_adapter.encoder(), "image": {"samples": 1}}, "but is dict. Connect an IMAGE",
    ),
    "grey": ("linear", {"clip_vision": ip_adapter.encoder(), "image": torch.zeros(1, 8, 8, 1)}, "should be pictures"),
    "a mask of nothing": (
        "linear", {"clip_vision_output": torch.zeros(1, 24), "mask": torch.ones(1, 8, 8)}, "no image is connected",
    ),
    "no embeds": ("linear", {"clip_vision_output": torch.zeros(0, 24)}, "needs at least one image"),
    "tokens of two encoders": (
        "full", {"clip_vision": ip_adapter.encoder(), "clip_vision_output": torch.zeros(1, 7, 32)},
        "the image has 7 and its negative 5",
    ),
    "no faces": ("face", {"face_embeds": torch.zeros(0, 512)}, r"but they are \(0, 512\)"),
    "no tensor": ("face", {"face_embeds": [1]}, "but they are list"),
    "no face": ("face", {}, "needs the identity of a face, but there is none. Connect Face Embeds"),
    "wrong face": ("face", {"face_embeds": torch.zeros(1, 99)}, r"of shape \(faces, 512\), but they are \(1, 99\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_runs(name, sd15):
    kind, inputs, message = BAD[name]
    made = ip_adapter.adapter(sd15, kind)
    with pytest.raises(ValueError, match=message) as error:
        encode(made, **inputs)
    assert "\n" not in str(error.value)
    next_prompt = encode(ip_adapter.adapter(sd15), ip_adapter.encoder(), ip_adapter.picture())
    assert next_prompt.cond.isfinite().all()


def test_the_message_about_a_wrong_encoder_names_the_one_to_load():
    from reins.models.ip_adapter.files import take_apart
    from reins.tests.helpers.released_files import RELEASED, table

    expected = {"image_embeds": {1024: "ViT-H", 1280: "ViT-bigG"}, "penultimate_hidden_states": {1280: "ViT-H"}}
    for name, (_, _, _, reads, width, *_) in RELEASED.items():
        if reads:
            assert expected[reads][width] in take_apart(table(name), name).kind.encoder


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.full((1, 8, 8), float("nan")), "not finite"),
     (torch.zeros(0, 8, 8), r"\(0, 8, 8\)"), (torch.zeros(1, 1, 8, 8), "should have shape"), ("x", "is str")],
)  # fmt: skip
def test_a_bad_mask_of_the_result_is_refused(mask, message, sd15):
    made = ip_adapter.adapter(sd15)
    with pytest.raises(ValueError, match=message):
        IPAdapterApply.execute(sd15, made, ip_adapter.tokens(made), mask=mask)


def test_the_simple_node_is_the_two_others(sd15):
    made, mask = ip_adapter.adapter(sd15), torch.rand(1, 9, 9)
    simple = IPAdapterSimple.execute(
        sd15, made, ip_adapter.encoder(), ip_adapter.picture(), 0.6, 0.1, 0.9, mask
    ).result[0]
    tokens = encode(made, ip_adapter.encoder(), ip_adapter.picture())
    both = IPAdapterApply.execute(
        sd15, made, tokens, 0.6, start_percent=0.1, end_percent=0.9, mask=mask
    ).result[0]  # fmt: skip
    assert torch.equal(sample(simple), sample(both))


# --- faces by insightface, which is not installed here: what it offers is stood in for -------------------------------


def insightface(monkeypatch, faces_at):
    """A stand-in for the package: `faces_at(size)` gives the faces it finds at a detection size."""
    calls = []

    class FaceAnalysis:
        def __init__(self, name, root, providers):
            calls.append((name, tuple(providers)))
            self.det_model = SimpleNamespace(input_size=None)

        def prepare(self, ctx_id, det_size):
            self.det_model.input_size = det_size

        def get(self, pixels):
            calls.append((self.det_model.input_size[0], pixels.dtype, tuple(pixels[0, 0])))
            return faces_at(self.det_model.input_size[0])

    def norm_crop(pixels, landmark, image_size):
        return np.full((image_size, image_size, 3), pixels[0, 0], dtype=np.uint8)

    packages = {
        "insightface": ModuleType("insightface"),
        "insightface.app": ModuleType("app"),
        "insightface.utils": ModuleType("utils"),
        "insightface.utils.face_align": ModuleType("face_align"),
    }
    packages["insightface.app"].FaceAnalysis = FaceAnalysis
    packages["insightface.utils.face_align"].norm_crop = norm_crop
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    return calls


def face(size, value):
    return SimpleNamespace(bbox=np.array([0, 0, size, size]), embedding=np.full(512, value), kps=np.zeros((5, 2)))


@pytest.fixture
def face_models(tmp_path, monkeypatch):
    (tmp_path / "insightface" / "models" / "buffalo_l").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))


def test_the_largest_face_is_taken_and_cut_out(monkeypatch, face_models):
    calls = insightface(monkeypatch, lambda size: [face(5, 1.0), face(9, 2.0)] if size == 512 else [])
    image = torch.tensor([1.0, 0.5, 0.0]).expand(2, 30, 30, 3)
    identities, crops = FaceEmbeds.execute(image, "buffalo_l").result
    assert torch.equal(identities, torch.full((2, 512), 2.0))
    assert crops.shape == (2, 224, 224, 3)
    assert torch.allclose(crops[0, 0, 0], torch.tensor([1.0, 128 / 255, 0.0]))
    assert calls[0] == ("buffalo_l", ("CPUExecutionProvider",))
    assert [call[0] for call in calls[1:4]] == [640, 576, 512]
    assert calls[1][2] == (0, 128, 255)  # blue first


def test_a_picture_without_a_face_is_named(monkeypatch, face_models):
    insightface(monkeypatch, lambda size: [])
    with pytest.raises(ValueError, match="No face was found in picture 0"):
        FaceEmbeds.execute(torch.zeros(1, 8, 8, 3), "buffalo_l")


def test_a_missing_face_model_is_named(monkeypatch, face_models):
    insightface(monkeypatch, lambda size: [])
    with pytest.raises(ValueError, match="insightface/models/antelopev2, but is not there"):
        FaceEmbeds.execute(torch.zeros(1, 8, 8, 3), "antelopev2")


def test_a_face_model_that_cannot_be_loaded_is_named(monkeypatch, face_models):
    insightface(monkeypatch, lambda size: [])

    def broken(**_):
        raise AssertionError

    sys.modules["insightface.app"].FaceAnalysis = broken
    with pytest.raises(ValueError, match=r"cannot load its model buffalo_l .*\.onnx files should lie directly"):
        FaceEmbeds.execute(torch.zeros(1, 8, 8, 3), "buffalo_l")


def test_without_insightface_one_sentence_says_so_and_all_else_works(monkeypatch, sd15):
    monkeypatch.setitem(sys.modules, "insightface", None)
    monkeypatch.delitem(sys.modules, "insightface.app", raising=False)
    with pytest.raises(ValueError, match="needs the Python package insightface") as error:
        FaceEmbeds.execute(torch.zeros(1, 8, 8, 3), "buffalo_l")
    assert "\n" not in str(error.value)
    assert sample(ip_adapter.apply(sd15), steps=1).isfinite().all()
