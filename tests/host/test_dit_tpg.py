"""TPG on transformers, against blocks whose tokens are shuffled by hooks of torch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from reins.nodes.guidance.token_perturbation import TokenPerturbationGuidance
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, latent, make, noise_like, text
from reins.tests.helpers.transformers_by_hand import (
    IMAGE,
    LAYERS,
    around_blocks,
    both_texts,
    guided,
    predict,
    shuffling,
    where_of,
)
from torch import Tensor

WITHOUT_ROPE = ("sd3", "sd35m", "aura")
SHUFFLED = [family for family in GUIDED if family not in WITHOUT_ROPE]
EACH = [(family, i) for family in SHUFFLED for i in range(len(LAYERS[family][1])) if family != "wan"] + [("wan", 0)]


def tpg(model: ModelPatcher, layers: str, scale: float = 3.0) -> ModelPatcher:
    return TokenPerturbationGuidance.execute(model, scale, 0.0, 1.0, layers).result[0]


def order_of(family: str, steered: ModelPatcher, x: Tensor, positive: list, block: str, picture: slice) -> Tensor:
    """In which order the pack gives the tokens of the picture to a block: it runs plainly first, then shuffled."""
    given: list[Tensor] = []

    def note(name: str, args: Sequence[Tensor], kwargs: dict) -> None:
        given.append((args[0] if args else kwargs[IMAGE[family]]).flatten(1, -2)[0].clone())

    with around_blocks(steered, [block], note, lambda name, out: out):
        predict(family, steered, x, positive)
    plain, shuffled = given
    order = torch.cdist(shuffled[picture].double(), plain[picture].double()).argmin(1)
    assert torch.equal(plain[picture][order], shuffled[picture])
    assert torch.equal(plain[: picture.start], shuffled[: picture.start])
    assert torch.equal(plain[picture.stop :], shuffled[picture.stop :])
    return order


def check(family, model, x, number=0, cfg=4.0, tokens=(5, 5), in_front=0, conds=None):
    """Compares the node with three runs of the host alone."""
    layers, block = LAYERS[family][0].replace("b1-2", "b1").split(",")[number], LAYERS[family][1][number]
    positive, negative = both_texts(family, tokens, **(conds or {}))
    steered = tpg(model, layers)
    is_double = block.split("_")[0] == "double" or family == "qwen"  # its picture is apart from the text
    at = where_of(family, model, x, 0 if is_double else tokens[0], block, in_front)
    order = order_of(family, steered, x[:1], positive, block, at.picture)
    assert not torch.equal(order, order.sort().values)
    assert torch.equal(order.sort().values, torch.arange(len(order)))
    found = predict(family, steered, x, positive, cfg, negative=negative)
    a, b = (predict(family, model, x, of) for of in (positive, negative))
    with shuffling(family, model, {block: order}, lambda name: at):
        c = predict(family, model, x, positive)
    assert nearly(found, guided(a, b, c, cfg, 3.0), 2e-5)
    assert not nearly(c, a, 1e-3)


@pytest.mark.parametrize(("family", "number"), EACH)
@pytest.mark.parametrize("batch", [1, 2])
def test_tpg_is_the_prediction_with_this_order(family, number, batch):
    check(family, MODELS[family](), noise_like(latent(family, batch=batch)), number, tokens=(5, 9))


@pytest.mark.parametrize("family", ["flux", "lumina", "zimage", "qwen", "wan", "ltxv", "hidream"])
def test_tpg_takes_odd_sizes_and_no_cfg(family):
    check(family, MODELS[family](), noise_like(latent(family, 7, 10)), cfg=1.0, tokens=(9, 5))


def reference(family, h=4, w=6):
    return noise_like(latent(family, h, w, frames=1), 3)


@pytest.mark.parametrize(
    ("family", "settings", "conds", "in_front"),
    [
        ("flux", {}, lambda: {"reference_latents": [reference("flux")]}, 0),
        ("qwen", {}, lambda: {"reference_latents": [reference("qwen")]}, 0),
        ("wan", {"in_dim_ref_conv": 16}, lambda: {"reference_latents": [reference("wan", 8, 12)]}, 24),
    ],
    ids=["flux", "qwen", "wan"],
)
def test_references_are_never_shuffled(family, settings, conds, in_front):
    for number in range(2 if family == "flux" else 1):
        model = make(family, **settings)
        check(family, model, noise_like(latent(family)), number, conds=conds(), in_front=in_front)


@pytest.mark.parametrize("family", WITHOUT_ROPE)
def test_families_without_positions_in_attention_refuse(family):
    with pytest.raises(ValueError, match=r"no effect on (SD3|AuraFlow): its positions are added to the tokens"):
        tpg(MODELS[family](), "auto")


@pytest.mark.parametrize("family", WITHOUT_ROPE)
def test_there_a_shuffle_has_no_effect(family):
    """The reason for the refusal, by the host alone."""
    model, x, block = MODELS[family](), noise_like(latent(family)), LAYERS[family][1][0]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    plain = predict(family, model, x, text(1, family=family))

    def shuffle(name, args, kwargs):
        return (args[0], args[1][:, order], *args[2:]), kwargs

    with around_blocks(model, [block], shuffle, lambda name, out: (out[0], out[1][:, order.argsort()])):
        assert nearly(predict(family, model, x, text(1, family=family)), plain, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", SHUFFLED)
def test_half_precision_is_finite(family, dtype):
    MODELS[family]()  # skips the test on hosts that lack it
    steered = tpg(MODELS[family](dtype=dtype), LAYERS[family][0])
    assert predict(family, steered, noise_like(latent(family)), both_texts(family)[0], 4.0).isfinite().all()
