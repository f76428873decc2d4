"""What an IP-Adapter does in the sampling loop; the faults of ComfyUI_IPAdapter_plus, one by one."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, suppress
from unittest import mock

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from reins.engine.entries import entries
from reins.engine.layers.attention import AttentionLayer
from reins.engine.layers.of_host import host_attention
from reins.engine.rows.chunk import REGIONAL
from reins.engine.unet import find_sites
from reins.models.ip_adapter.network import ImageLayers
from reins.nodes.ip_adapter import attention as module
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.conditioning_node import IPAdapterConditioning
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.methods import METHODS, pag, sag
from reins.tests.helpers.other_packs import VERSION, coupled, hook_with, regrouped, tiled, windows
from reins.tests.helpers.tiny_models import nearly, sample, text

LAYERS = 10  # text attentions of the tiny SD1.5


def apply(model, made, tokens, **settings):
    return IPAdapterApply.execute(model, made, tokens, **settings).result[0]


def reference(model, made, tokens, weight=1.0):
    """The method by its formula, in the host's slot: every layer, every call, nothing remembered."""
    model = model.clone()
    order = {"input": 0, "output": 1, "middle": 2}
    for number, site in enumerate(sorted(find_sites(model, "attn2"), key=lambda site: order[site.block])):

        def both(q, k, v, options, number=number):
            labels = options["cond_or_uncond"]
            uncond = tokens.uncond.expand_as(tokens.cond)
            chosen = torch.cat([(uncond if label == 1 else tokens.cond).flatten(0, 1)[None] for label in labels])
            chosen = chosen.repeat_interleave(len(q) // len(labels), 0)
            k_ip, v_ip = made.layers.model.keys_and_values(number, chosen)
            heads = options["n_heads"]
            plain, image = (
                comfy.ldm.modules.attention.attention_pytorch(q, key.to(q), value.to(q), heads)
                for key, value in ((k, v), (k_ip, v_ip))
            )
            return plain + weight * image

        model.set_model_attn2_replace(both, *site[1:])
    return model


@contextmanager
def counted():
    """Projections of k and v, and attentions of images, inside the block."""
    counts = Counter()
    project, attention = ImageLayers.keys_and_values, module.attention_pytorch

    def projected(self, *args):
        counts["linears"] += 2
        return project(self, *args)

    def attended(*args, **kwargs):
        counts["attentions"] += 1
        return attention(*args, **kwargs)

    with (
        mock.patch.object(ImageLayers, "keys_and_values", projected),
        mock.patch.object(module, "attention_pytorch", attended),
    ):
        yield counts


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.4, -0.5])
def test_the_result_is_that_of_the_formula(cfg, weight, model):
    made = ip_adapter.adapter(model)
    tokens = ip_adapter.tokens(made)
    found = sample(apply(model, made, tokens, weight=weight), cfg=cfg)
    assert nearly(found, sample(reference(model, made, tokens, weight), cfg=cfg))
    assert not nearly(found, sample(model, cfg=cfg), 1e-2)


def test_adapters_add_up_in_any_order(model):
    first, second = ip_adapter.adapter(model), ip_adapter.adapter(model, seed=8)
    one, other = ip_adapter.tokens(first, 1), ip_adapter.tokens(second, 2, images=2)
    masked = {"weight": 0.6, "mask": torch.linspace(0, 1, 30).expand(20, 30)}
    forth = apply(apply(model, first, one), second, other, **masked)
    back = apply(apply(model, second, other, **masked), first, one)
    assert nearly(sample(forth), sample(back))
    assert not nearly(sample(forth), sample(apply(model, first, one)), 1e-2)
    assert not nearly(sample(forth), sample(apply(model, second, other, **masked)), 1e-2)


# --- the faults of ComfyUI_IPAdapter_plus, lettered as in the list of them -------------------------------------------


def test_a_clones_share_the_adapters_weights(sd15):
    made = ip_adapter.adapter(sd15)
    steered = apply(sd15, made, ip_adapter.tokens(made))
    (entry,) = entries(steered.clone().clone().model_options["transformer_options"], AttentionLayer)
    assert entry.apply.adapter is made
    assert entry.apply.adapter.layers.model is made.layers.model


def test_b_the_weights_belong_to_patchers_of_the_host_and_are_not_loaded_for_sampling(sd15, monkeypatch):
    made = ip_adapter.adapter(sd15)
    steered, loaded = apply(sd15, made, ip_adapter.tokens(made)), []
    load = comfy.model_management.load_models_gpu

    def note(models, *args, **kwargs):
        loaded.extend(models)
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", note)
    sample(steered)
    assert loaded
    assert not {id(made.layers), id(made.projection)} & {id(model) for model in loaded}
    assert made.layers.model_size() > 0


def test_c_applying_again_does_not_touch_the_model_before(sd15):
    made = ip_adapter.adapter(sd15)
    once = apply(sd15, made, ip_adapter.tokens(made))
    expected = sample(once)
    twice = [apply(once, made, ip_adapter.tokens(made, 3)) for _ in range(3)]
    assert torch.equal(sample(once), expected)
    assert torch.equal(sample(twice[0]), sample(twice[2]))


@pytest.mark.parametrize("steps", [1, 5])
def test_d_keys_and_values_are_made_once_per_run(steps, sd15):
    made = ip_adapter.adapter(sd15)
    steered = apply(sd15, made, ip_adapter.tokens(made))
    with counted() as counts:
        sample(steered, steps=steps, batch=3)
        assert counts["linears"] == 2 * LAYERS * 2  # k and v; the positive's tokens and the negative's
        sample(steered, steps=steps, cfg=1.0)
        assert counts["linears"] == 2 * LAYERS * 3


def test_d_on_the_layout_of_sd15_that_is_64_projections():
    layout = tiny_models.sd15(
        num_res_blocks=[2] * 4, channel_mult=[1, 1, 1, 1], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip
    steered = ip_adapter.apply(layout)
    with counted() as counts:
        sample(steered, steps=5)
    assert counts == {"linears": 64, "attentions": 16 * 5}


@pytest.mark.parametrize("settings", [{}, {"end_percent": 0.5}, {"mask": torch.ones(1, 4, 4)}], ids=str)
def test_d_a_step_reads_nothing_from_the_device_but_sigma_where_there_is_a_range(settings, sd15):
    def reads(model, steps):
        with tiny_models.DeviceReads() as found:
            sample(model, steps=steps)
        return found.count

    steered = ip_adapter.apply(sd15, **settings)
    extra = [reads(steered, steps) - reads(sd15, steps) for steps in (4, 8)]
    assert extra[1] - extra[0] == (4 if "end_percent" in settings else 0)


def test_d_outside_its_range_the_model_runs_its_own_path(sd15):
    early = ip_adapter.apply(sd15, end_percent=0.3)
    with counted() as counts:
        sample(early, steps=10)
    assert counts["attentions"] == LAYERS * 3
    slots = []
    early.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "look behind", lambda executor, *args, **kwargs: (
            slots.append(bool(args[5].get("patches_replace"))), executor(*args, **kwargs))[1],
    )  # fmt: skip
    sample(early, steps=10)
    assert slots == [True] * 3 + [False] * 7 or not any(slots)  # ours may stand behind theirs


def test_d_layers_without_weight_are_left_out(sd15):
    with counted() as counts:
        sample(ip_adapter.apply(sd15, weight_type="custom", layer_weights="3:1, 4:0"), steps=2)
    assert counts == {"linears": 2 * 2, "attentions": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_file", [torch.float32, torch.float16, torch.bfloat16])
def test_e_a_file_of_any_type_works_on_a_model_of_any_type(dtype, of_file):
    def both(model, weights):
        made = make_ip_adapter(weights, "tiny.safetensors")
        return sample(model, steps=1), sample(apply(model, made, ip_adapter.tokens(made)), steps=1)

    exact, half = tiny_models.sd15(), tiny_models.sd15(dtype=dtype)
    weights = {key: value.to(of_file) for key, value in ip_adapter.file_for(exact).items()}
    plain, expected = both(exact, {key: value.float() for key, value in weights.items()})
    plain_half, found = both(half, weights)
    rounding = (plain_half - plain).abs().max()
    assert (found - expected).abs().max() < 2 * rounding < 0.5 * (expected - plain).abs().max()


@pytest.mark.parametrize("labels", [[2], [2, 1], [2, 1, 0], [0, 5, 1], [1, 1, 0, 0]], ids=str)
def test_f_any_number_and_order_of_chunks_works(labels, sd15):
    """Index 1 is the negative, every other one a positive; each chunk gets what it gets alone."""
    made = ip_adapter.adapter(sd15)
    steered = apply(sd15, made, ip_adapter.tokens(made))
    x, context = tiny_models.noise(b=len(labels)), torch.cat([text(label)[0][0] for label in labels])

    def forward(rows, labels):
        options = {
            "cond_or_uncond": labels, "uuids": list(range(len(labels))), "wrappers": steered.wrappers,
            "sigmas": torch.ones(1), **steered.model_options["transformer_options"],
        }  # fmt: skip
        with torch.no_grad():
            return steered.model.diffusion_model(
                x[rows].double(), torch.ones(len(labels)), context=context[rows].double(), transformer_options=options
            )

    together = forward(slice(None), labels)
    for i, label in enumerate(labels):
        alone = forward(slice(i, i + 1), [1 if label == 1 else 0])
        assert nearly(together[i : i + 1], alone)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("key", [("middle", 0), ("middle", 0, 0), ("output", 1)])
def test_g_another_packs_slot_is_kept_underneath(before, key, sd15):
    def doubled(q, k, v, options):
        return 2 * host_attention(q, k, v, options)

    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made)
    foreign = sd15.clone()
    foreign.set_model_attn2_replace(doubled, *key)
    steered = apply(foreign if before else sd15, made, tokens)
    if not before:
        steered.set_model_attn2_replace(doubled, *key)
    block = [site for site in find_sites(sd15, "attn2") if site[1:3] == key[:2]]
    expected = reference(sd15, made, tokens)
    for site in block[:1]:
        plain = expected.model_options["transformer_options"]["patches_replace"]["attn2"][site[1:]]

        def both(q, k, v, options, plain=plain):
            return plain(q, k, v, options) + host_attention(q, k, v, options)

        expected.set_model_attn2_replace(both, *site[1:])
    assert nearly(sample(steered), sample(expected))


def halves(w=16):
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    return left, 1 - left


def test_h_a_mask_is_cut_to_the_area_of_a_prompt_and_not_stretched(sd15):
    """Mask on the right, prompts with an area on the left: exactly nothing may change."""
    left, right = halves()
    areas = {"positive": text(1, area=(16, 8, 0, 0)), "negative": text(2, area=(16, 8, 0, 0))}
    assert torch.equal(sample(ip_adapter.apply(sd15, mask=right), **areas), sample(sd15, **areas))
    inside = sample(ip_adapter.apply(sd15, mask=left), **areas)
    assert nearly(inside, sample(ip_adapter.apply(sd15), **areas))
    assert not nearly(inside, sample(sd15, **areas), 1e-2)


def test_h_two_areas_of_one_size_see_different_parts_of_a_mask(sd15):
    """One batch, two chunks of equal shape: each is told its place by its prompt."""
    mask = torch.zeros(1, 64, 64)
    mask[..., 40:] = 1
    positive = text(1, area=(16, 8, 0, 0)) + text(3, area=(16, 8, 0, 8))
    found = sample(ip_adapter.apply(sd15, mask=mask), positive=positive, steps=1, cfg=1.0)
    plain = sample(sd15, positive=positive, steps=1, cfg=1.0)
    assert torch.equal(found[..., :8], plain[..., :8])
    assert not nearly(found[..., 8:], plain[..., 8:], 1e-2)


@pytest.mark.parametrize("size", [(17, 40), (9, 72), (8, 128), (34, 26), (5, 7), (33, 6)])
def test_i_a_mask_of_ones_is_no_mask_at_any_size(size, model):
    assert nearly(
        sample(ip_adapter.apply(model, mask=torch.ones(1, 7, 9)), size), sample(ip_adapter.apply(model), size)
    )


@pytest.mark.parametrize("size", [(16, 16), (17, 26)])
def test_i_a_mask_holds_at_its_place(size, sd15):
    """One layer, no step of the network after it would show where: the output of the attention itself."""
    mask, seen = torch.zeros(1, 64, 64), []
    mask[:, 32:, :16] = 1

    def look(call, below):
        out = below(call)
        seen.append(
            (out - host_attention(call.q, call.k, call.v, call.options)).norm(dim=-1)[0].view(call.grid(call.q))
        )
        return out

    steered = ip_adapter.apply(sd15, mask=mask, weight_type="custom", layer_weights="0:1")
    site = find_sites(sd15, "attn2")[0]
    sample(module.add_attention_layer(steered, [site], look), size, steps=1)
    h, w = seen[0].shape
    inside = torch.nn.functional.interpolate(mask[None], (h, w), mode="bilinear")[0, 0]
    assert torch.equal(seen[0] > 0, inside > 0)
    assert 0 < (inside > 0).sum() < h * w


def test_j_the_text_part_keeps_the_users_kernel_and_precision(sd15):
    seen = []

    def override(func, *args, **kwargs):
        seen.append(kwargs.get("attn_precision"))
        return func(*args, **kwargs)

    def calls(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        seen.clear()
        sample(model, steps=2)
        return list(seen)

    assert calls(ip_adapter.apply(sd15)) == calls(sd15)  # each text and self attention once; the image's are plain


def test_k_nothing_global_changes(sd15):
    before = torch.random.get_rng_state()
    sd15_steered = ip_adapter.apply(sd15)
    made = sd15_steered.model_options["transformer_options"]["reins"][0].apply.adapter
    assert made is not None
    assert torch.equal(torch.random.get_rng_state(), before)
    with mock.patch.object(comfy.model_management, "soft_empty_cache") as emptied:
        ip_adapter.apply(sd15)
    assert not emptied.called


# --- images, frames, prompts ---------------------------------------------------------------------------------------


def test_images_of_a_concat_are_one_long_prompt(sd15):
    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made, images=2)
    assert nearly(sample(apply(sd15, made, tokens)), sample(reference(sd15, made, tokens)))


def test_a_weight_of_two_in_a_concat_counts_as_two_copies(sd15):
    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made, images=2)
    thrice = type(tokens)(
        tokens.cond[[0, 0, 1]], tokens.uncond, tokens.black, torch.ones(3), tokens.made_by, tokens.fingerprint
    )
    found = sample(apply(sd15, made, ip_adapter.weighted(tokens, 2.0, 1.0)))
    assert nearly(found, sample(apply(sd15, made, thrice)))
    assert not nearly(found, sample(apply(sd15, made, tokens)), 1e-3)


def one_image(tokens, i):
    i = min(i, len(tokens.cond) - 1)
    return type(tokens)(
        tokens.cond[i : i + 1], tokens.uncond, tokens.black, tokens.weights[:1] * 0 + 1, tokens.made_by,
        tokens.fingerprint,
    )  # fmt: skip


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("images", [2, 4])
def test_per_frame_gives_each_picture_its_own_image(images, cfg, model):
    made, start = ip_adapter.adapter(model), tiny_models.noise(b=4)
    tokens = ip_adapter.weighted(ip_adapter.tokens(made, images=images), *[1.0, 0.5, 2.0, 0.3][:images])
    found = sample(apply(model, made, tokens, per_frame=True), batch=4, start=start, cfg=cfg)
    for i in range(4):
        weight = float(tokens.weights[min(i, images - 1)])
        alone = apply(model, made, one_image(tokens, i), weight=weight)
        assert nearly(found[i : i + 1], sample(alone, start=start[i : i + 1], cfg=cfg))


def test_a_batch_of_masks_goes_picture_by_picture(sd15):
    left, right = halves()
    start, made = tiny_models.noise(b=3), ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made)
    found = sample(apply(sd15, made, tokens, mask=torch.cat([left, right])), batch=3, start=start)
    for i, mask in enumerate((left, right, right)):
        assert nearly(found[i : i + 1], sample(apply(sd15, made, tokens, mask=mask), start=start[i : i + 1]))


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
@pytest.mark.parametrize("order", ["windows first", "windows last"])
def test_frames_keep_their_images_and_masks_in_context_windows(order, sd15):
    made, start = ip_adapter.adapter(sd15), tiny_models.noise(b=6)
    settings = {"per_frame": True, "mask": torch.rand((6, 16, 16), generator=torch.Generator().manual_seed(0))}

    def steer(model):
        return apply(model, made, ip_adapter.tokens(made, images=6), **settings)

    steered = steer(windows(sd15)) if order == "windows first" else windows(steer(sd15))
    assert nearly(sample(steered, batch=6, start=start), sample(steer(sd15), batch=6, start=start))


def test_frames_keep_their_images_in_the_windows_of_animatediff(sd15):
    made, seen = ip_adapter.adapter(sd15), []

    def note(call, below):
        out = below(call)
        seen.append(out)
        return out

    steered = module.add_attention_layer(
        apply(sd15, made, ip_adapter.tokens(made, images=6), per_frame=True), [find_sites(sd15, "attn2")[0]], note
    )

    def rows(**options):
        model = steered.clone()
        model.model_options["transformer_options"].update(options)
        seen.clear()
        sample(model, batch=2, start=tiny_models.noise(b=1).expand(2, -1, -1, -1), steps=1, cfg=1.0)
        return seen[0]

    first, later = rows(), rows(ad_params={"sub_idxs": [1, 4], "full_length": 6})
    assert nearly(first[1], later[0])
    assert not nearly(first[1], later[1], 1e-3)


def named(cond, *names):
    for name in names:
        (cond,) = IPAdapterConditioning.execute(cond, name).result
    return cond


def test_an_adapter_for_one_prompt_leaves_the_others_alone(sd15, monkeypatch):
    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made)
    steered = apply(sd15, made, tokens, only_for="left")
    conds = {"positive": named(text(1), "left"), "negative": named(text(2), "other", "left")}
    assert nearly(sample(steered, **conds), sample(apply(sd15, made, tokens)))
    assert torch.equal(sample(steered), sample(sd15))
    # a positive of two prompts, one of them named: the mean of one steered and one plain prediction
    x, sigma = 3 * tiny_models.noise(), 3.0
    name = {"reins_names": ("left",)}
    one, other = tiny_models.cond(text(1)[0][0], **name), tiny_models.cond(text(3)[0][0])
    both, alone, plain = (
        tiny_models.denoise(model, x, sigma, conds, None, 1.0)
        for model, conds in ((steered, [one, other]), (apply(sd15, made, tokens), [one]), (sd15, [other]))
    )
    assert nearly(both, (alone + plain) / 2)
    with tiny_models.forwards(sd15) as rows:
        tiny_models.denoise(steered, x, sigma, [one, other], [tiny_models.cond(text(2)[0][0])], 5.0)
    assert rows == [3]  # still one batch
    whole = sample(steered, **conds)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(sample(steered, **conds), whole)


def test_two_prompts_with_areas_have_adapters_of_their_own(sd15):
    made, other = ip_adapter.adapter(sd15), ip_adapter.adapter(sd15, seed=9)
    steered = apply(sd15, made, ip_adapter.tokens(made), only_for="left")
    steered = apply(steered, other, ip_adapter.tokens(other, 4), only_for="right")
    left, right = text(1, area=(16, 8, 0, 0)), text(3, area=(16, 8, 0, 8))
    x = 3 * tiny_models.noise()

    def step(model, *conds):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([cond for part in conds for cond in part], text(2))
        guider.set_cfg(1.0)
        sampler = comfy.samplers.sampler_object("euler")
        sigmas = torch.tensor([3.0, 0.0])
        return guider.sample(x / 3, torch.zeros_like(x), sampler, sigmas, disable_pbar=True)

    found = step(steered, named(left, "left"), named(right, "right"))
    assert nearly(found[..., :8], step(apply(sd15, made, ip_adapter.tokens(made)), left, right)[..., :8])
    assert nearly(found[..., 8:], step(apply(sd15, other, ip_adapter.tokens(other, 4)), left, right)[..., 8:])


def test_an_adapter_that_a_hook_brings_acts_on_its_prompt_alone(sd15):
    """As packs schedule methods per prompt: the list and the wrappers come with the hook, the model has none."""
    steered = ip_adapter.apply(sd15)
    group = hook_with(steered)
    found = sample(sd15, positive=text(1, hooks=group), negative=text(2, hooks=group))
    assert nearly(found, sample(steered))
    only_positive = sample(sd15, positive=text(1, hooks=group))
    assert not nearly(only_positive, found, 1e-3)
    assert not nearly(only_positive, sample(sd15), 1e-3)


def test_adapters_of_a_hook_and_of_the_model_both_act(sd15):
    first, second = ip_adapter.adapter(sd15), ip_adapter.adapter(sd15, seed=8)
    one, two = ip_adapter.tokens(first), ip_adapter.tokens(second, 2)
    alone = apply(sd15, second, two)
    group = hook_with(alone)
    found = sample(apply(sd15, first, one), positive=text(1, hooks=group), negative=text(2, hooks=group))
    assert nearly(found, sample(apply(apply(sd15, first, one), second, two)))


# --- runs and neighbours -------------------------------------------------------------------------------------------


def test_a_mask_under_a_pack_that_tiles_the_picture_is_refused(sd15):
    with pytest.raises(RuntimeError, match="another node shows the model a part of 16x8 cells"):
        sample(ip_adapter.apply(regrouped(sd15, tiled), mask=torch.ones(1, 8, 8)))
    assert sample(ip_adapter.apply(regrouped(sd15, tiled))).isfinite().all()


def test_under_a_tiling_pack_each_tile_gets_the_tokens_of_its_prompt(sd15):
    x = 3 * tiny_models.noise()
    positive = [tiny_models.cond(text(1)[0][0])]
    negative = [tiny_models.cond(text(2)[0][0])]
    found = tiny_models.denoise(ip_adapter.apply(regrouped(sd15, tiled)), x, 3.0, positive, negative, 5.0)
    tiles = [tiny_models.denoise(ip_adapter.apply(sd15), tile, 3.0, positive, negative, 5.0) for tile in x.chunk(2, -1)]
    assert nearly(found, torch.cat(tiles, -1))


def test_the_tensors_of_a_run_are_gone_after_it(sd15):
    import gc
    import weakref

    kept, project = [], ImageLayers.keys_and_values

    def note(self, *args):
        pair = project(self, *args)
        kept.extend(weakref.ref(part) for part in pair)
        return pair

    steered = ip_adapter.apply(sd15)
    with mock.patch.object(ImageLayers, "keys_and_values", note):
        for end in ("well", "error"):
            with suppress(ZeroDivisionError):
                sample(steered, callback=None if end == "well" else lambda *_: 1 / 0)
            gc.collect()
            assert kept and not any(ref() is not None for ref in kept)
            kept.clear()


@pytest.mark.parametrize("guidance", [pag, sag], ids=["pag", "sag"])
def test_extra_predictions_see_the_image_too(guidance, sd15):
    """The guided direction is that of the model with its image: the node's order is without effect."""
    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made)
    assert nearly(sample(apply(guidance(sd15), made, tokens)), sample(guidance(apply(sd15, made, tokens))))
    reference_way = guidance(reference(sd15, made, tokens))
    assert nearly(sample(apply(guidance(sd15), made, tokens)), sample(reference_way))


def test_the_methods_of_the_table_include_this_one():
    assert {"ip-adapter", "ip-adapter-masked"} <= set(METHODS)


# --- what reviewers broke --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", REGIONAL)
@pytest.mark.parametrize(("n", "batch"), [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_the_rows_of_attention_couple_packs_get_the_image_of_their_prompt(n, batch, option, sd15):
    made = ip_adapter.adapter(sd15)
    tokens = ip_adapter.tokens(made)
    steered = apply(coupled(sd15, n, option), made, tokens)
    assert nearly(sample(coupled(sd15, n, option), batch=batch), sample(sd15, batch=batch))
    assert nearly(sample(steered, batch=batch), sample(apply(sd15, made, tokens), batch=batch))


@pytest.mark.parametrize(("n", "batch"), [(2, 1), (3, 2)])
def test_rows_that_nobody_explains_are_those_of_the_prompt_of_their_call(n, batch, sd15):
    steered = sample(ip_adapter.apply(coupled(sd15, n, None)), batch=batch)
    assert nearly(steered, sample(ip_adapter.apply(sd15), batch=batch))


@pytest.mark.parametrize("kind", ["perp-neg", "dual regular", "dual nested"])
def test_f_in_guiders_of_three_conds_the_negative_is_the_one_that_is_called_so(kind, sd15):
    """The reference knows each prompt by its words: those of the negatives get the empty tokens."""
    made, negatives = ip_adapter.adapter(sd15), {"perp-neg": (2, 3)}.get(kind, (3,))
    tokens = ip_adapter.tokens(made)
    known = {float(text(seed)[0][0][0, 0, 0]): seed for seed in (1, 2, 3)}

    def relabelled(executor, *args, **kwargs):
        context, options = args[2], args[5]
        chunks = len(options["cond_or_uncond"])
        seeds = [known[min(known, key=lambda x: abs(x - float(part[0, 0, 0])))] for part in context.chunk(chunks)]
        options = {**options, "cond_or_uncond": [1 if seed in negatives else 0 for seed in seeds]}
        return executor(*args[:5], options, *args[6:], **kwargs)

    by_words = reference(sd15, made, tokens)
    by_words.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "by words", relabelled)

    def run(model):
        guider = (Guider_PerpNeg if kind == "perp-neg" else Guider_DualCFG)(model)
        guider.set_conds(text(1), text(2), text(3))
        if kind == "perp-neg":
            guider.set_cfg(4.0, 0.7)
        else:
            guider.set_cfg(4.0, 2.0, nested=kind == "dual nested")
        return tiny_models.guide(sd15, guider)

    assert nearly(run(apply(sd15, made, tokens)), run(by_words))


def one_row_at_a_time(apply_model, args):
    """A pack that sends every picture of every chunk by itself, with the options of all."""
    out = []
    for i in range(len(args["input"])):
        conds = {k: v[i : i + 1] if torch.is_tensor(v) else v for k, v in args["c"].items()}
        out.append(apply_model(args["input"][i : i + 1], args["timestep"][i : i + 1], **conds))
    return torch.cat(out)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("way", ["frames", "masks"])
def test_rows_keep_their_images_and_masks_where_a_pack_sends_them_alone(way, cfg, sd15):
    made, start = ip_adapter.adapter(sd15), tiny_models.noise(b=3)
    settings = {"per_frame": True} if way == "frames" else {"mask": torch.cat(halves())}
    tokens = ip_adapter.tokens(made, images=3 if way == "frames" else 1)
    found = sample(apply(regrouped(sd15, one_row_at_a_time), made, tokens, **settings), batch=3, start=start, cfg=cfg)
    assert nearly(found, sample(apply(sd15, made, tokens, **settings), batch=3, start=start, cfg=cfg))


@pytest.mark.parametrize("settings", [{"mask": torch.ones(1, 4, 4)}, {"only_for": "left"}], ids=["mask", "only_for"])
def test_what_a_hook_cannot_know_is_refused(settings, sd15):
    steered = ip_adapter.apply(sd15, **settings)
    group = hook_with(steered)
    with pytest.raises(RuntimeError, match="that a hook brings cannot know the areas and names"):
        sample(sd15, positive=text(1, hooks=group), negative=text(2, hooks=group))


@pytest.mark.parametrize("scaling", ["V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty"])
def test_the_weight_of_a_frame_is_its_weight_in_every_scaling(scaling, sd15):
    made, start = ip_adapter.adapter(sd15), tiny_models.noise(b=2)
    tokens = ip_adapter.weighted(ip_adapter.tokens(made, images=2), 0.5, 2.0)
    found = sample(apply(sd15, made, tokens, per_frame=True, scaling=scaling, weight=0.8), batch=2, start=start)
    for i, weight in enumerate((0.4, 1.6)):
        alone = apply(sd15, made, one_image(tokens, i), weight=weight, scaling=scaling)
        assert nearly(found[i : i + 1], sample(alone, start=start[i : i + 1]))


@pytest.mark.skipif(VERSION < (0, 8), reason="needs context windows")
def test_context_windows_over_width_work_without_a_mask_and_name_it_with_one(sd15):
    node = pytest.importorskip("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    import inspect

    wanted = {"context_length": 12, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
              "closed_loop": False, "fuse_method": "flat", "dim": 3, "freenoise": False}  # fmt: skip
    known = inspect.signature(node.execute).parameters
    wide = node.execute(sd15, **{key: value for key, value in wanted.items() if key in known}).result[0]
    assert sample(ip_adapter.apply(wide), (16, 24)).isfinite().all()
    with pytest.raises(RuntimeError, match="windows over width"):
        sample(ip_adapter.apply(wide, mask=torch.ones(1, 8, 8)), (16, 24))


def slow_ops(model, steps):
    """Tensors made from Python lists inside a run: on a GPU each is a copy that waits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)
            return func(*args, **(kwargs or {}))

    with Count() as count:
        sample(model, steps=steps, batch=2)
    return count.found


def test_d_frames_cost_no_copy_to_the_device_in_a_step(sd15):
    made = ip_adapter.adapter(sd15)
    steered = apply(sd15, made, ip_adapter.tokens(made, images=2), per_frame=True, mask=torch.cat(halves()))
    extra = [slow_ops(steered, steps) - slow_ops(sd15, steps) for steps in (3, 6)]
    assert extra[0] == extra[1]


LAYOUT_SDXL = {
    "num_res_blocks": [2] * 3, "channel_mult": [1, 1, 1], "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"weight_type": "precise style", "weight": 0.7, "boost": 1.5}, {3: (1.5, True), 6: (0.7, False)}),
        ({"weight_type": "style and composition", "weight": 0.7, "composition_weight": 0.4},
         {3: (0.4, False), 6: (0.7, False)}),
        ({"weight_type": "precise composition", "weight": 0.7, "boost": 0.5},
         {t: (0.7, False) if t == 3 else (0.5 if t == 6 else 0.05, True) for t in range(11)}),
    ],
    ids=lambda value: str(value.get("weight_type", ""))[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_types_of_style_and_composition_do_in_the_loop_what_they_say(settings, layers):
    """The reference turns the roles of the swapped layers round: the negative sees the image, the positive nothing."""
    model = tiny_models.sd15(dtype=torch.float64, **LAYOUT_SDXL)
    made = ip_adapter.adapter(model)
    tokens = ip_adapter.tokens(made)
    expected = model.clone()
    sites = find_sites(model, "attn2")
    assert len(sites) == 11
    in_file = sorted(sites, key=lambda site: ("input", "output", "middle").index(site.block))
    for t, site in enumerate(sites):

        def both(q, k, v, options, site=site, t=t):
            heads, labels = options["n_heads"], options["cond_or_uncond"]
            plain = comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads)
            weight, swapped = layers.get(t, (0.0, False))
            parts = []
            for label in labels:
                if swapped:
                    parts.append(tokens.cond if label == 1 else 0 * tokens.cond)
                else:
                    parts.append(tokens.uncond if label == 1 else tokens.cond)
            chosen = torch.cat(parts).repeat_interleave(len(q) // len(labels), 0)
            k_ip, v_ip = made.layers.model.keys_and_values(in_file.index(site), chosen)
            image = comfy.ldm.modules.attention.attention_pytorch(q, k_ip.to(q), v_ip.to(q), heads)
            return plain + weight * image

        expected.set_model_attn2_replace(both, *site[1:])
    found = sample(apply(model, made, tokens, **settings), batch=2)
    assert nearly(found, sample(expected, batch=2))
    assert not nearly(found, sample(model, batch=2), 1e-3)


def test_the_compatible_mode_shows_the_negative_a_black_picture():
    """A plus file, where black and nothing differ; of a model without a middle, so that nothing else does."""
    from reins.nodes.ip_adapter.encode_node import IPAdapterEncode

    small = tiny_models.sd15(dtype=torch.float64, transformer_depth_middle=-1)
    made = ip_adapter.adapter(small, "plus")
    paper, black = (
        IPAdapterEncode.execute(made, ip_adapter.encoder(), ip_adapter.picture(), uncond=uncond).result[0]
        for uncond in ("paper", "black")
    )
    found = sample(apply(small, made, paper, peer_compatible=True))
    assert torch.equal(found, sample(apply(small, made, black)))
    assert not nearly(found, sample(apply(small, made, paper)), 1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_names_masks_and_areas_together_find_their_chunks(order, sd15):
    """Only one prompt is named, and the mask is empty in its area."""
    left, right = halves()
    positive = (text(3, area=(16, 8, 0, 8)) + named(text(1, area=(16, 8, 0, 0)), "left"))[::order]
    plain = sample(sd15, positive=positive, cfg=1.0)
    steered = ip_adapter.apply(sd15, mask=right, only_for="left")
    assert torch.equal(sample(steered, positive=positive, cfg=1.0), plain)
    assert not nearly(
        sample(ip_adapter.apply(sd15, mask=left, only_for="left"), positive=positive, cfg=1.0), plain, 1e-2
    )


def test_tokens_are_projected_in_single_precision_on_a_half_model():
    """Half precision would round tokens before the product; only its result is rounded."""
    model, seen = tiny_models.sd15(dtype=torch.float16), []
    project = ImageLayers.keys_and_values

    def note(self, number, tokens):
        seen.append(tokens.dtype)
        return project(self, number, tokens)

    with mock.patch.object(ImageLayers, "keys_and_values", note):
        sample(ip_adapter.apply(model), steps=1)
    assert set(seen) == {torch.float32}


def test_inpainting_keeps_what_its_mask_keeps(sd15):
    latent, kept = tiny_models.noise(seed=3), torch.zeros(1, 1, 16, 16)
    kept[..., 8:] = 1
    import comfy.sample

    def paint(model):
        return comfy.sample.sample(
            model, tiny_models.noise(), 4, 5.0, "euler", "normal", text(1), text(2), latent, noise_mask=kept,
            disable_pbar=True, seed=7,
        )  # fmt: skip

    plain, found = paint(sd15), paint(ip_adapter.apply(sd15))
    assert torch.allclose(found[..., :8], plain[..., :8], atol=1e-5)
    assert not nearly(found[..., 8:], plain[..., 8:], 1e-2)
