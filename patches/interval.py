"""Guidance in a limited interval (2404.07724)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .entries import append, next_order
from .guidance import Args, CFGSpan, in_span, install_guidance
from .scope import put_first
from .span import Span


def limit_cfg(model: ModelPatcher, span: Span) -> ModelPatcher:
    """A clone of `model` that uses the negative inside `span` only, and does not evaluate it elsewhere."""

    def positive_outside(args: Args) -> Tensor:
        """For guiders that skip the slot, and CFG functions that do not return c for u = c: the result is right."""
        if in_span(span, args) or args["cond"] is None:
            return args["denoised"]
        return args["cond_denoised"]

    model = model.clone()
    append(model, CFGSpan(order=next_order(model), span=span))
    install_guidance(model)
    # First of all, so that what earlier nodes add to the result is kept.
    put_first(model, positive_outside)
    return model
