"""The groups of rows of a call: what each row is if partners take part (partners.py).

A group has one branch of one chunk. Layers see by it which rows they are meant for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

GROUPS = "reins_groups"
Branch = Literal["image", "condition"]


class Group(NamedTuple):
    """The rows of one branch of one chunk of the host. Without partners each chunk is one group."""

    chunk: int  # its number in the host's call
    branch: Branch = "image"
    owner: UUID | None = None  # the partner whose condition these rows are
    is_sampled: bool = True  # whether the sampler asked for these rows
    is_paired: bool = True  # whether a condition and its image see each other in this prediction
    is_open: bool = True  # whether other methods act on these rows
    tokens: int | None = None  # how many the group's text has before it is repeated
