"""Other packs that tell rows apart by themselves: tiles, the order of chunks, one positive, changed texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from reins.engine.layers.texts import PatchedTexts
from reins.engine.unet import find_sites, find_transformers, unet_of
from reins.tests.helpers import tiny_models
from reins.tests.helpers.methods import COVERED, METHODS, nag, pag, pladis, seg
from reins.tests.helpers.other_packs import regrouped
from reins.tests.helpers.references import nag_by_the_paper
from reins.tests.helpers.tiny_models import cond, denoise, nearly, noise, sample, text
from torch import Tensor, nn

CONDS = {"positive": [cond(text(1)[0][0])], "negative": [cond(text(2)[0][0])]}
JOINING = ("pag", "seg", "tpg", "h-edit")


@pytest.fixture
def model() -> ModelPatcher:
    return tiny_models.sd15(dtype=torch.float64)


# --- tiles -----------------------------------------------------------------------------------------------------------


def in_tiles(count: int, per_call: int) -> Callable[..., Tensor]:
    """A pack that cuts each picture into tiles over its width and sends some of them in a call."""

    def send(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        t, rows, tiles = args["timestep"], len(args["input"]), args["input"].chunk(count, -1)
        outs = []
        for start in range(0, count, per_call):
            some = tiles[start : start + per_call]
            conds = {
                name: torch.cat([value] * len(some)) if torch.is_tensor(value) and len(value) == rows else value
                for name, value in args["c"].items()
            }
            outs += apply_model(torch.cat(some), torch.cat([t] * len(some)), **conds).chunk(len(some))
        return torch.cat(outs, -1)

    return send


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("per_call", [2, 3])
@pytest.mark.parametrize("name", [*JOINING, "pag and seg"])
def test_tiles_in_one_call_are_those_of_a_call_each(name, per_call, cfg, model):
    steer = METHODS.get(name, lambda model: seg(pag(model, layers="u0")))
    alone, together, plain = (
        sample(method(regrouped(model, in_tiles(3, count))), (16, 48), cfg=cfg, batch=2)
        for method, count in ((steer, 1), (steer, per_call), (lambda model: model, 1))
    )
    assert nearly(together, alone)
    assert not nearly(alone, plain, 1e-3)


# --- windows of other packs ------------------------------------------------------------------------------------------


def in_windows(model: ModelPatcher) -> ModelPatcher:
    """A pack that evaluates parts of the batch, as AnimateDiff-Evolved does with its context windows."""

    def windows(executor: Any, network: Any, conds: list, x: Tensor, t: Tensor, model_options: dict) -> list[Tensor]:
        outs = []
        for images in ([0, 1], [2, 3]):
            told = {"sub_idxs": images, "full_length": len(x)}
            options = {**model_options["transformer_options"], "ad_params": told}
            outs.append(
                executor(network, conds, x[images], t[images], {**model_options, "transformer_options": options})
            )
        return [torch.cat(of_list) for of_list in zip(*outs, strict=True)]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "another pack", windows)
    return model


@pytest.mark.parametrize("name", [name for name in COVERED if name not in ("sag", "unicon")])
def test_windows_of_another_pack_may_stand_before_and_after(name, model):
    steer = METHODS[name]
    before, after = sample(steer(in_windows(model)), batch=4), sample(in_windows(steer(model)), batch=4)
    assert nearly(after, before)
    assert nearly(after, sample(steer(model), batch=4))  # no method sees other images


# --- chunks in other groups ------------------------------------------------------------------------------------------

NAMED = {"both lists": ("cond_or_uncond", "uuids"), "labels": ("cond_or_uncond",)}


def in_groups(groups_of: Callable[[list[int]], list[list[int]]], names: tuple[str, ...]) -> Callable[..., Tensor]:
    """A pack that sends groups of chunks, labels them truly in these lists, and knows texts alone."""

    def send(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        options, labels, outs = args["c"]["transformer_options"], args["cond_or_uncond"], {}
        for group in groups_of(list(labels)):

            def picked(tensor: Tensor, group: list[int] = group) -> Tensor:
                return torch.cat([tensor.chunk(len(labels))[i] for i in group])

            told = {**options, **{name: [options[name][i] for i in group] for name in names}}
            conds = {**args["c"], "c_crossattn": picked(args["c"]["c_crossattn"]), "transformer_options": told}
            out = apply_model(picked(args["input"]), picked(args["timestep"]), **conds)
            outs.update(zip(group, out.chunk(len(group)), strict=True))
        return torch.cat([outs[i] for i in range(len(labels))])

    return send


def twice(labels: list[int]) -> list[list[int]]:
    """All chunks in one call, the last one a second time."""
    return [[*range(len(labels)), len(labels) - 1]]


def by_labels(labels: list[int]) -> list[list[int]]:
    """A call for each label."""
    return [[i for i, other in enumerate(labels) if other == label] for label in sorted({*labels})]


@pytest.mark.parametrize("names", NAMED)
@pytest.mark.parametrize("groups", [twice, by_labels])
def test_chunks_in_other_groups_that_a_pack_names_are_right(groups, names, method, sd15):
    if method is METHODS["swg"] and names == "labels":
        pytest.skip("its windows are several prompts with one label, which labels alone do not tell apart")
    grouped = regrouped(sd15, in_groups(groups, NAMED[names]))
    assert nearly(sample(method(grouped), steps=1, batch=2), sample(method(sd15), steps=1, batch=2), 1e-4)


# --- the order of chunks ---------------------------------------------------------------------------------------------


def noting(model: ModelPatcher, seen: list[list[int]]) -> ModelPatcher:
    model = model.clone()

    def note(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(list(args[5]["cond_or_uncond"]))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", note)
    return model


@pytest.mark.parametrize("when", ["before", "after"])
def test_all_negatives_come_before_all_positives(when, model):
    seen: list[list[int]] = []
    steer = METHODS["h-edit"]
    steered = pag(steer(noting(model, seen))) if when == "before" else noting(pag(steer(model)), seen)
    sample(steered, steps=1)
    assert seen == [[1, 1, 0, 0, 0]]


def by_place(executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Any, control: Any, options: dict, **more: Any):
    """A pack that takes all from the first positive on for positives, and those before it for negatives."""
    out = executor(x, t, context, y, control, options, **more).clone()
    first = options["cond_or_uncond"].index(0) * len(out) // len(options["cond_or_uncond"])
    out[first:] *= 1.5
    return out


def by_label(executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Any, control: Any, options: dict, **more: Any):
    out = executor(x, t, context, y, control, options, **more)
    labels = options["cond_or_uncond"]
    return torch.cat(
        [part if label else 1.5 * part for part, label in zip(out.chunk(len(labels)), labels, strict=True)]
    )


@pytest.mark.parametrize("name", [*JOINING, "swg"])
def test_a_pack_that_takes_the_last_rows_for_the_positive_finds_them(name, model):
    results = []
    for act in (by_place, by_label):
        wrapped = model.clone()
        wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", act)
        results.append(sample(METHODS[name](wrapped), (16, 24), batch=2))
    assert nearly(*results)


# --- one positive ----------------------------------------------------------------------------------------------------


def host_nag(model: ModelPatcher) -> ModelPatcher:
    node = pytest.importorskip("comfy_extras.nodes_nag", reason="this host has no NAG").NAGuidance
    return node.execute(model, 5.0, 0.5, 2.5).result[0]


def positive_of(model: ModelPatcher, x: Tensor) -> Tensor:
    """The positive of a call of the model in which the negative is too."""
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    return denoise(model, x, 3.0, **CONDS, cfg=5.0)


def guiding_last_rows(model: ModelPatcher) -> ModelPatcher:
    """A pack with a forward of its own that acts on the last rows of a call, as ComfyUI-NAG does."""
    model, unet = model.clone(), model.model.diffusion_model

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = type(unet).forward(unet, x, *args, **kwargs).clone()
        out[-2:] *= 1.5
        return out

    model.add_object_patch("diffusion_model.forward", forward)
    return model


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", ["pag", "seg"])
def test_a_forward_that_acts_on_the_last_rows_acts_on_each_prediction(name, cfg, model):
    steer = {"pag": pag, "seg": seg}[name]
    x, negative = 3 * noise(b=2), CONDS["negative"] if cfg > 1 else None
    other = guiding_last_rows(model)
    perturbed = other.clone()
    if name == "pag":
        perturbed.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0, 0)
    else:  # an infinite blur is the mean of the queries
        perturbed.set_model_attn1_replace(
            lambda q, k, v, options: optimized_attention(
                q.mean(1, keepdim=True).expand_as(q), k, v, options["n_heads"]
            ),
            "middle", 0, 0,
        )  # fmt: skip
    positive, weak = (denoise(of_one, x, 3.0, CONDS["positive"], None, 1.0) for of_one in (other, perturbed))
    expected = denoise(other, x, 3.0, CONDS["positive"], negative, cfg) + 3.0 * (positive - weak)
    assert nearly(denoise(steer(other), x, 3.0, CONDS["positive"], negative, cfg), expected)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_perturbed_prediction_has_the_hosts_nag_too(order, model):
    def perturb(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """The values for the positive, the attention for the negative."""
        labels, out = options["cond_or_uncond"], optimized_attention(q, k, v, options["n_heads"])
        parts = zip(out.chunk(len(labels)), v.chunk(len(labels)), labels, strict=True)
        return torch.cat([attended if label else values for attended, values, label in parts])

    x, perturbed = 3 * noise(b=2), host_nag(model).clone()
    perturbed.set_model_attn1_replace(perturb, "middle", 0, 0)
    term = positive_of(host_nag(model), x) - positive_of(perturbed, x)
    steered = pag(host_nag(model)) if order == "before" else host_nag(pag(model))
    expected = denoise(host_nag(model), x, 3.0, **CONDS, cfg=5.0) + 3.0 * term
    assert nearly(denoise(steered, x, 3.0, **CONDS, cfg=5.0), expected)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", ["h-edit", "pag", "swg", "sag"])
def test_methods_of_vanishing_strength_leave_the_hosts_nag(name, cfg, model):
    from reins.tests.helpers import h_space
    from reins.tests.helpers.methods import sag, swg

    weakly = {
        "h-edit": lambda model: h_space.edit(model, strength=1e-6),
        "pag": lambda model: pag(model, 1e-6),
        "swg": lambda model: swg(model, 1e-6),
        "sag": lambda model: sag(model, 1e-6),
    }[name]
    expected = sample(host_nag(model), (16, 24), cfg=cfg)
    assert nearly(sample(host_nag(weakly(model)), (16, 24), cfg=cfg), expected, 1e-4)
    assert not nearly(expected, sample(model, (16, 24), cfg=cfg), 1e-2)


# --- texts -----------------------------------------------------------------------------------------------------------

NEGATIVE = text(3)
MATRIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(5)).double() / 4


def mixed(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """What a hypernetwork does: the text of keys and that of values are changed, each in its way."""
    return q, k + k.flip(2), v - v.roll(1, 2)


def signed(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """What negative weights of words do: the text holds keys and values in turn."""
    return q, k[:, 0::2], v[:, 1::2]


def in_turn(seed: int, tokens: int = 5) -> list:
    embedding, settings = text(seed, tokens)[0]
    embedding = embedding.repeat_interleave(2, 1).clone()
    embedding[:, 3::4] *= -1
    return [[embedding, settings]]


def by_hand(model: ModelPatcher, patch: Callable, negative: Tensor) -> ModelPatcher:
    """A model with NAG by the paper in the slots of its text attentions, on the positive of a call."""
    steered, unet = model.clone(), unet_of(model)
    for transformer in find_transformers(unet):
        module = unet.get_submodule(transformer.path).attn2

        def guided(q: Tensor, k: Tensor, v: Tensor, options: dict, module: nn.Module = module) -> Tensor:
            labels, outs = options["cond_or_uncond"], []
            for label, q, k, v in zip(labels, *(part.chunk(len(labels)) for part in (q, k, v)), strict=True):  # noqa: B020
                out = optimized_attention(q, k, v, options["n_heads"])
                if label == 0:
                    own = negative.to(q).expand(len(q), -1, -1)
                    _, keys, values = patch(q, own, own, options)
                    against = optimized_attention(q, module.to_k(keys), module.to_v(values), options["n_heads"])
                    out = nag_by_the_paper(out, against, 2.0, 2.5, 0.5)
                outs.append(out)
            return torch.cat(outs)

        steered.set_model_attn2_replace(guided, transformer.block, transformer.number, transformer.index)
    return steered


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["mixed", "signed"])
def test_nags_negative_goes_through_what_other_packs_do_to_texts(kind, order, model):
    patch, make = {"mixed": (mixed, text), "signed": (signed, in_turn)}[kind]
    patched, settings = model.clone(), {"positive": make(1), "negative": make(2), "batch": 2}
    patched.set_model_attn2_patch(patch)
    steered = nag(patched if order == "before" else model, negative=make(3))
    if order == "after":
        steered.set_model_attn2_patch(patch)
    expected = sample(by_hand(patched, patch, make(3)[0][0]), **settings)
    assert nearly(sample(steered, **settings), expected)
    assert not nearly(expected, sample(patched, **settings), 1e-2)


def test_nags_negative_goes_through_the_hosts_hypernetwork(model, tmp_path):
    module = pytest.importorskip("comfy_extras.nodes_hypernetwork")
    width, generator = tiny_models.WIDTH, torch.Generator().manual_seed(3)
    layer = {"linear.weight": torch.randn(width, width, generator=generator) / 8, "linear.bias": torch.zeros(width)}
    torch.save({width: [layer, layer]}, tmp_path / "hypernetwork.pt")
    patch = module.load_hypernetwork_patch(str(tmp_path / "hypernetwork.pt"), 1.0)
    for networks in patch.hypernet.values():
        for network in networks if isinstance(networks, tuple | list) else [networks]:
            network.double()
    patched = model.clone()
    patched.set_model_attn2_patch(patch)
    embedding = NEGATIVE[0][0].double()
    changed = embedding + embedding @ layer["linear.weight"].double().T
    expected = sample(by_hand(patched, lambda q, k, v, _: (q, changed.expand_as(k), changed.expand_as(v)), embedding))
    assert nearly(sample(nag(patched, negative=NEGATIVE)), expected)


def test_pladis_reads_texts_whose_length_another_pack_halves(model):
    """Two texts of different length: the host repeats the shorter one to batch them."""
    patched = model.clone()
    patched.set_model_attn2_patch(signed)
    settings = {"positive": in_turn(1, 6), "negative": in_turn(2, 3)}
    alone = regrouped(patched, one_prompt_a_call)
    assert nearly(sample(pladis(patched), **settings), sample(pladis(alone), **settings))


def one_prompt_a_call(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    """Each chunk alone, its text cut to its length, named truly."""
    labels, options = args["cond_or_uncond"], args["c"]["transformer_options"]
    outs = []
    for i, label in enumerate(labels):
        conds = {k: v.chunk(len(labels))[i] if torch.is_tensor(v) else v for k, v in args["c"].items()}
        conds["c_crossattn"] = conds["c_crossattn"][:, : 6 if label else 12]
        lists = {name: [options[name][i]] for name in ("cond_or_uncond", "uuids")}
        conds["transformer_options"] = {**options, **lists}
        x, t = (args[name].chunk(len(labels))[i] for name in ("input", "timestep"))
        outs.append(apply_model(x, t, **conds))
    return torch.cat(outs)


def test_a_negative_text_that_another_pack_cannot_halve_is_refused(model):
    patched = model.clone()
    patched.set_model_attn2_patch(signed)
    with pytest.raises(RuntimeError, match="should have as many keys as values, but another pack makes 3 and 2 of it"):
        sample(nag(patched, negative=text(3)), positive=in_turn(1), negative=in_turn(2))


# --- functions of other packs in the slots ---------------------------------------------------------------------------


def knows_two_chunks(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """A function that knows one positive and one negative, with texts of one length."""
    assert len(options["cond_or_uncond"]) in (1, 2)
    return optimized_attention(q, k, v.expand(-1, 5, -1) + torch.zeros(5, 1).to(v), options["n_heads"])


@pytest.mark.parametrize("name", ["unicon", "nag"])
def test_a_function_in_a_slot_that_fails_on_our_rows_is_named(name, model):
    other = model.clone()
    other.set_model_attn2_replace(knows_two_chunks, "input", 1)
    sample(other, steps=1)
    steer = METHODS["unicon"] if name == "unicon" else lambda model: nag(model, negative=text(3, 7))
    with pytest.raises(RuntimeError, match=r"attn2 of input 1 should take the \d rows of this call, but failed"):
        sample(steer(other), steps=1)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, comfy.model_management.InterruptProcessingException])
def test_memory_and_interrupts_pass_through_a_slot_as_they_are(error, model):
    def fails(*_: Any) -> Tensor:
        raise error

    other = model.clone()
    other.set_model_attn2_replace(fails, "input", 1)
    with pytest.raises(error):
        sample(nag(other), steps=1)


def test_a_text_attention_that_is_called_past_its_patches_is_refused(model):
    site, own = find_sites(model, "attn2")[0], text(3)[0][0]
    with pytest.raises(RuntimeError, match="another pack calls it without them"):
        PatchedTexts((mixed,), ()).at(site, own)
