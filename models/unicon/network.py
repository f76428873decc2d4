"""UniCon (2410.11439): the joint attention between an image and its condition, and the condition's own LoRA.

Both are drawn by one network. In each transformer block x (the image) looks at y (the condition) and y at x, with the
block's own projections and a LoRA for each; a matrix P, zero at the start of training, mixes what they found.
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
    """One block's joint attention: the LoRA of x and y by projection, and the width of P over that of the block."""

    xy: Sequence[LowRank]
    yx: Sequence[LowRank]
    width: int
    post: Post


class Sizes(NamedTuple):
    """A network: its joint attentions, and the condition's LoRA by block and attention, for the blocks that have one.

    The blocks of both are numbered in the order of the file's names.
    """

    joints: Sequence[JointSizes]
    conditions: Sequence[Sequence[Sequence[LowRank]]]


class Projected(NamedTuple):
    """What enters an attention (b, tokens, c), and its q, k and v by the model's own projections."""

    hidden: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class LoRA(nn.Module):
    """up(down(x)); the factor alpha / rank, where a file has one, is in `up`."""

    def __init__(self, sizes: LowRank, operations: Any, **where: Any) -> None:
        super().__init__()
        self.down = operations.Linear(sizes.inputs, sizes.rank, bias=False, **where)
        self.up = operations.Linear(sizes.rank, sizes.outputs, bias=False, **where)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, inputs) -> (b, tokens, outputs)."""
        return self.up(self.down(x))


class AttentionLoRA(nn.ModuleDict):
    """A LoRA for each projection of one attention."""

    def __init__(self, sizes: Sequence[LowRank], operations: Any, **where: Any) -> None:
        super().__init__(
            {name: LoRA(of_one, operations, **where) for name, of_one in zip(PROJECTIONS, sizes, strict=True)}
        )

    def qkv(self, found: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a self-attention with the LoRA on them."""
        return tuple(
            base + self[name](found.hidden) for name, base in zip(PROJECTIONS[:3], found[1:], strict=True)
        )  # fmt: skip

    def on_projections(
        self, projected: Sequence[Tensor], inputs: Sequence[Tensor], rows: slice
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Returns q, k and v (b, tokens, c) with the LoRA on some rows of what enters, `inputs` (b, tokens, c)."""
        parts = zip(PROJECTIONS[:3], projected, inputs, strict=True)
        return tuple(_added(base, rows, self[name](entering[rows])) for name, base, entering in parts)

    def on_output(self, out: Tensor, attended: Tensor, rows: slice) -> Tensor:
        """Returns an attention's output (b, tokens, c) with the LoRA on some rows; `attended` is what was projected."""
        return _added(out, rows, self["to_out"](attended[rows]))


def _added(base: Tensor, rows: slice, term: Tensor) -> Tensor:
    return torch.cat([base[: rows.start], base[rows] + term, base[rows.stop :]])


class JointAttention(nn.Module):
    """x looks at y and y at x (section 3.2)."""

    def __init__(self, sizes: JointSizes, operations: Any, **where: Any) -> None:
        super().__init__()
        self.xy = AttentionLoRA(sizes.xy, operations, **where)
        self.yx = AttentionLoRA(sizes.yx, operations, **where)
        self.fuses = sizes.post == "conv_fuse"
        width = 2 * sizes.width if self.fuses else sizes.width
        self.post = operations.Linear(width, width, bias=False, **where)

    def forward(
        self, x: Projected, y: Projected, attend: Callable[..., Tensor], to_out: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is added to the self-attention of x and of y, both (pairs, tokens, c).

        `attend` is the model's attention of q, k, v, `to_out` its output projection. All that is computed from x's
        features has x's LoRA, its keys and values for y too, and so has y's.
        """
        qx, kx, vx = self.xy.qkv(x)
        qy, ky, vy = self.yx.qkv(y)
        seen = attend(torch.cat([qx, qy]), torch.cat([ky, kx]), torch.cat([vy, vx]))
        of_x, of_y = seen.chunk(2)
        out_x, out_y = to_out(seen).chunk(2)
        out_x, out_y = out_x + self.xy["to_out"](of_x), out_y + self.yx["to_out"](of_y)
        if self.fuses:
            return self.post(torch.cat([out_x, out_y], -1)).chunk(2, -1)
        return self.post(torch.cat([out_x, out_y])).chunk(2)


class ConditionLoRA(nn.ModuleDict):
    """What the rows of the condition have on a block's self-attention and text attention."""

    def __init__(self, sizes: Sequence[Sequence[LowRank]], operations: Any, **where: Any) -> None:
        super().__init__(
            {name: AttentionLoRA(of_one, operations, **where) for name, of_one in zip(ATTENTIONS, sizes, strict=True)}
        )


class UniCon(nn.Module):
    """All that a file adds to the model."""

    def __init__(self, sizes: Sizes, operations: Any, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        where = {"operations": operations, "device": device, "dtype": dtype}
        self.joints = nn.ModuleList(JointAttention(of_one, **where) for of_one in sizes.joints)
        self.conditions = nn.ModuleList(ConditionLoRA(of_one, **where) for of_one in sizes.conditions)
