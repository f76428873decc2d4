"""ComfyUI-Reins: nodes that steer diffusion. This file is the table of contents."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What the host asks for: the pack's nodes, imported only now."""
    from comfy_api.latest import ComfyExtension, io

    from .nodes.adaptive_projection import AdaptiveProjectedGuidance
    from .nodes.cfg_zero import CFGZeroStar
    from .nodes.clip_vision import CLIPTextDiff, CLIPVisionMean, CLIPVisionSlerp
    from .nodes.controlnext import ControlNeXtApply
    from .nodes.controlnext_loader import ControlNeXtLoader
    from .nodes.demo_model import DemoModel
    from .nodes.demo_prompt import DemoPrompt
    from .nodes.demo_scene import DemoScene
    from .nodes.face_embeds import FaceEmbeds
    from .nodes.frequency_decoupled import FrequencyDecoupledGuidance
    from .nodes.guidance_scope import GuidancePlot, GuidanceScope
    from .nodes.h_direction import HDirectionCapture, HDirectionFromPrompts
    from .nodes.h_direction_files import HDirectionLoader, HDirectionSave
    from .nodes.h_space import AsyrpSampler, HSpaceEdit
    from .nodes.image_guidance import ImageGuidance
    from .nodes.image_tokens import LoadImageTokens, SaveImageTokens
    from .nodes.interval import GuidanceInterval
    from .nodes.ip_adapter import IPAdapterApply, IPAdapterSimple
    from .nodes.ip_adapter_conditioning import IPAdapterConditioning
    from .nodes.ip_adapter_encode import IPAdapterEncode
    from .nodes.ip_adapter_loader import IPAdapterLoader
    from .nodes.normalized_attention import NormalizedAttentionGuidance
    from .nodes.perturbed_attention import PerturbedAttentionGuidance
    from .nodes.prompt_diffusion import PromptDiffusionExample, PromptDiffusionLoader
    from .nodes.rescale import GuidanceRescale
    from .nodes.self_attention import SelfAttentionGuidance
    from .nodes.sliding_window import SlidingWindowGuidance
    from .nodes.smoothed_energy import SmoothedEnergyGuidance
    from .nodes.sparse_cross_attention import SparseCrossAttention
    from .nodes.token_perturbation import TokenPerturbationGuidance
    from .nodes.unicon import UniConApply
    from .nodes.unicon_joint import UniConApplyJoint, UniConJointLatent, UniConSplit
    from .nodes.unicon_loader import UniConLoader, UniConSave
    from .nodes.unicon_prompt import UniConPrompt
    from .nodes.unicon_sampler import UniConSampler
    from .nodes.weak_model import WeakModelGuidance

    class Reins(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [
                PerturbedAttentionGuidance,
                SmoothedEnergyGuidance,
                SelfAttentionGuidance,
                SlidingWindowGuidance,
                TokenPerturbationGuidance,
                NormalizedAttentionGuidance,
                SparseCrossAttention,
                WeakModelGuidance,
                AdaptiveProjectedGuidance,
                FrequencyDecoupledGuidance,
                CFGZeroStar,
                ImageGuidance,
                GuidanceInterval,
                GuidanceRescale,
                ControlNeXtLoader,
                ControlNeXtApply,
                IPAdapterLoader,
                IPAdapterEncode,
                IPAdapterApply,
                IPAdapterSimple,
                IPAdapterConditioning,
                SaveImageTokens,
                LoadImageTokens,
                FaceEmbeds,
                PromptDiffusionLoader,
                PromptDiffusionExample,
                CLIPVisionSlerp,
                CLIPVisionMean,
                CLIPTextDiff,
                HDirectionFromPrompts,
                HDirectionCapture,
                HDirectionLoader,
                HDirectionSave,
                HSpaceEdit,
                AsyrpSampler,
                UniConLoader,
                UniConPrompt,
                UniConApply,
                UniConJointLatent,
                UniConApplyJoint,
                UniConSplit,
                UniConSampler,
                UniConSave,
                DemoModel,
                DemoPrompt,
                DemoScene,
                GuidanceScope,
                GuidancePlot,
            ]

    return Reins()


if importlib.util.find_spec("folder_paths"):
    from .patches import folders  # noqa: F401 - registers them
