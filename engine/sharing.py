"""Which chunks of a call are alike up to some depth of the network, so that they are computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from .layers.call import NETWORK
from .layers.others import leave_alike
from .rows.chunk import CHUNKS, Chunk
from .rows.names import NAMES_BY_NUMBER
from .run import Step
from .sites import Depth


def sharing_plan(options: Mapping[str, Any], without_layers: Mapping[str, Any], control: Any) -> SharingPlan | None:
    """Returns which chunks of a call share layers. None if nothing can be shared, or not safely.

    `without_layers` are the options without our layers. Other packs' patches on shared layers, and their wrappers
    anywhere, may treat chunks by their place in the batch. Then everything is computed. It is too if residuals are not
    known to be equal, and if chunks may be tiles of a picture.
    """
    chunks, step = options[CHUNKS], options[NETWORK].step
    first_changes = _first_changes(step, chunks)
    if not first_changes or NAMES_BY_NUMBER in options:
        return None
    if len({(chunk.uuid, chunk.label) for chunk in chunks}) < len(chunks):
        return None
    if not leave_alike(without_layers, max(first_changes.values())):
        return None
    if control is not None and not all(uuid in step.controlled for uuid in step.first_changes()):
        return None
    plan = SharingPlan(chunks, step, first_changes)
    return plan if plan.saves_rows else None


def _first_changes(step: Step | None, chunks: Sequence[Chunk]) -> dict[UUID, Depth]:
    """Returns the depth at which each chunk that repeats another one first differs from it."""
    if step is None:
        return {}
    uuids = {chunk.uuid for chunk in chunks}
    return {uuid: depth for uuid, depth in step.first_changes().items() if uuid in uuids}


class Phase(NamedTuple):
    """A part of the network in which the same chunks are computed."""

    until: Depth  # the depth at which it is over
    kept: Sequence[int]  # the chunks that are computed
    sources: Sequence[int]  # for each chunk the place, among the kept ones, of the one that it equals


class SharingPlan:
    """Which chunks are computed at each depth of a call, and which chunk's output the others take.

    All of them are computed behind the last phase.
    """

    def __init__(self, chunks: Sequence[Chunk], step: Step, first_changes: Mapping[UUID, Depth]) -> None:
        origins = [step.origin(chunk.uuid, chunk.label) for chunk in chunks]
        changes = [first_changes.get(chunk.uuid) for chunk in chunks]
        self.repeated = [self._repeated_by(i, origins, changes) for i in range(len(chunks))]
        self.until = [changes[i] if repeated != i else None for i, repeated in enumerate(self.repeated)]
        self.phases = [self._phase(until) for until in sorted({until for until in self.until if until is not None})]

    def _phase(self, end: Depth) -> Phase:
        kept = [i for i, until in enumerate(self.until) if until is None or until < end]
        return Phase(end, kept, [kept.index(i if i in kept else self.repeated[i]) for i in range(len(self.until))])

    @staticmethod
    def _repeated_by(chunk: int, origins: Sequence[Any], changes: Sequence[Depth | None]) -> int:
        """Returns the chunk that this one equals up to its first change: the plain one, or the last to change."""
        alike = [i for i, origin in enumerate(origins) if origin == origins[chunk]]
        plain = [i for i in alike if changes[i] is None]
        if changes[chunk] is None or len(plain) > 1:
            return chunk
        return plain[0] if plain else max(alike, key=lambda i: (changes[i], -i))

    @property
    def saves_rows(self) -> bool:
        """Whether any chunk is not computed in some layer."""
        return any(phase.until > Depth(0, 0, 0) for phase in self.phases)
