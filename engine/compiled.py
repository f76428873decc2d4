"""Networks that torch.compile has compiled, as the host's node TorchCompileModel does.

The host drops what torch would check of the options of a call. So torch takes the code that it made for one call for
the next one, with other layers or with none. A call with layers inside the network therefore runs as it is written.
Other packs compile with all checks. Then layers of transformers stand in the compiled code, but torch cannot follow
those of UNets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from .run import Run

logger = logging.getLogger(__name__)
OF_HOST = "torch.compile"  # the key of the host's wrapper that puts compiled parts into the model
EAGER = "force_eager"
TOLD = "reins_told_of_compile"


def as_written(options: Mapping[str, Any], model: Any, run: Run) -> AbstractContextManager:
    """Returns a context in which the network of a model runs as it is written, if a part of it is compiled.

    Raises RuntimeError if this torch cannot do that.
    """
    if not run.once((as_written, id(model)), lambda: _is_compiled(options, model)):
        return nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            f"Layers inside a compiled network need torch 2.6 or newer, but this is torch {torch.__version__}. Remove "
            f"TorchCompileModel, or update torch."
        )
    run.once(TOLD, _tell)
    return torch.compiler.set_stance(EAGER)


def _tell() -> None:
    logger.warning(
        "This model is compiled (torch.compile), but nodes of ComfyUI-Reins act inside its network. What torch "
        "compiled for one set of nodes would be wrong for another, so the run is not compiled."
    )


def _is_compiled(options: Mapping[str, Any], model: Any) -> bool:
    """Whether a part of a network is compiled that cannot hold layers. Nobody compiles without the compiler."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    if any(OF_HOST in of_kind for of_kind in options.get("wrappers", {}).values()):
        return True
    network: nn.Module = model.diffusion_model
    return isinstance(getattr(network, "_orig_mod", network), UNetModel) and any(
        isinstance(part, dynamo.OptimizedModule) for part in network.modules()
    )
