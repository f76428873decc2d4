"""Networks that torch.compile has compiled, as the host's node TorchCompileModel does.

The host drops what torch would check of the options of a call. So torch takes the code that it made for one call for
the next one, with other layers or with none. A call with layers inside the network therefore does not run that code.
If torch can follow all layers, the call is compiled apart, with all checks and as a single graph. Else it runs as it is
written. Other packs compile with all checks. Then layers of transformers stand in the compiled code, but torch cannot
follow those of UNets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from .entries import NetworkEntry, entries
from .run import Run, run_in

logger = logging.getLogger(__name__)
COMPILER = "reins_compiler"  # in the options of a call: what is known of how its network is compiled
OF_HOST = "torch.compile"  # the key of the host's wrapper that puts compiled parts into the model
SETTINGS = "torch_compile_kwargs"  # the host's name for what that node gave torch
UNCHECKED = "guard_filter_fn"  # the host's option that drops checks
EAGER, DEFAULT = "force_eager", "default"
TOLD = "reins_told_of_compile"
Forward = Callable[..., Tensor]


class Apart(NamedTuple):
    """A network that torch compiled apart for calls with layers, with these arguments of torch.compile."""

    settings: Mapping[str, Any]
    forward: Forward


@dataclass(eq=False)
class Compiler:
    """What is known of a run whose model is compiled. `settings` are the arguments of torch.compile, if they are."""

    model: Any
    settings: Mapping[str, Any] | None
    has_failed: bool = False
    is_used: bool = False  # whether a call has reached the network's own wrappers, which some networks do not have

    def __deepcopy__(self, memo: dict) -> Compiler:
        return self


_apart: WeakKeyDictionary[nn.Module, list[Apart]] = WeakKeyDictionary()


def compiler_of(options: Mapping[str, Any], model: Any, run: Run) -> Compiler | None:
    """Returns what is known of a run if a part of the model's network is compiled that cannot hold layers."""
    return run.once((compiler_of, id(model)), lambda: _compiler_of(options, model))


@contextmanager
def as_written(compiler: Compiler, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A context in which what is compiled of a model runs as it is written. It gives the options of the call.

    The options say so if the call may be compiled apart. Raises RuntimeError if this torch cannot turn itself off.
    """
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            f"Layers inside a compiled network need torch 2.6 or newer, but this is torch {torch.__version__}. Remove "
            f"TorchCompileModel, or update torch."
        )
    can_follow = compiler.settings is not None and not compiler.has_failed and not others_act_in(options)
    if can_follow and all(entry.is_traceable for entry in entries(options, NetworkEntry)):
        options = {**options, COMPILER: compiler}
    with torch.compiler.set_stance(EAGER):
        yield options
    if not (COMPILER in options and compiler.is_used):
        run_in(options).once(TOLD, _tell)


def others_act_in(options: Mapping[str, Any]) -> bool:
    """Whether other packs have functions in the network, before this one puts its own there.

    They may change rows, and what is asked of each row cannot be followed.
    """
    return any(any(options.get(name, {}).values()) for name in ("patches", "patches_replace"))


def _compiler_of(options: Mapping[str, Any], model: Any) -> Compiler | None:
    """Returns what is known if a part of a network is compiled that cannot hold layers. None if no part is."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nobody compiles without it
        return None
    if any(OF_HOST in of_kind for of_kind in options.get("wrappers", {}).values()):
        patcher = getattr(model, "current_patcher", None)
        return Compiler(model, None if patcher is None else patcher.model_options.get(SETTINGS))
    network: nn.Module = model.diffusion_model
    if isinstance(getattr(network, "_orig_mod", network), UNetModel) and any(
        isinstance(part, dynamo.OptimizedModule) for part in network.modules()
    ):
        return Compiler(model, None)
    return None


def compiled_apart(executor: Forward, network: nn.Module, options: dict[str, Any]) -> Forward | None:
    """Returns the forward of a network, compiled with all checks and as one graph. None if the host compiles parts.

    If torch cannot compile it so, it runs as it is written, and the log says so once in a run.
    """
    compiler: Compiler = options.pop(COMPILER)
    run, dynamo, compiler.is_used = run_in(options), sys.modules["torch._dynamo"], True
    if not isinstance(compiler.model.diffusion_model, dynamo.OptimizedModule):  # the node was told to compile parts
        run.once(TOLD, _tell)
        return None
    forward = _forward_of(network, compiler.settings)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        try:
            with torch.compiler.set_stance(DEFAULT):
                return forward(executor, *args, **kwargs)
        except dynamo.exc.TorchDynamoException as error:
            compiler.has_failed, why = True, " ".join(str(error).partition("\n\n")[0].split())
        run.once(TOLD, lambda: _tell(f" torch says: {why}"))
        return executor(*args, **kwargs)

    return call


def _forward_of(network: nn.Module, settings: Mapping[str, Any]) -> Forward:
    """Returns a function that torch compiles for this network alone, the same one in each run."""
    of_network = _apart.setdefault(network, [])
    forward = next((apart.forward for apart in of_network if apart.settings == settings), None)
    if forward is None:
        options = {name: value for name, value in (settings.get("options") or {}).items() if name != UNCHECKED}
        own = FunctionType(_call.__code__.replace(), globals())  # torch keeps what it made with the code of a function
        forward = torch.compile(own, **{**settings, "options": options or None, "fullgraph": True})
        of_network.append(Apart(settings, forward))
    return forward


def _call(executor: Forward, *args: Any, **kwargs: Any) -> Tensor:
    return executor(*args, **kwargs)


def _tell(why: str = "") -> None:
    logger.warning(
        "This model is compiled (torch.compile), but nodes of ComfyUI-Reins act inside its network. What torch "
        f"compiled for one set of nodes would be wrong for another, so the run is not compiled.{why}"
    )
