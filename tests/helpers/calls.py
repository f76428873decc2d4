"""What layers are told, made by hand: for tests that call a layer without a network around it."""

from __future__ import annotations

from typing import Any

from reins.engine.layers.call import NetworkCall
from reins.engine.layers.features import FeatureCall
from reins.engine.layers.tokens import TokenCall
from reins.engine.rows.chunk import chunks_of
from reins.engine.sites import Site
from torch import Tensor, nn


def told(options: dict[str, Any], rows: int) -> dict[str, Any]:
    """The part that all layers are told, of a call of a network with so many rows."""

    def no_network(path: str) -> nn.Module:
        raise AssertionError(f"the layer looked for {path}, but there is no network")

    network = NetworkCall.of(options, no_network)
    return {"options": options, "chunks": chunks_of(options, rows), **network._asdict()}


def feature_call(feature: Tensor, timesteps: Tensor, options: dict[str, Any]) -> FeatureCall:
    """The call of a term on a feature (chunks * b, c, h, w) at timesteps (chunks * b,)."""
    return FeatureCall(feature=feature, timesteps=timesteps, **told(options, len(feature)))


def token_call(tokens: Tensor, site: Site, options: dict[str, Any]) -> TokenCall:
    """The call of a layer on tokens (chunks * b, tokens, c)."""
    return TokenCall(tokens=tokens, site=site, **told(options, len(tokens)))
