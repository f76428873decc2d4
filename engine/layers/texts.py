"""Texts of a method on the way that the prompts take to the projections of a text attention.

Other packs may change texts there: hypernetworks, weights of words below zero, regional prompts. A method that projects
a text itself has it changed in the same way. The patches see it as the text of one negative prompt, before they see
those of the call, for some packs keep notes from there to the output of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..entries import NetworkEntry, entries
from ..rows.chunk import CHUNKS, options_with
from ..sites import Site
from ..span import WHOLE_RUN, Span

PATCH, KIND, SHAPE = "attn2_patch", "attn2", "activations_shape"
NEGATIVE = 1  # the host's label


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnTexts(NetworkEntry):
    """Texts (1 or n, tokens, c) that a method projects at these attentions."""

    sites: frozenset[Site]
    texts: tuple[Tensor, ...]
    span: Span = WHOLE_RUN
    is_traceable: bool = True


class PatchedText(NamedTuple):
    """What the projections of k and v get for a text: each (1 or n, tokens, c)."""

    context: Tensor
    value: Tensor


@dataclass(frozen=True, eq=False)
class PatchedTexts:
    """Methods' own texts in one call of the network, as the patches of other packs change them."""

    patches: Sequence[Callable[..., tuple[Tensor, Tensor, Tensor]]]
    own: Sequence[OwnTexts]
    made: dict[tuple[Site, int], PatchedText] = field(default_factory=dict)

    def at(self, site: Site, text: Tensor) -> PatchedText:
        """Returns a text (1 or n, tokens, c) of one of the methods as it reaches the projections of an attention.

        Raises RuntimeError if the patches before this attention were not called.
        """
        if (site, id(text)) not in self.made:
            raise RuntimeError(
                f"A text attention ({site.block} {site.number}) should be called behind the patches that change its "
                f"texts, but another pack calls it without them. Remove that pack from the model."
            )
        return self.made[site, id(text)]

    def lists(self, options: Mapping[str, Any]) -> dict[str, list]:
        """Returns the host's lists of patches with one more, which comes before those of other packs."""
        lists = options.get("patches", {})
        return {**lists, PATCH: [self._patch_own, *lists.get(PATCH, ())]} if self.own else lists

    def _patch_own(
        self, hidden: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        site = Site(KIND, *options["block"], options["block_index"])
        for entry in self.own:
            for text in entry.texts if site in entry.sites else ():
                self.made[site, id(text)] = self._patched(text.to(context), hidden, options)
        return hidden, context, value

    def _patched(self, text: Tensor, hidden: Tensor, options: Mapping[str, Any]) -> PatchedText:
        rows = len(text)
        negative = options[CHUNKS][0]._replace(index=0, label=NEGATIVE, is_negative=True)
        alone = {**options_with(options, (negative,)), SHAPE: [rows, *options[SHAPE][1:]]}
        like, context, value = hidden[:1].expand(rows, -1, -1), text, text
        for patch in self.patches:
            like, context, value = patch(like, context, value, alone)
        if len(context) != rows or len(value) != rows:
            raise RuntimeError(
                f"A negative text of {rows} rows should keep them, but another pack makes {len(context)} of them in "
                f"the text attention (regional prompts, attention couple). Remove that pack from the model."
            )
        if context.shape[1] != value.shape[1]:
            raise RuntimeError(
                f"A negative text of {text.shape[1]} tokens should have as many keys as values, but another pack makes "
                f"{context.shape[1]} and {value.shape[1]} of it. Encode it with the CLIP that the other prompts have."
            )
        return PatchedText(context, value)


def patched_texts(options: Mapping[str, Any], in_span: Callable[[Span], bool]) -> PatchedTexts | None:
    """Returns the methods' own texts in this call. None if no other pack changes texts before the projections."""
    patches = options.get("patches", {}).get(PATCH, ())
    if not patches:
        return None
    own: Iterable[OwnTexts] = entries(options, OwnTexts)
    return PatchedTexts(tuple(patches), [texts for texts in own if in_span(texts.span)])
