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

    from .demo.world.nodes import DemoModel, DemoPrompt, DemoScene
    from .nodes.clip_vision.nodes import CLIPTextDiff, CLIPVisionMean, CLIPVisionSlerp
    from .nodes.controlnext.nodes import ControlNeXtApply, ControlNeXtLoader
    from .nodes.guidance.adaptive_projection import AdaptiveProjectedGuidance
    from .nodes.guidance.cfg_zero import CFGZeroStar
    from .nodes.guidance.frequency_decoupled import FrequencyDecoupledGuidance
    from .nodes.guidance.image_guidance import ImageGuidance
    from .nodes.guidance.interval import GuidanceInterval
    from .nodes.guidance.normalized_attention import NormalizedAttentionGuidance
    from .nodes.guidance.perturbed_attention import PerturbedAttentionGuidance
    from .nodes.guidance.rescale import GuidanceRescale
    from .nodes.guidance.self_attention import SelfAttentionGuidance
    from .nodes.guidance.skip_layer import SkipLayerGuidance
    from .nodes.guidance.sliding_window import SlidingWindowGuidance
    from .nodes.guidance.smoothed_energy import SmoothedEnergyGuidance
    from .nodes.guidance.sparse_cross_attention import SparseCrossAttention
    from .nodes.guidance.token_perturbation import TokenPerturbationGuidance
    from .nodes.guidance.weak_model import WeakModelGuidance
    from .nodes.h_space.direction_node import HDirectionCapture, HDirectionFromPrompts
    from .nodes.h_space.edit_node import AsyrpSampler, HSpaceEdit
    from .nodes.h_space.files_node import HDirectionLoader, HDirectionSave
    from .nodes.h_space.range_node import AsyrpRange
    from .nodes.ip_adapter.apply_node import IPAdapterApply, IPAdapterSimple
    from .nodes.ip_adapter.conditioning_node import IPAdapterConditioning
    from .nodes.ip_adapter.encode_node import IPAdapterEncode
    from .nodes.ip_adapter.faces_node import FaceEmbeds
    from .nodes.ip_adapter.load_node import IPAdapterLoader
    from .nodes.ip_adapter.tokens_node import LoadImageTokens, SaveImageTokens
    from .nodes.look.images_node import ImagesSideBySide, ImagesToBatch
    from .nodes.look.nodes import GuidancePlot, GuidanceScope
    from .nodes.prompt_diffusion.nodes import PromptDiffusionExample, PromptDiffusionLoader
    from .nodes.unicon.apply_node import UniConApply
    from .nodes.unicon.joint_node import UniConApplyJoint, UniConJointLatent, UniConSplit
    from .nodes.unicon.load_node import UniConLoader, UniConSave
    from .nodes.unicon.prompt_node import UniConPrompt
    from .nodes.unicon.two_clocks_node import UniConSampler

    class Reins(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [
                PerturbedAttentionGuidance,
                SmoothedEnergyGuidance,
                SelfAttentionGuidance,
                SlidingWindowGuidance,
                SkipLayerGuidance,
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
                AsyrpRange,
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
                ImagesSideBySide,
                ImagesToBatch,
            ]

    return Reins()


if importlib.util.find_spec("folder_paths"):
    from .nodes.inputs.folders import register_folders

    register_folders()
