"""Partner rows: rows that join the batch of a call with a noise level and a text of their own.

Every chunk of the host's call gets a partner that stays where it is (a given picture beside the one that is sampled),
or is itself a pair of halves, both sampled, of which the second may run at another noise level. Inside the call the
rows lie branch by branch; each group of rows says what it is, so that a layer acts on the rows it is meant for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, Literal
from uuid import UUID, uuid5

import torch
from torch import Tensor

from .entries import Entry, entries
from .rows.chunk import Chunk, chunks_of
from .rows.conds import CONDS, Area
from .rows.groups import GROUPS, Group
from .rows.images import images_in_window
from .rows.names import IMAGES, LABELS, UUIDS
from .run import STEP, Step, run_in
from .span import WHOLE_RUN, Span

BATCH = "reins_batch"  # how many rows the sampler sends
LEAST_SIGMA = 1e-3  # the logarithm of 0 is no time
Role = Literal["image", "condition", "half"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Partner(Entry):
    """Rows beside those of the host's call: an image, a condition, or (half) the second half of what is sampled.

    `latent` (n, c, h, w) as the model takes it, and `noise` like it; a half has neither, but `condition_noise`, the
    share of the noise that it starts with. The texts are (1 or n, tokens, c). `off` marks the chunks of an extra
    prediction that is made without the partner. `opens` lets other methods act on the condition too.
    """

    role: Role
    method: str  # what a person calls the method, for errors
    name: str  # of its file
    positive: Tensor
    negative: Tensor
    latent: Tensor | None = None
    noise: Tensor | None = None
    sigma: float = 0.0
    condition_noise: float = 1.0
    maker: str = ""  # the node that makes the latent of two halves, for errors
    off: UUID | None = None
    opens: bool = False
    span: Span = WHOLE_RUN

    def rows(
        self, like: Tensor, images: Sequence[int], area: Area | None, options: Mapping[str, Any], sampling: Any
    ) -> Tensor:
        """(b, c, h, w): the noised partner of each row, its part in `area`. RuntimeError for another size."""
        run, key = run_in(options), (self, like.device, like.dtype)

        def noised() -> Tensor:
            sigma = torch.tensor([self.sigma])
            return sampling.noise_scaling(sigma, self.noise.clone(), self.latent).to(like)

        whole = run.once(key, noised)
        if area is not None:
            h, w, top, left = area
            whole = whole[..., top : top + h, left : left + w]
        if whole.shape[1:] != like.shape[1:]:
            raise RuntimeError(size_fault(self.method, self.name, whole.shape, like.shape))
        if len(whole) == 1:
            return whole.expand(len(images), -1, -1, -1)
        rows = tuple(i % len(whole) for i in images)
        return run.once((*key, rows, area), lambda: whole[list(rows)])


def size_fault(method: str, name: str, partner: Sequence[int], sampled: Sequence[int]) -> str:
    """Returns what is wrong if a partner and the sampled latent differ in size, as an error says it."""
    return (
        f"The partner of {name} is {_size(partner)}, but the model samples {_size(sampled)}. Encode a picture of "
        f"the same size; areas of the picture and tiled diffusion do not go together with {method}."
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]} cells of {shape[1]} channels" if len(shape) == 4 else str(tuple(shape))


def ratio(sampling: Any, condition_noise: float) -> float:
    """The noise level of the second half over that of the first, so that it starts at a share of the noise."""
    if condition_noise >= 1:
        return 1.0
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    start = float(sampling.percent_to_sigma(1 - condition_noise)) if condition_noise > 0 else lowest
    return min(max(start, lowest), highest) / highest


def partners_in(options: Mapping[str, Any], in_span: Callable[[Span], bool]) -> list[Partner]:
    """The partners of a call."""
    return [partner for partner in entries(options, Partner) if in_span(partner.span)]


def call_with_partners(
    executor: Any, partners: Sequence[Partner], sampling: Any,
    x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
    control: dict | None = None, transformer_options: dict[str, Any] = {}, **conds: Any,  # noqa: B006
) -> Tensor:  # fmt: skip
    """The model's call with the rows of all partners in it; returns the sampled rows in the host's order."""
    plan = PartnerPlan(partners, transformer_options, len(x), sampling)
    options = plan.options()
    c_concat, conds = plan.repeated(c_concat), {name: plan.repeated(value) for name, value in conds.items()}
    out = executor(
        plan.pictures(x), plan.sigmas(t), c_concat, plan.texts(c_crossattn), plan.control(control), options, **conds
    )
    return plan.sampled(out)


class PartnerPlan:
    """Which rows a call with partners has."""

    def __init__(self, partners: Sequence[Partner], options: dict[str, Any], rows: int, sampling: Any) -> None:
        self.by_id = {partner.id: partner for partner in partners}
        self.host, self.sampling = options, sampling
        self.chunks = chunks_of(options, rows)
        self.half = next((partner for partner in partners if partner.role == "half"), None)
        self.turned = next((partner for partner in partners if partner.role == "image"), None)
        self.rows, self.per_chunk = rows, rows // len(self.chunks)
        self.count = self.per_chunk // (2 if self.half else 1)  # rows of a group
        self.groups = [group._replace(tokens=self._tokens(group)) for group in self._groups(partners)]
        if self.half:
            self._check_pairs(self.half)

    def _check_pairs(self, half: Partner) -> None:
        """Raises RuntimeError if images and their conditions do not come together."""
        is_part = self.host.get(BATCH, self.per_chunk) != self.per_chunk
        if is_part or images_in_window(self.host, self.per_chunk) is not None:
            raise RuntimeError(
                f"{half.method} needs all images and conditions in one call of the model, but another node sends them "
                f"in parts (context windows, tiled diffusion). Remove that node."
            )

    def _groups(self, partners: Sequence[Partner]) -> list[Group]:
        groups = [Group(chunk.index) for chunk in self.chunks]
        if self.turned:
            groups = [self._condition(self.turned, chunk, is_sampled=True) for chunk in self.chunks]
        if self.half:
            groups += [self._condition(self.half, chunk, is_sampled=True) for chunk in self.chunks]
        for partner in partners:
            seen = [chunk for chunk in self.chunks if partner.off is None or chunk.mark != partner.off]
            if partner.role == "condition":
                groups += [self._condition(partner, chunk, is_sampled=False) for chunk in seen]
            elif partner.role == "image":
                groups += [Group(chunk.index, is_sampled=False) for chunk in seen]
        return groups

    @staticmethod
    def _condition(partner: Partner, chunk: Chunk, is_sampled: bool) -> Group:
        paired = partner.off is None or chunk.mark != partner.off
        return Group(chunk.index, "condition", partner.id, is_sampled, paired, partner.opens)

    def options(self) -> dict[str, Any]:
        """Returns the host's options with a chunk for each group."""
        labels = [self._chunk(group).label for group in self.groups]
        options = {**self.host, GROUPS: self.groups, UUIDS: self._uuids(), LABELS: labels}
        if IMAGES in self.host:
            options[IMAGES] = [self.host[IMAGES][group.chunk][: self.count] for group in self.groups]
        return options

    def _uuids(self) -> list[UUID | None]:
        """A uuid for each group: caches of the host and of other packs tell rows by them."""
        step: Step | None = self.host.get(STEP)
        infos = self.host.get(CONDS, {})
        uuids: list[UUID | None] = []
        for group in self.groups:
            uuid = own = self._chunk(group).uuid
            if own in uuids and own is not None:
                uuid = uuid5(own, str(group.owner))
                if step is not None and own in step.marks:
                    step.marks[uuid] = step.marks[own]
                if own in infos:
                    infos[uuid] = infos[own]
            uuids.append(uuid)
        return uuids

    def _chunk(self, group: Group) -> Chunk:
        """The chunk of the host's call that a group's rows belong to."""
        return self.chunks[group.chunk]

    def _place(self, group: Group) -> slice:
        """Where a group's rows, or those that it stands beside, lie in the host's call."""
        start = group.chunk * self.per_chunk + (self.count if self._is_half(group) else 0)
        return slice(start, start + self.count)

    def _images(self, group: Group) -> Sequence[int]:
        return self._chunk(group).images[: self.count]

    def _partner(self, group: Group) -> Partner | None:
        """Whose picture and text a group has; None for the sampler's own."""
        if group.branch == "image":
            return None if group.is_sampled else self.turned
        return None if group.is_sampled and self.turned else self.by_id[group.owner]

    @property
    def _scale(self) -> float:
        half = self.half
        return run_in(self.host).once((half, "ratio"), lambda: ratio(self.sampling, half.condition_noise))

    def _is_half(self, group: Group) -> bool:
        return self.half is not None and group.owner == self.half.id

    def _is_scaled(self, group: Group) -> bool:
        return self._is_half(group) and self._scale != 1

    def repeated(self, value: Any) -> Any:
        """Conditioning with a row for each row of the host's call, with the same for the rows beside them."""
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self.rows:
            return value
        return torch.cat([value[self._place(group)] for group in self.groups])

    def pictures(self, x: Tensor) -> Tensor:
        rows = []
        for group in self.groups:
            own = x[self._place(group)]
            if not group.is_sampled:
                info = self._chunk(group).info
                area = None if info is None else info.area
                own = self._partner(group).rows(own, self._images(group), area, self.host, self.sampling)
            rows.append(own * self._scale if self._is_scaled(group) else own)
        return torch.cat(rows)

    def sigmas(self, t: Tensor) -> Tensor:
        levels = []
        for group in self.groups:
            own = t[self._place(group)]
            if not group.is_sampled:
                own = torch.full_like(own, max(self._partner(group).sigma, LEAST_SIGMA))
            levels.append(own * self._scale if self._is_scaled(group) else own)
        return torch.cat(levels)

    def _text(self, partner: Partner, group: Group) -> Tensor:
        return partner.negative if self._chunk(group).is_negative else partner.positive

    def _tokens(self, group: Group) -> int | None:
        """Of a group's text, before it is repeated."""
        partner = self._partner(group)
        return self._chunk(group).tokens if partner is None else self._text(partner, group).shape[1]

    def texts(self, texts: Tensor) -> Tensor:
        """Texts of different length are repeated to the least common one, which attention does not notice."""
        own_texts = []
        for group in self.groups:
            partner = self._partner(group)
            if partner is None:
                own_texts.append(texts[self._place(group)])
                continue
            own = self._text(partner, group)
            images = [i % len(own) for i in self._images(group)]
            own_texts.append((own.expand(self.count, -1, -1) if len(own) == 1 else own[images]).to(texts))
        longest = lcm(*(text.shape[1] for text in own_texts))
        return torch.cat([text.repeat(1, longest // text.shape[1], 1) for text in own_texts])

    def control(self, control: Any) -> Any:
        """Control of the host for the sampled rows; none for those beside them and for the second half."""
        if isinstance(control, dict):
            return {key: self.control(value) for key, value in control.items()}
        if isinstance(control, list):
            return [self.control(value) for value in control]
        if not isinstance(control, Tensor):
            return control
        rows = control.expand(self.rows, *control.shape[1:]) if len(control) == 1 else control
        controlled = [group.is_sampled and not self._is_half(group) for group in self.groups]
        parts = [rows[self._place(group)] for group in self.groups]
        return torch.cat([part if on else torch.zeros_like(part) for part, on in zip(parts, controlled, strict=True)])

    def sampled(self, out: Tensor) -> Tensor:
        """What the sampler asked for."""
        if self.half is None:
            return out[: self.rows]
        parts = out[: self.rows].split(self.count)
        chunks = len(self.chunks)
        rows: list[Tensor] = []
        for i in range(chunks):
            rows += [parts[i], parts[chunks + i] / self._scale]
        return torch.cat(rows)
