"""UniCon (2410.11439): the joint attention between an image and its condition, and the condition's LoRA.

One network draws both. In each transformer block x (the image) attends to y (the condition) and y to x. The attentions
use the block's projections, with a LoRA each for x and y. A matrix P, zero at the start of training, mixes the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .stacks import ATTENTIONS, PROJECTIONS, AttentionPlace, LowRank, Stack, stacks_of

Post = Literal["conv_fuse", "conv"]


class JointSizes(NamedTuple):
    """Sizes of one block's joint attention: the LoRA of x and of y by projection, the width, and the kind of P."""

    xy: Sequence[LowRank]
    yx: Sequence[LowRank]
    width: int
    post: Post


class Sizes(NamedTuple):
    """Sizes of a network: its joint attentions, and the condition's LoRA by block, attention and projection.

    Only blocks that have them are listed, in the order of the names in the file.
    """

    joints: Sequence[JointSizes]
    conditions: Sequence[Sequence[Sequence[LowRank]]]


class Projected(NamedTuple):
    """The input of an attention, and its q, k and v by the model's projections, each (b, tokens, c)."""

    hidden: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class Increments(NamedTuple):
    """What the second matrices are given: low-rank features (n, rows, rank), and targets (n, rows, outputs) for them.

    The pairs follow each other as the LoRA of the stack do. The host's layers read the type and the device of their
    input.
    """

    lows: Sequence[Tensor]
    targets: Sequence[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the host hands over the weights."""
        return self.lows[0].dtype

    @property
    def device(self) -> torch.device:
        """The device on which the host hands over the weights."""
        return self.lows[0].device


@cache
def second_matrices(convolution: type[nn.Conv1d]) -> type[nn.Conv1d]:
    """Returns the class of layers that add the products of several LoRA to tensors, in place.

    The matrices have the shape of a convolution with a group for each LoRA. So the host stores, casts and offloads
    them, and hands them over when it would convolve. A linear layer of the host leaves no place for other products.
    """

    class SecondMatrices(convolution):
        def _conv_forward(self, given: Increments, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor]:
            matrices = weight.reshape(self.groups, -1, weight.shape[1]).transpose(1, 2)
            first = 0
            for low, target in zip(given.lows, given.targets, strict=True):
                of_one = some_of(matrices, first, len(low))
                target.baddbmm_(low.to(target.dtype), of_one.to(target.dtype))  # types differ under autocast
                first += len(low)
            return given.targets

    return SecondMatrices


def some_of(stack: Tensor, first: int, count: int) -> Tensor:
    """Returns `count` of the tensors in a stack (n, ...), from number `first` on."""
    return stack if count == len(stack) else stack[first : first + count]


class StackedLoRA(nn.Module):
    """LoRA of several projections: base + up(down(x)). If a file has a factor alpha / rank, `up` contains it."""

    def __init__(self, stack: Stack, operations: Any, **factory: Any) -> None:
        super().__init__()
        (inputs, self.rank, outputs), self.count = stack.sizes, len(stack.projections)
        self.down = operations.Linear(inputs, self.count * self.rank, bias=False, **factory)
        channels = self.count * self.rank, self.count * outputs
        self.up = second_matrices(operations.Conv1d)(*channels, 1, groups=self.count, bias=False, **factory)

    def low(self, x: Tensor) -> Tensor:
        """Returns the low-rank features (n, b * tokens, rank) of x (b, tokens, inputs) for the n projections."""
        return self.down(x).reshape(-1, self.count, self.rank).transpose(0, 1)

    def add_to(self, targets: Sequence[Tensor], x: Tensor) -> None:
        """Adds the LoRA of x (b, tokens, inputs) to targets (n, b * tokens, outputs), in place.

        The targets together have a place for each projection.
        """
        low, lows = self.low(x), []
        for target in targets:
            lows.append(some_of(low, sum(map(len, lows)), len(target)))
        self.up(Increments(lows, targets))

    def on(self, bases: Sequence[Tensor], inputs: Sequence[Tensor], rows: slice) -> list[Tensor]:
        """Returns the projections (b, tokens, c) with the LoRA on some rows of what enters each (b, tokens, c)."""
        stacks, lows, targets = [], [], []
        for first, last in _runs(bases, inputs):
            n, (b, tokens, c) = last - first, bases[first].shape
            stacks.append(torch.cat(list(bases[first:last])).view(n, b, tokens, c))
            targets.append(stacks[-1][:, rows].view(n, -1, c))
            lows.append(some_of(self.low(inputs[first][rows]), first, n))
        self.up(Increments(lows, targets))
        return [projected for stack in stacks for projected in stack.unbind()]


def _runs(bases: Sequence[Tensor], inputs: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yields where projections of one tensor begin and end. Another pack may give k and v other tensors than q."""
    first = 0
    for i in range(1, len(bases) + 1):
        if i == len(bases) or inputs[i] is not inputs[first] or bases[i].shape != bases[first].shape:
            yield first, i
            first = i


class AttentionLoRA(nn.ModuleDict):
    """A LoRA for each projection of one attention, in stacks."""

    def __init__(self, place: AttentionPlace, operations: Any, **factory: Any) -> None:
        stacks = stacks_of(place.loras, place.of_text)
        super().__init__({stack.name: StackedLoRA(stack, operations, **factory) for stack in stacks})

    @property
    def entering(self) -> list[StackedLoRA]:
        """The LoRA of q, k and v."""
        return [*self.values()][:-1]

    @property
    def leaving(self) -> StackedLoRA:
        """The LoRA of the output projection."""
        return self[PROJECTIONS[-1]]

    def on_projections(
        self, projected: Sequence[Tensor], inputs: Sequence[Tensor], rows: slice
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Returns q, k and v (b, tokens, c) with the LoRA on some rows of what enters, `inputs` (b, tokens, c)."""
        changed: list[Tensor] = []
        for stack in self.entering:
            part = slice(len(changed), len(changed) + stack.count)
            changed += stack.on(projected[part], inputs[part], rows)
        return tuple(changed)

    def on_output(self, out: Tensor, attended: Tensor, rows: slice) -> Tensor:
        """Returns `out` (b, tokens, c) with the LoRA on some rows of `attended` (b, tokens, c)."""
        return self.leaving.on([out], [attended], rows)[0]


class JointAttention(nn.Module):
    """The attention of x to y and of y to x (section 3.2)."""

    def __init__(self, sizes: JointSizes, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.xy = AttentionLoRA(AttentionPlace("xy", sizes.xy, of_text=False), operations, **factory)
        self.yx = AttentionLoRA(AttentionPlace("yx", sizes.yx, of_text=False), operations, **factory)
        self.fuses = sizes.post == "conv_fuse"
        width = 2 * sizes.width if self.fuses else sizes.width
        self.post = operations.Linear(width, width, bias=False, **factory)

    def forward(
        self, x: Projected, y: Projected, attend: Callable[..., Tensor], to_out: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is added to the self-attentions of x and of y, both (pairs, tokens, c).

        `attend` is the model's attention of q, k, v, `to_out` its output projection. The LoRA of x is on all that is
        computed from the features of x, also on its keys and values for y. The same holds for y.
        """
        attended = attend(*self._projected(x, y))
        of_x, of_y = attended.chunk(2)
        axis = -1 if self.fuses else 0
        out = torch.cat(to_out(attended).chunk(2), axis)
        half = out.shape[axis] // 2
        for lora, of_one, first in ((self.xy, of_x, 0), (self.yx, of_y, half)):
            # chunk would do, but gradients cannot follow what is written into several views of one call
            target = out.narrow(axis, first, half)
            lora.leaving.add_to([target.view(1, -1, target.shape[-1])], of_one)
        return self.post(out).chunk(2, axis)

    def _projected(self, x: Projected, y: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q of x and y, and k and v of y and x, each (2 * pairs, tokens, c), with the LoRA on them."""
        q, keys_and_values = torch.cat([x.q, y.q]), torch.cat([y.k, x.k, y.v, x.v])
        of_q, of_kv = (stack.view(n, -1, x.q.shape[-1]) for n, stack in ((2, q), (4, keys_and_values)))
        for lora, hidden, place in ((self.xy, x.hidden, 0), (self.yx, y.hidden, 1)):
            (stack,) = lora.entering
            stack.add_to([of_q[place : place + 1], of_kv[1 - place :: 2]], hidden)
        return q, *keys_and_values.chunk(2)


class ConditionLoRA(nn.ModuleDict):
    """The LoRA for the rows of the condition on a block's self-attention and text attention."""

    def __init__(self, sizes: Sequence[Sequence[LowRank]], operations: Any, **factory: Any) -> None:
        places = (AttentionPlace(name, of_one, name == "attn2") for name, of_one in zip(ATTENTIONS, sizes, strict=True))
        super().__init__({place.stem: AttentionLoRA(place, operations, **factory) for place in places})


class UniCon(nn.Module):
    """All that a file adds to the model."""

    def __init__(self, sizes: Sizes, operations: Any, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"operations": operations, "device": device, "dtype": dtype}
        self.joints = nn.ModuleList(JointAttention(of_one, **factory) for of_one in sizes.joints)
        self.conditions = nn.ModuleList(ConditionLoRA(of_one, **factory) for of_one in sizes.conditions)


def places_of(sizes: Sizes) -> Iterator[AttentionPlace]:
    """Yields the LoRA of all attentions, with the beginnings of their names in the network."""
    for i, joint in enumerate(sizes.joints):
        yield AttentionPlace(f"joints.{i}.xy", joint.xy, of_text=False)
        yield AttentionPlace(f"joints.{i}.yx", joint.yx, of_text=False)
    for i, attentions in enumerate(sizes.conditions):
        for name, loras in zip(ATTENTIONS, attentions, strict=True):
            yield AttentionPlace(f"conditions.{i}.{name}", loras, of_text=name == "attn2")
