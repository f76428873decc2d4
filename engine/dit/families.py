"""The diffusion transformers (DiTs) that the pack can steer, as data.

A family says what the host does not tell: which blocks a network has, which calls of attention a block makes, and where
the text is. Classes are known by name, for hosts differ in the classes that they have. A class that is not listed may
hold its tokens in another order, even if it inherits from one that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from ..sites import AttentionKind, Block, Site

Stream = int | str  # place or name of an argument of a block that the block changes


class Stack(NamedTuple):
    """A list of blocks of a network."""

    letter: str  # in the names of layers
    block: Block
    attribute: str  # of the network
    attentions: tuple[AttentionKind | None, ...] = ("attn1",)  # calls of attention in a block. None: of another kind
    slot: str | None = None  # what the host calls the slot of a block. None if it has none
    streams: tuple[Stream, ...] = ("img",)
    is_checkpointed: bool = False  # whether the host runs a block in a slot so that it could be trained


class Family(NamedTuple):
    """A kind of transformer. `text` says where text tokens lie among those of the first kind of attention."""

    name: str
    stacks: tuple[Stack, ...]
    text: Literal["first", "last", "apart"]
    has_rope: bool = True  # whether positions are encoded in attention, and not added to the tokens at the start
    enclosed: tuple[str, ...] = ()  # conds that the host hands to blocks past their slots, with a row for each image
    one_row: tuple[str, ...] = ()  # conds with which the host's network takes one row alone
    reads_text: str = ""  # the part of the network that a text goes through first. Empty if the text goes to the blocks
    mixes_text: bool = False  # whether that part lets the tokens of a text see each other, or adds some to them
    text_moves_picture: bool = False  # whether the positions of the picture depend on how many tokens the text has
    cross: Literal["wan", "ltxv", "predict2"] | None = None  # whose names the parts of a text attention have


class BlockPlace(NamedTuple):
    """A block of a network."""

    stack: Stack
    number: int

    @property
    def site(self) -> Site:
        """Its first attention."""
        return Site("attn1", self.stack.block, self.number, 0)


JOINT = ("img", "txt")
DOUBLE = Stack("d", "double", "double_blocks", slot="double_block", streams=JOINT)
SINGLE = Stack("s", "single", "single_blocks", slot="single_block")
CROSS: tuple[AttentionKind | None, ...] = ("attn1", "attn2")
WAN = Family(
    "Wan", (Stack("b", "layer", "blocks", CROSS, "double_block"),), "apart", reads_text="text_embedding", cross="wan"
)
FLUX = Family("Flux", (DOUBLE, SINGLE), "first", reads_text="txt_in")
LUMINA = Family(
    "Lumina2 and Z-Image",
    (
        Stack("c", "context", "context_refiner", ("text",), streams=(0,)),
        Stack("n", "noise", "noise_refiner", streams=(0,)),
        Stack("b", "layer", "layers", streams=(0,)),
    ),
    "first",
    reads_text="cap_embedder",
    text_moves_picture=True,
)
PREDICT2 = Family(
    "Cosmos Predict2",
    (Stack("b", "layer", "blocks", CROSS, streams=(0,)),),
    "apart",
    reads_text="blocks.0.cross_attn.k_proj",
    cross="predict2",
)
FAMILIES: Mapping[str, Family] = {
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": Family(
        "SD3",
        (Stack("b", "layer", "joint_blocks", slot="double_block", streams=JOINT, is_checkpointed=True),),
        "first",
        has_rope=False,
        reads_text="context_embedder",
    ),
    "flux.model.Flux": FLUX,
    "chroma.model.Chroma": FLUX._replace(name="Chroma"),
    "chroma_radiance.model.ChromaRadiance": FLUX._replace(name="Chroma Radiance"),
    "hunyuan_video.model.HunyuanVideo": FLUX._replace(
        name="HunyuanVideo", mixes_text=True, one_row=("attention_mask", "ref_latent")
    ),
    "aura.mmdit.MMDiT": Family(
        "AuraFlow",
        (DOUBLE._replace(attribute="double_layers"), SINGLE._replace(attribute="single_layers")),
        "first",
        has_rope=False,
        reads_text="cond_seq_linear",
    ),
    "qwen_image.model.QwenImageTransformer2DModel": Family(
        "Qwen-Image",
        (Stack("b", "layer", "transformer_blocks", slot="double_block", streams=JOINT),),
        "first",
        enclosed=("attention_mask",),
        reads_text="txt_in",
    ),
    "wan.model.WanModel": WAN,
    "wan.model.VaceWanModel": WAN._replace(name="Wan VACE"),
    "wan.model.CameraWanModel": WAN._replace(name="Wan Camera"),
    "lightricks.model.LTXVModel": Family(
        "LTX-Video",
        (Stack("b", "layer", "transformer_blocks", CROSS, "double_block"),),
        "apart",
        reads_text="caption_projection",
        cross="ltxv",
    ),
    "lumina.model.NextDiT": LUMINA,
    "hidream.model.HiDreamImageTransformer2DModel": Family(
        "HiDream",
        (
            Stack("d", "double", "double_stream_blocks", streams=("image_tokens", "text_tokens")),
            Stack("s", "single", "single_stream_blocks", streams=("image_tokens",)),
        ),
        "last",
        reads_text="caption_projection",
    ),
    "cosmos.predict2.MiniTrainDIT": PREDICT2,
    "anima.model.Anima": PREDICT2._replace(name="Anima", reads_text=""),
}
NO_OPTIONS = "its attention is called without the host's options, so that no layer can reach it"
REFUSED: Mapping[str, str] = {
    "pixart.pixartms.PixArtMS": NO_OPTIONS,
    "hydit.models.HunYuanDiT": NO_OPTIONS,
    "ernie.model.ErnieImageModel": NO_OPTIONS,
}
REASON = "nobody has measured where its tokens lie"


def name_of_class(network: nn.Module) -> str:
    """Returns the name of a network's class inside the host's folder of networks."""
    kind = type(network)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("comfy.ldm.")


def unwrapped(network: nn.Module) -> nn.Module:
    """Returns the network that a compiled one was made from, or the network itself."""
    return getattr(network, "_orig_mod", network)


def family_of(network: nn.Module) -> Family | None:
    """Returns the family of a network, or None if it is not one of those that the pack can steer."""
    network = unwrapped(network)
    family = FAMILIES.get(name_of_class(network))
    if family is None:
        return None
    if family.name == "HunyuanVideo" and _puts_text_last(network):
        return family._replace(text="last")
    if family.name == LUMINA.name and getattr(network, "pad_tokens_multiple", None):
        return family._replace(mixes_text=True)
    if family is WAN and getattr(network, "model_type", "t2v") == "i2v":
        return family._replace(stacks=(family.stacks[0]._replace(attentions=("attn1", None, "attn2")),))
    return family


def takes_one_row(network: nn.Module, conds: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether the host's network fails if some of these conds share a call with others."""
    family = family_of(network)
    return family is not None and any(name in cond["model_conds"] for name in family.one_row for cond in conds)


def why_not(network: nn.Module) -> str:
    """Returns why a network without a family cannot be steered in its attention."""
    return REFUSED.get(name_of_class(unwrapped(network)), REASON)


def blocks_of(network: nn.Module, family: Family) -> Iterator[tuple[BlockPlace, nn.Module]]:
    """Yields the blocks of a network in execution order."""
    network = unwrapped(network)
    for stack in family.stacks:
        for number, block in enumerate(getattr(network, stack.attribute)):
            yield BlockPlace(stack, number), block


def attentions_of(place: BlockPlace, block: nn.Module) -> list[Site | None]:
    """Returns the attentions that a block calls, in their order. None stands for a call of another kind."""
    kinds = list(place.stack.attentions)
    if getattr(getattr(block, "x_block", None), "x_block_self_attn", False):
        kinds.append("attn1")  # SD3.5 Medium has one more over the picture alone
    found: list[Site | None] = []
    for kind in kinds:
        index = sum(site is not None and site.kind == kind for site in found)
        found.append(None if kind is None else Site(kind, place.stack.block, place.number, index))
    return found


def dit_sites(network: nn.Module, kind: AttentionKind) -> list[Site]:
    """Returns all attentions of a kind in execution order. Empty if the network has no family."""
    family = family_of(network)
    if family is None:
        return []
    found = [site for place, block in blocks_of(network, family) for site in attentions_of(place, block)]
    return [site for site in found if site is not None and site.kind == kind]


def _puts_text_last(network: Any) -> bool:
    """Whether a HunyuanVideo network has its text behind the picture, as in older hosts."""
    blocks = list(network.double_blocks) + list(network.single_blocks)
    return bool(blocks) and bool(getattr(blocks[0], "flipped_img_txt", False))
