"""Every input that takes pictures, by the schemas: alpha, grey, other types of numbers, and numbers out of range.

ComfyUI's own encoders read the first three channels, so alpha changes nothing. With `--fp16-intermediates` the host
hands pictures around in half precision. Its resizing by curves and its EXR files leave the range from 0 to 1.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import reins
import torch
from reins.nodes.guidance.image_guidance import ImageGuidance
from reins.nodes.h_space import range_node
from reins.nodes.ip_adapter import faces_node
from reins.nodes.ip_adapter.apply_node import IPAdapterSimple
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.faces_node import FaceEmbeds
from reins.nodes.look.images_node import MOST, ImagesSideBySide, ImagesToBatch
from reins.tests.helpers import controlnext, h_space, ip_adapter, lpips, prompt_diffusion, tiny_models
from safetensors.torch import save_file
from torch import Tensor

PICTURE = torch.rand((1, 37, 51, 3), generator=torch.Generator().manual_seed(0))  # odd sizes
ALPHA = torch.rand((1, 37, 51, 1), generator=torch.Generator().manual_seed(1))


async def _listed() -> list[type]:
    return await (await reins.comfy_entrypoint()).get_node_list()


def sample(model, **conds):
    return tiny_models.sample(model, (8, 8), steps=1, **conds)


def hint(model, image):
    return sample(controlnext.apply(model, image=image))


def encoded(fit, **more):
    def tokens(model, image):
        made = ip_adapter.adapter(model)
        return IPAdapterEncode.execute(made, ip_adapter.encoder(), image, fit=fit, **more).result[0].cond

    return tokens


def negative(model, image):
    inputs = {"image": PICTURE, "negative_image": image}
    return IPAdapterEncode.execute(ip_adapter.adapter(model), ip_adapter.encoder(), **inputs).result[0].uncond


def simple(model, image):
    return sample(IPAdapterSimple.execute(model, ip_adapter.adapter(model), ip_adapter.encoder(), image).result[0])


def shown_to_insightface(model, image):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces_node, "find_faces", lambda picture, name: (seen.append(picture), picture))
        FaceEmbeds.execute(image)
    return seen[0][..., :3]


def example(name):
    def pair(model, image):
        return prompt_diffusion.example(prompt_diffusion.loaded(model), **{name: image}).pair

    return pair


def query(model, image):
    return sample(model, **prompt_diffusion.apply(control_net=prompt_diffusion.control(model), image=image))


def guided(loss):
    return lambda model, image: sample(ImageGuidance.execute(model, loss, 1.0, 0.0, 1.0, image=image).result[0])


def ranged(model, image):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "drawn.safetensors"
        save_file(lpips.drawn(), file)
        patch.setattr(range_node, "chosen_file", lambda name: file.name)
        patch.setattr(range_node, "path_of", lambda folder, name: file)
        return range_node.AsyrpRange.execute(model, image, lpips.SmallVAE(), 2, 0.3, 0.3, tiny_models.text(1)).result[2]


def joined(node, socket):
    def shown(model, image):
        return node.execute(**{"image_1": PICTURE, "image_2": PICTURE, socket: image}).result[0]

    return shown


INPUTS = {
    ("Reins_ControlNeXtApply", "image"): (hint,),
    ("Reins_IPAdapterEncode", "image"): (
        encoded("pad"), encoded("crop", mask=ALPHA[..., 0]),
    ),
    ("Reins_IPAdapterEncode", "negative_image"): (negative,),
    ("Reins_IPAdapter", "image"): (simple,),
    ("Reins_FaceEmbeds", "image"): (shown_to_insightface,),
    ("Reins_PromptDiffusionExample", "source"): (example("source"),),
    ("Reins_PromptDiffusionExample", "target"): (example("target"),),
    ("Reins_ImageGuidance", "image"): (guided("colour histogram"),),
    ("Reins_AsyrpRange", "image"): (ranged,),
    **{
        (f"Reins_{node.__name__}", f"image_{i}"): (joined(node, f"image_{i}"),)
        for node in (ImagesSideBySide, ImagesToBatch)
        for i in range(1, MOST + 1)
    },
    ("the host's Apply ControlNet", "image"): (query,),  # which hands the query of Prompt Diffusion on
}  # fmt: skip
CASES = [(name, take) for name, takes in INPUTS.items() for take in takes]
IDS = [f"{node.removeprefix('Reins_')}.{socket}.{i}" for (node, socket), takes in INPUTS.items()
       for i in range(len(takes))]  # fmt: skip


def test_every_input_that_takes_pictures_is_tried_here():
    found = {
        (schema.node_id, socket.id)
        for schema in (node.define_schema() for node in asyncio.run(_listed()))
        for socket in schema.inputs
        if "IMAGE" in str(socket.io_type).split(",")
    }
    assert found == {name for name in INPUTS if name[0].startswith("Reins_")}


SAME: dict[str, tuple[Tensor, Tensor]] = {
    "alpha is left out": (torch.cat([PICTURE, ALPHA], -1), PICTURE),
    "half precision is what it says": (PICTURE.half(), PICTURE.half().float()),
    "bfloat16 is what it says": (PICTURE.bfloat16(), PICTURE.bfloat16().float()),
    "double precision is rounded": (PICTURE.double(), PICTURE),
    "what lies out of range is cut": (PICTURE * 1.5 - 0.25, (PICTURE * 1.5 - 0.25).clamp(0, 1)),
}


@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize(("name", "take"), CASES, ids=IDS)
def test_pictures_of_other_forms_are_the_plain_picture_to_the_bit(name, take, form, sd15):
    given, plain = SAME[form]
    kept = given.clone()
    assert torch.equal(take(sd15, given), take(sd15, plain))
    assert torch.equal(given, kept)


SHAPE, COLOURS = "should be pictures of shape", "should have red, green and blue"
WRONG: dict[str, tuple[Tensor, tuple[str, ...]]] = {
    "one channel": (PICTURE[..., :1], (SHAPE, COLOURS)),
    "two channels": (PICTURE[..., :2], (SHAPE, COLOURS)),
    "five channels": (torch.cat([PICTURE, PICTURE[..., :2]], -1), (SHAPE, COLOURS)),
    "bytes": ((PICTURE * 255).byte(), ("should hold numbers from 0 to 1, but they are whole numbers (torch.uint8)",)),
    "0 to 255": (PICTURE * 255, ("should hold numbers from 0 to 1, but their mean is 12",)),
    "NaN": (PICTURE * torch.nan, ("should hold numbers from 0 to 1, but some are not finite (NaN)",)),
}


@pytest.mark.parametrize("form", WRONG)
@pytest.mark.parametrize(("name", "take"), CASES, ids=IDS)
def test_what_is_no_picture_is_refused_by_the_name_of_its_input(name, take, form, sd15):
    given, texts = WRONG[form]
    with pytest.raises(ValueError, match=f"^{name[1]} should") as error:
        take(sd15, given)
    assert any(text in str(error.value) for text in texts)


MASKS = {
    "IP-Adapter Apply": lambda model, mask: ip_adapter.apply(model, mask=mask),
    "IP-Adapter Encode": lambda model, mask: encoded("crop", mask=mask)(model, PICTURE),
    "ControlNeXt Apply": lambda model, mask: controlnext.apply(model, mask=mask),
    "H-Space Edit": lambda model, mask: h_space.edit(model, mask=mask),
}
WRONG_MASKS = {
    "bytes": ((ALPHA[..., 0] * 255).byte(), "they are whole numbers (torch.uint8)"),
    "0 to 255": (ALPHA[..., 0] * 255, "their mean is 12"),
}


@pytest.mark.parametrize("form", WRONG_MASKS)
@pytest.mark.parametrize("node", MASKS)
def test_a_mask_of_another_range_is_refused(node, form, sd15):
    given, found = WRONG_MASKS[form]
    with pytest.raises(ValueError, match=r"^mask should hold numbers from 0 to 1, but ") as error:
        MASKS[node](sd15, given)
    assert found in str(error.value)


@pytest.mark.parametrize("node", ["IP-Adapter Apply", "ControlNeXt Apply", "H-Space Edit"])
def test_a_mask_of_yes_and_no_and_one_in_half_precision_are_numbers(node, sd15):
    plain = (ALPHA[..., 0] > 0.5).float()
    wanted = sample(MASKS[node](sd15, plain))
    for given in (plain.bool(), plain.half()):
        assert torch.equal(sample(MASKS[node](sd15, given)), wanted)
