"""One call of a transformer: which layers act in it, and which of its blocks is running.

The host does not tell an attention where it is. So blocks with layers note themselves here before they run, and calls
of attention are counted within them. A passage belongs to one call, hence to one thread, and lies in the options of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.slots import SignedLayer
from ..rows.chunk import Chunk
from ..run import Run
from ..sharing import Phase, SharingPlan
from ..sites import Site
from .block_layers import PerturbedBlocks
from .families import BlockPlace, Family, attentions_of, blocks_of
from .picture import Picture
from .text_rows import TextRows

PASSAGE = "reins_passage"
OPTIONS = "transformer_options"  # of the host, as an argument


class Passage:
    """What the layers of one call need to know of the network."""

    def __init__(
        self, network: nn.Module, family: Family, picture: Picture, chunks: tuple[Chunk, ...],
        by_site: Mapping[Site, Sequence[SignedLayer]], on_blocks: Sequence[PerturbedBlocks],
    ) -> None:  # fmt: skip
        self.family, self.picture, self.chunks = family, picture, chunks
        self.by_site = by_site
        self.occupant: Callable[..., Tensor] | None = None  # another pack's override of attention
        self.plan: SharingPlan | None = None
        self.is_separable = True  # whether blocks hold nothing of single rows but what they are given
        self.without_checkpoint: dict[tuple[str, int], Callable[..., Any]] = {}  # blocks, instead of the host's slots
        self.in_slots: dict[tuple[str, int], Callable[..., Any]] = {}  # other packs' functions in slots of blocks
        self.texts: TextRows | None = None  # if chunks have texts that are repeated to one length
        self.text = 0  # tokens of text in the sequence of a joint attention
        self.running: list[Site | None] = []  # attentions that the running block has yet to call
        self.positions: Tensor | None = None  # rotations that the running block is given
        self.after: list[Tensor] = []  # terms (rows, tokens, c) for the picture behind the running block
        self.sites: dict[tuple[str, int], list[Site | None]] = {}
        self.on_blocks: dict[tuple[str, int], dict[int, PerturbedBlocks]] = {}  # by number of the extra prediction
        self.prepared: dict[tuple[str, int], dict[int, Tensor]] = {}  # what they asked for in this step
        self.places: dict[tuple[str, int], BlockPlace] = {}
        numbers = {chunk.mark: chunk.extra for chunk in chunks}
        for place, block in blocks_of(network, family):
            key = place.stack.letter, place.number
            self.places[key], self.sites[key] = place, attentions_of(place, block)
            layers = {
                numbers[entry.id]: entry
                for entry in on_blocks
                if any(site[:3] == place.site[:3] for site in entry.sites)
            }
            if layers:
                self.on_blocks[key] = layers

    def prepare(self, run: Run, sigma: float, device: torch.device) -> None:
        """Makes what layers on blocks ask for in each step."""
        tokens = prod(self.picture.grid)
        for key, layers in self.on_blocks.items():
            self.prepared[key] = {
                number: layer.prepare(run, sigma, self.places[key].site, tokens, device)
                for number, layer in layers.items()
                if layer.prepare is not None
            }

    def __deepcopy__(self, memo: dict) -> Passage:
        return self

    def phase(self, place: BlockPlace) -> Phase | None:
        """Returns which chunks are computed in a block. None if all are."""
        if self.plan is None:
            return None
        depth = place.site.depth
        return next((phase for phase in self.plan.phases if depth < phase.until), None)

    def needed(self) -> list[BlockPlace]:
        """Returns the blocks that have layers or share chunks, or that tell how long the text is."""
        needed = []
        for key, place in self.places.items():
            has_layers = key in self.on_blocks or any(site in self.by_site for site in self.sites[key])
            tells_text = place.number == 0 and "txt" in place.stack.streams
            is_padded = self.texts is not None and self.texts.are_padded
            if has_layers or tells_text or is_padded or self.phase(place) is not None:
                needed.append(place)
        return needed

    def parts(self, site: Site, tokens: int) -> tuple[slice, slice]:
        """Returns which of so many queries of an attention are the picture, and which are text."""
        if site.kind == "text":
            return slice(0, 0), slice(0, tokens)
        has_text = site.kind == "attn1" and site.index == 0 and site.block != "noise" and self.family.text != "apart"
        is_first = self.family.text == "first"
        picture = self.picture.within(tokens, self.text if has_text else 0, is_first)
        if not has_text:
            return picture, slice(0, 0)
        if self.picture.padding is not None:
            return picture, slice(0, picture.start)
        return picture, slice(0, self.text) if is_first else slice(picture.stop, tokens)

    def begin(self, place: BlockPlace, positions: Tensor | None) -> None:
        """Notes that a block begins, and the rotations (1 or rows, 1, tokens, d / 2, 2, 2) that it is given."""
        self.running, self.after = list(self.sites[place.stack.letter, place.number]), []
        self.positions = positions

    def end(self) -> list[Tensor]:
        """Notes that a block is over. Returns the terms (rows, tokens, c) that layers add to the picture behind it."""
        after, self.running, self.after, self.positions = self.after, [], [], None
        return after

    def next_attention(self) -> Site | None:
        """Returns which attention is called now. None outside of the blocks that have layers."""
        return self.running.pop(0) if self.running else None


def passage_in(options: Mapping[str, Any] | None) -> Passage | None:
    """Returns the passage of a call, by its options. None if no layer acts in it."""
    return None if options is None else options.get(PASSAGE)
