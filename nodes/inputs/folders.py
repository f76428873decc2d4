"""The folders whose files the nodes offer: the host's, those of the pack, and the demo's weights in each of them."""

from __future__ import annotations

from pathlib import Path

from ...engine.folders import models_folder, output_folder, register

DEMO_WEIGHTS = Path(__file__).resolve().parents[2] / "demo" / "weights"
OF_HOST = ("loras", "controlnet")
OURS = ("controlnext", "ipadapter", "unicon", "h_space", "lpips")
SAVED = ("unicon", "h_space")  # what save nodes write is found again
TOKENS, TOKEN_FILES = "image_tokens", frozenset({".safetensors", ".ipadpt"})


def register_folders() -> None:
    """Adds the folders to the host's lists of files."""
    for folder in OF_HOST:
        register(folder, [DEMO_WEIGHTS / folder])
    for folder in OURS:
        written = [output_folder(folder)] if folder in SAVED else []
        register(folder, [models_folder(folder), DEMO_WEIGHTS / folder, *written])
    register(TOKENS, [models_folder(TOKENS), output_folder(TOKENS)], TOKEN_FILES)
