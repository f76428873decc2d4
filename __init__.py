"""ComfyUI-Reins: nodes that steer diffusion. This file is the table of contents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What the host asks for: the pack's nodes, imported only now."""
    from comfy_api.latest import ComfyExtension, io

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
            ]

    return Reins()
