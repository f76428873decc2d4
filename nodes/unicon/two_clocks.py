"""The official sampling of UniCon (2410.11439): image and condition step through one table at different times.

In this form (noise level sigma, picture not scaled) DDIM with noise is the ancestral step of Euler. They differ at the
end: with Stable Diffusion's settings DDIM stops at the lowest level of the table, not at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from comfy.samplers import Sampler
from torch import Tensor

from ...engine.entries import entries
from ...engine.partners import Partner
from ...models.unicon.two_clocks import LevelNumbers, Segment, timetable

Method = Literal["euler", "euler_ancestral", "ddim"]
FIRST_LEVEL = 0.2  # least share of the highest noise level at the start: six official steps begin at a third of it
METHODS: tuple[Method, ...] = ("euler", "euler_ancestral", "ddim")


@dataclass
class TwoClocks(Sampler):
    """A sampler of the host for UniCon Apply Joint. Ancestral steps and DDIM renew the share `eta` of the noise."""

    method: Method
    eta: float
    segments: list[Segment]
    starts_halves = True  # it noises image and condition itself (engine/partner_run.py)

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Callable | None, noise: Tensor,
        latent_image: Tensor, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        """Returns what is sampled, (2 * b, c, h, w), as the host calls its samplers.

        Raises ValueError if the model or the noise levels do not fit.
        """
        highest = float(model_wrap.inner_model.model_sampling.sigma_max)
        _check_run(extra_args["model_options"]["transformer_options"], sigmas, highest)
        table = timetable(self.segments, len(sigmas) - 1)
        targets, renew = self._targets(sigmas, model_wrap), _noise_of(noise, extra_args.get("seed"))
        x = torch.cat([
            _started(*halves, sigmas[index], index == 0)
            for *halves, index in zip(noise.chunk(2), latent_image.chunk(2), table[0], strict=True)
        ])  # fmt: skip
        for i, now in enumerate(table):
            denoised = model_wrap(x, _rows(sigmas, now, x), **extra_args)
            if callback is not None:
                callback(i, denoised, x, len(table))
            last = i + 1 == len(table)
            following = tuple(index + 1 for index in now) if last else table[i + 1]
            fresh = renew() if self.method != "euler" and self.eta else torch.zeros_like(x)
            halves = zip(x.chunk(2), denoised.chunk(2), fresh.chunk(2), now, following, strict=True)
            x = torch.cat([
                half if after == before else self._step(half, clean, new, sigmas[before], targets[after])
                for half, clean, new, before, after in halves
            ])  # fmt: skip
            if last and self.method == "ddim" and sigmas[-1] == 0:
                # Stable Diffusion's DDIM scales picture and noise to a length of one together.
                x = x / (1 + targets[-1] ** 2) ** 0.5
            if denoise_mask is not None:
                level = 0 if last else _rows(targets, following, x)[:, None, None, None]
                x = x * denoise_mask + (latent_image + level * noise) * (1 - denoise_mask)
        return x

    def _targets(self, sigmas: Tensor, model_wrap: Any) -> Tensor:
        if self.method != "ddim" or sigmas[-1] > 0:
            return sigmas
        lowest = sigmas.new_tensor([float(model_wrap.inner_model.model_sampling.sigma_min)])
        return torch.cat([sigmas[:-1], torch.minimum(lowest, sigmas[-2:-1])])

    def _step(self, x: Tensor, denoised: Tensor, fresh: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
        direction = (x - denoised) / sigma
        if self.method == "euler":
            return x + direction * (target - sigma)
        renewed = self.eta * target * ((sigma**2 - target**2).clamp(min=0) ** 0.5) / sigma
        renewed = torch.minimum(renewed, target)
        return denoised + direction * (target**2 - renewed**2) ** 0.5 + fresh * renewed


def _rows(sigmas: Tensor, now: LevelNumbers, x: Tensor) -> Tensor:
    """Returns the noise level of each row (2 * b,) of x (2 * b, c, h, w)."""
    return torch.stack([sigmas[index] for index in now]).repeat_interleave(len(x) // 2)


def _started(noise: Tensor, latent: Tensor, sigma: Tensor, is_first: bool) -> Tensor:
    """Returns noise alone, of the official length, if a branch starts with the run, else its picture noised."""
    return noise * (1 + sigma**2) ** 0.5 if is_first else latent + noise * sigma


def _noise_of(like: Tensor, seed: int | None) -> Callable[[], Tensor]:
    # The host draws the first noise of the run from the seed itself.
    generator = torch.Generator().manual_seed(((seed or 0) + 1) % 2**64)
    return lambda: torch.randn(like.shape, generator=generator).to(like)


def _check_run(options: dict[str, Any], sigmas: Tensor, highest: float) -> None:
    """Raises ValueError if the model or the noise levels do not fit the sampler."""
    halves = [partner for partner in entries(options, Partner) if partner.role == "half"]
    if not halves:
        raise ValueError(
            "UniCon Sampler gives image and condition a noise level each, but the model has no UniCon Apply Joint. Put "
            "that node on the model, or choose another sampler."
        )
    if halves[0].condition_noise != 1:
        raise ValueError(
            f"UniCon Sampler sets the condition's noise by its schedule, but UniCon Apply Joint has condition_noise "
            f"{halves[0].condition_noise:g}. Set condition_noise to 1."
        )
    if len(sigmas) < 3:
        raise ValueError(f"UniCon Sampler needs at least two steps, but has {len(sigmas) - 1}. Raise steps.")
    if float(sigmas[0]) < FIRST_LEVEL * highest:
        raise ValueError(
            f"UniCon Sampler begins with noise alone, so it needs sigmas of a whole run, from near {highest:.3g}, but "
            f"they begin at {float(sigmas[0]):.3g}. Set denoise to 1; the schedule says where a branch begins."
        )
