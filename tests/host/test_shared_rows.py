"""Layers that predictions have in common are computed once, and nothing else changes: bit for bit in double precision.

Single precision differs in the last digits where a batch has another number of rows, as it does without the pack.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.controlnet
import comfy.hooks
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from reins.engine.run import ExtraChunk, Step
from reins.engine.shared_control import sharing_controls
from reins.engine.sites import Depth
from reins.tests.helpers import controlnext, h_space, ip_adapter, tiny_models, unicon
from reins.tests.helpers.conds import areas, controlled_together, masks
from reins.tests.helpers.methods import METHODS, nag, pag, pladis, sag, seg, tpg
from reins.tests.helpers.other_packs import pass_through
from reins.tests.helpers.tiny_models import nearly, sample, text

SHARING = {"pag": pag, "seg": seg, "tpg": tpg}


@contextmanager
def rows_of(layer: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of every call of a layer inside the block."""
    rows: list[int] = []
    hook = layer.register_forward_pre_hook(
        lambda _, inputs, named: rows.append(len(named["x"] if "x" in named else inputs[0])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


def rows_along(model: ModelPatcher, steered: ModelPatcher, **settings: object) -> dict[str, int]:
    """Rows of the first call of the network in its first layer, its middle block and its last layer."""
    unet = model.model.diffusion_model
    first, middle, last = unet.input_blocks[0][0], unet.middle_block[0], unet.out[-1]
    with rows_of(first) as a, rows_of(middle) as b, rows_of(last) as c:
        sample(steered, steps=1, **settings)
    return {"first": a[0], "middle": b[0], "last": c[0]}


@pytest.mark.parametrize(("size", "rows"), [((8, 8), 3), ((11, 11), 3), ((12, 12), 2), ((16, 16), 2)])
def test_a_picture_shares_layers_only_if_that_saves_time(size, rows, sd15):
    assert rows_along(sd15, pag(sd15), size=size) == {"first": rows, "middle": rows, "last": 3}


def conditions(kind: str) -> dict[str, list]:
    if kind == "control":
        return controlled_together()
    make = {"areas": areas, "masks": masks, "text": text}[kind]
    return {"positive": make(1), "negative": make(2)}


@pytest.mark.parametrize("method", SHARING)
@pytest.mark.parametrize("layers", ["d1", "m0", "u0", "u1-u2", "all"])
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_shared_layers_change_no_bit(method, layers, cfg, model):
    shared, plain = (SHARING[method](model, layers=layers, share=share) for share in (True, False))
    assert torch.equal(sample(shared, (7, 12), batch=2, cfg=cfg), sample(plain, (7, 12), batch=2, cfg=cfg))


@pytest.mark.parametrize("kind", ["areas", "masks", "control"])
def test_shared_layers_change_no_bit_with_several_conds(kind, sd15):
    shared, plain = (tpg(seg(pag(sd15, share=s), layers="u0", share=s), layers="u1", share=s) for s in (True, False))
    assert torch.equal(sample(shared, **conditions(kind)), sample(plain, **conditions(kind)))


@pytest.mark.parametrize("beside", ["ip-adapter", "controlnext", "nag", "pladis", "sag", "h-edit", "swg"])
def test_shared_layers_change_no_bit_beside_other_methods(beside, sd15):
    shared, plain = (METHODS[beside](pag(sd15, layers="u1", share=share)) for share in (True, False))
    assert torch.equal(sample(shared), sample(plain))


def test_rows_join_where_their_prediction_first_differs(sd15):
    assert rows_along(sd15, pag(sd15, layers="m0")) == {"first": 2, "middle": 2, "last": 3}
    assert rows_along(sd15, pag(sd15, layers="m0"), cfg=1.0) == {"first": 1, "middle": 1, "last": 2}
    assert rows_along(sd15, seg(pag(sd15, layers="u5"), layers="m0")) == {"first": 2, "middle": 2, "last": 4}
    assert rows_along(sd15, pag(sd15, layers="d0")) == {"first": 2, "middle": 3, "last": 3}
    assert rows_along(sd15, pag(sd15, share=False)) == {"first": 3, "middle": 3, "last": 3}


def test_the_layers_before_a_transformer_in_its_block_are_shared_too(sd15):
    block = sd15.model.diffusion_model.middle_block
    with rows_of(block[0]) as before, rows_of(block[1]) as transformer, rows_of(block[2]) as behind:
        sample(pag(sd15), steps=1)
    assert (before, transformer, behind) == ([2], [3], [3])


def test_two_extra_predictions_without_the_positive_share_with_each_other(sd15):
    """Another pack in the slot: each term calls the model itself; a split batch shares nothing."""
    separate = pass_through(tpg(pag(sd15)))
    with rows_of(sd15.model.diffusion_model.input_blocks[0][0]) as rows:
        sample(separate, steps=1)
    assert rows == [2, 1, 1]


def test_edits_in_h_space_share_the_way_down(sd15):
    assert rows_along(sd15, h_space.edit(sd15)) == {"first": 2, "middle": 2, "last": 4}


def test_video_and_partners_are_computed_whole(sd15):
    assert rows_along(sd15, unicon.beside(pag(sd15)))["first"] == 6
    model = tiny_models.video()
    conds = {"positive": text(1), "negative": text(2)}
    with rows_of(model.model.diffusion_model.input_blocks[0][0]) as rows:
        sample(pag(model), batch=3, steps=1, **conds)
    assert rows == [9]


# --- what other packs put between ---


def by_place(h: torch.Tensor, *_: object) -> torch.Tensor:
    """A patch that treats rows by their place in the batch, as no pack should and some do."""
    return h * torch.linspace(1, 2, len(h)).to(h)[:, None, None, None]


def with_patch(model: ModelPatcher, kind: str) -> ModelPatcher:
    model = model.clone()
    if kind == "slot":
        model.set_model_attn2_replace(
            lambda q, k, v, options: q * torch.arange(1.0, len(q) + 1)[:, None, None], "input", 1
        )
    elif kind == "output_block_patch":
        model.set_model_output_block_patch(lambda h, skip, options: (by_place(h), skip))
    elif kind == "attn1_output_patch":
        model.set_model_attn1_output_patch(lambda n, options: n * torch.arange(1.0, len(n) + 1)[:, None, None])
    elif kind == "wrapper":
        model.add_wrapper_with_key(
            WrappersMP.DIFFUSION_MODEL,
            "other",
            lambda executor, x, *rest, **kwargs: executor(by_place(x), *rest, **kwargs),
        )
    else:
        model.set_model_patch(by_place, kind)
    return model


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "kind", ["input_block_patch", "input_block_patch_after_skip", "attn1_output_patch", "slot", "wrapper"]
)
def test_where_another_packs_patch_may_tell_rows_apart_nothing_is_shared(kind, order, sd15):
    def steered(share: bool) -> ModelPatcher:
        return (
            with_patch(pag(sd15, share=share), kind) if order == "before" else pag(with_patch(sd15, kind), share=share)
        )

    assert torch.equal(sample(steered(True)), sample(steered(False)))
    # A pack at these places may know one positive of a call, so PAG has a call for itself beside the first.
    rows = 2 if kind in ("attn1_output_patch", "slot") else 3
    assert rows_along(sd15, steered(True)) == {"first": rows, "middle": rows, "last": rows}


def test_a_patch_behind_what_is_shared_does_not_hinder_it(sd15):
    shared, plain = (with_patch(pag(sd15, share=share), "output_block_patch") for share in (True, False))
    assert torch.equal(sample(shared), sample(plain))
    assert rows_along(sd15, shared)["first"] == 2
    assert rows_along(sd15, with_patch(pag(sd15, layers="u1"), "output_block_patch"))["first"] == 3


def test_a_hook_on_one_prompt_keeps_its_effect(sd15):
    hook = comfy.hooks.TransformerOptionsHook(
        {"patches": {"attn2_output_patch": [lambda n, options: n * 0.5]}},
        hook_scope=comfy.hooks.EnumHookScope.HookedOnly,
    )
    group = comfy.hooks.HookGroup()
    group.add(hook)
    conds = {"positive": text(1, hooks=group), "negative": text(2)}
    shared, plain = (pag(sd15, share=share) for share in (True, False))
    assert torch.equal(sample(shared, **conds), sample(plain, **conds))
    assert not nearly(sample(shared, **conds), sample(shared), 1e-3)


def test_the_network_itself_is_left_as_it_was(sd15):
    unet = sd15.model.diffusion_model
    before = dict(unet.__dict__), list(unet.input_blocks)
    sample(pag(sd15))
    assert (dict(unet.__dict__), list(unet.input_blocks)) == before


@pytest.mark.parametrize(
    "steer", [lambda m: nag(pag(m)), lambda m: pladis(pag(m)), lambda m: ip_adapter.apply(pag(m)), controlnext.apply]
)
def test_layers_of_the_pack_do_not_hinder_sharing(steer, sd15):
    assert rows_along(sd15, pag(steer(sd15)))["first"] == 2


# --- ControlNets ---


class _Foreign(comfy.controlnet.ControlNet):
    """A ControlNet of another pack, which may treat chunks as it likes."""

    def get_control(self, x, t, cond, batched_number, transformer_options):
        return super().get_control(x, t, cond, batched_number, transformer_options)


def foreign(control: comfy.controlnet.ControlNet) -> _Foreign:
    made = _Foreign(control.control_model, load_device=tiny_models.CPU)
    return made.set_cond_hint(control.cond_hint_original, strength=0.5)


def prompts(control: comfy.controlnet.ControlBase) -> dict[str, list]:
    return {"positive": text(1, control=control), "negative": text(2, control=control)}


@pytest.mark.parametrize("name", SHARING)
def test_a_control_net_is_asked_once_for_the_positive_and_what_repeats_it(name, sd15):
    control, steered = tiny_models.controlnet(), SHARING[name](sd15)
    with rows_of(control.control_model) as rows:
        sample(steered, steps=2, **prompts(control))
        sample(steered, steps=2, cfg=1.0, **prompts(control))
    assert rows == [2, 2, 1, 1]


def test_one_control_net_for_many_terms_and_edits(sd15):
    control = tiny_models.controlnet()
    with rows_of(control.control_model) as rows:
        sample(h_space.edit(tpg(seg(pag(sd15)))), steps=1, **prompts(control))
    assert rows == [2]


def test_what_sees_another_picture_asks_for_itself(sd15):
    control = tiny_models.controlnet()
    with rows_of(control.control_model) as rows:
        sample(sag(pag(sd15)), steps=1, **prompts(control))
    assert rows == [2, 1]


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_shared_residuals_change_no_bit(cfg, batch, sd15):
    """The reference: the same ControlNet under a class that the pack does not know, so every chunk asks."""
    control = tiny_models.controlnet()
    shared = sample(pag(sd15), cfg=cfg, batch=batch, **prompts(control))
    with rows_of(control.control_model) as rows:
        plain = sample(pag(sd15), cfg=cfg, batch=batch, **prompts(foreign(control)))
    assert rows[0] == (3 if cfg > 1 else 2) * batch
    assert torch.equal(shared, plain)


def test_a_chain_and_its_time_range_are_shared(sd15):
    def chain(make) -> comfy.controlnet.ControlBase:
        early = make(tiny_models.controlnet(seed=4))
        early.timestep_percent_range = (0.0, 0.3)
        return make(tiny_models.controlnet()).set_previous_controlnet(early)

    shared = sample(pag(sd15), steps=4, **prompts(chain(lambda control: control)))
    assert torch.equal(shared, sample(pag(sd15), steps=4, **prompts(chain(foreign))))


def test_a_control_net_of_another_pack_hinders_sharing_of_layers(sd15):
    control = tiny_models.controlnet()
    assert rows_along(sd15, pag(sd15), **prompts(foreign(control)))["first"] == 3
    assert rows_along(sd15, pag(sd15), **prompts(control))["first"] == 2


def test_a_control_on_the_positive_alone_is_shared(sd15):
    control = tiny_models.controlnet()
    conds = {"positive": text(1, control=control, control_apply_to_uncond=False), "negative": text(2)}
    with rows_of(control.control_model) as rows:
        found = sample(pag(sd15), steps=2, **conds)
    assert rows == [1, 1]
    assert nearly(found, sample(pag(pass_through(sd15)), steps=2, **conds))


def test_on_several_gpus_each_has_the_real_control_net(sd15):
    """0.33 asks a cond's ControlNet for the one of a device; a stand-in must not be taken for it."""
    control, step = tiny_models.controlnet(), Step(x=torch.zeros(1), timestep=torch.zeros(1), sigma=1.0)
    step.extras[uuid.uuid4()] = ExtraChunk(uuid.uuid4(), False, uuid.uuid4(), Depth(1, 0, 1))
    ((cond,),) = sharing_controls([[{"control": control}]], step)
    assert cond["control"] is not control
    if hasattr(control, "get_instance_for_device"):
        assert cond["control"].get_instance_for_device(tiny_models.CPU) is control
