"""The released IP-Adapter files by name: what each one is, and its tensors without their gigabytes; torch alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "ip_adapter_files.json").read_text())["keys"]
SD15, SDXL = 16, 70  # text attentions

# file -> kind, tokens per image, context, what is read of the encoder and its width, width of a face, layers
RELEASED = {
    "sd15": ("linear", 4, 768, "image_embeds", 1024, 0, SD15),
    "sd15_vit-G": ("linear", 4, 768, "image_embeds", 1280, 0, SD15),
    "sdxl": ("linear", 4, 2048, "image_embeds", 1280, 0, SDXL),
    "sdxl_vit-h": ("linear", 4, 2048, "image_embeds", 1024, 0, SDXL),
    "plus_sd15": ("plus", 16, 768, "penultimate_hidden_states", 1280, 0, SD15),
    "plus_sdxl_vit-h": ("plus", 16, 2048, "penultimate_hidden_states", 1280, 0, SDXL),
    "full_face_sd15": ("full", 0, 768, "penultimate_hidden_states", 1280, 0, SD15),
    "faceid_sd15": ("face", 4, 768, None, 0, 512, SD15),
    "faceid_sdxl": ("face", 4, 2048, None, 0, 512, SDXL),
    "faceid_portrait_sd15": ("face", 16, 768, None, 0, 512, SD15),
    "faceid_portrait_sdxl": ("face", 16, 2048, None, 0, 512, SDXL),
    "faceid_plusv2_sd15": ("face plus", 4, 768, "penultimate_hidden_states", 1280, 512, SD15),
    "faceid_plusv2_sdxl": ("face plus", 4, 2048, "penultimate_hidden_states", 1280, 512, SDXL),
}


def table(name: str) -> dict[str, torch.Tensor]:
    """A file of full size without its gigabyte: every tensor is one zero, spread out."""
    return {key: torch.zeros(()).expand(shape) for key, shape in TABLES[name].items()}
