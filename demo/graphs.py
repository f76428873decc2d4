"""Reads the API form of the example workflows, tells what they need, and fits them to the checkpoint at hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from .client import Graph

API_FOLDER = Path(__file__).resolve().parent / "api"
START = "_start_here"  # sorts first by name, and runs first
CHECKPOINT_LOADER = "CheckpointLoaderSimple"
EXAMPLE_CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # what most example workflows name
CHECKPOINTS = "models/checkpoints"
EXAMPLE_FILES: Mapping[str, tuple[str, ...]] = {  # all files that they name and that do not ship, by folder
    CHECKPOINTS: (
        EXAMPLE_CHECKPOINT,
        "sd-v1-4.ckpt",
        "sd_xl_base_1.0.safetensors",
        "sd_xl_turbo_1.0_fp16.safetensors",
        "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
        "sd3.5_large_fp8_scaled.safetensors",
        "svd_xt_1_1.safetensors",
        "sd21-unclip-h.ckpt",
    ),
    "models/diffusion_models": (
        "flux1-dev.safetensors",
        "z_image_bf16.safetensors",
        "wan2.1_t2v_1.3B_fp16.safetensors",
    ),
    "models/text_encoders": (
        "clip_l.safetensors",
        "t5xxl_fp8_e4m3fn_scaled.safetensors",
        "qwen_3_4b.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "models/vae": ("ae.safetensors", "wan_2.1_vae.safetensors"),
    "models/clip_vision": (
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        "sigclip_vision_patch14_384.safetensors",
        "model.safetensors",
    ),
    "models/controlnet": ("prompt-diffusion-sd15.ckpt",),
    "models/controlnext": (
        "controlnext-sd15-pose.safetensors",
        "controlnext-sdxl-anime-canny.safetensors",
        "controlnext-sdxl-anime-canny-unet.safetensors",
        "controlnext-svd-v2.bin",
        "controlnext-svd-v2-unet.bin",
    ),
    "models/ipadapter": (
        "ip-adapter-plus_sd15.safetensors",
        "ip-adapter-plus_sdxl_vit-h.safetensors",
        "ip-adapter_diffusers.safetensors",
        "ip_adapter.safetensors",
        "ip-adapter.bin",
    ),
    "models/unicon": ("unicon-depth/model.pth", "unicon-pose/model.pth"),
    "input": (
        "example.png",
        "astronaut.jpg",
        "astronaut_pose.png",
        "astronaut_poses.webp",
        "astronaut_silhouette.png",
        "motorcycle.jpg",
        "motorcycle_depth.png",
        "coffee.jpg",
        "chelsea.jpg",
    ),
}
OTHER_FILES = {  # as a graph names them: a file that lies in a subfolder by that subfolder
    Path(name).parts[0] for folder, names in EXAMPLE_FILES.items() if folder != CHECKPOINTS for name in names
}
TRANSFORMERS_ONLY = ("Reins_SkipLayerGuidance",)  # nodes that refuse the UNet of SD1.5

SMALL_PIXELS = 128
FEW_STEPS = 6


class UnknownWorkflow(ValueError):
    """A name that has no file in demo/api."""


def load_graphs(only: Iterable[str] | None = None, folder: Path = API_FOLDER) -> dict[str, Graph]:
    """The graphs by name, all of them or those in `only`.

    Raises UnknownWorkflow if a name has no file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    names = list(files) if only is None else [name.removesuffix(".json") for name in only]
    if unknown := [name for name in names if name not in files]:
        raise UnknownWorkflow(f"no workflow called {', '.join(unknown)}; there are {', '.join(files) or 'none'}")
    return {name: json.loads(files[name].read_text(encoding="utf-8")) for name in names}


def quick_first(graphs: Mapping[str, Graph]) -> dict[str, Graph]:
    """The graphs, sorted: START first, those for the demo model before those for a checkpoint, and by their work."""
    return dict(sorted(graphs.items(), key=lambda item: (item[0] != START, needs_checkpoint(item[1]), work(item[1]))))


def work(graph: Graph) -> int:
    """Roughly what a run costs: the steps of all samplers, times the largest batch that a node names."""
    steps = sum(_numbers(graph, "steps"))
    return steps * max(_numbers(graph, "batch_size"), default=1)


def _numbers(graph: Graph, name: str) -> list[int]:
    """The values of an input at all nodes at which it is not a link."""
    values = [node["inputs"].get(name) for node in graph.values()]
    return [value for value in values if isinstance(value, int)]


def needs_checkpoint(graph: Graph) -> bool:
    """Whether the graph loads a checkpoint."""
    return _has(graph, CHECKPOINT_LOADER)


def needs_more_files(graph: Graph) -> bool:
    """Whether an SD1.5 checkpoint does not do.

    The graph then loads an adapter, an encoder or a picture that does not ship, or its checkpoint has to be a
    transformer.
    """
    named = (value for node in graph.values() for value in node["inputs"].values())
    loads = any(isinstance(value, str) and value in OTHER_FILES for value in named)
    steers_a_transformer = any(_has(graph, node) for node in TRANSFORMERS_ONLY)
    return loads or (steers_a_transformer and needs_checkpoint(graph))


def _has(graph: Graph, class_type: str) -> bool:
    return any(node["class_type"] == class_type for node in graph.values())


def offer_names(base: Path) -> None:
    """Makes an empty file for every file that the examples name, so that a server with this base directory lists it."""
    for folder, names in EXAMPLE_FILES.items():
        for name in names:
            file = base / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def with_checkpoint(graph: Graph, name: str) -> Graph:
    """A copy of the graph whose checkpoint loaders name this file."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if node["class_type"] == CHECKPOINT_LOADER:
            node["inputs"]["ckpt_name"] = name
    return graph


def shrunk(graph: Graph, pixels: int = SMALL_PIXELS, steps: int = FEW_STEPS) -> Graph:
    """A copy of the graph with small pictures and few steps. A model without weights has no more to show."""
    graph = copy.deepcopy(graph)
    resized = needs_checkpoint(graph)  # pictures of the demo model are small, and fit what is drawn for it
    for node in graph.values():
        limits = {"steps": steps}
        if resized and node["class_type"] == "EmptyLatentImage":
            limits = {"width": pixels, "height": pixels}
        for name, limit in limits.items():
            if isinstance(node["inputs"].get(name), int):  # not a link to another node
                node["inputs"][name] = min(node["inputs"][name], limit)
    return graph
