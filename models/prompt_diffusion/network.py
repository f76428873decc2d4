"""Prompt Diffusion (2305.01115): a ControlNet shown an example, a source and its target, beside the picture to treat.

Its network is that of a ControlNet but for the stem, which is here: two in one, for the example and for the query.
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
    """What was computed from a tensor, for as long as that tensor lives. Copies start empty."""

    def __init__(self) -> None:
        self.features = WeakTensorKeyDictionary()

    def __deepcopy__(self, memo: dict) -> FeatureCache:
        return FeatureCache()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FeatureCache, ()


class Stems(nn.Module):
    """Takes the place of the stem of a host's ControlNet. `operations` supplies Conv2d.

    The host hands over one and the same hint until a run ends. So the features, which do not depend on the noise
    level, are kept with that tensor and computed once; never by place in the batch, as guidance makes batches of its
    own. Weights that may still be trained keep nothing.
    """

    def __init__(
        self, channels: int, operations: type, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.pair = _stem(PAIR, channels, operations, device=device, dtype=dtype)
        self.query = _stem(QUERY, channels, operations, device=device, dtype=dtype)
        self.cache = FeatureCache()

    def forward(self, hint: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(b, channels, h / 8, w / 8), from hints (b, 3 + 6, h, w): the query, the example's source, its target.

        A ControlNet's stem is called with `emb` and `context`; these ignore them, as the official ones do.
        """
        if torch.is_grad_enabled() or any(weight.requires_grad for weight in self.parameters()):
            return self.features(hint)
        if hint not in self.cache.features:
            self.cache.features[hint] = self.features(hint)
        return self.cache.features[hint]

    def features(self, hint: Tensor) -> Tensor:
        """As `forward`, always anew."""
        return self.pair(hint[:, QUERY:]) + self.query(hint[:, :QUERY])


def _stem(inputs: int, channels: int, operations: type, **place: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for outputs, stride in CONVS:
        layers += [operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **place), nn.SiLU()]
        inputs = outputs
    return nn.Sequential(*layers, operations.Conv2d(inputs, channels, 3, padding=1, **place))
