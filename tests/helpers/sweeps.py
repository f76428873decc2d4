"""What the tests of sweeps share: a small workflow, and what a server says of its nodes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reins.sweep.outcome import Outcome
    from reins.sweep.plan import Row

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 7, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "model": ["10", 0]},
        "_meta": {"title": "KSampler"},
    },
    "4": {"class_type": "Loader", "inputs": {"name": "one.safetensors"}, "_meta": {"title": "Load"}},
    "10": {
        "class_type": "Reins_Perturbed",
        "inputs": {"scale": 3, "layers": "m0", "share": True, "model": ["4", 0], "mode.size": 2},
        "_meta": {"title": "PAG – Perturbed-Attention Guidance"},
    },
    "11": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}, "_meta": {"title": "Positive"}},
    "12": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "Negative"}},
    "13": {"class_type": "LoadImage", "inputs": {"image": "folder/drawn.png"}, "_meta": {"title": "Load Image"}},
}
INFO = {
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"min": 1, "max": 100}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "sampler_name": [["euler", "heun", "dpmpp_2m"], {}],
            }
        }
    },
    "Loader": {"input": {"required": {"name": ["COMBO", {"options": ["one.safetensors", "two.safetensors"]}]}}},
    "Reins_Perturbed": {
        "input": {
            "required": {"model": ["MODEL"], "scale": ["FLOAT", {"min": 0, "max": 20}]},
            "optional": {"layers": ["STRING", {}], "share": ["BOOLEAN", {}]},
        }
    },
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {"multiline": True}]}}},
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
}


def small_graph() -> dict:
    return copy.deepcopy(GRAPH)


def drawn(colour: str, size: int = 8) -> bytes:
    """A picture of one colour, as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


class StandIn:
    """An engine whose workers answer at once: `answer` gives the outcome of a row, or None if it is never run."""

    size = alive = 1

    def __init__(self, answer: Callable[[Row], Outcome | None]) -> None:
        self._answer = answer
        self.asked: list[str] = []

    def run(self, rows: Sequence[Row]) -> Iterator[Outcome | None]:
        for row in rows:
            self.asked.append(row.key)
            yield self._answer(row)
