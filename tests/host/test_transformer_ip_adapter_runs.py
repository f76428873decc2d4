"""An IP-Adapter on a transformer in calls and runs of every kind: in pieces, in windows, compiled, and ended early."""

from __future__ import annotations

import copy

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from reins.tests.helpers.other_packs import VERSION, one_by_one, pass_through, regrouped, windows
from reins.tests.helpers.steered_transformers import (
    FORMS,
    MAIN,
    NOTHING,
    added,
    apply,
    begun,
    by_formula,
)
from reins.tests.helpers.tiny_models import forwards, nearly
from reins.tests.helpers.tiny_transformers import MODELS, sample, text
from reins.tests.helpers.transformers_by_hand import both_texts, predict

EACH = pytest.mark.parametrize("form", FORMS)
OF_MAIN = pytest.mark.parametrize("form", MAIN)
ON_FLUX = pytest.mark.parametrize("form", ["xlabs", "instantx"])


@EACH
def test_a_pack_that_sends_chunks_one_by_one_changes_nothing(form):
    family, model, _ = begun(form)
    expected = sample(family, apply(form, model), batch=2)
    assert nearly(sample(family, apply(form, regrouped(model, one_by_one)), batch=2), expected, 1e-5)
    assert nearly(sample(family, apply(form, pass_through(model)), batch=2), expected, 1e-5)


@EACH
def test_a_pack_that_copies_the_options_of_a_call_changes_nothing(form):
    family, model, _ = begun(form)

    def send(apply_model, args):
        conds = {**args["c"], "transformer_options": copy.deepcopy(args["c"]["transformer_options"])}
        return apply_model(args["input"], args["timestep"], **conds)

    found = sample(family, apply(form, regrouped(model, send)))
    assert nearly(found, sample(family, apply(form, model)), 1e-6)


@pytest.mark.skipif(VERSION < (0, 8), reason="needs context windows")
@OF_MAIN
@pytest.mark.parametrize("per_frame", [False, True])
def test_in_context_windows_each_image_reads_its_picture(form, per_frame):
    family, model, start = begun(form, batch=6)
    pictures = (4, 5, 6, 7) if per_frame else (4,)
    settings = {"batch": 6, "start": start, "steps": 1, "cfg": 1.0}
    found = sample(family, apply(form, windows(model), *pictures, per_frame=per_frame), **settings)
    for row in range(6):
        own = pictures[min(row, len(pictures) - 1)]
        assert nearly(
            found[row : row + 1], by_formula(form, model, start[row : row + 1], text(1, family=family), own), 1e-5
        )


@OF_MAIN
def test_a_compiled_network_gives_the_same(form):
    """By torch's backend that compiles nothing: the code that torch makes of the forward is run as it is."""
    counts = []

    def backend(graph, inputs):
        counts.append(1)
        return graph.forward

    torch._dynamo.reset()
    family, model, _ = begun(form)
    plain = sample(family, apply(form, model), steps=2)
    compiled = apply(form, model)
    compiled.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend)
    )
    assert nearly(sample(family, compiled, steps=2), plain, 1e-6)
    after_two = len(counts)
    assert after_two
    assert nearly(sample(family, compiled, steps=5), sample(family, apply(form, model), steps=5), 1e-6)
    assert len(counts) == after_two
    torch._dynamo.reset()


@EACH
def test_an_adapter_on_a_compiled_network_is_the_same(form):
    family, model, _ = begun(form)
    compiled = model.clone()
    compiled.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend="eager", disable=True)
    )
    assert nearly(sample(family, apply(form, compiled)), sample(family, apply(form, model)), 1e-6)


def test_the_hosts_nag_keeps_its_effect():
    """It acts on what an attention gives. XLabs' term comes behind the block."""
    module = pytest.importorskip("comfy_extras.nodes_nag")
    form = "xlabs"
    family, model, x = begun(form)
    with_nag = module.NAGuidance.execute(model, 5.0, 0.5, 1.5).result[0]
    positive, negative = both_texts(family)
    plain = predict(family, with_nag, x, positive, 4.0, negative=negative)
    if torch.equal(plain, predict(family, model, x, positive, 4.0, negative=negative)):
        pytest.skip("this ComfyUI has no such guidance on Flux")
    found = predict(family, apply(form, with_nag), x, positive, 4.0, negative=negative)
    with added(form, model, NOTHING, 4):
        expected = predict(family, with_nag, x, positive, 4.0, negative=negative)
    assert nearly(found, expected, 2e-5)


@OF_MAIN
@pytest.mark.parametrize("stop", [comfy.model_management.InterruptProcessingException, RuntimeError])
def test_a_run_that_ends_early_leaves_nothing_behind(form, stop):
    family, model, _ = begun(form)
    steered = apply(form, model)
    expected = sample(family, steered)

    def end(*_):
        raise stop

    block = next(part for part in model.model.diffusion_model.modules() if isinstance(part, torch.nn.ModuleList))[-1]
    hook = block.register_forward_hook(end)
    with pytest.raises(stop):
        sample(family, steered)
    hook.remove()
    assert torch.equal(sample(family, steered), expected)
    with pytest.raises(stop):
        sample(family, steered, callback=end)
    assert torch.equal(sample(family, steered), expected)
    assert not [key for key in steered.model_options["transformer_options"] if key.startswith("optimized")]


@EACH
def test_the_rows_of_a_call_stay_as_they_are(form):
    family, model, x = begun(form)
    with forwards(model) as rows:
        predict(family, apply(form, model), x, text(1, family=family), 4.0)
        predict(family, apply(form, model), x, text(1, family=family))
    assert rows == [2, 1]


def test_a_model_of_another_family_is_named():
    with pytest.raises(ValueError, match=r"was made for Flux, but the model is"):
        apply("xlabs", MODELS["sd3"]())
