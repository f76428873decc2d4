"""Writes checkpoints that the host's stock loaders accept, although they hold no weights to speak of.

A .ckpt file stores storages, not tensors. Here every weight is a window into a short buffer of random numbers, one
number further per row. So a full-size model with the official names and shapes is a file of less than a megabyte. The
rows of a weight are shifted copies of each other: such a model runs, and what it draws means nothing.

    python -m demo.weightless --comfy DIR --kind sd15-min --out FILE.ckpt
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]

SLACK = 4096  # windows start anywhere in this many numbers, so that equal shapes get different weights

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "num_heads": 8,
    "num_head_channels": -1,
    "adm_in_channels": None,
}
SDXL = SD15 | {
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}


def levels(mult: list[int], blocks: int, down: list[int], up: list[int], middle: int) -> dict[str, object]:
    """The part of a UNet configuration that gives its depth and the places of its transformers."""
    return {
        "channel_mult": mult,
        "num_res_blocks": [blocks] * len(mult),
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": middle,
    }


SD15_DOWN, SD15_UP = [1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3
SDXL_DOWN, SDXL_UP = [0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10]

# The host tells SD1.5 by width 320, context 768 and a convolution before its transformers, and SDXL also by its exact
# depths. Levels and widths beyond the first are free, so `min`, `two` and `layout` have fewer or smaller ones.
UNETS: Mapping[str, dict[str, object]] = {
    "sd15-min": SD15 | levels([1], 1, [1], [1, 1], 1),
    "sd15-two": SD15 | levels([1, 1], 1, [1, 1], [1] * 4, 1),
    "sd15-layout": SD15 | levels([1, 1, 1, 1], 2, SD15_DOWN, SD15_UP, 1),
    "sd15-full": SD15 | levels([1, 2, 4, 4], 2, SD15_DOWN, SD15_UP, 1),
    "sdxl-layout": SDXL | levels([1, 1, 1], 2, SDXL_DOWN, SDXL_UP, 10),
    "sdxl-full": SDXL | levels([1, 2, 4], 2, SDXL_DOWN, SDXL_UP, 10),
}


class Spread(NamedTuple):
    """Mean and standard deviation of a weight. Weights of one spread share a buffer."""

    mean: float
    std: float


def spread_of(name: str, shape: Shape) -> Spread:
    """The spread of a weight with which activations neither vanish nor explode over a few dozen layers."""
    if name.endswith("taesd_decoder.19.bias"):
        return Spread(0.5, 0.1)  # the decoder's last layer is the picture's mean: grey instead of black
    if name.endswith("taesd_decoder.19.weight"):
        return Spread(0.0, 0.8)
    if len(shape) <= 1:
        return Spread(0.0, 0.01) if name.endswith("bias") else Spread(1.0, 0.02)  # the rest are gains of norms
    if "embedding" in name:
        return Spread(0.0, 0.02)
    return Spread(0.0, round(0.7 / math.sqrt(math.prod(shape[1:])), 6))


def rows_and_columns(shape: Shape) -> tuple[int, int]:
    """The shape of a weight, seen as a matrix."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def windows(shapes: Shapes, seed: int = 0, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Tensors of the given shapes, each a window into the buffer of its spread, float16 if no type is given."""
    import torch

    dtype = dtype or torch.float16
    length: dict[Spread, int] = {}
    for name, shape in shapes.items():
        spread = spread_of(name, shape)
        length[spread] = max(length.get(spread, 0), sum(rows_and_columns(shape)) + SLACK)
    generator = torch.Generator().manual_seed(seed)
    buffers = {
        spread: (torch.randn(size, generator=generator) * spread.std + spread.mean).to(dtype)
        for spread, size in length.items()
    }
    tensors = {}
    for name, shape in shapes.items():
        columns = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        strides = [1, *columns[1:]] if len(shape) > 1 else columns  # the next row begins one number further
        start = int(torch.randint(0, SLACK, (1,), generator=generator))
        tensors[name] = buffers[spread_of(name, shape)].as_strided(shape, strides, start)
    return tensors


def shapes_of(module: torch.nn.Module, prefix: str) -> Shapes:
    """The shapes of a module's tensors, by name."""
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def unet_shapes(config: dict[str, object]) -> Shapes:
    """The shapes of the UNet of this configuration."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
    return shapes_of(unet, "model.diffusion_model.")


def clip_l_shapes(prefix: str) -> Shapes:
    """The shapes of the text encoder of SD1.5, which is also the first of SDXL."""
    import comfy.clip_model
    import comfy.ops

    config = json.loads((Path(comfy.clip_model.__file__).parent / "sd1_clip_config.json").read_text())
    text_model = comfy.clip_model.CLIPTextModel(config, None, "meta", comfy.ops.disable_weight_init)
    shapes = shapes_of(text_model, prefix)
    shapes.pop(f"{prefix}text_projection.weight", None)
    return shapes


def clip_g_shapes(prefix: str, layers: int = 32, width: int = 1280) -> Shapes:
    """The shapes of the second text encoder of SDXL, under the names of its first release, which the host converts."""
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (49408, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        linear = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}
        for name, (rows, columns) in linear.items():
            shapes[f"{block}{name}weight"] = (rows * width, columns * width)
            shapes[f"{block}{name}bias"] = (rows * width,)
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[block + name] = (width,)
    return {prefix + name: shape for name, shape in shapes.items()}


def vae_shapes() -> Shapes:
    """The shapes of the small TAESD as the checkpoint's VAE. It decodes in a fraction of a second."""
    import comfy.taesd.taesd
    import torch

    with torch.device("meta"):
        return shapes_of(comfy.taesd.taesd.TAESD(latent_channels=4), "first_stage_model.")


def checkpoint_shapes(kind: str) -> Shapes:
    """The shapes of a checkpoint of one of UNETS."""
    shapes = unet_shapes(UNETS[kind]) | vae_shapes()
    if kind.startswith("sd15"):
        return shapes | clip_l_shapes("cond_stage_model.transformer.")
    return (
        shapes | clip_l_shapes("conditioner.embedders.0.transformer.") | clip_g_shapes("conditioner.embedders.1.model.")
    )


def write_checkpoint(kind: str, path: Path, seed: int = 0) -> None:
    """Writes a checkpoint of one of UNETS. The host must be importable."""
    import torch

    tensors = windows(checkpoint_shapes(kind), seed)
    partial = path.with_name(f"{path.name}.partial")
    torch.save({"state_dict": tensors}, partial)
    partial.replace(path)


def import_host_on_cpu(comfy: Path) -> None:
    """Makes `comfy` importable ahead of everything else, without looking for a GPU."""
    sys.path.insert(0, str(comfy))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--kind", choices=list(UNETS), default="sd15-min")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    import_host_on_cpu(options.comfy)
    write_checkpoint(options.kind, options.out)


if __name__ == "__main__":
    main()
