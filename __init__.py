"""ComfyUI-Reins: nodes that steer diffusion. This file is the table of contents."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What the host asks for: the pack's nodes, imported only now."""
    from comfy_api.latest import ComfyExtension, io

    from .nodes.demo_model import DemoModel
    from .nodes.demo_prompt import DemoPrompt
    from .nodes.demo_scene import DemoScene
    from .nodes.interval import GuidanceInterval
    from .nodes.perturbed_attention import PerturbedAttentionGuidance
    from .nodes.rescale import GuidanceRescale
    from .nodes.self_attention import SelfAttentionGuidance
    from .nodes.smoothed_energy import SmoothedEnergyGuidance

    class Reins(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [
                PerturbedAttentionGuidance,
                SmoothedEnergyGuidance,
                SelfAttentionGuidance,
                GuidanceInterval,
                GuidanceRescale,
                DemoModel,
                DemoPrompt,
                DemoScene,
            ]

    return Reins()


def _offer_demo_files() -> None:
    """The demo's adapters appear in the host's own loaders, behind whatever the user has."""
    import folder_paths

    for folder in ("loras",):
        folder_paths.add_model_folder_path(folder, str(Path(__file__).resolve().parent / "demo" / "weights" / folder))


if importlib.util.find_spec("folder_paths"):
    _offer_demo_files()
