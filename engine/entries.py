"""The one list, `transformer_options["reins"]`, to which every method appends what it does.

The host merges lists when conditioning hooks meet model options, and no other pack overwrites this one, as it may
overwrite a slot. Entries are frozen. Clones of a model share them, however the host copies options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID, uuid4

from comfy.model_patcher import ModelPatcher
from torch import Tensor

KEY = "reins"


@dataclass(eq=False)
class Signs:
    """What shows in a run that an entry acts (effects.py). Copies of the entry share them.

    `changed` () stays on the device. It tells whether the entry has changed the result. None if it made no result.
    `compared` counts how many results it was asked for.
    """

    called: bool = False
    changed: Tensor | None = None
    compared: int = 0

    def compare(self, after: Tensor, before: Tensor) -> None:
        """Notes whether a result (any, ...) was changed."""
        changed = (after != before).any()
        self.changed = changed if self.changed is None else self.changed | changed
        self.compared += 1

    def clear(self) -> None:
        self.called, self.changed, self.compared = False, None, 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """What a method adds to a model. `order` is its place in the graph."""

    id: UUID = field(default_factory=uuid4)
    order: int = 0
    signs: Signs = field(default_factory=Signs)

    def __deepcopy__(self, memo: dict) -> Entry:
        return self


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkEntry(Entry):
    """What acts inside the network, and not on its inputs or results alone.

    If it `is_traceable`, it computes with tensors alone, so that torch.compile can follow it.
    """

    is_traceable: bool = False


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def entries(transformer_options: dict[str, Any], kind: type[AnyEntry]) -> Iterator[AnyEntry]:
    """Returns the entries of a kind in the order of the graph, each once, even if the host merged a list twice."""
    unique = {entry.id: entry for entry in transformer_options.get(KEY, ()) if isinstance(entry, kind)}
    return iter(sorted(unique.values(), key=lambda entry: entry.order))


def next_order(model: ModelPatcher) -> int:
    """Returns the place in the graph of the entry that a node is about to add to `model`."""
    placed = model.model_options["transformer_options"].get(KEY, ())
    return 1 + max((entry.order for entry in placed), default=0)


def append(model: ModelPatcher, entry: Entry) -> None:
    """Appends an entry to a clone that the caller has just made."""
    options = model.model_options["transformer_options"]
    model.model_options["transformer_options"] = {**options, KEY: [*options.get(KEY, ()), entry]}


def install_wrapper(model: ModelPatcher, kind: str, wrapper: Any, key: str = KEY) -> None:
    """Adds one of the pack's wrappers to a clone, once for each key. Several wrappers of a kind have different keys."""
    model.remove_wrappers_with_key(kind, key)
    model.add_wrapper_with_key(kind, key, wrapper)
