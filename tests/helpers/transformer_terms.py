"""PAG, SEG, SLG and TPG on transformers, with layers of LAYERS, for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy.model_patcher import ModelPatcher
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.tests.helpers.methods import pag, seg, tpg
from reins.tests.helpers.transformers_by_hand import IMAGE, LAYERS, around_blocks
from torch import nn

Term = Callable[..., ModelPatcher]  # of a model, with layers, scale, start, end and share


def slg(
    model: ModelPatcher, scale: float = 2.8, start: float = 0.0, end: float = 1.0, layers: str = "auto",
    share: bool = True, refresh: int = 1,
) -> ModelPatcher:  # fmt: skip
    return SkipLayerGuidance.execute(model, scale, start, end, layers, share, refresh).result[0]


TERMS: dict[str, Term] = {"pag": pag, "seg": seg, "slg": slg, "tpg": tpg}
FAMILIES = ("sd3", "flux", "lumina", "wan")  # text in front, double and single blocks, no slots, text apart
EACH = [(family, name) for family in FAMILIES for name in TERMS if (family, name) != ("sd3", "tpg")]


def term(name: str, family: str, model: ModelPatcher, **settings: object) -> ModelPatcher:
    """The model with a term on the layers of LAYERS."""
    return TERMS[name](model, **{"layers": LAYERS[family][0], **settings})


@contextmanager
def rows_of_blocks(family: str, model: ModelPatcher) -> Iterator[dict[str, list[int]]]:
    """Inside the block of Python: the rows of each call of each block of the network, by the block's name."""
    network = model.model.diffusion_model
    stacks = ("blocks", "layers", "refiner")
    lists = [name for name, part in network.named_children() if type(part) is nn.ModuleList and name.endswith(stacks)]
    names = [f"{name}.{i}" for name in lists for i in range(len(network.get_submodule(name)))]
    rows: dict[str, list[int]] = {}

    def note(name: str, args: tuple, kwargs: dict) -> None:
        rows.setdefault(name, []).append(len(args[0] if args else kwargs[IMAGE[family]]))

    with around_blocks(model, names, note, lambda name, out: out):
        yield rows
