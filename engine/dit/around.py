"""Puts the layers of a call of a transformer into its options: the override of attention, and slots of blocks.

Some families have no slots of blocks. Their blocks get stand-ins in a view of the network, on which the host's own
forward runs. So nothing is put on the network, which may be in use by another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from ..compiled import COMPILER, compiled_apart
from ..entries import entries
from ..layers.call import NETWORK, ORIGINAL_SHAPE, NetworkCall
from ..layers.of_host import OVERRIDE
from ..layers.slots import layers_by_site
from ..rows.chunk import CHUNKS, chunks_of, options_with
from ..run import run_in, sigma_in
from ..sharing import sharing_plan
from ..span import Span
from .block_layers import PerturbedBlocks, Streams
from .blocks import Arguments, begun, run_block
from .families import DOUBLE, BlockPlace, Family, family_of, unwrapped
from .override import attend_beyond_torch, attend_with_layers
from .passage import OPTIONS, PASSAGE, Passage, passage_in
from .picture import check_attention, picture_of
from .text_parts import parts_for_texts
from .text_rows import ROWS

WRAPPERS = "wrappers"  # of the host, in the options of each call
BEFORE_ATTENTION = "attn1_patch"  # the host's patches on q, k, v and positions


def options_with_dit_layers(
    options: dict[str, Any], network: nn.Module, x: Tensor, conds: Mapping[str, Any], control: Any,
    in_span: Callable[[Span], bool],
) -> dict[str, Any]:  # fmt: skip
    """Returns the options of a call of a transformer in which the layers of the list act.

    x (b, c, h, w) or (b, c, t, h, w) and the conds are the inputs of the model. The options are returned as they are if
    no layer acts, or if the network has no family.
    """
    is_traced = COMPILER in options  # so that torch has to be able to follow the layers
    family = family_of(network)
    if family is None or PASSAGE in options:
        return options
    without_layers = options
    options = options_with(options, chunks_of(options, len(x)))
    marks = {chunk.mark for chunk in options[CHUNKS]}
    on_blocks = [entry for entry in entries(options, PerturbedBlocks) if entry.id in marks]
    by_site = layers_by_site(options, in_span)
    if not by_site and not on_blocks:
        return without_layers
    if by_site:
        check_attention(family, conds)
    picture = picture_of(family, network, x, conds)
    options[NETWORK] = NetworkCall.of(options, lambda path: unwrapped(network).get_submodule(path), is_traced=is_traced)
    passage = Passage(network, family, picture, options[CHUNKS], by_site, on_blocks)
    if any(entry.prepare is not None for entry in on_blocks):
        passage.prepare(run_in(options), sigma_in(options), x.device)
    passage.is_separable = not any(conds.get(name) is not None for name in family.enclosed)
    if passage.is_separable:
        passage.plan = sharing_plan(options, without_layers, control)
    passage.texts, passage.occupant = options.get(ROWS), options.get(OVERRIDE)
    options.setdefault(ORIGINAL_SHAPE, list(x.shape))
    attend = attend_with_layers if is_traced else attend_beyond_torch
    options |= {PASSAGE: passage, OVERRIDE: attend} if by_site else {PASSAGE: passage}
    slots = {kind: dict(of_kind) for kind, of_kind in options.get("patches_replace", {}).items()}
    of_blocks = slots.setdefault("dit", {})
    for place in passage.needed():
        if place.stack.slot is not None:
            name = place.stack.slot, place.number
            if name in of_blocks:
                passage.in_slots[name] = of_blocks[name]
            of_blocks[name] = _slot(place)
            if place.stack.is_checkpointed and network is unwrapped(network):
                block = getattr(network, place.stack.attribute)[place.number]
                passage.without_checkpoint[name] = _without_checkpoint(block)
    return {**_with_noted_positions(options, family), "patches_replace": slots}


def _with_noted_positions(options: dict[str, Any], family: Family) -> dict[str, Any]:
    """Returns the options with one more patch on q and k of Flux, behind those by which others may change positions."""
    patches = options.get("patches", {})
    if DOUBLE not in family.stacks or not patches.get(BEFORE_ATTENTION):
        return options
    return {**options, "patches": {**patches, BEFORE_ATTENTION: [*patches[BEFORE_ATTENTION], _note_positions]}}


def _note_positions(q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None = None, **told: Any) -> dict[str, Any]:
    """Notes the rotations (1 or rows, 1, tokens, d / 2, 2, 2) of an attention. Returns nothing that changes it."""
    passage = passage_in(told.get("extra_options"))
    if passage is not None:
        passage.positions = pe
    return {}


@cache  # the same function in every call, so that a compiled network is not compiled anew
def _slot(place: BlockPlace) -> Callable[..., dict[str, Any]]:
    """Returns the function in the slot of a block, around another pack's."""
    name = place.stack.slot, place.number

    def run_with_layers(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        passage = passage_in(args[OPTIONS])
        if passage is None:
            return extra["original_block"](args)
        block = begun(passage, place, passage.without_checkpoint.get(name) or extra["original_block"])
        occupant = passage.in_slots.get(name)

        def run(arguments: Arguments) -> Streams:
            if occupant is None:
                out = block(dict(arguments))
            else:
                out = occupant(dict(arguments), {**extra, "original_block": block})
            return {stream: out.get(stream) for stream in place.stack.streams}

        return dict(run_block(passage, place, args, run))

    return run_with_layers


def _without_checkpoint(block: nn.Module) -> Callable[[Arguments], dict[str, Any]]:
    """Returns a block of Stable Diffusion 3. In a slot the host runs it for training, which takes longer."""

    def run(args: Arguments) -> dict[str, Any]:
        text, image = block(
            args["txt"], args["img"], c=args["vec"], use_checkpoint=False, transformer_options=args[OPTIONS]
        )
        return {"txt": text, "img": image}

    return run


@dataclass(frozen=True)
class _StandIn:
    """Stands in for a block of a family without slots."""

    place: BlockPlace
    block: nn.Module
    passage: Passage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if passage_in(kwargs.get(OPTIONS)) is None:  # another pack runs the network once more, without the layers
            return self.block(*args, **kwargs)

        def run(arguments: Arguments) -> Streams:
            positional = [arguments[i] for i in range(len(args))]
            out = self.block(*positional, **{name: arguments[name] for name in kwargs})
            return dict(zip(self.place.stack.streams, out if isinstance(out, tuple) else (out,), strict=True))

        block = begun(self.passage, self.place, run)
        out = tuple(run_block(self.passage, self.place, {**dict(enumerate(args)), **kwargs}, block).values())
        return out if len(out) > 1 else out[0]


def forward_with_layers(executor: Any, *arguments: Any, **kwargs: Any) -> Tensor:
    """Returns the output (b, c, h, w) of a transformer, whose blocks get stand-ins if its family has no slots.

    Raises RuntimeError if another pack has replaced the forward of such a network.
    """
    network = unwrapped(executor.class_obj)
    given = kwargs.get(OPTIONS)
    options = given or next((value for value in arguments if isinstance(value, dict) and WRAPPERS in value), {})
    forward = (compiled_apart(executor, network, options) if COMPILER in options else None) or executor
    passage = passage_in(options)
    parts = {} if passage is None else parts_for_texts(passage, network)
    if passage is None or not (parts or _lacks_slots(passage.family)):
        return forward(*arguments, **kwargs)
    if getattr(executor.original, "__func__", None) is not type(network)._forward:
        raise RuntimeError(
            f"The layers of this pack act inside the forward of {passage.family.name}, but another pack has replaced "
            f"it. Remove that pack from the model."
        )
    view = object.__new__(type(network))
    view.__dict__.update(network.__dict__)  # parts in an instance's own dict are found before its modules
    view.__dict__.update(parts)
    needed = set(passage.needed())
    for stack in passage.family.stacks if _lacks_slots(passage.family) else ():
        blocks = enumerate(getattr(network, stack.attribute))
        view.__dict__[stack.attribute] = [
            _StandIn(place, block, passage) if (place := BlockPlace(stack, number)) in needed else block
            for number, block in blocks
        ]
    executor.original = type(network)._forward.__get__(view)  # of this call alone
    return forward(*arguments, **kwargs)


def _lacks_slots(family: Family) -> bool:
    return any(stack.slot is None for stack in family.stacks)
