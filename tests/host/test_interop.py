"""Beside the host's ControlNets: what a pack on top of them has to keep, point by point."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import comfy.model_management
import comfyui_version
import pytest
import torch
from reins.tests.helpers import controlnext, h_space, prompt_diffusion, tiny_models, together
from reins.tests.helpers.methods import METHODS, pag, sag
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.together import (
    INGREDIENTS,
    SIZES,
    base_prompts,
    control_of,
    controlled,
    model_of,
    prompt_diffusion_of,
)

LAYOUT = "sd15"
SETTINGS = Path(__file__).parents[2] / "pyproject.toml"
SIZE = SIZES[LAYOUT]
ALL = [name for name in INGREDIENTS if name not in ("t2i adapter", "unclip", "areas")]
ON_THE_MODEL = ["lora", "pag", "seg", "sag", "ip-adapter", "controlnext", "unicon", "h-edit"]


def sample(model, prompts, size=SIZE, **settings):
    return tiny_models.sample(model, size, **{"steps": 2, **prompts, **settings})


def both_controls(strength=0.5, image=None):
    """A ControlNet and a Prompt Diffusion, one behind the other, on both prompts."""
    image = controlnext.picture(4) if image is None else image
    prompts = controlled(base_prompts(LAYOUT), control_of(LAYOUT), image, strength)
    return controlled(prompts, prompt_diffusion_of(LAYOUT), controlnext.picture(30), strength)


def steered(model):
    for name in ("pag", "ip-adapter", "controlnext", "h-edit"):
        model = METHODS[name](model)
    return model


def test_1_a_strength_of_0_is_absence():
    model = model_of(LAYOUT)
    off = h_space.edit(model, strength=0.0)
    assert torch.equal(sample(off, both_controls(0.0)), sample(model, base_prompts(LAYOUT)))


def test_2_a_chain_goes_in_any_order_and_adds_up():
    model, control, other = model_of(LAYOUT), control_of(LAYOUT), prompt_diffusion_of(LAYOUT)
    once = sample(model, both_controls())
    turned = controlled(base_prompts(LAYOUT), other, controlnext.picture(30), 0.5)
    assert nearly(sample(model, controlled(turned, control, controlnext.picture(4), 0.5)), once)
    whole = controlled(base_prompts(LAYOUT), other, controlnext.picture(30), 1.0)
    parts = controlled(
        controlled(base_prompts(LAYOUT), other, controlnext.picture(30), 0.25), other, controlnext.picture(30), 0.75
    )
    assert nearly(sample(model, parts), sample(model, whole))


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_3_all_together_one_call_for_each_row_gives_the_same(cfg, batch, monkeypatch):
    found = together.sample(ALL, LAYOUT, cfg, batch)
    with tiny_models.little_memory(monkeypatch, model_of(LAYOUT)):
        assert nearly(together.sample(ALL, LAYOUT, cfg, batch), found)
    assert found.isfinite().all()


def test_4_nodes_on_the_model_go_in_any_order():
    lora, *rest = ON_THE_MODEL  # how it shares a weight with a ControlNeXt is rounded, which SAG may show
    assert nearly(together.sample([lora, *rest[::-1]], LAYOUT), together.sample([lora, *rest], LAYOUT))


def test_5_a_patched_clone_leaves_its_parent_and_itself_as_they_were():
    plain, model = together.sample((), LAYOUT), steered(model_of(LAYOUT))
    first = sample(model, both_controls())
    assert torch.equal(sample(model, both_controls()), first)
    assert torch.equal(together.sample((), LAYOUT), plain)


def test_6_each_prompt_may_have_controls_masks_times_and_hooks_of_its_own(monkeypatch):
    model, prompts = steered(model_of(LAYOUT)), base_prompts(LAYOUT)
    own = {
        "positive": controlled(prompts, control_of(LAYOUT), controlnext.picture(4))["positive"],
        "negative": controlled(prompts, prompt_diffusion_of(LAYOUT), controlnext.picture(30))["negative"],
    }
    own = together.hooked(own, LAYOUT)
    (text, said), (other, _) = own["positive"][0], base_prompts(LAYOUT, 11)["positive"][0]
    left = torch.zeros((1, *SIZE))
    left[..., : SIZE[1] // 2] = 1
    own["positive"] = [
        [text, {**said, "mask": left, "end_percent": 0.6, "start_percent": 0.0}],
        [other, {**said, "mask": 1 - left, "set_area_to_bounds": False}],
        [other, {**said, "start_percent": 0.6, "end_percent": 1.0}],
    ]
    found = sample(model, own, steps=4)
    with tiny_models.little_memory(monkeypatch, model):
        assert nearly(sample(model, own, steps=4), found)
    for name in own:
        assert not nearly(sample(model, {**own, name: prompts[name]}, steps=4), found, 1e-3)


def test_7_the_next_run_may_have_another_size():
    """The very same prompts, whose controls have resized their hints for the run before."""
    model, prompts = steered(model_of(LAYOUT)), both_controls()
    first = sample(model, prompts)
    other = sample(model, prompts, (12, 8))
    assert torch.equal(sample(model, both_controls(), (12, 8)), other)
    assert torch.equal(sample(model, prompts), first)


def test_8_nothing_of_a_run_is_left():
    seen = []
    model = steered(model_of(LAYOUT))
    stems = prompt_diffusion_of(LAYOUT).control_model.input_hint_block
    handle = stems.register_forward_hook(lambda _, inputs, out: seen.extend(map(weakref.ref, (inputs[0], out))))
    inside = model.model.diffusion_model.output_blocks[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(weakref.ref(inputs[0]))
    )
    try:
        sample(model, both_controls())
    finally:
        handle.remove()
        inside.remove()
    gc.collect()
    assert seen
    assert not [ref for ref in seen if ref() is not None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_9_half_precision_is_finite_and_near(dtype):
    def run(model):
        return sample(steered(model), both_controls(), steps=2).float()

    assert nearly(run(tiny_models.sd15(dtype=dtype)), run(tiny_models.sd15(dtype=torch.float32)), 0.1)


def test_9_weights_that_come_and_go_change_nothing():
    model = steered(model_of(LAYOUT))
    found = sample(model, both_controls())
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(model, both_controls()), found)


def test_10_a_model_with_a_vector_takes_its_controls_too(monkeypatch):
    names = ["control net", "unclip", "pag", "sag", "ip-adapter", "controlnext", "h-edit"]
    found = together.sample(names, "adm", batch=2)
    with tiny_models.little_memory(monkeypatch, model_of("adm")):
        assert nearly(together.sample(names, "adm", batch=2), found)
    for left_out in names:
        assert not nearly(together.sample([name for name in names if name != left_out], "adm", batch=2), found, 1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_11_a_pass_of_one_row_follows_one_of_three(batch):
    """PAG joins the batch for CFG, SAG comes after it alone: hints prepared for one must not be taken for the other."""
    model, image = model_of(LAYOUT), controlnext.picture(4, b=batch)
    with tiny_models.forwards(model) as rows:
        found = sample(sag(pag(model)), both_controls(image=image), batch=batch)
    assert rows == [3 * batch, batch] * 2
    apart = sample(pag(sag(pass_through(model))), both_controls(image=image), batch=batch)
    assert nearly(found, apart)


def test_12_after_an_interrupt_the_next_run_is_as_the_first():
    model, prompts = steered(model_of(LAYOUT)), both_controls()
    expected = sample(model, prompts)

    def stop(*_):
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, prompts, callback=stop)
    assert torch.equal(sample(model, prompts), expected)


def test_13_this_host_is_one_that_the_pack_names():
    """All of the above runs on each host that the continuous run finds."""
    settings = SETTINGS.read_text(encoding="utf-8")
    (oldest,) = re.findall(r'^requires-comfyui = ">=([0-9.]+)"$', settings, re.MULTILINE)
    assert numbers(comfyui_version.__version__) >= numbers(oldest)


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_prompts_that_are_shared_by_runs_stay_as_they_were():
    prompts = prompt_diffusion.apply()
    before = {name: [dict(said) for _, said in of] for name, of in prompts.items()}
    sample(model_of(LAYOUT), prompts)
    assert before == {name: [dict(said) for _, said in of] for name, of in prompts.items()}
