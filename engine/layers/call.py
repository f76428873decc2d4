"""What every layer is told of the call of the network that it acts in.

The call of the network is described once for all layers (NetworkCall). Each layer gets that together with the chunks of
its rows (LayerCall). So layers need no keys of the host's options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ..rows.chunk import Chunk
from ..rows.conds import CONDS
from ..rows.images import images_in_window
from ..rows.order import SAMPLING
from ..run import RUN, STEP, Run, Step, TracedRun, not_told, sigma_in
from .texts import PatchedTexts

Told = TypeVar("Told", bound="LayerCall")
NETWORK = "reins_network"
VIDEO = 5  # axes of the latent of a video, of which the third is time
ORIGINAL_SHAPE = "original_shape"  # of the latents that the network is shown


class NetworkCall(NamedTuple):
    """What is the same for all layers in one call of the network."""

    run: Run
    step: Step | None  # None if the network is called without our guidance
    module: Callable[[str], nn.Module]  # returns a part of the network, with the weights of this call, by its path
    to_sigma: Callable[[float], float] | None  # from a percent of the run to a noise level, by the model's schedule
    lacks_conds: bool  # whether a sampler runs but nothing is known of the prompts, as in a layer that a hook brings
    texts: PatchedTexts | None  # methods' own texts as other packs change texts, if any does
    is_traced: bool = False  # whether torch.compile follows the call. Then no other pack changes its rows

    @classmethod
    def of(
        cls, options: Mapping[str, Any], module: Callable[[str], nn.Module], texts: PatchedTexts | None = None,
        is_traced: bool = False,
    ) -> NetworkCall:  # fmt: skip
        """Returns what the host's options tell of the call."""
        lacks_conds = CONDS not in options and "sample_sigmas" in options
        to_sigma = getattr(options.get(SAMPLING), "percent_to_sigma", None)
        run = options.get(RUN) or Run()
        return cls(
            TracedRun(run) if is_traced else run, options.get(STEP), module, to_sigma, lacks_conds, texts, is_traced
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCall:
    """What one layer is told.

    The first six and `is_traced` are those of the NetworkCall. The host's options are for what lies below the layer.
    """

    run: Run
    step: Step | None
    module: Callable[[str], nn.Module]
    to_sigma: Callable[[float], float] | None
    lacks_conds: bool
    texts: PatchedTexts | None
    chunks: tuple[Chunk, ...]
    options: Mapping[str, Any]
    is_traced: bool = False

    @property
    def sigma(self) -> float:
        """The noise level. It is read from the device if no step has noted it."""
        return sigma_in(self.options) if self.step is None else self.step.sigma

    @property
    def sigmas(self) -> Tensor:
        """The sampler's own tensor of noise levels (b,), on the device. Its identity tells one step from the next."""
        sigmas = self.options.get("sigmas")
        return not_told("sigmas") if sigmas is None else sigmas

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in cells, of the latent that the network is shown."""
        return tuple((self.options.get(ORIGINAL_SHAPE) or not_told(ORIGINAL_SHAPE))[-2:])

    @property
    def window(self) -> Any:
        """The host's context window. None if there is none."""
        return self.options.get("context_window")

    @property
    def images_in_window(self) -> tuple[int, ...] | None:
        """Which images of the batch the network is shown. None if it is shown all of them."""
        return images_in_window(self.options, len(self.chunks[0].images))

    @classmethod
    def told(cls: type[Told], **fields: Any) -> Told:
        """Returns a call of these fields, which are all that it has.

        Every layer waits for this in every attention. Frozen classes set field by field take several times as long.
        """
        if fields["is_traced"]:  # torch.compile does not follow what comes below
            return cls(**fields)
        call = object.__new__(cls)
        call.__dict__.update(fields)
        return call

    def changed(self: Told, **values: Any) -> Told:
        """Returns the same call with other values of some fields."""
        return replace(self, **values) if self.is_traced else self.told(**{**self.__dict__, **values})

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Returns a tensor of this call (chunks * b, ...) cut into its chunks (b, ...)."""
        return rows.chunk(len(self.chunks))

    def check_whole(self, chunks: Iterable[Chunk], what: str, owner: str) -> None:
        """Raises RuntimeError if the network is shown a part of the picture that no chunk's conditioning asks for."""
        seen, window = self.size, self.window
        whole = (0, 2) if len(self.options.get(ORIGINAL_SHAPE) or ()) == VIDEO else (0,)  # images, and frames
        cut = window is not None and window.dim not in whole
        if cut or any(chunk.info is not None and chunk.info.seen != seen for chunk in chunks):
            raise RuntimeError(
                f"The {what} of {owner} belongs to the whole picture, but another node shows the model a part of "
                f"{seen[0]}x{seen[1]} cells (tiled diffusion, windows over width). Remove that node or the {what}."
            )
