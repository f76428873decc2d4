"""Conditioning that the host groups or treats in its own way: areas, masks, control nets, hooks."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import torch
from reins.tests.helpers import tiny_models
from reins.tests.helpers.tiny_models import text
from torch import Tensor


def areas(seed: int, **extra: object) -> list:
    """Two conds: one for the left part, one for the rest."""
    left, right = text(seed, area=(16, 9, 0, 0), **extra), text(seed + 10, area=(16, 10, 0, 6), strength=0.6)
    return left + right


def masks(seed: int) -> list:
    """Two conds: one by a mask, one by what the mask leaves."""
    mask = torch.rand((1, 16, 16), generator=torch.Generator().manual_seed(seed))
    return text(seed, mask=mask, mask_strength=0.8) + text(seed + 10, mask=1 - mask, set_area_to_bounds=False)


def controlled(seed: int) -> list:
    """A cond with a ControlNet for it alone."""
    return text(seed, control=tiny_models.controlnet(), control_apply_to_uncond=False)


def controlled_together() -> dict[str, list]:
    """As the stock node does it: one ControlNet for both prompts, hence one batch and one set of residuals."""
    control = tiny_models.controlnet()
    return {"positive": text(1, control=control), "negative": text(2, control=control)}


def hooked(seed: int, scale: float) -> list:
    """A cond with a hook: the host runs it in a batch apart from the others."""

    def shrink(n: Tensor, options: dict[str, Any]) -> Tensor:
        return n * scale

    hook = comfy.hooks.TransformerOptionsHook(
        {"patches": {"attn2_output_patch": [shrink]}}, hook_scope=comfy.hooks.EnumHookScope.HookedOnly
    )
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return text(seed, hooks=group)
