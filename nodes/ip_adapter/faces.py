"""Finds faces with insightface (ArcFace, 1801.07698), an optional package that this pack does not install."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import torch
from torch import Tensor

MODELS = ("buffalo_l", "antelopev2")
CROP = 224  # pixels of a cut-out face, as the image encoders of FaceID plus take it
CROPS = {"antelopev2": 336}
# Small detection sizes find faces that fill the picture, which the largest size misses.
DETECTION_SIZES = range(640, 192, -64)


def find_faces(image: Tensor, model_name: str) -> tuple[Tensor, Tensor]:
    """Returns identities (b, c), not normalised, and upright faces (b, size, size, 3) of pictures (b, h, w, 3).

    Raises ValueError if insightface or its model is missing, or if a picture has no face.
    """
    analysis, align = _package("insightface.app"), _package("insightface.utils.face_align")
    folder = Path(folder_paths.models_dir) / "insightface"
    if not (folder / "models" / model_name).is_dir():
        raise ValueError(
            f"insightface's model {model_name} should lie in the models folder under "
            f"{folder.name}/models/{model_name}, but is not there. Download it from the insightface project."
        )
    finder = _finder(analysis, model_name, folder)
    identities, crops = [], []
    for number, picture in enumerate(image):
        pixels = np.ascontiguousarray((picture * 255).round().byte().cpu().numpy()[..., ::-1])
        face = _largest_face(finder, pixels)
        if face is None:
            raise ValueError(
                f"No face was found in picture {number}. Use a picture in which one face is large and seen from the "
                f"front."
            )
        identities.append(torch.from_numpy(np.asarray(face.embedding)).float())
        crop = align.norm_crop(pixels, landmark=face.kps, image_size=CROPS.get(model_name, CROP))
        crops.append(torch.from_numpy(np.ascontiguousarray(crop[..., ::-1])).float() / 255)
    return torch.stack(identities), torch.stack(crops)


def _finder(analysis: ModuleType, model_name: str, folder: Path) -> Any:
    try:
        finder = analysis.FaceAnalysis(name=model_name, root=str(folder), providers=_providers())
        finder.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0],) * 2)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"insightface cannot load its model {model_name} ({error or type(error).__name__}). Its .onnx files should "
            f"lie directly in {folder.name}/models/{model_name}, not in a folder inside it."
        ) from error
    return finder


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"Face Embeds needs the Python package insightface, which cannot be imported ({error}). Install "
            f"insightface and onnxruntime in ComfyUI's environment; everything else works without them."
        ) from error


def _providers() -> list[str]:
    gpu = ["CUDAExecutionProvider"] if comfy.model_management.get_torch_device().type == "cuda" else []
    return [*gpu, "CPUExecutionProvider"]


def _largest_face(finder: Any, pixels: np.ndarray) -> Any | None:
    for size in DETECTION_SIZES:
        finder.det_model.input_size = (size, size)  # prepare() takes a size once only
        faces = finder.get(pixels)
        if faces:
            return max(faces, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))
    return None
