"""What the rows of a call are, if partners take part in it (partners.py)."""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

GROUPS = "reins_groups"
Branch = Literal["image", "condition"]


class Group(NamedTuple):
    """The rows of one branch of one chunk of the host; without partners each chunk is such a group by itself."""

    chunk: int  # of the host's call
    branch: Branch = "image"
    owner: UUID | None = None  # the partner whose condition these rows are
    is_sampled: bool = True
    is_paired: bool = True  # whether a condition and its image see each other in this prediction
    is_open: bool = True  # whether other methods act on these rows
    tokens: int | None = None  # of the partner's text, before it is repeated
