"""What the rows of a call are, where partners take part in it (branches.py)."""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

GROUPS = "reins_groups"
Branch = Literal["image", "condition"]


class Group(NamedTuple):
    """The rows of one branch of one chunk; such a group stands in the call where a chunk of the host stood."""

    chunk: int  # of the host's call
    branch: Branch
    owner: UUID | None  # the partner whose condition these rows are
    is_sampled: bool
    is_paired: bool = True  # whether a condition and its image see each other in this prediction
    is_open: bool = True  # whether other methods act on these rows
