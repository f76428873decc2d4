"""Normalized Attention Guidance on transformers, against plain runs of the host's network that meet at attentions."""

from __future__ import annotations

import threading
from functools import partial

import comfy.controlnet
import pytest
import torch
from reins.nodes.guidance.skip_layer import SkipLayerGuidance
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import nag, pag, swg
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import GUIDED, MODELS, latent, noise_like, sample, text
from reins.tests.helpers.two_texts import guided_by_hand, pictures_of, start

LENGTHS = [5, 3, 9]  # of the negative. The positive has 5 tokens
FAMILIES = ["sd3", "flux", "lumina", "hunyuan_video", "wan", "predict2"]
CFG = 4.0


def by_hand(family, model, *negatives, batch=1, h=8, w=12, **settings):
    prompts, begin = [text(1, family=family), *negatives], start(family, model, h, w, batch)
    return guided_by_hand(model, begin, prompts, pictures_of(family, model, begin, prompts), **settings)


def steered(family, model, negative, batch=1, h=8, w=12, **settings):
    return sample(family, nag(model, negative, **settings), cfg=1.0, steps=1, batch=batch, h=h, w=w)


@pytest.fixture(name="picture_stays")
def _picture_stays():
    """Makes the run for the negative place the picture as the positive's does, on Lumina2."""
    handles = []

    def stay(model, of_positive, of_negative):
        network = model.model.diffusion_model
        first = hasattr(network, "pad_tokens_multiple")
        multiple = getattr(network, "pad_tokens_multiple", None) or 1
        ends = [tokens + -tokens % multiple + first for tokens in (of_positive, of_negative)]

        def move(part, arguments):
            if threading.current_thread().name != "run 1":
                return None
            positions = arguments[0].clone()
            positions[..., 0][positions[..., 0] == ends[1]] = ends[0]
            return (positions, *arguments[1:])

        handles.append(network.rope_embedder.register_forward_pre_hook(move))

    yield stay
    for handle in handles:
        handle.remove()


def slg(model, share=True):
    return SkipLayerGuidance.execute(model, 2.8, 0.0, 1.0, "auto", share).result[0]


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("family", GUIDED)
def test_nag_guides_the_picture_at_each_attention_to_text(family, tokens, picture_stays):
    model, negative = MODELS[family](), text(3, tokens, family)
    found = steered(family, model, negative)
    assert not nearly(found, sample(family, model, cfg=1.0, steps=1), 1e-3)
    if family in ("lumina", "zimage"):
        picture_stays(model, 5, tokens)
    assert nearly(found, by_hand(family, model, negative), 2e-5)


def test_z_image_fills_each_text_up_with_its_own_tokens(picture_stays):
    """A text of 40 tokens is filled up to 64, and one of 5 to 32."""
    model, negative = MODELS["zimage"](), text(3, 40, "zimage")
    found = steered("zimage", model, negative)
    picture_stays(model, 5, 40)
    assert nearly(found, by_hand("zimage", model, negative), 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_nag_keeps_to_its_settings_in_batches_of_any_size(family, picture_stays):
    model, negative = MODELS[family](), text(3, 9, family)
    settings = {"scale": 4.0, "tau": 1.2, "alpha": 0.8}
    found = steered(family, model, negative, batch=2, h=10, w=6, **settings)
    if family == "lumina":
        picture_stays(model, 5, 9)
    expected = by_hand(family, model, negative, batch=2, h=10, w=6, settings=tuple(settings.values()))
    assert nearly(found, expected, 2e-5)


@pytest.mark.parametrize("family", GUIDED)
def test_nag_guides_each_picture_of_a_batch_as_if_it_were_alone(family):
    model, negative = MODELS[family](), text(3, 9, family)
    noise = noise_like(latent(family, batch=2))
    both = sample(family, nag(model, negative), batch=2, start=noise)
    for row in range(2):
        assert nearly(both[row : row + 1], sample(family, nag(model, negative), start=noise[row : row + 1]), 1e-4)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("family", GUIDED)
def test_nag_changes_no_bit_if_it_is_off_and_little_if_its_scale_is_small(family, tokens):
    model, negative = MODELS[family](), text(3, tokens, family)
    plain = sample(family, model)
    for off in ({"scale": 0.0}, {"alpha": 0.0}, {"start": 0.9, "end": 0.91}):
        assert torch.equal(sample(family, nag(model, negative, **off)), plain)
    assert nearly(sample(family, nag(model, negative, scale=1e-9)), plain, 1e-4)
    assert nearly(sample(family, nag(model, text(1, family=family), scale=50.0)), plain, 1e-4)


@pytest.mark.parametrize("of_cfg", [5, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_nag_leaves_cfgs_negative_as_it_is(family, of_cfg):
    """Its text has as many tokens as the positive, so that both are in one call, or more."""
    model, negative = MODELS[family](), text(3, 9, family)
    other = text(2, of_cfg, family)
    with tiny_models.forwards(model) as rows:
        found = sample(family, nag(model, negative), cfg=CFG, steps=1, negative=other)
    own = 0 if family in ("wan", "predict2") else 1
    assert sorted(rows) == ([2 + own] if of_cfg == 5 else [1, 1 + own])
    guided = sample(family, nag(model, negative), cfg=1.0, steps=1)
    plain = sample(family, model, cfg=1.0, steps=1, positive=other)
    assert nearly(found, plain + CFG * (guided - plain), 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_entries_of_nags_negative_count_by_their_strength(family):
    model, first, second = MODELS[family](), text(3, 5, family), text(4, 5, family)
    assert nearly(steered(family, model, first + second), by_hand(family, model, first, second), 2e-5)
    weak = [[second[0][0], {**second[0][1], "strength": 0.0}]]
    assert nearly(steered(family, model, first + weak), steered(family, model, first), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_entry_of_nags_negative_acts_on_its_part(family):
    model, negative = MODELS[family](), text(3, 7, family)
    left = torch.zeros(1, 8, 12)
    left[..., :6] = 1.0
    halves = [[[negative[0][0], {**negative[0][1], "mask": mask}] for mask in masks] for masks in ([left], [1 - left])]
    whole = steered(family, model, negative)
    assert nearly(steered(family, model, halves[0] + halves[1]), whole, 1e-4)
    found, plain = steered(family, model, halves[0]), sample(family, model, cfg=1.0, steps=1)
    assert not nearly(found, whole, 1e-2) and not nearly(found, plain, 1e-2)
    nearer = [(found - other).abs().mean((0, 1)) for other in (whole, plain)]
    assert nearer[0][..., :6].mean() < nearer[1][..., :6].mean()
    assert nearer[0][..., 6:].mean() > nearer[1][..., 6:].mean()
    areas = [[[negative[0][0], {**negative[0][1], "area": (8, 6, 0, 0)}]]]
    assert nearly(steered(family, model, areas[0]), found, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_entry_of_nags_negative_has_its_time(family):
    model, negative = MODELS[family](), text(3, 7, family)
    late = [[negative[0][0], {**negative[0][1], "start_percent": 0.9, "end_percent": 1.0}]]
    assert torch.equal(steered(family, model, late), sample(family, model, cfg=1.0, steps=1))
    early = [[negative[0][0], {**negative[0][1], "start_percent": 0.0, "end_percent": 0.1}]]
    assert torch.equal(steered(family, model, early), steered(family, model, negative))


def perturbed(site):
    """Logits at one of the joint attentions, in which a token of the picture sees itself and the text."""

    def change(number, logits, picture):
        if number != site:
            return logits
        logits = logits.clone()
        count = picture.stop - picture.start
        own = torch.full((count, count), float("-inf")).fill_diagonal_(0.0)
        logits[..., picture, picture] += own
        return logits

    return change


@pytest.mark.parametrize("tokens", [5, 3, 9])
@pytest.mark.parametrize(("family", "layer", "number"), [("sd3", "b1", 1), ("flux", "d1", 1), ("flux", "s1", 3)])
def test_nag_guides_what_pag_perturbs_in_either_order(family, layer, number, tokens):
    model, negative = MODELS[family](), text(3, tokens, family)
    plain = by_hand(family, model, negative)
    expected = plain + 3.0 * (plain - by_hand(family, model, negative, logits=perturbed(number)))
    for share in (True, False):
        settings = {"layers": layer, "share": share}
        first = sample(family, nag(pag(model, **settings), negative), cfg=1.0, steps=1)
        last = sample(family, pag(nag(model, negative), **settings), cfg=1.0, steps=1)
        assert nearly(first, expected, 1e-4) and nearly(last, expected, 1e-4)


@pytest.mark.parametrize("tokens", [5, 9])
@pytest.mark.parametrize("family", GUIDED)
def test_nag_goes_together_with_slg_and_shared_blocks(family, tokens):
    model, negative = MODELS[family](), text(3, tokens, family)
    apart = sample(family, slg(nag(model, negative), share=False))
    assert apart.isfinite().all()
    assert nearly(sample(family, slg(nag(model, negative))), apart, 1e-4)
    assert nearly(sample(family, nag(slg(model), negative)), apart, 1e-4)
    assert not nearly(apart, sample(family, slg(model)), 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_nags_stack_the_later_on_top(family):
    model, first, second = MODELS[family](), text(3, 5, family), text(4, 5, family)
    both = steered(family, nag(model, first), second)
    alone = steered(family, model, first)
    assert both.isfinite().all() and not nearly(both, alone, 1e-2)
    assert nearly(sample(family, nag(nag(model, first), second, scale=1e-9), cfg=1.0, steps=1), alone, 1e-4)
    assert nearly(
        sample(family, nag(nag(model, first, scale=1e-9), second), cfg=1.0, steps=1),
        steered(family, model, second),
        1e-4,
    )


def test_nags_rows_share_blocks_with_those_that_are_alike():
    """Up to the layer of PAG, its prediction and the row beside it are those of the positive."""
    model, negative, rows = MODELS["sd3"](), text(3, 9, "sd3"), []
    blocks = model.model.diffusion_model.joint_blocks
    for block in blocks:
        block.x_block.attn.qkv.register_forward_hook(lambda part, inputs, output: rows.append(len(output)))
    sample("sd3", pag(nag(model, negative), layers="b2"), steps=1)
    assert len(blocks) == 3 and rows == [3, 3, 5]


def test_nag_guides_reference_pictures_with_the_picture():
    """They are beside the text in one sequence, so they are the same in both rows too."""
    model, negative = MODELS["flux"](), text(3, 9, "flux")
    reference = noise_like(latent("flux", 4, 4), seed=9)
    positive = text(1, family="flux", reference_latents=[reference])
    found = sample("flux", nag(model, negative), cfg=1.0, steps=1, positive=positive)
    begin, prompts = start("flux", model), [positive, negative]
    places = [slice(tokens, tokens + 24 + 4) for tokens in (5, 9)]
    pictures = [lambda queries, keys, place=place: place for place in places]
    assert nearly(found, guided_by_hand(model, begin, prompts, pictures), 2e-5)
    assert not nearly(found, steered("flux", model, negative), 1e-3)


class Residuals(comfy.controlnet.ControlBase):
    """Stands for a ControlNet of the host: residuals for the first blocks, another for each row."""

    def get_control(self, x, t, cond, batched_number, *options):
        rows = torch.arange(1.0, len(x) + 1).view(-1, 1, 1).sin()
        return {"input": [rows * noise_like(torch.empty(1, 24, 32))] * 2, "output": []}

    def copy(self):
        return self


@pytest.mark.parametrize("of_cfg", [5, 7])
def test_nags_rows_have_the_residuals_of_their_positive(of_cfg):
    model = MODELS["flux"]()
    prompts = {"positive": text(1, control=Residuals()), "negative": text(2, of_cfg)}
    plain = sample("flux", model, batch=2, **prompts)
    assert not nearly(plain, sample("flux", model, batch=2, negative=text(2, of_cfg)), 1e-2)
    assert nearly(sample("flux", nag(model, text(1), scale=50.0), batch=2, **prompts), plain, 1e-4)
    assert nearly(sample("flux", nag(model, text(3, 9), scale=1e-9), batch=2, **prompts), plain, 1e-4)


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_nag_acts_in_areas_and_in_windows(family):
    model, negative = MODELS[family](), text(3, 9, family)
    (left,), (right,) = (text(seed, 5, family) for seed in (1, 4))
    both = [[left[0], {**left[1], "area": (8, 6, 0, 0)}], [right[0], {**right[1], "area": (8, 6, 0, 6)}]]
    frames = {"frames": 1} if family == "wan" else {}
    found = sample(family, nag(model, negative), cfg=1.0, steps=1, positive=both, **frames)
    for place, prompt in ((slice(0, 6), [left]), (slice(6, 12), [right])):
        noise = noise_like(latent(family, **frames))[..., place].contiguous()
        alone = sample(family, nag(model, negative), cfg=1.0, steps=1, w=6, positive=prompt, start=noise, **frames)
        assert nearly(found[..., place], alone, 1e-4)
    masked = [[negative[0][0], {**negative[0][1], "mask": torch.ones(1, 8, 12)}]]
    assert nearly(sample(family, nag(model, masked), cfg=1.0, steps=1, positive=both, **frames), found, 1e-4)
    windows = partial(swg, tile=48, overlap=16)
    first = sample(family, nag(windows(model), negative), **frames)
    last = sample(family, windows(nag(model, negative)), **frames)
    assert nearly(first, last, 1e-4) and not nearly(first, sample(family, windows(model), **frames), 1e-3)


def test_nag_keeps_other_packs_out_of_its_rows():
    """A wrapper around the call of the model sees the rows of the host alone."""
    model, seen = MODELS["sd3"](), []

    def around(apply, arguments):
        out = apply(arguments["input"], arguments["timestep"], **arguments["c"])
        seen.append((len(arguments["input"]), len(out)))
        return out

    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(around)
    found = sample("sd3", nag(wrapped, text(3, 9, "sd3")))
    assert seen == [(2, 2)] * 2
    assert nearly(found, sample("sd3", nag(model, text(3, 9, "sd3"))), 1e-5)
