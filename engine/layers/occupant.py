"""The function that another pack has put into the slot of an attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
from torch import Tensor

from ..sites import Site

FAILURES = (AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def of_another_pack(occupant: Callable[..., Tensor], site: Site) -> Callable[..., Tensor]:
    """Returns the function of another pack in a slot. It may fail on rows or texts that it does not know."""

    def attend(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
        try:
            return occupant(q, k, v, options)
        except comfy.model_management.OOM_EXCEPTION:
            raise  # the host makes room and tries again
        except FAILURES as error:
            raise RuntimeError(
                f"Another pack's function in the slot of {text_of(site)} should take the {len(q)} rows of this call, "
                f"but failed: {type(error).__name__} {error}. It may know one positive and one negative with their own "
                f"texts alone. Remove that pack or the nodes of this one."
            ) from error

    return attend


def text_of(site: Site) -> str:
    """Returns the name of an attention in errors."""
    return f"{site.kind} of {site.block} {site.number}"
