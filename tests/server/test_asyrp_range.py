"""Asyrp Range in a real ComfyUI: a small checkpoint with its VAE, and what it measures goes into Asyrp Sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")
pytest.importorskip("PIL.Image", reason="pictures need Pillow (requirements-dev.txt)")

from reins.tests.helpers.lpips import drawn
from reins.tests.server.pictures import picture
from safetensors.torch import save_file

if TYPE_CHECKING:
    from reins.demo.client import Graph
    from reins.tests.server.conftest import Server

pytestmark = pytest.mark.server
RANGE, PLOT, STEPS = "21", "9", 3


def graph(checkpoint: str) -> Graph:
    """A picture that is measured, and a run of Asyrp Sampler with both results."""
    nodes = {
        "4": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "5": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"clip": ["4", 1], "text": "a lighthouse"}),
        "7": ("CLIPTextEncode", {"clip": ["4", 1], "text": ""}),
        "20": ("Reins_DemoScene", {
            "shape": "circle", "colour": "red", "place": "centre", "size": "large", "background": "grey",
            "texture": "plain", "seed": 1, "batch_size": 2,
        }),
        "19": ("ImageScaleBy", {"image": ["20", 0], "upscale_method": "nearest-exact", "scale_by": 3.0}),
        RANGE: ("Reins_AsyrpRange", {
            "model": ["4", 0], "image": ["19", 0], "vae": ["4", 2], "positive": ["6", 0], "steps": STEPS,
            "lpips_name": "auto", "edit_distance": 0.001, "boost_distance": 0.001,
        }),
        "22": ("Reins_HDirectionFromPrompts", {"positive": ["6", 0], "source": ["6", 0], "target": ["7", 0]}),
        "23": ("Reins_AsyrpSampler", {
            "direction": ["22", 0], "strength": 0.1, "edit_end_percent": [RANGE, 0], "boost_start_percent": [RANGE, 1],
            "boost_eta": 1.0,
        }),
        "24": ("BasicScheduler", {"model": ["4", 0], "scheduler": "normal", "steps": 2, "denoise": 1.0}),
        "25": ("SamplerCustom", {
            "model": ["4", 0], "add_noise": True, "noise_seed": 1, "cfg": 2.0, "positive": ["6", 0],
            "negative": ["7", 0], "sampler": ["23", 0], "sigmas": ["24", 0], "latent_image": ["5", 0],
        }),
        "8": ("VAEDecode", {"samples": ["25", 0], "vae": ["4", 2]}),
        PLOT: ("SaveImage", {"images": [RANGE, 2], "filename_prefix": "plot"}),
        "10": ("PreviewImage", {"images": ["8", 0]}),
    }  # fmt: skip
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def test_a_file_that_is_put_there_is_measured_with_by_the_same_workflow(server: Server) -> None:
    without = server.client.run(graph(server.checkpoint))
    assert "models/lpips holds no file" in server.host.log()
    assert not without.progress(RANGE)
    folder = server.host.settings.checkpoints.parent / "lpips"
    folder.mkdir()
    save_file(drawn(), folder / "drawn.safetensors")
    measured = server.client.run(graph(server.checkpoint))
    assert measured.progress(RANGE)[-1] == (3 * STEPS * 2, 3 * STEPS * 2)
    plots = [picture(server.client, result) for result in (without, measured)]
    assert all(plot.size == (960, 640) for plot in plots)
    assert plots[0].tobytes() != plots[1].tobytes()
