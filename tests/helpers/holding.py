"""Runs of which each call of the model by the sampler is noted, for tests of differences that are held over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from reins.tests.helpers import tiny_models
from reins.tests.helpers.tiny_models import noise, text
from torch import Tensor

SEED = 7
TOLERANCE = 1e-3  # of a difference. The sampler's numbers are single, and late differences are small beside them.


class Seen(NamedTuple):
    """One call of the model by a sampler: noisy latent and result (b, c, h, w), and rows of each call of a network."""

    x: Tensor
    sigma: float
    result: Tensor
    rows: list[int]


@dataclass
class Noted:
    """The guided model that a sampler is given. It notes each call."""

    model: Any
    rows: list[int]
    seen: list[Seen] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        before = len(self.rows)
        result = self.model(x, sigma, **extra)
        self.seen.append(Seen(x.clone(), float(sigma[0]), result.clone(), self.rows[before:]))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@dataclass(frozen=True)
class Way:
    """How a model is sampled: by a sampler of the host, along noise levels, with prompts from noise x (b, c, h, w)."""

    sampler: str
    sigmas: Tensor
    cfg: float = 5.0
    x: Tensor = field(default_factory=lambda: noise(12, 12))
    positive: list = field(default_factory=lambda: text(1))
    negative: list = field(default_factory=lambda: text(2))

    def run(self, model: ModelPatcher, loop: Callable[..., Tensor]) -> None:
        """Gives a loop the guided model of a run, from noise of the first level."""

        def from_noise(guided: Any, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
            return loop(guided, self.x.to(x) * sigmas[0], sigmas, **settings)

        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": self.positive, "negative": self.negative})
        guider.set_cfg(self.cfg)
        empty = torch.zeros_like(self.x)
        guider.sample(empty, empty, KSAMPLER(from_noise), self.sigmas, disable_pbar=True, seed=SEED)

    def noted(
        self, model: ModelPatcher, counted: ModelPatcher | None = None, loop: Callable[..., Tensor] | None = None
    ) -> list[Seen]:  # fmt: skip
        """All calls of the model in one run, by its sampler or a loop, with the rows that a network was given.

        It is the network of `counted`, or else that of the model.
        """
        sampled = loop or comfy.samplers.sampler_object(self.sampler).sampler_function
        calls: list[Seen] = []

        def noting(guided: Any, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
            noted = Noted(guided, rows)
            x = sampled(noted, x, sigmas, **settings)
            calls.extend(noted.seen)
            return x

        with tiny_models.forwards(counted or model) as rows:
            self.run(model, noting)
        return calls

    def at(self, model: ModelPatcher, points: Sequence[Seen]) -> list[Tensor]:
        """What the model predicts at points. It must have no `refresh`."""
        found: list[Tensor] = []

        def loop(guided: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **_: Any) -> Tensor:
            for point in points:
                found.append(guided(point.x, point.x.new_full([len(point.x)], point.sigma), **extra_args))
            return x

        self.run(model, loop)
        return found


def levels(model: ModelPatcher, steps: int) -> Tensor:
    """The noise levels of so many steps."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def asked_at(way: Way, steered: ModelPatcher, plain: ModelPatcher, seen: Sequence[Seen]) -> list[list[int]]:
    """For each call of a run, of which calls its change is the difference between a steered and a plain model.

    All are asked anew at the points of the run. Without a change it is no call.
    """
    before, alone = way.at(plain, seen), way.at(steered, seen)
    differences = [after - was for after, was in zip(alone, before, strict=True)]
    changes = [one.result - was for one, was in zip(seen, before, strict=True)]
    return [
        [i for i, one in enumerate(differences) if one.any() and tiny_models.nearly(change, one, TOLERANCE)]
        for change in changes
    ]
