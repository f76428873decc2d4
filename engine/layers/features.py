"""Terms on the features that flow between the blocks of the host's UNet.

All terms of a site are computed from the same feature and then added, so their order does not matter. They are added
before the patches of other packs act there. Such a patch works on the steered feature as it would on a plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..entries import NetworkEntry, entries
from ..rows.chunk import CHUNKS, chunks_at, numbered, pick, put
from ..run import not_told
from ..sites import ORDER, Depth
from ..span import WHOLE_RUN, Span
from .call import NETWORK, LayerCall


class FeatureSite(NamedTuple):
    """The output of an input block after its skip is stored, or the input of an output block before its skip joins."""

    block: Literal["input", "output"]
    number: int

    @property
    def depth(self) -> Depth:
        """The depth of the block that takes in the feature. From there on a change is seen."""
        return Depth(ORDER[self.block], self.number + (self.block == "input"), 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureCall(LayerCall):
    """A feature (chunks * b, c, h, w), and the timesteps (chunks * b,) that the network is given.

    `embedding` (chunks * b, width) is the network's embedding of them, for layers that ask for it.
    """

    feature: Tensor
    timesteps: Tensor
    embedding: Tensor | None = None

    @property
    def now(self) -> Tensor:
        """The tensor that tells this step from others: the sampler's noise levels (b,), else the timesteps."""
        return self.options.get("sigmas", self.timesteps)

    def only(self, numbers: Sequence[int]) -> FeatureCall:
        """Returns the same call for some of the chunks, by number."""
        total, chunks = len(self.chunks), numbered([self.chunks[i] for i in numbers])
        feature, timesteps = pick(self.feature, numbers, total), pick(self.timesteps, numbers, total)
        embedding = None if self.embedding is None else pick(self.embedding, numbers, total)
        return self.changed(feature=feature, timesteps=timesteps, embedding=embedding, chunks=chunks)


AddedTerm = Callable[[FeatureCall], Tensor | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureLayer(NetworkEntry):
    """A term that acts on every chunk, those of extra predictions included. It may return None to add nothing."""

    site: FeatureSite
    apply: AddedTerm
    span: Span = WHOLE_RUN
    reads_embedding: bool = False


def patches_with_layers(
    options: Mapping[str, Any], in_span: Callable[[Span], bool], timesteps: Tensor
) -> dict[str, list] | None:
    """Returns the host's lists of patches with the terms of this call first. None if no term acts.

    `timesteps` (chunks * b,) are those of the call.
    """
    acting = [entry for entry in entries(options, FeatureLayer) if in_span(entry.span)]
    if not acting:
        return None
    by_site: dict[tuple, list[FeatureLayer]] = {}
    for entry in acting:
        by_site.setdefault(tuple(entry.site), []).append(entry)  # torch.compile asks for keys of that very type
    embeddings: list[Tensor] = []
    known, network = options[CHUNKS], options[NETWORK]

    def note_embedding(embedding: Tensor, width: int, options: Mapping[str, Any]) -> Tensor:
        embeddings.append(embedding)
        return embedding

    def add(feature: Tensor, options: Mapping[str, Any]) -> Tensor:
        layers = by_site.get(options.get("block") or not_told("block"))
        if not layers:
            return feature
        for layer in layers:
            layer.signs.called = True
        embedding = embeddings[-1] if embeddings else None
        chunks = chunks_at(options.get(CHUNKS, known), options, len(feature), network.is_traced)
        call = FeatureCall(
            feature=feature, timesteps=timesteps, embedding=embedding, chunks=chunks, options=options,
            **network._asdict(),
        )  # fmt: skip
        return _on_open_rows(call, partial(_sum, [layer.apply for layer in layers]))

    def add_before_skip(feature: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return add(feature, options), skip

    patches = dict(options.get("patches", {}))
    for kind, patch in (("input_block_patch_after_skip", add), ("output_block_patch", add_before_skip)):
        patches[kind] = [patch, *patches.get(kind, ())]
    if any(entry.reads_embedding for entry in acting):
        patches["emb_patch"] = [*patches.get("emb_patch", ()), note_embedding]
    return patches


def _sum(terms: Sequence[AddedTerm], call: FeatureCall) -> Tensor:
    return sum((term for compute in terms if (term := compute(call)) is not None), call.feature)


def _on_open_rows(call: FeatureCall, steered: Callable[[FeatureCall], Tensor]) -> Tensor:
    """Returns the feature, steered on the rows that are open to all methods."""
    acting = [chunk.index for chunk in call.chunks if chunk.group.is_open]
    if len(acting) == len(call.chunks):
        return steered(call)
    if not acting:
        return call.feature
    return put(call.feature, acting, len(call.chunks), steered(call.only(acting)))


def channels_at(unet: UNetModel, site: FeatureSite) -> int:
    """Returns how many channels the feature of a site has."""
    if site.block == "input":
        return _outputs(unet.input_blocks[site.number])
    if site.number > 0:
        return _outputs(unet.output_blocks[site.number - 1])
    return _outputs(unet.input_blocks[-1] if unet.middle_block is None else unet.middle_block)


def _outputs(block: nn.Module) -> int:
    """Returns how many channels leave a block, by its last layer that says it. Transformers keep what they get."""
    return next(layer.out_channels for layer in reversed(list(block)) if hasattr(layer, "out_channels"))
