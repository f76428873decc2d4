"""UniCon (2410.11439): its checkpoints in all spellings, and the names in the single file that this pack writes.

The official folder holds model.pth and a file for each LoRA. In other names, model.pth alone has everything too. The
single file has these names as well, such as `<block>.attn1n.to_q.lora_A.xy_lora.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..foreign_files import few
from .network import JointSizes, Sizes
from .stacks import ATTENTIONS, PROJECTIONS, LowRank

Weights = Mapping[str, Tensor]
SETS = ("xy_lora", "yx_lora", "y_lora")  # the three LoRA, in the order in which a name is searched for them
POST_KEY = "conv1n"
ENDS = {"A": "down", "B": "up", "down": "down", "up": "up"}

BLOCK = r"(?P<block>(?:down_blocks|up_blocks|mid_block)\.[\w.]*?transformer_blocks\.\d+)"
HEAD = rf"{BLOCK}\.(?P<attention>attn1n|attn1|attn2)\.(?P<projection>to_q|to_k|to_v|to_out)(?:\.0)?(?:[._]lora)?"
NAME = r"(?:\.(?P<name>(?!weight$)\w+))?"
LORA = re.compile(rf"{HEAD}[._](?P<end>A|B|down|up){NAME}\.weight")
ALPHA = re.compile(rf"{HEAD}\.alpha{NAME}")
POST = re.compile(rf"{BLOCK}\.(?:conv1n|post1n)(?:\.\w+)?\.weight")
FROZEN = re.compile(rf"{BLOCK}\.attn1n\.[\w.]+")  # of a copy that equals the model's own attention
PREFIX = re.compile(r"(?:(?:module|_orig_mod|base_model|model|unet)\.)+")


class LoRAPlace(NamedTuple):
    """The projection that a LoRA changes in the official model, and which of SETS it belongs to."""

    block: str
    attention: str
    projection: str
    set: str


class UniConParts(NamedTuple):
    """A checkpoint taken apart: `joints` are blocks with a joint attention, `conditions` with a condition LoRA."""

    sizes: Sizes
    weights: dict[str, Tensor]  # by the names of single LoRA, which are stacked for the network
    joints: tuple[str, ...]
    conditions: tuple[str, ...]


def parse_unicon(weights: Weights, name: str, sets: Mapping[str, Weights] | None = None) -> UniConParts:
    """The parts of a checkpoint called `name`.

    `sets` are the LoRA files of a folder by the name of their set. They replace those in `weights`.

    Raises ValueError if tensors are missing, unknown or of a wrong shape.
    """
    loras: dict[tuple[LoRAPlace, str], Tensor] = {}
    posts: dict[str, Tensor] = {}
    unknown: list[str] = []
    for of_set, group in [("", weights), *(sets or {}).items()]:
        _check_once(group, of_set, name)
        for key, value in group.items():
            if not isinstance(value, Tensor):
                continue
            if not _sort(PREFIX.sub("", key, count=1), value, of_set, loras, posts):
                unknown.append(key)
    if not posts:
        raise ValueError(_refusal(unknown or list(weights), name))
    if unknown:
        raise ValueError(
            f"{name} is a UniCon but has unknown tensors: {few(unknown)}. Choose a file as its authors' code writes it."
        )
    return _parts(_scaled(loras, name), posts, name)


def flat_names(parts: UniConParts) -> dict[str, str]:
    """The names in the single file, by the names of the weights in the parts."""
    names = {}
    for i, block in enumerate(parts.joints):
        names[f"joints.{i}.post.weight"] = f"{block}.{POST_KEY}.weight"
        for of_set in SETS[:2]:
            for projection, end, internal in _ends():
                key = f"joints.{i}.{of_set.removesuffix('_lora')}.{internal}"
                names[key] = f"{block}.attn1n.{projection}.lora_{end}.{of_set}.weight"
    for i, block in enumerate(parts.conditions):
        for attention in ATTENTIONS:
            for projection, end, internal in _ends():
                key = f"{block}.{attention}.{projection}.lora_{end}.{SETS[2]}.weight"
                names[f"conditions.{i}.{attention}.{internal}"] = key
    return names


def _check_once(weights: Weights, of_set: str, name: str) -> None:
    """Raises ValueError if a file holds more than one model."""
    places: dict[object, str] = {}
    for key in weights:
        loras: dict = {}
        posts: dict = {}
        _sort(PREFIX.sub("", key, count=1), weights[key], of_set, loras, posts)
        for place in (*loras, *posts):
            if place in places:
                raise ValueError(
                    f"{name} should hold one UniCon, but has both {places[place]} and {key}. Save each model to a file "
                    f"of its own."
                )
            places[place] = key


def _ends() -> Iterable[tuple[str, str, str]]:
    for projection in PROJECTIONS:
        official = "to_out.0" if projection == "to_out" else projection
        for end, internal in (("A", "down"), ("B", "up")):
            yield official, end, f"{projection}.{internal}.weight"


def _sort(key: str, value: Tensor, of_set: str, loras: dict, posts: dict) -> bool:
    """Puts a tensor into `loras` or `posts`. Returns whether the tensor is known."""
    if post := POST.fullmatch(key):
        posts[post["block"]] = value
        return True
    match = LORA.fullmatch(key) or ALPHA.fullmatch(key)
    if match is None:
        return FROZEN.fullmatch(key) is not None
    lora_set = _set(match["attention"], match["name"] or "", of_set)
    if not lora_set:
        return False
    end = ENDS[match["end"]] if "end" in match.re.groupindex else "alpha"
    loras[LoRAPlace(match["block"], match["attention"], match["projection"], lora_set), end] = value
    return True


def _set(attention: str, name: str, of_set: str) -> str:
    """The one of SETS that a tensor belongs to, or an empty text if nothing tells."""
    if attention != "attn1n":
        return SETS[2]
    return of_set or next((known for known in SETS[:2] if name.endswith(known)), "")


def _scaled(loras: Mapping[tuple[LoRAPlace, str], Tensor], name: str) -> dict[tuple[LoRAPlace, str], Tensor]:
    """The LoRA without alphas: the factor alpha / rank is multiplied into the second matrix."""
    scaled = {key: value for key, value in loras.items() if key[1] != "alpha"}
    for (place, end), alpha in loras.items():
        if end == "alpha" and (place, "up") in scaled:
            up = scaled[place, "up"]
            if alpha.numel() != 1:
                raise ValueError(f"{name}: alpha should be one number, but is {tuple(alpha.shape)}. Download it again.")
            if up.ndim != 2:
                continue  # its shape is refused below
            scaled[place, "up"] = (up.float() * (alpha.float() / up.shape[1])).to(up.dtype)
    return scaled


def _parts(loras: Mapping[tuple[LoRAPlace, str], Tensor], posts: Mapping[str, Tensor], name: str) -> UniConParts:
    joints = tuple(sorted(posts, key=_natural))
    conditions = tuple(sorted({place.block for place, _ in loras if place.set == SETS[2]}, key=_natural))
    stray = sorted({place.block for place, _ in loras if place.set != SETS[2]} - set(joints), key=_natural)
    if stray:
        raise ValueError(f"{name} lacks {stray[0]}.{POST_KEY}.weight, though it has the LoRA. Download it again.")
    reader = _SizeReader(loras, name)
    sizes = Sizes(
        joints=[reader.joint(block, posts[block]) for block in joints],
        conditions=[
            [reader.low_ranks(block, attention, SETS[2]) for attention in ATTENTIONS] for block in conditions
        ],
    )  # fmt: skip
    weights = {f"joints.{i}.post.weight": posts[block] for i, block in enumerate(joints)}
    for (place, end), value in loras.items():
        if place.set == SETS[2]:
            stem = f"conditions.{conditions.index(place.block)}.{place.attention}"
        else:
            stem = f"joints.{joints.index(place.block)}.{place.set.removesuffix('_lora')}"
        weights[f"{stem}.{place.projection}.{end}.weight"] = value
    return UniConParts(sizes, weights, joints, conditions)


class _SizeReader:
    """Reads the sizes of the network from the shapes of a file's tensors."""

    def __init__(self, loras: Mapping[tuple[LoRAPlace, str], Tensor], name: str) -> None:
        self.loras, self.name = loras, name

    def joint(self, block: str, post: Tensor) -> JointSizes:
        xy, yx = (self.low_ranks(block, "attn1n", of_set) for of_set in SETS[:2])
        width = xy[0].outputs
        if tuple(post.shape) not in [(width, width), (2 * width, 2 * width)]:
            raise ValueError(
                f"{self.name}: {block}.{POST_KEY}.weight should be {width}x{width} or twice that, but is "
                f"{tuple(post.shape)}. Download it again."
            )
        return JointSizes(xy, yx, width, "conv" if len(post) == width else "conv_fuse")

    def low_ranks(self, block: str, attention: str, of_set: str) -> Sequence[LowRank]:
        return [self._low_rank(LoRAPlace(block, attention, projection, of_set)) for projection in PROJECTIONS]

    def _low_rank(self, place: LoRAPlace) -> LowRank:
        down, up = (self.loras.get((place, end)) for end in ("down", "up"))
        called = few([f"{place.set} of {place.block}.{place.attention}.{place.projection}"])
        if down is None or up is None:
            raise ValueError(f"{self.name} lacks the {called}. Download it again.")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
            raise ValueError(
                f"{self.name}: the {called} should be two matrices of one rank, but is {tuple(down.shape)} and "
                f"{tuple(up.shape)}. Download it again."
            )
        return LowRank(down.shape[1], down.shape[0], up.shape[0])


def _refusal(keys: Sequence[str], name: str) -> str:
    return (
        f"{name} is not a UniCon: it should hold <block>.{POST_KEY}.weight and LoRA for attn1n, but holds {few(keys)}. "
        f"Choose the folder or the model.pth of a UniCon release, or a file that Save UniCon wrote."
    )


def _natural(block: str) -> list:
    """The key that sorts blocks: down, middle, up, and each by its numbers."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    first, *rest = block.split(".")
    return [order[first], *((len(part), part) for part in rest if part.isdigit())]
