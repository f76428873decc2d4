"""Prompt Diffusion (2305.01115): a ControlNet that reads an example, a source and its target, beside the query.

Its network is that of a ControlNet except for the stem. This module has the two stems, for the example and the query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# (outputs, stride) of all convolutions but the last, which gives the width of the UNet
CONVS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))
PAIR, QUERY = 6, 3  # channels


class FeatureCache:
    """Features by the tensor that they were computed from, for as long as that tensor lives. Copies start empty."""

    def __init__(self) -> None:
        self.features = WeakTensorKeyDictionary()

    def __deepcopy__(self, memo: dict) -> FeatureCache:
        return FeatureCache()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FeatureCache, ()


class Stems(nn.Module):
    """Takes the place of the stem of a host's ControlNet. `operations` has Conv2d.

    The features do not depend on the noise level, and the host hands over the same hint until a run ends. So they are
    computed once and kept with that tensor. The place in the batch would be no key, for guidance changes batches.
    Nothing is kept if the weights may still be trained.
    """

    def __init__(
        self, channels: int, operations: type, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.pair = _stem(PAIR, channels, operations, device=device, dtype=dtype)
        self.query = _stem(QUERY, channels, operations, device=device, dtype=dtype)
        self.cache = FeatureCache()

    def forward(self, hint: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The features (b, channels, h / 8, w / 8) of hints (b, 3 + 6, h, w): query, source and target of the example.

        The host calls a stem with `emb` and `context`. They are ignored here, as in the official code.
        """
        if torch.is_grad_enabled() or any(weight.requires_grad for weight in self.parameters()):
            return self.features(hint)
        if hint not in self.cache.features:
            self.cache.features[hint] = self.features(hint)
        return self.cache.features[hint]

    def features(self, hint: Tensor) -> Tensor:
        """The features (b, channels, h / 8, w / 8) of hints (b, 3 + 6, h, w), computed anew."""
        return self.pair(hint[:, QUERY:]) + self.query(hint[:, :QUERY])


def _stem(inputs: int, channels: int, operations: type, **factory: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for outputs, stride in CONVS:
        layers += [operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **factory), nn.SiLU()]
        inputs = outputs
    return nn.Sequential(*layers, operations.Conv2d(inputs, channels, 3, padding=1, **factory))
