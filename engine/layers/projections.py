"""Layers around a whole attention, its projections included: what enters it, q, k and v, and what leaves it.

The host hands these out at three places: before the projections, in the attention's slot, and after the output
projection. A layer here may change q, k and v of some rows and add to the output. It is put last before the projections
and first after them, so that it sees what the model's own matrices see, whatever other packs do around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..entries import Entry, entries
from ..unet import Kind, Site
from .attention import Attend, Call, Layer

BEFORE, AFTER = "{kind}_patch", "{kind}_output_patch"


class Inputs(NamedTuple):
    """What the projections of an attention get: for q, for k and for v, each (rows, tokens, c)."""

    hidden: Tensor
    context: Tensor
    value: Tensor


@dataclass
class Found:
    """One attention in one call of the network, as far as it has come."""

    attention: nn.Module  # the host's, with its projections
    inputs: Inputs
    call: Call | None = None  # q, k and v by the model's own projections
    attended: Tensor | None = None  # what enters the output projection


class AroundAttention(Protocol):
    """What a method does around its attentions."""

    def acts(self, options: Mapping[str, Any]) -> bool:
        """Whether it does anything in a call of the network with these options."""

    def project(self, site: Site, found: Found, call: Call) -> Call:
        """The call with q, k and v changed; `call` has the changes of other methods, `found.call` has none."""

    def add(self, site: Site, found: Found, out: Tensor) -> Tensor:
        """What leaves the output projection (rows, tokens, c), with the method's terms added."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectionLayer(Entry):
    """A method, and its attentions with their paths in the network."""

    sites: Mapping[Site, str]
    around: AroundAttention


@dataclass
class Projections:
    """The projection layers of one call of the network."""

    layers: Mapping[Site, Sequence[AroundAttention]]
    attentions: Mapping[Site, nn.Module]
    found: dict[Site, Found] = field(default_factory=dict)

    def outermost(self) -> dict[Site, Layer]:
        """The layers' part inside the slots: their q, k and v for all that lies below."""
        return {site: self._inside(site) for site in self.layers}

    def _inside(self, site: Site) -> Layer:
        def project(call: Call, below: Attend) -> Tensor:
            found = self.found[site]
            found.call = call
            for layer in self.layers[site]:
                call = layer.project(site, found, call)
            found.attended = below(call)
            return found.attended

        return project

    def patches(self, options: Mapping[str, Any]) -> dict[str, list]:
        """The host's lists of patches with the two ends of the layers in them."""
        patches = dict(options.get("patches", {}))
        for kind in {site.kind for site in self.layers}:
            before, after = BEFORE.format(kind=kind), AFTER.format(kind=kind)
            patches[before] = [*patches.get(before, ()), self._note(kind)]
            patches[after] = [self._add(kind), *patches.get(after, ())]
        return patches

    def _note(self, kind: Kind) -> Callable[..., Inputs]:
        def note(hidden: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]) -> Inputs:
            site, inputs = _site(kind, options), Inputs(hidden, context, value)
            if site in self.layers:
                self.found[site] = Found(self.attentions[site], inputs)
            return inputs

        return note

    def _add(self, kind: Kind) -> Callable[..., Tensor]:
        def add(out: Tensor, options: Mapping[str, Any]) -> Tensor:
            site = _site(kind, options)
            found = self.found.pop(site, None)
            if found is not None:
                if found.call is None:
                    raise RuntimeError(
                        f"Another pack took over the attention {_called(site)} inside the call of the model, so that "
                        f"what UniCon does there is lost. Remove that pack from the model."
                    )
                for layer in self.layers[site]:
                    out = layer.add(site, found, out)
            return out

        return add


def projections_of(options: Mapping[str, Any], unet: UNetModel) -> Projections | None:
    """The layers that act in this call; None where there are none."""
    layers: dict[Site, list[AroundAttention]] = {}
    attentions: dict[Site, nn.Module] = {}
    for entry in entries(options, ProjectionLayer):
        if entry.around.acts(options):
            for site, path in entry.sites.items():
                layers.setdefault(site, []).append(entry.around)
                attentions[site] = unet.get_submodule(path)
    return Projections(layers, attentions) if layers else None


def _called(site: Site) -> str:
    return f"{site.kind} of {site.block} {site.number}"


def _site(kind: Kind, options: Mapping[str, Any]) -> Site:
    return Site(kind, *options["block"], options["block_index"])
