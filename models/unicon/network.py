"""UniCon (2410.11439): the joint attention between an image and its condition, and the condition's LoRA.

One network draws both. In each transformer block x (the image) attends to y (the condition) and y to x. The attentions
use the block's projections, with a LoRA each for x and y. A matrix P, zero at the start of training, mixes the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Post = Literal["conv_fuse", "conv"]
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
ATTENTIONS = ("attn1", "attn2")


class LowRank(NamedTuple):
    """Sizes of one LoRA: inputs, rank, outputs."""

    inputs: int
    rank: int
    outputs: int


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


class LoRA(nn.Module):
    """up(down(x)). If a file has a factor alpha / rank, `up` contains it."""

    def __init__(self, sizes: LowRank, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.down = operations.Linear(sizes.inputs, sizes.rank, bias=False, **factory)
        self.up = operations.Linear(sizes.rank, sizes.outputs, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """The increment (b, tokens, outputs) for x (b, tokens, inputs)."""
        return self.up(self.down(x))


class AttentionLoRA(nn.ModuleDict):
    """A LoRA for each projection of one attention."""

    def __init__(self, sizes: Sequence[LowRank], operations: Any, **factory: Any) -> None:
        super().__init__(
            {name: LoRA(of_one, operations, **factory) for name, of_one in zip(PROJECTIONS, sizes, strict=True)}
        )

    def qkv(self, projected: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a self-attention, each (b, tokens, c), with the LoRA on them."""
        return tuple(
            base + self[name](projected.hidden) for name, base in zip(PROJECTIONS[:3], projected[1:], strict=True)
        )  # fmt: skip

    def on_projections(
        self, projected: Sequence[Tensor], inputs: Sequence[Tensor], rows: slice
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Returns q, k and v (b, tokens, c) with the LoRA on some rows of what enters, `inputs` (b, tokens, c)."""
        parts = zip(PROJECTIONS[:3], projected, inputs, strict=True)
        return tuple(_added(base, rows, self[name](entering[rows])) for name, base, entering in parts)

    def on_output(self, out: Tensor, attended: Tensor, rows: slice) -> Tensor:
        """Returns `out` (b, tokens, c) with the LoRA on some rows of `attended` (b, tokens, c)."""
        return _added(out, rows, self["to_out"](attended[rows]))


def _added(base: Tensor, rows: slice, term: Tensor) -> Tensor:
    return torch.cat([base[: rows.start], base[rows] + term, base[rows.stop :]])


class JointAttention(nn.Module):
    """The attention of x to y and of y to x (section 3.2)."""

    def __init__(self, sizes: JointSizes, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.xy = AttentionLoRA(sizes.xy, operations, **factory)
        self.yx = AttentionLoRA(sizes.yx, operations, **factory)
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
        qx, kx, vx = self.xy.qkv(x)
        qy, ky, vy = self.yx.qkv(y)
        attended = attend(torch.cat([qx, qy]), torch.cat([ky, kx]), torch.cat([vy, vx]))
        of_x, of_y = attended.chunk(2)
        out_x, out_y = to_out(attended).chunk(2)
        out_x, out_y = out_x + self.xy["to_out"](of_x), out_y + self.yx["to_out"](of_y)
        if self.fuses:
            return self.post(torch.cat([out_x, out_y], -1)).chunk(2, -1)
        return self.post(torch.cat([out_x, out_y])).chunk(2)


class ConditionLoRA(nn.ModuleDict):
    """The LoRA for the rows of the condition on a block's self-attention and text attention."""

    def __init__(self, sizes: Sequence[Sequence[LowRank]], operations: Any, **factory: Any) -> None:
        super().__init__(
            {name: AttentionLoRA(of_one, operations, **factory) for name, of_one in zip(ATTENTIONS, sizes, strict=True)}
        )


class UniCon(nn.Module):
    """All that a file adds to the model."""

    def __init__(self, sizes: Sizes, operations: Any, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"operations": operations, "device": device, "dtype": dtype}
        self.joints = nn.ModuleList(JointAttention(of_one, **factory) for of_one in sizes.joints)
        self.conditions = nn.ModuleList(ConditionLoRA(of_one, **factory) for of_one in sizes.conditions)
