"""IP-Adapter (2308.06721): its weight in each layer by weight type, and what of k and v the weight scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ..numbers import finite

Scaling = Literal["V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty"]
SCALINGS: tuple[Scaling, ...] = ("V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty")
WEIGHT_TYPES = (
    "linear", "ease in", "ease out", "ease in-out", "reverse in-out", "style", "composition", "style and composition",
    "strong style", "custom", "weak input", "weak middle", "weak output", "strong middle",
    "strong style and composition", "precise style", "precise composition",
)  # fmt: skip
FOR_ALL = ("linear", "ease in", "ease out", "ease in-out", "reverse in-out", "custom")  # that need no UNet
PEER_NAMES = {  # weight types that ComfyUI_IPAdapter_plus calls otherwise
    "style transfer": "style",
    "strong style transfer": "strong style",
    "style transfer precise": "precise style",
    "composition precise": "precise composition",
    "style transfer (SDXL)": "style",
    "composition (SDXL)": "composition",
    "standard": "linear",
    "prompt is more important": "ease out",
}
PEER_SCALINGS: dict[str, Scaling] = {
    "K+V w/ C penalty": "K+V with C penalty",
    "K+mean(V) w/ C penalty": "K+mean(V) with C penalty",
}
WEAK = 0.2  # share of the weight in the blocks that a type weakens
FLOOR = 0.05  # smallest share of the weight in an eased type
WIDEST = 1280  # the C penalty of a layer is its channels over these


UNET_BLOCKS = ("input", "middle", "output")


class TransformerPlace(NamedTuple):
    """A transformer of the UNet, as the host names its block, or a block of a diffusion transformer."""

    block: Literal["input", "middle", "output", "double", "single", "layer"]
    number: int


class LayerWeight(NamedTuple):
    """The weight of a layer. If it is `swapped`, the negative alone gets the image, so that CFG pushes away from it."""

    weight: float
    swapped: bool = False


class ContentPlaces(NamedTuple):
    """The places of style and composition (InstantStyle, 2404.02733, with the settings of ComfyUI_IPAdapter_plus)."""

    style: frozenset[TransformerPlace]
    composition: Mapping[TransformerPlace, float]  # with the factor on the weight there


def _places(**numbers: Sequence[int]) -> frozenset[TransformerPlace]:
    return frozenset(TransformerPlace(block, number) for block, of_block in numbers.items() for number in of_block)


SD15 = ContentPlaces(
    style=_places(input=(1, 2, 4, 5), output=(5, 6, 7, 8, 9, 10, 11)),
    composition={TransformerPlace("input", 7): 0.25, TransformerPlace("input", 8): 1.0},
)
SDXL = ContentPlaces(
    style=_places(output=(1,)), composition={TransformerPlace("input", 8): 1.0}
)  # fmt: skip


@dataclass(frozen=True)
class Strength:
    """The settings that decide each layer's weight."""

    weight: float = 1.0
    weight_type: str = "linear"
    layer_weights: str = ""  # of "custom": factors on the weight
    composition_weight: float = 1.0
    boost: float = 1.0

    def by_place(self, places: Sequence[TransformerPlace]) -> dict[TransformerPlace, LayerWeight]:
        """The weight of each place, without the places of weight 0. `places` are in execution order.

        Raises ValueError if a setting is not valid, or if the weight type does not fit the model.
        """
        for name in ("weight", "composition_weight", "boost"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} should be a number, but is {getattr(self, name)}. Set it to 1.")
        if self.weight_type not in WEIGHT_TYPES:
            raise ValueError(
                f"weight_type should be one of {', '.join(WEIGHT_TYPES)}, but is {self.weight_type!r}. Choose one."
            )
        if self.weight_type not in FOR_ALL and not any(place.block in UNET_BLOCKS for place in places):
            raise ValueError(
                f"weight_type {self.weight_type!r} means layers of a UNet, but this model is a transformer, whose "
                f"blocks are all alike. Choose {', '.join(FOR_ALL)}, of which custom names blocks 0 to "
                f"{len(places) - 1} in layer_weights."
            )
        return {place: layer for place, layer in self._all(places).items() if layer.weight}

    def _all(self, places: Sequence[TransformerPlace]) -> dict[TransformerPlace, LayerWeight]:
        if self.weight_type == "custom":
            chosen = parse_layer_weights(self.layer_weights, places)
            return {places[i]: LayerWeight(self.weight * weight) for i, weight in chosen.items()}
        if "style" in self.weight_type or "composition" in self.weight_type:
            return self._by_content(places)
        return {
            place: LayerWeight(self.weight * _factor(self.weight_type, place.block, i, len(places)))
            for i, place in enumerate(places)
        }

    def _by_content(self, places: Sequence[TransformerPlace]) -> dict[TransformerPlace, LayerWeight]:
        known = content_places(places)
        if known is None:
            raise ValueError(
                f"weight_type {self.weight_type!r} knows the layers of SD1.5 and SDXL, but this model has attention "
                f"at {_listed(places)}. Choose linear, or custom with layer_weights."
            )
        w, wc, boost = self.weight, self.composition_weight, self.boost
        style = {place: LayerWeight(w) for place in places if place in known.style}
        parts = {place: known.composition[place] for place in places if place in known.composition}
        composition = {place: LayerWeight(w * part) for place, part in parts.items()}
        everything = {place: LayerWeight(w) for place in places}
        match self.weight_type:
            case "style":
                return style
            case "composition":
                return composition
            case "strong style":
                return {place: layer for place, layer in everything.items() if place not in parts}
            case "style and composition":
                return style | {place: LayerWeight(wc * part) for place, part in parts.items()}
            case "strong style and composition":
                return everything | {place: LayerWeight(wc) for place in parts}
            case "precise style":
                return style | {place: LayerWeight(boost * part, swapped=True) for place, part in parts.items()}
            case _:  # precise composition
                pushed = {
                    place: LayerWeight(boost * (1.0 if place in known.style else 0.1), swapped=True) for place in places
                }
                return pushed | composition


def content_places(places: Sequence[TransformerPlace]) -> ContentPlaces | None:
    """The places of style and composition in SD1.5, SDXL and their distilled relatives, else None."""
    numbers = {place.number for place in places if place.block == "input"}
    if {1, 7, 8} <= numbers <= {1, 2, 4, 5, 7, 8}:
        return SD15
    if {4, 8} <= numbers <= {4, 5, 7, 8}:
        return SDXL
    return None


def _factor(weight_type: str, block: str, i: int, count: int) -> float:
    """The factor on the weight of the i-th of `count` transformers."""
    middle = abs(i - count / 2) / (count / 2)
    weakened = {
        "weak input": ("input",),
        "weak middle": ("middle",),
        "weak output": ("output",),
        "strong middle": ("input", "output"),
    }
    eased = {
        "ease in": 1 - i / count,
        "ease out": i / count,
        "ease in-out": 1 - middle,
        "reverse in-out": middle,
    }
    if weight_type in weakened:
        return WEAK if block in weakened[weight_type] else 1.0
    if weight_type in eased:
        return FLOOR + (1 - FLOOR) * eased[weight_type]
    return 1.0


def parse_layer_weights(text: str, places: Sequence[TransformerPlace]) -> dict[int, float]:
    """The weights by number of the layer: {3: 0.5, 6: 1.0} for `3:0.5, 6:1.0`.

    Raises ValueError if the text has another form, or if the model lacks a layer.
    """
    weights: dict[int, float] = {}
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        number, _, weight = part.partition(":")
        try:
            layer, layer_weight = int(number), finite(weight)
        except ValueError:
            raise ValueError(
                f"layer_weights: {part!r} is not a layer and its weight. Write pairs such as 3:0.5, 6:1.0 with layers "
                f"0 to {len(places) - 1}."
            ) from None
        if not 0 <= layer < len(places):
            raise ValueError(
                f"layer_weights names layer {layer}, but this model has layers 0 to {len(places) - 1}: "
                f"{_listed(places)}."
            )
        weights[layer] = layer_weight
    if not weights:
        raise ValueError("weight_type custom needs layer_weights. Write pairs such as 3:0.5, 6:1.0.")
    return weights


def _listed(places: Sequence[TransformerPlace]) -> str:
    if places and places[0].block not in UNET_BLOCKS:
        return f"{len(places)} blocks in the order in which the model runs"
    return ", ".join(f"{i} {place.block} {place.number}" for i, place in enumerate(places))


def weight_keys_and_values(k: Tensor, v: Tensor, weight: float | Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """k and v (images, tokens, c), scaled so that the attention has the weight: a number, or (images, 1, 1).

    The C penalty and the mean of the values are as in ComfyUI_IPAdapter_plus. The mean is over the tokens of an image.
    """
    if scaling == "V only":
        return k, v * weight
    if scaling == "K+V":
        return k * weight, v * weight
    weight = weight * k.shape[-1] / WIDEST
    if scaling == "K+V with C penalty":
        return k * weight, v * weight
    mean = v.mean(1, keepdim=True)
    return k * weight, v - mean + mean * weight
