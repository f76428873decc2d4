"""Rows of a call of a transformer that read a text of a method instead of the positive's.

Where text and picture are one sequence, a further text needs rows. Such a row has the inputs of its positive, and the
text of the method. The rows are added inside the call, so that they are always beside their positive, and what they
give is dropped.

The texts of a call have one length. A shorter text is repeated, its own tokens first. No token sees the repeated ones,
so a row gives what it gives for the text alone. Positions of the picture stay as they are without the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import torch
from torch import Tensor, nn

from ..rows.chunk import Chunk, chunks_of
from ..rows.conds import CONDS
from ..rows.images import clamped
from ..rows.names import IMAGES, LABELS, UUIDS
from ..rows.order import reorder
from ..run import STEP, Step
from ..span import Span
from .call import DiTCall
from .families import Family, family_of, unwrapped
from .own_texts import CONDS_OF_TEXTS, LLAMA, OwnText, TextsOfMethod, texts_in

ROWS = "reins_text_rows"
CONTEXT = "c_crossattn"
PER_TOKEN = {CONTEXT: 1, LLAMA: 2}  # inputs of the model with something for each token of the text, and their dimension
REFUSED = {
    "attention_mask": "leaves out some of its tokens",
    "txt_byt5": "has words in quotes, which a second text encoder reads (ByT5)",
    "siglip_feats": "comes with pictures",
    "ref_contexts": "comes with pictures",
}  # inputs of the model that change what a text is
PICTURES_BEFORE = {"ref_latents": "comes with pictures"}  # which Lumina2 has between text and picture
Arguments = tuple[Any, ...]  # x, t, c_concat, c_crossattn, control and options of a call of the model


class TextRow(NamedTuple):
    """A further chunk of a call: its name, whose positive it stands beside, and what it reads."""

    uuid: UUID
    source: Chunk
    owner: UUID  # id of the entry that the text is of
    text: OwnText


class Readers(NamedTuple):
    """The chunks of a part of a call, by number, that have one picture: a positive, and the rows beside it."""

    positive: int
    own: tuple[tuple[int, OwnText], ...]  # rows with the texts of one method
    others: tuple[int, ...]  # rows with texts of other methods


@dataclass(frozen=True, eq=False)
class TextRows:
    """The further chunks of a call. `lengths` are those of the texts, as PER_TOKEN lists them."""

    rows: tuple[TextRow, ...]
    padded: tuple[int, ...]
    of_host: tuple[int, ...]
    lengths: Mapping[UUID, tuple[int, ...]]
    multiple: int  # to which the network itself fills texts up

    def __deepcopy__(self, memo: dict) -> TextRows:
        return self

    @property
    def are_padded(self) -> bool:
        return any(lengths != self.padded for lengths in (self.of_host, *self.lengths.values()))

    def own(self, chunk: Chunk) -> tuple[int, ...]:
        """Returns how many tokens a chunk's texts have."""
        return self.lengths.get(chunk.uuid, self.of_host)

    def unseen(self, chunk: Chunk, tokens: int) -> list[slice]:
        """Returns which of so many tokens of text in a sequence are repeated ones."""
        if self.multiple:
            return [slice(self._filled(self.own(chunk)[0]), tokens)]
        unseen, stop = [], tokens
        parts = list(zip(self.own(chunk), self.padded, strict=True))
        for own, padded in reversed(parts + parts[1:]):  # a block of HiDream gets one more layer of the second text
            unseen.append(slice(stop - padded + own, stop))
            stop -= padded
        return unseen

    def _filled(self, length: int) -> int:
        return length + -length % self.multiple if self.multiple else length

    @property
    def moved(self) -> tuple[int, int]:
        """Returns how many tokens the text has in the sequence, and how many it has without the rows."""
        return self._filled(self.padded[0]), self._filled(self.of_host[0])

    def readers(self, chunks: Sequence[Chunk], owner: UUID) -> list[Readers]:
        """Returns the positives among the chunks of a part of a call that have rows of a method, with all rows."""
        rows = {row.uuid: row for row in self.rows}
        numbers: dict[tuple[UUID | None, int], int] = {
            (chunk.uuid, chunk.label): chunk.index for chunk in chunks if chunk.uuid not in rows
        }
        beside: dict[int, list[tuple[int, TextRow]]] = {}
        for chunk in chunks:
            if chunk.uuid in rows:
                row = rows[chunk.uuid]
                positive = numbers.get((row.source.uuid, row.source.label))
                if positive is None:
                    raise RuntimeError(
                        "A layer should have the rows of a positive prompt and of the texts beside it together, but "
                        "another pack takes them apart inside the model. Remove that pack from the model."
                    )
                beside.setdefault(positive, []).append((chunk.index, row))
        return [
            Readers(
                positive,
                tuple((number, row.text) for number, row in of_positive if row.owner == owner),
                tuple(number for number, row in of_positive if row.owner != owner),
            )
            for positive, of_positive in beside.items()
            if any(row.owner == owner for _, row in of_positive)
        ]


def readers_of(call: DiTCall, owner: UUID) -> list[Readers]:
    """Returns the positives of a call of an attention that have rows of a method."""
    rows = call.options.get(ROWS)
    return [] if rows is None else rows.readers(call.chunks, owner)


def call_with_text_rows(
    executor: Callable[..., Tensor], model: Any, arguments: Arguments, conds: Mapping[str, Any],
    in_span: Callable[[Span], bool],
) -> Tensor:  # fmt: skip
    """Returns the result (b, c, ...) for the host's rows, from a call with the rows of all texts."""
    x, options, network = arguments[0], arguments[-1], model.diffusion_model
    texts = [(entry, own) for entry, own in texts_in(options, in_span) if entry.in_rows and own]
    if not texts or ROWS in options:
        return executor(*arguments, **conds)
    chunks = chunks_of(options, len(x))
    rows = _rows(texts, chunks)
    if not rows:
        return executor(*arguments, **conds)
    inputs = {**conds, CONTEXT: arguments[3]}
    _check(texts, inputs, options, family_of(network))
    plan = _plan(rows, inputs, options, network)
    if type(model).__name__ == "LongCatImage" and plan.padded != plan.of_host:
        raise RuntimeError(
            f"The negative of {texts[0][0].method} should not be longer than the positive ({plan.of_host[0]} tokens), "
            f"for in LongCat-Image the place of the picture depends on it, but has {plan.padded[0]}. Shorten it."
        )
    sources = [chunk.index for chunk in chunks] + [row.source.index for row in rows]
    spread = {name: reorder(value, sources, len(x), len(chunks)) for name, value in inputs.items()}
    for place, name in enumerate(PER_TOKEN):
        if inputs.get(name) is not None:
            spread[name] = _texts(inputs[name], name, plan.padded[place], rows, options, chunks)
    if "num_tokens" in spread:
        spread["num_tokens"] = plan.padded[0]
    context = spread.pop(CONTEXT)
    x, t, c_concat, control = (reorder(arguments[i], sources, len(x), len(chunks)) for i in (0, 1, 2, 4))
    out = executor(x, t, c_concat, context, control, _options(options, rows, plan), **spread)
    return out[: len(arguments[0])]


def _rows(texts: Sequence[tuple[TextsOfMethod, Sequence[OwnText]]], chunks: Sequence[Chunk]) -> list[TextRow]:
    return [
        TextRow(uuid5(chunk.uuid or UUID(int=chunk.index), str(text.id)), chunk, entry.id, text)
        for entry, own in texts
        for text in own
        for chunk in chunks
        if not chunk.is_negative
    ]


def _check(
    texts: Sequence[tuple[TextsOfMethod, Sequence[OwnText]]], inputs: Mapping[str, Any], options: Mapping[str, Any],
    family: Family,
) -> None:  # fmt: skip
    """Raises RuntimeError if the method's texts and the positive cannot be read side by side."""
    method = texts[0][0].method
    faults = {**REFUSED, **(PICTURES_BEFORE if family.text_moves_picture else {})}
    for name, fault in faults.items():
        if inputs.get(name) is not None:
            raise RuntimeError(
                f"{method} reads the positive and the negative side by side in {family.name}, but the positive {fault} "
                f"({name}). Change the prompt or remove the node."
            )
    alone = next((name for name in family.one_row if inputs.get(name) is not None), None)
    if alone is not None:
        raise RuntimeError(
            f"{method} reads the positive and the negative side by side in {family.name}, but ComfyUI's network takes "
            f"one row alone with {alone}. Remove that input or the node."
        )
    for _, own in texts:
        for text in own:
            conds = options[CONDS_OF_TEXTS][text.id]
            fault = next((name for name in REFUSED if conds.get(name) is not None), None)
            if fault is not None:
                raise RuntimeError(
                    f"{method} reads the positive and the negative side by side in {family.name}, but the negative "
                    f"{REFUSED[fault]} ({fault}). Change the prompt or remove the node."
                )
            for name, dim in PER_TOKEN.items():
                found, like = conds.get(name), inputs.get(name)
                if like is not None and (found is None or _but(found, dim) != _but(like, dim)):
                    raise RuntimeError(
                        f"The negative of {method} should be a text of the same kind as the positive, but has another "
                        f"shape ({name}). Encode it with the CLIP of this model."
                    )


def _but(text: Tensor, dim: int) -> tuple[int, ...]:
    """Returns the lengths of a text (rows, ...) but those of its rows and tokens."""
    return tuple(length for i, length in enumerate(text.shape) if i not in (0, dim))


def _plan(
    rows: Sequence[TextRow], inputs: Mapping[str, Any], options: Mapping[str, Any], network: nn.Module
) -> TextRows:
    names = {name: dim for name, dim in PER_TOKEN.items() if inputs.get(name) is not None}
    of_host = tuple(inputs[name].shape[dim] for name, dim in names.items())
    lengths = {}
    for row in rows:
        conds = options[CONDS_OF_TEXTS][row.text.id]
        lengths[row.uuid] = tuple(conds[name].shape[dim] for name, dim in names.items())
    padded = tuple(max(of_text) for of_text in zip(of_host, *lengths.values(), strict=True))
    multiple = getattr(unwrapped(network), "pad_tokens_multiple", None) or 0
    return TextRows(tuple(rows), padded, of_host, lengths, multiple)


def _options(options: Mapping[str, Any], rows: Sequence[TextRow], plan: TextRows) -> dict[str, Any]:
    """Returns the options of a call with the names of the further chunks."""
    uuids, labels = options.get(UUIDS) or [None], options.get(LABELS) or [0]
    with_rows = {
        **options,
        ROWS: plan,
        UUIDS: [*uuids, *(row.uuid for row in rows)],
        LABELS: [*labels, *(row.source.label for row in rows)],
    }
    if options.get(IMAGES):
        with_rows[IMAGES] = [*options[IMAGES], *(options[IMAGES][row.source.index] for row in rows)]
    step: Step | None = options.get(STEP)
    infos = dict(options.get(CONDS, {}))
    for row in rows:
        own = row.source.uuid
        if own in infos:
            infos[row.uuid] = infos[own]
        if step is not None and own in step.extras:
            # the same prediction, and the row differs from that of the plain positive where the prediction does
            extra = step.extras[own]
            step.extras[row.uuid] = extra._replace(original=uuid5(extra.original, str(row.text.id)))
            if own in step.controlled:
                step.controlled.add(row.uuid)
    if infos:
        with_rows[CONDS] = infos
    return with_rows


def _texts(
    of_host: Tensor, name: str, length: int, rows: Sequence[TextRow], options: Mapping[str, Any],
    chunks: Sequence[Chunk],
) -> Tensor:  # fmt: skip
    """Returns the texts of all chunks (rows, ..., tokens, c), each with `length` tokens."""
    dim, parts = PER_TOKEN[name], [_repeated(of_host, PER_TOKEN[name], length)]
    for row in rows:
        own = options[CONDS_OF_TEXTS][row.text.id][name].to(of_host)
        images = chunks[row.source.index].images
        parts.append(_repeated(own[clamped(images, len(own))], dim, length))
    return torch.cat(parts)


def _repeated(text: Tensor, dim: int, length: int) -> Tensor:
    own = text.shape[dim]
    if own == length:
        return text
    return torch.cat([text] * -(-length // own), dim).narrow(dim, 0, length)
