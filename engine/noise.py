"""The host's noise for a seed, drawn without moving torch's global random state, which other nodes draw from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_noise(latent: Tensor, seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Returns the noise (b, c, h, w) that the host's samplers draw for a latent (b, c, h, w).

    With `batch_index` picture i has the noise of picture `batch_index[i]` of a larger batch.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(latent.shape, generator=generator).to(latent.dtype)
    shape = (1, *latent.shape[1:])
    drawn = [torch.randn(shape, generator=generator).to(latent.dtype) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[i] for i in batch_index])
