"""UniCon beside everything else: the host's conditioning, other methods of the pack, other packs, wrong input."""

from __future__ import annotations

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_tomesd import TomePatchModel
from reins.engine.partner_run import ModelWithMoreMemory
from reins.nodes.unicon.prompt_node import UniConPrompt
from reins.tests.helpers import controlnext, ip_adapter, tiny_models, unicon
from reins.tests.helpers.conds import areas, masks
from reins.tests.helpers.methods import pag, sag, seg
from reins.tests.helpers.other_packs import VERSION, hook_with, one_by_one, pass_through, tiled, windows
from reins.tests.helpers.tiny_models import nearly, sample, text
from reins.tests.helpers.unicon import halves, run_joint


@pytest.fixture
def sd15():
    return tiny_models.sd15(dtype=torch.float64)


def blind(model, **settings):
    """Joint sampling in which neither branch sees the other."""
    weights = {name: 0 * value if "conv1n" in name else value for name, value in unicon.file_for(model).items()}
    return unicon.joint(model, weights=weights, **settings)


OTHERS = {
    "ip-adapter": ip_adapter.apply,
    "controlnext": lambda model: controlnext.apply(model, unet_strength=0.0),
    "pag": pag,
    "seg": seg,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_other_methods_act_on_the_image_alone_unless_told_otherwise(name, first, sd15):
    other = OTHERS[name]
    image, condition = run_joint(blind(sd15), halves())
    steered = blind(other(sd15)) if first else other(blind(sd15))
    with_image, with_condition = run_joint(steered, halves())
    assert nearly(with_condition, condition, 1e-7) and not nearly(with_image, image, 1e-3)
    both = blind(other(sd15), others_on="both") if first else other(blind(sd15, others_on="both"))
    _, with_condition = run_joint(both, halves())
    assert not nearly(with_condition, condition, 1e-3)


def test_the_image_is_steered_as_it_would_be_alone(sd15):
    for other in OTHERS.values():
        (image, _), alone = (
            run_joint(other(blind(sd15)), halves()),
            sample(other(sd15), start=tiny_models.noise(b=2)[:1]),
        )
        assert nearly(image, alone, 1e-5)


def test_sag_degrades_what_is_sampled(sd15):
    """It looks at both branches where both are sampled, and at the sampled one beside a partner."""
    image, condition = run_joint(sag(blind(sd15)), halves())
    plain = run_joint(blind(sd15), halves())
    assert not nearly(image, plain[0], 1e-4) and not nearly(condition, plain[1], 1e-4)
    assert nearly(image, sample(sag(sd15), start=tiny_models.noise(b=2)[:1]), 1e-5)
    assert not nearly(sample(sag(unicon.apply(sd15))), sample(unicon.apply(sd15)), 1e-4)


def test_a_host_control_net_steers_the_image_alone(sd15):
    control = {"positive": text(1, control=tiny_models.controlnet()), "negative": text(2)}

    def run(model, **conds):
        out = comfy.sample.sample(
            model, tiny_models.noise(b=2), 2, 5.0, "euler", "normal", conds.get("positive", text(1)), text(2),
            halves()["samples"], seed=7, disable_pbar=True,
        )  # fmt: skip
        return out.chunk(2)

    (plain_x, plain_y), (x, y) = run(blind(sd15)), run(blind(sd15), **control)
    assert not nearly(x, plain_x, 1e-3) and nearly(y, plain_y, 1e-7)
    assert not nearly(sample(unicon.apply(sd15), **control), sample(unicon.apply(sd15)), 1e-3)


def test_control_of_a_single_row_is_none_for_the_partner(sd15):
    """Some kinds of control bring one row for a whole batch."""

    class OneRow(comfy.controlnet.ControlBase):
        def get_control(self, x, *_):
            return {"middle": [torch.ones(1, 64, *(side // 4 for side in x.shape[2:]), dtype=torch.float64)]}

        def copy(self):
            return self

    conds = {"positive": text(1, control=OneRow()), "negative": text(2, control=OneRow())}
    weights = {name: 0 * value if "conv1n" in name else value for name, value in unicon.file_for(sd15).items()}
    assert nearly(sample(unicon.apply(sd15, weights=weights), **conds), sample(sd15, **conds), 1e-7)


@pytest.mark.parametrize(
    "conds", [masks, lambda seed: text(seed) + text(seed + 10, tokens=10)], ids=["masks", "several"]
)
@pytest.mark.parametrize("role", ["condition", "image"])
def test_every_grouping_of_the_rows_gives_the_same(conds, role, sd15, monkeypatch):
    steered, given = unicon.apply(sd15, role=role, condition_guidance=1.0), {"positive": conds(1), "negative": conds(2)}
    expected = sample(steered, **given)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(sample(steered, **given), expected)
    assert nearly(sample(unicon.apply(pass_through(sd15), role=role, condition_guidance=1.0), **given), expected)
    regrouped = steered.clone()
    regrouped.set_model_unet_function_wrapper(one_by_one)
    assert nearly(sample(regrouped, **given), expected)


def test_joint_rows_may_be_grouped_in_any_way(sd15, monkeypatch):
    steered = unicon.joint(sd15, condition_guidance=1.0, condition_noise=0.5)
    expected = run_joint(steered, halves())
    with tiny_models.little_memory(monkeypatch, sd15):
        assert all(nearly(a, b) for a, b in zip(run_joint(steered, halves()), expected, strict=True))


@pytest.mark.parametrize("guider", [Guider_DualCFG, Guider_PerpNeg])
def test_guiders_of_three_prompts_work(guider, sd15):
    def run(model):
        made = guider(model)
        made.set_conds(text(1), text(2), text(3))
        made.set_cfg(*((3.0, 2.0) if guider is Guider_DualCFG else (3.0, 1.0)))
        return tiny_models.guide(model, made)

    assert not nearly(run(unicon.apply(sd15)), run(sd15), 1e-3)
    assert run(unicon.apply(sd15, condition_guidance=1.0)).isfinite().all()


def test_a_lora_reaches_what_both_see_of_each_other(sd15):
    """The joint attention uses the model's own matrices, so their changes count there too."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight"
    increment = 0.3 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changed = sd15.clone()
    changed.add_patches({name: ("diff", (increment,))}, 1.0)
    merged = tiny_models.sd15(dtype=torch.float64)
    with torch.no_grad():
        merged.get_model_object(name.removesuffix(".weight")).weight.add_(increment)
    assert nearly(sample(unicon.apply(changed)), sample(unicon.apply(merged)), 1e-5)
    assert not nearly(sample(unicon.apply(changed)), sample(unicon.apply(sd15)), 1e-3)


def test_a_hook_on_a_prompt_goes_with_it(sd15):
    hooked = text(1, hooks=comfy.hooks.HookGroup())
    assert nearly(sample(unicon.apply(sd15), positive=hooked), sample(unicon.apply(sd15)))


def test_a_hook_that_brings_everything_a_second_time_changes_nothing(sd15):
    for steered in (unicon.apply(sd15, condition_guidance=1.0), pag(unicon.apply(sd15))):
        hooks = hook_with(steered)
        assert nearly(sample(steered, positive=text(1, hooks=hooks), negative=text(2, hooks=hooks)), sample(steered))
    pair = pag(unicon.joint(sd15, condition_guidance=1.0))
    plain = run_joint(pair, halves())
    hooks = hook_with(pair)
    found = run_joint(pair, halves(), positive=text(1, hooks=hooks), negative=text(2, hooks=hooks))
    assert all(nearly(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    "other", [ip_adapter.apply, lambda model: controlnext.apply(model, unet_strength=0.0)], ids=["ip", "controlnext"]
)
@pytest.mark.parametrize("role", ["condition", "image"])
def test_condition_guidance_and_another_method_are_grouped_in_any_way(other, role, sd15, monkeypatch):
    """The chunk without its partner has rows for the methods on the image, or has none."""
    steered = unicon.apply(other(sd15), role=role, condition_guidance=1.0)
    expected = sample(steered)
    with tiny_models.little_memory(monkeypatch, sd15):
        assert nearly(sample(steered), expected)
    assert nearly(sample(unicon.apply(other(pass_through(sd15)), role=role, condition_guidance=1.0)), expected)


@pytest.mark.skipif(VERSION < (0, 8), reason="context windows over a batch of this host change plain sampling too")
def test_pictures_in_windows_have_their_own_partners(sd15):
    steered, starts = unicon.apply(sd15, partner=unicon.latent(b=6)), tiny_models.noise(b=6)
    assert nearly(sample(windows(steered), batch=6, start=starts), sample(steered, batch=6, start=starts))


@pytest.mark.skipif(VERSION < (0, 8), reason="this host has no context windows over a batch of pictures")
def test_halves_that_are_torn_apart_are_refused(sd15):
    with pytest.raises(RuntimeError, match="sends them in parts"):
        run_joint(windows(unicon.joint(sd15)), halves(batch_size=3))
    torn = unicon.joint(sd15)
    torn.set_model_unet_function_wrapper(row_by_row)
    with pytest.raises(RuntimeError, match="sends them in parts"):
        run_joint(torn, halves(batch_size=2))


def row_by_row(apply_model, args):
    x, t, rows = args["input"], args["timestep"], len(args["input"])
    out = []
    for i in range(0, rows, 2):
        part = {k: v[i : i + 2] if torch.is_tensor(v) and len(v) == rows else v for k, v in args["c"].items()}
        out.append(apply_model(x[i : i + 2], t[i : i + 2], **part))
    return torch.cat(out)


def test_an_inpainting_model_is_shown_its_mask_beside_every_partner():
    """Nine channels: the mask and the masked picture come with each row."""
    model = tiny_models.sd15(dtype=torch.float64, in_channels=9)
    model.model.concat_keys = ("mask", "masked_image")
    shown = []
    model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0][:, 4:].clone()))
    conds = text(1, concat_latent_image=unicon.latent()["samples"], concat_mask=torch.ones(1, 1, 16, 16))
    assert sample(unicon.apply(model), positive=conds, negative=conds).isfinite().all()
    assert all(len(rows) == 4 and torch.equal(rows[0], rows[i]) for rows in shown for i in range(1, 4))
    assert shown[0].any()


@pytest.mark.skipif(VERSION < (0, 8), reason="the cache of this host adds the change of every chunk to all rows")
def test_a_cache_of_steps_keeps_the_image_and_its_partner_apart(sd15):
    """The host's own tells rows by the names of their chunks."""
    weights = {name: 0 * value if "conv1n" in name else value for name, value in unicon.file_for(sd15).items()}

    def cached(model):
        made = EasyCacheNode.execute(model, 1e9, 0.2, 0.95, False)
        return made.result[0]

    assert nearly(sample(cached(unicon.apply(sd15, weights=weights)), steps=8), sample(cached(sd15), steps=8), 1e-6)


def test_no_noise_on_the_partner_is_a_level_too():
    for kind in (ModelType.EPS, ModelType.EDM, ModelType.FLOW):
        model = tiny_models.sd15(kind=kind)
        assert sample(unicon.apply(model, partner_sigma=0.0)).isfinite().all()


# Other packs


def with_patches(model):
    """A model on which another pack patches every list and slot without changing anything."""
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    model.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
    model.set_model_attn1_output_patch(lambda out, options: out)
    model.set_model_attn2_output_patch(lambda out, options: out)

    def attend(q, k, v, options):
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    model.set_model_attn1_replace(attend, "middle", 0)
    model.set_model_attn2_replace(attend, "output", 2)
    return model


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_patches_of_other_packs_that_change_nothing_change_nothing(first, sd15):
    steered = unicon.apply(with_patches(sd15)) if first else with_patches(unicon.apply(sd15))
    assert nearly(sample(steered), sample(unicon.apply(sd15)), 1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_pack_that_replaces_an_attention_is_obeyed_for_all_rows(first, sd15):
    def replaced(model):
        model = model.clone()
        model.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
        return model

    steered = unicon.apply(replaced(sd15)) if first else replaced(unicon.apply(sd15))
    assert nearly(sample(steered), sample(unicon.apply(replaced(sd15))))
    assert not nearly(sample(steered), sample(unicon.apply(sd15)), 1e-3)


def test_a_pack_that_takes_over_inside_the_call_is_named(sd15):
    def take_over(executor, *arguments, **kwargs):
        *inputs, options = arguments
        slots = {"attn1": {("middle", 0): lambda q, k, v, _: v}}
        return executor(*inputs, {**options, "patches_replace": slots}, **kwargs)

    steered = unicon.apply(sd15)
    steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "later", take_over)
    with pytest.raises(RuntimeError, match="took over the attention attn"):
        sample(steered)


def test_the_joint_attention_is_between_the_pictures_also_where_a_pack_adds_keys(sd15):
    """As reference packs do: self-attention over more tokens, of which the joint attention knows nothing."""

    def longer(model):
        model = model.clone()
        model.set_model_attn1_patch(lambda n, k, v, options: (n, torch.cat([k, k], 1), torch.cat([v, v], 1)))
        return model

    assert nearly(sample(longer(unicon.apply(sd15))), sample(unicon.apply(sd15)))  # twice the same keys are those keys


def test_merged_tokens_are_refused_and_the_next_prompt_runs(sd15):
    patch = getattr(TomePatchModel, "execute", None) or TomePatchModel().patch
    merged = patch(unicon.apply(sd15), 0.5)
    model = merged[0] if isinstance(merged, tuple) else merged.result[0]
    with pytest.raises(RuntimeError, match="another patch merges or tiles"):
        sample(model)
    assert torch.equal(sample(sd15), sample(tiny_models.sd15(dtype=torch.float64)))


def test_tiles_are_refused(sd15):
    steered = unicon.apply(sd15)
    steered.set_model_unet_function_wrapper(tiled)
    with pytest.raises(RuntimeError, match="16x16 cells of 4 channels, but the model samples 16x8"):
        sample(steered)


# The host's memory


def test_what_asks_for_memory_is_the_model_for_everybody_else(sd15):
    room = ModelWithMoreMemory(sd15.model, 3)
    room.note_of_a_pack = 3
    assert sd15.model.note_of_a_pack == 3 and {room: 1}[room] == 1
    assert room.memory_required([2, 4, 16, 16]) == sd15.model.memory_required([6, 4, 16, 16])
    del sd15.model.note_of_a_pack


def test_memory_is_asked_for_the_rows_of_partners(sd15, monkeypatch):
    asked = []
    real = sd15.model.memory_required
    monkeypatch.setattr(
        sd15.model, "memory_required", lambda shape, *a, **k: (asked.append(shape[0]), real(shape, *a, **k))[1]
    )
    sample(sd15)
    plain, asked[:] = list(asked), []
    sample(unicon.apply(unicon.apply(sd15), 1))
    assert asked and asked == [3 * rows for rows in plain]
    asked[:] = []
    run_joint(unicon.joint(sd15), halves())
    assert max(asked) <= 2 * max(plain)  # the latent says it all


def test_the_host_loads_the_network_with_the_model(sd15):
    steered = unicon.apply(sd15)
    (network,) = [
        found for patch in steered.model_options["transformer_options"]["patches"]["reins"] for found in patch.models()
    ]
    sample(steered)
    assert any(
        loaded.model is network or loaded.model.model is network.model
        for loaded in comfy.model_management.current_loaded_models
    )


def test_nothing_is_read_from_the_device_in_a_step(sd15):
    counts = []
    for model in (sd15, unicon.apply(sd15)):
        for steps in (3, 6):
            with tiny_models.DeviceReads() as reads:
                sample(model, steps=steps)
            counts.append(reads.count)
    assert counts[3] - counts[2] == counts[1] - counts[0]


# Wrong input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m: unicon.apply(m, partner={"samples": torch.zeros(1, 3, 16, 16)}),
            "3 channels, but the model's latents have 4",
        ),
        (lambda m: unicon.apply(m, partner={"samples": torch.zeros(1, 4, 2, 16, 16)}), "latent of pictures"),
        (lambda m: unicon.apply(m, partner={"samples": torch.full((1, 4, 16, 16), torch.nan)}), "not finite"),
        (lambda m: unicon.apply(m, partner={}), "Connect a VAE Encode"),
        (lambda m: unicon.apply(m, positive=text(1) + text(2)), "partner_positive should be one prompt, but holds 2"),
        (lambda m: unicon.apply(m, positive=[]), "partner_positive should be one prompt, but holds 0"),
        (
            lambda m: unicon.apply(m, negative=[[torch.zeros(1, 5, 24), {}]]),
            "24 numbers per token, but the model reads 16",
        ),
        (lambda m: unicon.apply(unicon.apply(m, role="image"), 1), "the only UniCon"),
        (lambda m: unicon.apply(unicon.apply(m), 1, role="image"), "the only UniCon"),
        (lambda m: unicon.joint(unicon.joint(m), 1), "can be on a model only once"),
        (lambda m: unicon.joint(unicon.apply(m, role="image"), 1), "the only UniCon"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_node(make, message, sd15):
    options = str(sd15.model_options)
    with pytest.raises(ValueError, match=message):
        make(sd15)
    assert str(sd15.model_options) == options


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (tiny_models.sdxl, "SDXL"),
        (tiny_models.sd2, "SD2.x"),
        (tiny_models.dit, "SD3"),
        (tiny_models.flux, "Flux"),
        (tiny_models.svd, "SVD"),
    ],
)
def test_other_families_are_refused(model, found):
    file = unicon.unicon(tiny_models.sd15())
    with pytest.raises(ValueError, match=found):
        unicon.apply_file(model(), file)


def test_a_file_of_other_blocks_or_widths_is_refused_with_both_named(sd15):
    wide = tiny_models.sd15(model_channels=64)
    with pytest.raises(ValueError, match="is 32 wide in the model and 64 to 64 in the file"):
        unicon.apply_file(sd15, unicon.unicon(wide))
    deep = tiny_models.sd15(transformer_depth=[1, 1, 0], transformer_depth_output=[1, 1, 1, 1, 0, 0])
    with pytest.raises(ValueError, match=r"lacks: down_blocks\.2"):
        unicon.apply_file(deep, unicon.unicon(sd15))


def test_what_cannot_be_sampled_is_refused_before_the_first_call(sd15):
    with tiny_models.forwards(sd15) as rows:
        with pytest.raises(ValueError, match="is 16x16 cells of 4 channels, but the model samples 12x16"):
            sample(unicon.apply(sd15), (12, 16))
        with pytest.raises(ValueError, match="a prompt is for an area"):
            sample(unicon.apply(sd15), positive=areas(1))
        with pytest.raises(ValueError, match="a prompt is for an area"):
            sample(unicon.apply(sd15), positive=text(1, mask=torch.ones(1, 16, 16), set_area_to_bounds=True))
        with pytest.raises(ValueError, match="GLIGEN"):
            sample(unicon.apply(sd15), positive=text(1, gligen=("position", None, [])))
        with pytest.raises(ValueError, match="has 3 rows"):
            comfy.sample.sample(
                unicon.joint(sd15),
                tiny_models.noise(b=3),
                2,
                5.0,
                "euler",
                "normal",
                text(1),
                text(2),
                torch.zeros(3, 4, 16, 16),
            )
    assert rows == []
    assert sample(unicon.apply(sd15)).isfinite().all()


def test_a_share_of_the_noise_needs_a_model_whose_noise_has_multiples():
    flow = tiny_models.sd15(kind=ModelType.FLOW)
    with pytest.raises(ValueError, match="flow model"):
        unicon.joint(flow, condition_noise=0.5)
    with pytest.raises(ValueError, match=r"0 \(clean\) to 1 \(noise\), but is 2"):
        unicon.apply(flow, partner_sigma=2.0)
    later = unicon.joint(tiny_models.sd15(), condition_noise=0.5)
    later.add_object_patch("model_sampling", flow.model.model_sampling)
    with pytest.raises(ValueError, match="flow model"):
        run_joint(later, halves())
    assert run_joint(unicon.joint(flow), halves())[0].isfinite().all()


def test_a_joint_latent_without_a_condition_has_nothing_to_follow():
    with pytest.raises(ValueError, match="there is none"):
        halves(condition_noise=0.5)
    with pytest.raises(ValueError, match="of one size"):
        halves(image=unicon.latent(), condition=unicon.latent((8, 16)))


class Words:
    """A text encoder that hands its text back: a mock, for the host's own needs its files."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return tokens


def test_a_prompt_begins_with_the_trigger(sd15):
    assert UniConPrompt.execute(Words(), "a cat", unicon.unicon(sd15)).result[0] == "depth_map, a cat"
    with pytest.raises(ValueError, match="text encoder"):
        UniConPrompt.execute(None, "a cat", unicon.unicon(sd15))
