"""Calls of a transformer's attention, watched and changed through the host alone, as references for the pack's layers.

Nothing of the pack is used here: the host's override of attention is the test's own, and forward hooks tell the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

OVERRIDE = "optimized_attention_override"
Shaped = tuple[Tensor, Tensor, Tensor]


class Seen(NamedTuple):
    """One call of attention: the block that made it, and its tensors (b, heads, tokens, d)."""

    block: str  # e.g. double_blocks.0, or "" outside of all blocks
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None


# What to do in place of a call: it is given what is seen, and a function that attends by the host.
Change = Callable[[int, Seen, Callable[[], Tensor]], Tensor]


def by_heads(tensors: Shaped, heads: int, is_by_heads: bool) -> list[Tensor]:
    """The tensors as (b, heads, tokens, d), whatever form the host gives them in."""
    if is_by_heads:
        return list(tensors)
    b, d = len(tensors[0]), tensors[0].shape[-1] // heads
    return [part.reshape(b, part.shape[1], -1, d).transpose(1, 2) for part in tensors]


@contextmanager
def noting_blocks(network: nn.Module) -> Iterator[list[str]]:
    """The names of the blocks that are running, the innermost last. Blocks are what lies in lists of modules."""
    running = [""]
    hooks = []

    def note(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        return (lambda *_: running.append(name)), (lambda *_: running.pop() and None)

    for name, stack in network.named_children():
        if isinstance(stack, nn.ModuleList):
            for number, block in enumerate(stack):
                begin, end = note(f"{name}.{number}")
                hooks += [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def overridden(model: ModelPatcher, change: Change) -> ModelPatcher:
    """A clone of the model in which each call of attention goes through `change`, in every call of the network.

    Calls are counted within one call of the network. The result of `change` is (b, tokens, heads * d).
    """
    network = model.model.diffusion_model
    state: dict[str, Any] = {"count": 0, "running": [""]}

    def attend(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any):
        tensors = by_heads((q, k, v), heads, kwargs.get("skip_reshape", False))
        mask = args[0] if args else kwargs.get("mask")
        number, state["count"] = state["count"], state["count"] + 1
        plain = {key: value for key, value in kwargs.items() if key != "skip_output_reshape"}
        seen = Seen(state["running"][-1], *tensors, mask)
        out = change(number, seen, lambda: func(q, k, v, heads, *args, **plain))
        return out.unflatten(-1, (heads, -1)).transpose(1, 2) if kwargs.get("skip_output_reshape") else out

    def around(executor: Any, *arguments: Any, **conds: Any) -> Tensor:
        with noting_blocks(network) as running:
            state.update(count=0, running=running)
            return executor(*arguments, **conds)

    clone = model.clone()
    clone.model_options["transformer_options"][OVERRIDE] = attend
    clone.add_wrapper("apply_model", around)
    return clone


def calls_of(model: ModelPatcher, run: Callable[[ModelPatcher], Any]) -> list[Seen]:
    """All calls of attention in a run of the model."""
    calls: list[Seen] = []

    def note(_: int, seen: Seen, attend: Callable[[], Tensor]) -> Tensor:
        calls.append(seen._replace(q=seen.q.clone(), k=seen.k.clone(), v=seen.v.clone()))
        return attend()

    run(overridden(model, note))
    return calls


def shape_of(seen: Seen) -> tuple[str, int, int]:
    """The block, and how many tokens are in queries and keys."""
    return seen.block, seen.q.shape[2], seen.k.shape[2]
