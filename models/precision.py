"""The type in which formulas compute."""

from __future__ import annotations

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Returns the type itself if it is float64, else float32.

    torch's promote_types gives the same, but is a call into torch. Formulas ask this in each layer of each step.
    """
    return dtype if dtype == torch.float64 else torch.float32
