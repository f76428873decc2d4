"""How well pictures of the demo model follow the references of an IP-Adapter and a prompt, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...engine.loading import read_file
from ...nodes.ip_adapter.apply_node import IPAdapterApply
from ...nodes.ip_adapter.encode_node import IPAdapterEncode
from ...nodes.ip_adapter.load import make_ip_adapter
from ...nodes.ip_adapter.prompt import IPAdapter
from ..evaluate import AT_ONCE, SamplingSettings, one_line, sample, score
from ..world.model import WEIGHTS
from ..world.scenes import SLOTS, draw, draw_words, render
from .numbers import COUNT, load_base, load_encoder

FILE = WEIGHTS / "ipadapter" / "reins-demo-ip-adapter.safetensors"
SEED = 21
LOOK, FORM = ("colour", "background", "texture"), ("shape", "place", "size")


class IPAdapterDemo(NamedTuple):
    """The demo model, its words, its image encoder and an IP-Adapter."""

    model: ModelPatcher
    table: Tensor
    encoder: ClipVisionModel
    adapter: IPAdapter

    def draw(self, words: Tensor, references: Tensor, settings: SamplingSettings, **apply: object) -> Tensor:
        """Pictures (b, 3, SIZE, SIZE), each from a row of words (b, slots) and a reference (b, 3, SIZE, SIZE)."""
        drawn = []
        for some, pictures in zip(words.split(AT_ONCE), references.split(AT_ONCE), strict=True):
            (tokens,) = IPAdapterEncode.execute(self.adapter, self.encoder, pictures.movedim(1, -1)).result
            steered = IPAdapterApply.execute(self.model, self.adapter, tokens, per_frame=True, **apply).result[0]
            drawn.append(sample(steered, self.table, some, settings))
        return torch.cat(drawn)


class References(NamedTuple):
    """References, their words, and the words of as many other scenes for the prompts."""

    image: Tensor  # (b, 3, SIZE, SIZE)
    words: Tensor  # (b, slots)
    others: Tensor  # (b, slots)

    def saying(self, said: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The prompts (b, slots) that say only these slots, and the words (b, slots) that the pictures should have."""
        is_said = torch.tensor([slot in said for slot in SLOTS])
        return torch.where(is_said, self.others, -1), torch.where(is_said, self.others, self.words)


def load_ip_adapter_demo(path: Path = FILE) -> IPAdapterDemo:
    """The demo model with the IP-Adapter of a file."""
    return IPAdapterDemo(*load_base(), load_encoder()[0], make_ip_adapter(read_file(path), path.name))


def references(count: int = COUNT, seed: int = SEED) -> References:
    """Random references."""
    generator = torch.Generator().manual_seed(seed)
    words = draw_words(count, generator)
    return References(render(draw(count, generator, words)).image, words, draw_words(count, generator))


def ip_adapter_numbers(path: Path) -> Iterator[str]:
    """The lines of numbers for the card of a file."""
    yield from numbers_of(load_ip_adapter_demo(path), SamplingSettings())


def numbers_of(prompted: IPAdapterDemo, settings: SamplingSettings) -> Iterator[str]:
    """The lines of numbers of an adapter."""
    given = references()
    for cfg, weight in ((3.0, 0.0), (3.0, 0.5), (3.0, 1.0), (1.0, 1.0)):
        prompts, wanted = given.saying(())
        result = score(prompted.draw(prompts, given.image, settings._replace(cfg=cfg), weight=weight), wanted)
        yield f"nothing said, cfg {cfg:g}, weight {weight:g}: as the reference in {one_line(result.rates)}"
        if (cfg, weight) == (3.0, 1.0):
            others = score(result.image, wanted.roll(1, 0))
            yield f"the same pictures against other references: {one_line(others.rates)}"
    for said in (FORM, LOOK):
        prompts, wanted = given.saying(said)
        for weight in (0.5, 0.8, 1.0):
            result = score(prompted.draw(prompts, given.image, settings, weight=weight), wanted)
            yield (
                f"{', '.join(said)} said, the rest left to a reference that shows others, weight {weight:g}: "
                f"{one_line(result.rates)}; quality {result.quality:.1f} dB"
            )
