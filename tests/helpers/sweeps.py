"""What the tests of sweeps share: a small workflow, and what a server says of its nodes."""

from __future__ import annotations

import copy

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
        "_meta": {"title": "Perturbed-Attention Guidance (PAG)"},
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
