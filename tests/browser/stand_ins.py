"""Stand-ins for the files that the examples for released models name: true from outside, empty inside.

Each has the name that an example gives it, and the tensors of the released file by key, shape and, as far as it is
known, type; the VAE of a checkpoint alone is the small TAESD.  The numbers are not those of the release.  In a pickle
they are random, windows into short buffers as in demo/weightless.py.  In a .safetensors file, which cannot repeat a
number, tensors of up to LIVE numbers are random, so that a picture comes out and noise goes through; the larger ones
are zero, holes in a file that takes no room.

What such a file shows is that its kind is known, that every tensor finds its place and that a run at the real widths
comes to its end.  What a trained file draws, it does not show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from zlib import crc32

import torch
from PIL import Image, ImageDraw

from ...demo.client import Graph
from ...demo.graphs import CHECKPOINTS
from ...demo.weightless import (
    SD15,
    SD15_DOWN,
    SD15_UP,
    SLACK,
    Shapes,
    Spread,
    checkpoint_shapes,
    clip_g_shapes,
    levels,
    shapes_of,
    spread_of,
    unet_shapes,
    vae_shapes,
    windows,
)

Tensors: TypeAlias = dict[str, torch.Tensor]

GOLDEN = Path(__file__).parents[1] / "golden"
LIVE = 1 << 18
UNET = "model.diffusion_model."
TYPES = {torch.float16: "F16", torch.float32: "F32"}

SD2_UNCLIP = SD15 | levels([1, 2, 4, 4], 2, SD15_DOWN, SD15_UP, 1) | {
    "context_dim": 1024,
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 2048,
    "num_classes": "sequential",
}  # fmt: skip
SVD = SD2_UNCLIP | {
    "in_channels": 8,
    "adm_in_channels": 768,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True,
    "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}


# --- numbers -------------------------------------------------------------------------------------------------------


@cache
def _noise(spread: Spread, dtype: torch.dtype) -> torch.Tensor:
    noise = torch.randn(SLACK + LIVE, generator=torch.Generator().manual_seed(0))
    return (noise * spread.std + spread.mean).to(dtype)


def hollow(shapes: Shapes, dtype: torch.dtype) -> Tensors:
    """Tensors of which only the small ones hold something: of the same name and shape the same, in every file."""
    found = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        if size > LIVE:
            found[name] = torch.zeros((), dtype=dtype).expand(shape)
            continue
        start = crc32(name.removeprefix(UNET).encode()) % SLACK
        found[name] = _noise(spread_of(name, shape), dtype)[start : start + size].view(shape)
    return found


def _table(file: str, *path: str) -> Shapes:
    found = json.loads((GOLDEN / f"{file}_files.json").read_text())
    for part in path:
        found = found[part]
    return {key: tuple(shape) for key, shape in found.items()}


# --- shapes --------------------------------------------------------------------------------------------------------


def clip_h_vision_shapes() -> Shapes:
    """The image encoder of OpenCLIP ViT-H under the names that transformers gives it."""
    import comfy.clip_model
    import comfy.ops

    config = json.loads((Path(comfy.clip_model.__file__).parent / "clip_vision_config_h.json").read_text())
    return shapes_of(
        comfy.clip_model.CLIPVisionModelProjection(config, None, "meta", comfy.ops.disable_weight_init), ""
    )


def clip_h_visual_shapes(prefix: str, width: int = 1280) -> Shapes:
    """The same under the names that OpenCLIP gives it."""
    layers = {key: shape for key, shape in clip_g_shapes("", 32, width).items() if key.startswith("transformer.")}
    ends = {f"{norm}.{end}": (width,) for norm in ("ln_pre", "ln_post") for end in ("weight", "bias")}
    first = {"class_embedding": (width,), "positional_embedding": (257, width), "conv1.weight": (width, 3, 14, 14)}
    return {prefix + key: shape for key, shape in {**first, **ends, **layers, "proj": (width, 1024)}.items()}


def unclip_shapes() -> Shapes:
    return (
        unet_shapes(SD2_UNCLIP)
        | vae_shapes()
        | clip_g_shapes("cond_stage_model.model.", layers=24, width=1024)
        | clip_h_visual_shapes("embedder.model.visual.")
    )


def svd_shapes() -> Shapes:
    return unet_shapes(SVD) | vae_shapes() | clip_h_visual_shapes("conditioner.embedders.0.open_clip.model.visual.")


def prompt_diffusion_shapes() -> Shapes:
    """The checkpoint of the original code: all of SD1.5 beside the control part."""
    rows = json.loads((GOLDEN / "prompt_diffusion_files.json").read_text())
    return checkpoint_shapes("sd15-full") | {f"control_model.{key}": tuple(row[1]) for key, row in rows.items()}


def unicon_shapes() -> Shapes:
    """A model.pth, which repeats the LoRA of the folder under names of its own."""
    found = _table("unicon", "model.pth (conv_fuse)")
    for name in ("xy_lora", "yx_lora", "y_lora"):
        for key, shape in _table("unicon", name).items():
            key = key.removeprefix("unet.")
            found[key.replace(".lora.down.", f".lora_A.{name}.").replace(".lora.up.", f".lora_B.{name}.")] = shape
    return found


def svd_unet(dtype: torch.dtype) -> Tensors:
    """The UNet of a video model under the names of diffusers: the values of the checkpoint."""
    made = hollow({key.removeprefix(UNET): shape for key, shape in unet_shapes(SVD).items()}, dtype)
    names = json.loads((GOLDEN / "svd_unet_names.json").read_text())
    return {key: made[ours] for key, ours in names.items()}


def sdxl_increments(dtype: torch.dtype) -> Tensors:
    rows = json.loads((GOLDEN / "controlnext_files.json").read_text())["unet"]["sdxl"]
    return hollow({key: tuple(shape) for key, (_, shape) in rows.items()}, dtype)


# --- files ---------------------------------------------------------------------------------------------------------


def with_holes(shapes: Callable[[], Shapes], dtype: torch.dtype) -> Callable[[], Tensors]:
    return lambda: hollow(shapes(), dtype)


def pickled(shapes: Callable[[], Shapes]) -> Callable[[], Tensors]:
    return lambda: windows(shapes(), dtype=SINGLE)


sd15, sdxl = partial(checkpoint_shapes, "sd15-full"), partial(checkpoint_shapes, "sdxl-full")
HALF, SINGLE = torch.float16, torch.float32
MODELS: Mapping[str, Callable[[], Tensors]] = {
    f"{CHECKPOINTS}/v1-5-pruned-emaonly-fp16.safetensors": with_holes(sd15, HALF),
    f"{CHECKPOINTS}/sd-v1-4.ckpt": pickled(sd15),
    f"{CHECKPOINTS}/sd_xl_base_1.0.safetensors": with_holes(sdxl, HALF),
    f"{CHECKPOINTS}/sd_xl_turbo_1.0_fp16.safetensors": with_holes(sdxl, HALF),
    f"{CHECKPOINTS}/svd_xt_1_1.safetensors": with_holes(svd_shapes, HALF),
    f"{CHECKPOINTS}/sd21-unclip-h.ckpt": pickled(unclip_shapes),
    "models/clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": with_holes(clip_h_vision_shapes, SINGLE),
    "models/controlnet/prompt-diffusion-sd15.ckpt": pickled(prompt_diffusion_shapes),
    "models/controlnext/controlnext-sd15-pose.safetensors": with_holes(
        partial(_table, "controlnext", "control", "sd15"), SINGLE
    ),
    "models/controlnext/controlnext-sdxl-anime-canny.safetensors": with_holes(
        partial(_table, "controlnext", "control", "sdxl"), SINGLE
    ),
    "models/controlnext/controlnext-sdxl-anime-canny-unet.safetensors": partial(sdxl_increments, HALF),
    "models/controlnext/controlnext-svd-v2.bin": pickled(partial(_table, "controlnext", "control", "sdxl")),
    "models/controlnext/controlnext-svd-v2-unet.bin": partial(svd_unet, HALF),
    "models/ipadapter/ip-adapter-plus_sd15.safetensors": with_holes(
        partial(_table, "ip_adapter", "keys", "plus_sd15"), HALF
    ),
    "models/ipadapter/ip-adapter-plus_sdxl_vit-h.safetensors": with_holes(
        partial(_table, "ip_adapter", "keys", "plus_sdxl_vit-h"), HALF
    ),
    "models/unicon/unicon-depth/model.pth": pickled(unicon_shapes),
    **{
        f"models/unicon/unicon-depth/{name}/pytorch_lora_weights.safetensors": with_holes(
            partial(_table, "unicon", name), SINGLE
        )
        for name in ("xy_lora", "yx_lora", "y_lora")
    },
    "models/unicon/unicon-pose/model.pth": pickled(unicon_shapes),  # alone it is enough
}
PICTURES: Mapping[str, tuple[int, int]] = {  # width, height
    "example.png": (96, 96),
    "astronaut.jpg": (96, 96),
    "astronaut_pose.png": (96, 96),
    "astronaut_poses.webp": (96, 96),
    "astronaut_silhouette.png": (96, 96),
    "motorcycle.jpg": (96, 64),
    "motorcycle_depth.png": (96, 64),
    "coffee.jpg": (96, 64),
    "chelsea.jpg": (96, 64),
}
FRAMES = 23  # of astronaut_poses.webp: with the pose of the person as many as the example's video


def write(base: Path, graph: Graph) -> None:
    """Makes the files that a graph names below a base directory, where they are missing or empty."""
    named = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    for name, make in MODELS.items():
        place = PurePosixPath(name)
        own = PurePosixPath(*place.parts[2:])  # what a loader calls it: the file, or a folder that it lies in
        path = base / name
        if named & {str(own), own.parts[0]} and not (path.is_file() and path.stat().st_size):
            _write_model(path, make())
    draw(base, named)


def draw(base: Path, names: set[str]) -> None:
    """Makes those of the pictures."""
    for name in names & PICTURES.keys():
        path = base / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        first, *others = (_picture(PICTURES[name], i) for i in range(FRAMES if path.suffix == ".webp" else 1))
        more = {"save_all": True, "append_images": others} if others else {}
        first.save(path, **more)


def _picture(size: tuple[int, int], step: int) -> Image.Image:
    """A bright figure before a sky, a little further to the right with each step."""
    width, height = size
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    canvas = ImageDraw.Draw(picture)
    left = width // 4 + step
    canvas.ellipse((left, height // 6, left + width // 4, height // 3), fill=(240, 200, 60))
    canvas.rectangle((left - width // 12, height // 3, left + width // 3, height - 8), fill=(60, 90, 220))
    return picture


def _write_model(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        _write_with_holes(path, tensors)
    else:
        torch.save({"state_dict": tensors} if path.suffix == ".ckpt" else tensors, path)


def _write_with_holes(path: Path, tensors: Tensors) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of their numbers' size
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        for name, tensor in tensors.items():
            if tensor.numel() <= LIVE:
                file.seek(begin + header[name]["data_offsets"][0])
                file.write(tensor.numpy().tobytes())
        file.truncate(begin + end)
