"""UniCon (2410.11439): an image and its condition, sampled side by side, look at each other in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.layers.attention import Call, attend
from ...engine.layers.projections import Found
from ...engine.rows.groups import GROUPS, Group
from ...engine.unet import Site, Transformer
from ...models.unicon.files import UniConParts
from ...models.unicon.network import ATTENTIONS, Projected
from ...models.unicon.network import UniCon as Network


@dataclass(frozen=True, eq=False)
class UniCon:
    """A file as the host's patcher."""

    name: str
    trigger: str
    network: ModelPatcher
    parts: UniConParts


@dataclass(frozen=True)
class Places:
    """The numbers of a file's blocks in its network by site, and the paths of their attentions in a model."""

    joints: Mapping[Site, int]
    conditions: Mapping[Site, int]
    paths: Mapping[Site, str]

    @classmethod
    def of(cls, parts: UniConParts, blocks: Mapping[str, Transformer]) -> Places:
        """Of a file in a model whose blocks have these names."""
        joints = {blocks[name].site("attn1"): i for i, name in enumerate(parts.joints)}
        conditions = {blocks[name].site(kind): i for i, name in enumerate(parts.conditions) for kind in ATTENTIONS}
        used = [blocks[name] for name in dict.fromkeys((*parts.joints, *parts.conditions))]
        paths = {block.site(kind): f"{block.path}.{kind}" for block in used for kind in ATTENTIONS}
        return cls(joints, conditions, {site: paths[site] for site in {**joints, **conditions}})


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Settings of one UniCon on one model, and what it does around the attentions of its blocks."""

    network: Network
    owner: UUID  # the partner whose rows are the condition
    places: Places
    strength_x: float = 1.0
    strength_y: float = 1.0

    def acts(self, options: Mapping[str, Any]) -> bool:
        return any(group.owner == self.owner for group in options.get(GROUPS, ()))

    def project(self, site: Site, found: Found, call: Call) -> Call:
        """q, k and v with the condition's LoRA on its rows."""
        if site not in self.places.conditions:
            return call
        lora, where = self._lora(site), self._rows(call)
        added = [lora[name](inputs[where]) for name, inputs in zip(("to_q", "to_k", "to_v"), found.inputs, strict=True)]
        q, k, v = (_with_rows(rows, where, more) for rows, more in zip((call.q, call.k, call.v), added, strict=True))
        return Call(q, k, v, call.options)

    def add(self, site: Site, found: Found, out: Tensor) -> Tensor:
        """The output with the condition's LoRA on its rows, and with what image and condition saw of each other."""
        if site in self.places.conditions:
            where = self._rows(found.call)
            out = _with_rows(out, where, self._lora(site)["to_out"](found.attended[where]))
        return self._with_joint(site, found, out) if site in self.places.joints else out

    def _lora(self, site: Site) -> Any:
        return self.network.conditions[self.places.conditions[site]][site.kind]

    def _rows(self, call: Call) -> slice:
        """Where the condition's rows lie: its groups follow each other."""
        groups: Sequence[Group] = call.options[GROUPS]
        ours = [i for i, group in enumerate(groups) if group.owner == self.owner]
        per_group = len(call.q) // len(groups)
        return slice(ours[0] * per_group, (ours[-1] + 1) * per_group)

    def _with_joint(self, site: Site, found: Found, out: Tensor) -> Tensor:
        call = found.call
        groups: Sequence[Group] = call.options[GROUPS]
        conditions = [i for i, group in enumerate(groups) if group.owner == self.owner and group.is_paired]
        if not conditions:
            return out
        by_chunk = {group.chunk: i for i, group in enumerate(groups) if group.branch == "image"}
        images = [by_chunk[groups[i].chunk] for i in conditions]
        call.grid(call.q)  # both must have a token for each place
        projected = self._projected(found)
        x, y = (Projected(*(call.rows(part, branch) for part in projected)) for branch in (images, conditions))
        joint = self.network.joints[self.places.joints[site]]
        term_x, term_y = joint(x, y, lambda q, k, v: attend(Call(q, k, v, call.options)), found.attention.to_out)
        for term, strength, of_branch in ((term_x, self.strength_x, images), (term_y, self.strength_y, conditions)):
            if strength:
                out = _add_groups(out, of_branch, len(groups), term * strength)
        return out

    @staticmethod
    def _projected(found: Found) -> Projected:
        """What the model's matrices make of the features; anew where another pack's patch gave them other tokens."""
        hidden, context, value = found.inputs
        if context is hidden and value is hidden:
            return Projected(hidden, found.call.q, found.call.k, found.call.v)
        attention = found.attention
        return Projected(hidden, found.call.q, attention.to_k(hidden), attention.to_v(hidden))


def _add_groups(rows: Tensor, numbers: Sequence[int], count: int, added: Tensor) -> Tensor:
    parts = list(rows.chunk(count))
    for i, part in zip(numbers, added.chunk(len(numbers)), strict=True):
        parts[i] = parts[i] + part
    return torch.cat(parts)


def _with_rows(rows: Tensor, where: slice, added: Tensor) -> Tensor:
    return torch.cat([rows[: where.start], rows[where] + added, rows[where.stop :]])


def checked_unicon(found: Any) -> UniCon:
    if not isinstance(found, UniCon):
        raise ValueError(
            f"unicon should come from Load UniCon, but is {type(found).__name__}. Put that node before it."
        )
    return found
