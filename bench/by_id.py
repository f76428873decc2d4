"""Methods as any build of the pack has them: by the ids of its nodes, with files that its loaders read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from reins.tests.helpers import controlnext, ip_adapter, tiny_models, unicon

from .builds import Build, Shelf

RANK = 64  # of UniCon's release
TOKENS = 77
ByBuild = Callable[[Build, ModelPatcher], ModelPatcher]


def pag(build: Build, model: ModelPatcher, **settings: Any) -> ModelPatcher:
    return build.run("PerturbedAttentionGuidance", model=model, **{"layers": "m0", **settings})


def nag(build: Build, model: ModelPatcher, tokens: int = TOKENS) -> ModelPatcher:
    return build.run("NormalizedAttentionGuidance", model=model, negative=tiny_models.text(3, tokens))


def pladis(build: Build, model: ModelPatcher) -> ModelPatcher:
    return build.run("SparseCrossAttention", model=model)


def simple(node: str, **settings: Any) -> ByBuild:
    """A node that needs nothing but the model."""
    return lambda build, model: build.run(node, model=model, **settings)


class Drawn:
    """Drawn files for one model on a shelf, and the methods that read them."""

    def __init__(self, shelf: Shelf, model: ModelPatcher, size: tuple[int, int]) -> None:
        self.partner = unicon.latent(size)
        self.hint = controlnext.picture(1, h=8 * size[0], w=8 * size[1])
        self.adapter = shelf.put("ipadapter", "adapter.safetensors", ip_adapter.file_for(model))
        self.unicon = shelf.put("unicon", "unicon.safetensors", unicon.file_for(model, rank=RANK, size=0.1))
        self.control = shelf.put("controlnext", "control.safetensors", controlnext.file_for(model))

    def ip_adapter(self, build: Build, model: ModelPatcher) -> ModelPatcher:
        loaded = build.run("IPAdapterLoader", name=self.adapter)
        return build.run(
            "IPAdapter", model=model, ipadapter=loaded, clip_vision=ip_adapter.encoder(), image=ip_adapter.picture(1)
        )  # fmt: skip

    def two_ip_adapters(self, build: Build, model: ModelPatcher) -> ModelPatcher:
        return self.ip_adapter(build, self.ip_adapter(build, model))

    def beside(self, build: Build, model: ModelPatcher) -> ModelPatcher:
        """UniCon Apply."""
        loaded = build.run("UniConLoader", name=self.unicon)
        texts: Mapping[str, list] = {
            "partner_positive": tiny_models.text(31, TOKENS), "partner_negative": tiny_models.text(41, TOKENS),
        }  # fmt: skip
        return build.run(
            "UniConApply", model=model, unicon=loaded, partner=self.partner, partner_role="condition", **texts
        )

    def controlnext(self, build: Build, model: ModelPatcher) -> ModelPatcher:
        loaded = build.run("ControlNeXtLoader", control_name=self.control)
        return build.run("ControlNeXtApply", model=model, controlnext=loaded, image=self.hint)
