"""A network that the host's node TorchCompileModel compiles: never wrong, in whatever order models are sampled."""

from __future__ import annotations

import logging

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.methods import METHODS, pag
from reins.tests.helpers.tiny_models import nearly, sample

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="this torch cannot turn itself off")
OUTSIDE = ("weak", "swg", "apg", "fdg", "cfg-zero", "image", "interval", "rescale")  # that do not enter the network
RANGED = {
    "ip-adapter that ends": lambda model: ip_adapter.apply(model, end_percent=0.5),
    "ip-adapter that begins": lambda model: ip_adapter.apply(model, start_percent=0.5),
    "pag that is held": lambda model: pag(model, refresh=2),
}
ALL = METHODS | RANGED
NEEDS_CFG = ("apg", "fdg", "cfg-zero", "interval", "rescale")
ROUNDING = 1e-4  # layers are shared among the rows of a call in a network that is not compiled alone
TOLD = "so the run is not compiled"


def without_guards_of_options(guards):
    """The filter of the host's node."""
    return ["transformer_options" not in guard.name for guard in guards]


def compiled(model, backend="eager"):
    """The model as the host's node compiles it, by a backend that makes no code of its own."""
    clone = model.clone()
    set_torch_compile_wrapper(clone, backend, options={"guard_filter_fn": without_guards_of_options})
    return clone


@pytest.fixture(scope="module")
def model():
    """One network for all tests of the module, so that each finds what torch compiled for the others."""
    torch._dynamo.reset()
    yield tiny_models.sd15()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain(model):
    return {cfg: sample(model, steps=2, cfg=cfg) for cfg in (1.0, 5.0)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_a_method_is_right_between_plain_runs(name, cfg, model, plain):
    steered = ALL[name](model)
    expected = sample(steered, steps=2, cfg=cfg)
    assert not torch.equal(expected, plain[cfg]) or (cfg == 1.0 and name in NEEDS_CFG)
    for some, right in ((model, plain[cfg]), (steered, expected)) * 2:
        assert nearly(sample(compiled(some), steps=2, cfg=cfg), right, ROUNDING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pag", "ip-adapter", "controlnext"])
def test_a_node_that_compiles_may_come_before_the_others(name, model):
    expected = sample(METHODS[name](model), steps=2)
    sample(compiled(model), steps=2)
    assert nearly(sample(METHODS[name](compiled(model)), steps=2), expected, ROUNDING)


@pytest.mark.filterwarnings("ignore")
def test_parts_that_another_pack_compiled_are_seen(model):
    steered, path = METHODS["pag"](model), "diffusion_model.middle_block.1.transformer_blocks.0"
    expected = sample(steered, steps=2)
    for some in (model, steered):
        some = some.clone()
        some.add_object_patch(path, torch.compile(model.get_model_object(path), backend="eager"))
        out = sample(some, steps=2)
    assert nearly(out, expected, ROUNDING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pag", "apg"])
def test_the_log_says_once_that_a_run_is_not_compiled(name, model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(compiled(METHODS[name](model)), steps=3)
    assert sum(TOLD in record.message for record in caplog.records) == (name not in OUTSIDE)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_method_outside_the_network_leaves_nothing_to_be_compiled(name, model):
    wrappers = []

    def look(executor, *args, **kwargs):
        options = kwargs.get("transformer_options") or args[-1]
        wrappers.append(set(options["wrappers"][WrappersMP.DIFFUSION_MODEL]))
        return executor(*args, **kwargs)

    steered = METHODS[name](model)
    steered.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    sample(steered, steps=1)
    assert wrappers and all(keys == {"look"} for keys in wrappers)


def test_without_the_compiler_nothing_is_said_or_slowed(model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(METHODS["pag"](model), steps=1)
    assert not any(TOLD in record.message for record in caplog.records)
