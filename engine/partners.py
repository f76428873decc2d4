"""Partner rows: rows in the batch of a call that have another noise level and text than the host's rows.

There are two kinds. A partner with a latent is a given picture, which stays beside the one that is sampled. A half is
the second half of the rows that are sampled, and may run at another noise level than the first. Inside the call the
rows lie in groups, branch by branch. Each group says what it is, so that a layer acts on the rows meant for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, Literal
from uuid import UUID, uuid5

import torch
from torch import Tensor

from .entries import NetworkEntry, entries
from .rows.chunk import Chunk, chunks_of
from .rows.conds import CONDS, Area
from .rows.groups import GROUPS, Group
from .rows.images import images_in_window
from .rows.names import BATCH_ROWS, IMAGES, LABELS, UUIDS
from .run import STEP, Step, run_in
from .span import WHOLE_RUN, Span

LEAST_SIGMA = 1e-3  # the network is told the logarithm of a noise level, and 0 has none
Role = Literal["image", "condition", "half"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Partner(NetworkEntry):
    """Rows beside those of the host's call: an image, a condition, or the second half of what is sampled.

    `latent` (n, c, h, w) is as the model takes it, and `noise` is like it. A half has neither, but `condition_noise`,
    the share of the noise that it starts with. The texts are (1 or n, tokens, c). `off` is the id of an extra
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
        """Returns the noised partner (b, c, h, w) of each of the images, cut to `area`.

        Raises RuntimeError if its size is not that of `like` (b, c, h, w).
        """
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
    """Returns the text of the error for a partner and a sampled latent that differ in size."""
    return (
        f"The partner of {name} is {_size(partner)}, but the model samples {_size(sampled)}. Encode a picture of "
        f"the same size; areas of the picture and tiled diffusion do not go together with {method}."
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]} cells of {shape[1]} channels" if len(shape) == 4 else str(tuple(shape))


def ratio(sampling: Any, condition_noise: float) -> float:
    """Returns the noise level of the second half divided by that of the first.

    `condition_noise` is the share of the noise that the second half starts with.
    """
    if condition_noise >= 1:
        return 1.0
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    start = float(sampling.percent_to_sigma(1 - condition_noise)) if condition_noise > 0 else lowest
    return min(max(start, lowest), highest) / highest


def partners_in(options: Mapping[str, Any], in_span: Callable[[Span], bool]) -> list[Partner]:
    """Returns the partners that take part in a call of the network."""
    return [partner for partner in entries(options, Partner) if in_span(partner.span)]


def call_with_partners(
    executor: Any, partners: Sequence[Partner], sampling: Any,
    x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
    control: dict | None = None, transformer_options: dict[str, Any] = {}, **conds: Any,  # noqa: B006
) -> Tensor:  # fmt: skip
    """Returns the result (b, c, h, w) for the host's rows, from a call of the model with the rows of all partners."""
    plan = PartnerPlan(partners, transformer_options, len(x), sampling)
    options = plan.options()
    c_concat, conds = plan.repeated(c_concat), {name: plan.repeated(value) for name, value in conds.items()}
    out = executor(
        plan.pictures(x), plan.sigmas(t), c_concat, plan.texts(c_crossattn), plan.control(control), options, **conds
    )
    return plan.sampled(out)


class PartnerPlan:
    """The groups of rows of a call with partners, and the inputs and output of the call for them."""

    def __init__(self, partners: Sequence[Partner], options: dict[str, Any], rows: int, sampling: Any) -> None:
        self.by_id = {partner.id: partner for partner in partners}
        self.host, self.sampling = options, sampling
        self.chunks = chunks_of(options, rows)
        self.half = next((partner for partner in partners if partner.role == "half"), None)
        self.image_partner = next((partner for partner in partners if partner.role == "image"), None)
        self.rows, self.per_chunk = rows, rows // len(self.chunks)
        self.count = self.per_chunk // (2 if self.half else 1)  # rows of a group
        self.groups = [group._replace(tokens=self._tokens(group)) for group in self._groups(partners)]
        if self.half:
            self._check_pairs(self.half)

    def _check_pairs(self, half: Partner) -> None:
        """Raises RuntimeError if a call does not hold all images and their conditions."""
        is_part = self.host.get(BATCH_ROWS, self.per_chunk) != self.per_chunk
        if is_part or images_in_window(self.host, self.per_chunk) is not None:
            raise RuntimeError(
                f"{half.method} needs all images and conditions in one call of the model, but another node sends them "
                f"in parts (context windows, tiled diffusion). Remove that node."
            )

    def _groups(self, partners: Sequence[Partner]) -> list[Group]:
        groups = [Group(chunk.index) for chunk in self.chunks]
        if self.image_partner:
            groups = [self._condition(self.image_partner, chunk, is_sampled=True) for chunk in self.chunks]
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
        """Returns a uuid for each group. Caches of the host and of other packs tell rows apart by it."""
        step: Step | None = self.host.get(STEP)
        infos = self.host.get(CONDS, {})
        uuids: list[UUID | None] = []
        for group in self.groups:
            uuid = own = self._chunk(group).uuid
            if own in uuids and own is not None:
                uuid = uuid5(own, str(group.owner))
                if step is not None and own in step.extras:
                    step.extras[uuid] = step.extras[own]._replace(first_change=None)
                if own in infos:
                    infos[uuid] = infos[own]
            uuids.append(uuid)
        return uuids

    def _chunk(self, group: Group) -> Chunk:
        """Returns the chunk of the host's call that a group's rows belong to."""
        return self.chunks[group.chunk]

    def _place(self, group: Group) -> slice:
        """Returns where the rows of a group lie in the host's call, or the rows that it stands beside."""
        start = group.chunk * self.per_chunk + (self.count if self._is_half(group) else 0)
        return slice(start, start + self.count)

    def _images(self, group: Group) -> Sequence[int]:
        return self._chunk(group).images[: self.count]

    def _partner(self, group: Group) -> Partner | None:
        """Returns the partner whose picture and text a group has. None if it has the sampler's."""
        if group.branch == "image":
            return None if group.is_sampled else self.image_partner
        return None if group.is_sampled and self.image_partner else self.by_id[group.owner]

    @property
    def _scale(self) -> float:
        half = self.half
        return run_in(self.host).once((half, "ratio"), lambda: ratio(self.sampling, half.condition_noise))

    def _is_half(self, group: Group) -> bool:
        return self.half is not None and group.owner == self.half.id

    def _is_scaled(self, group: Group) -> bool:
        return self._is_half(group) and self._scale != 1

    def repeated(self, value: Any) -> Any:
        """Returns a tensor (rows, ...) of the host's call with rows for all groups, and any other value as it is."""
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self.rows:
            return value
        return torch.cat([value[self._place(group)] for group in self.groups])

    def pictures(self, x: Tensor) -> Tensor:
        """Returns the noisy latents (groups * b, c, h, w) of all groups, from those (rows, c, h, w) of the host."""
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
        """Returns the noise levels (groups * b,) of all groups, from those (rows,) of the host."""
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
        """Returns how many tokens a group's text has before it is repeated."""
        partner = self._partner(group)
        return self._chunk(group).tokens if partner is None else self._text(partner, group).shape[1]

    def texts(self, texts: Tensor) -> Tensor:
        """Returns the texts (groups * b, tokens, c) of all groups, from those (rows, tokens, c) of the host.

        Texts that differ in length are repeated to their least common multiple. Attention gives the same for them.
        """
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
        """Returns the host's residuals for all groups: zeros for rows that are not sampled and for second halves."""
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
        """Returns the rows (rows, c, h, w) that the sampler asked for, of an output (groups * b, c, h, w)."""
        if self.half is None:
            return out[: self.rows]
        parts = out[: self.rows].split(self.count)
        chunks = len(self.chunks)
        rows: list[Tensor] = []
        for i in range(chunks):
            rows += [parts[i], parts[chunks + i] / self._scale]
        return torch.cat(rows)
