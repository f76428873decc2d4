"""A network that the host's node TorchCompileModel compiles: never wrong, in whatever order models are sampled."""

from __future__ import annotations

import logging
from itertools import permutations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from reins.engine import network
from reins.tests.helpers import ip_adapter, tiny_models
from reins.tests.helpers.compiling import TOLD, Graphs, compiled, use_torch_attention
from reins.tests.helpers.methods import METHODS, pag
from reins.tests.helpers.tiny_models import nearly, sample

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="this torch cannot turn itself off"),
    pytest.mark.filterwarnings("ignore"),
]
OUTSIDE = ("weak", "swg", "apg", "fdg", "cfg-zero", "image", "interval", "rescale")  # that do not enter the network
TRACED = ("pag", "seg", "seg-narrow", "tpg", "pladis", "nag", "ip-adapter", "ip-adapter-masked")  # followed inside it
RANGED = {
    "pag that ends": lambda model: pag(model, end=0.5),
    "pag that is held": lambda model: pag(model, refresh=2),
    "ip-adapter that ends": lambda model: ip_adapter.apply(model, end_percent=0.5),
    "ip-adapter that begins": lambda model: ip_adapter.apply(model, start_percent=0.5),
}
ALL = METHODS | RANGED
NEEDS_CFG = ("apg", "fdg", "cfg-zero", "interval", "rescale")
MOST_GRAPHS = 2
ROUNDING = 1e-4  # layers are shared among the rows of a call in a network that is not compiled alone


@pytest.fixture(autouse=True)
def torch_attention(monkeypatch):
    use_torch_attention(monkeypatch)


@pytest.fixture(scope="module")
def model():
    """One network for all tests of the module, so that each finds what torch compiled for the others."""
    torch._dynamo.reset()
    yield tiny_models.sd15()
    torch._dynamo.reset()


@pytest.fixture
def alone():
    """What torch compiled for other tests is forgotten."""
    torch._dynamo.reset()


def told(caplog):
    return sum(TOLD in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_a_method_is_right_between_plain_runs(name, cfg, model):
    steered = ALL[name](model)
    plain, expected = (sample(some, steps=2, cfg=cfg) for some in (model, steered))
    assert not torch.equal(expected, plain) or (cfg == 1.0 and name in NEEDS_CFG)
    for some, right in ((model, plain), (steered, expected)) * 2:
        assert nearly(sample(compiled(some), steps=2, cfg=cfg), right, ROUNDING)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "names", [("pag", "seg"), ("pladis", "ip-adapter that ends"), ("controlnext", "nag")], ids="+".join
)
def test_runs_are_right_in_every_order(names, backend, alone):
    model = tiny_models.sd15()
    models = [model, *(ALL[name](model) for name in names)]
    expected = [sample(some, steps=10) for some in models]
    for order in permutations(range(3)):
        for i in order * 2:
            assert nearly(sample(compiled(models[i], backend), steps=10), expected[i], ROUNDING)


@pytest.mark.parametrize("name", [*TRACED, *OUTSIDE])
def test_torch_makes_few_graphs_and_none_for_the_next_run(name, alone, caplog):
    model, graphs = tiny_models.sd15(), Graphs()
    for seed, most in ((1, MOST_GRAPHS), (2, 0)):
        steered = ALL[name](model)  # the node has run anew, as after another node before it has changed
        expected = sample(steered, steps=10, seed=seed)
        assert nearly(sample(compiled(steered, graphs), steps=10, seed=seed), expected, ROUNDING)
        assert 0 < graphs.number <= most if most else not graphs.number
        graphs.taken()
    assert not told(caplog)


def test_a_range_that_ends_costs_one_graph_more(alone):
    model, graphs = tiny_models.sd15(), Graphs()
    sample(compiled(pag(model), graphs), steps=4)
    assert graphs.taken() == 1
    sample(compiled(pag(model, end=0.5), graphs), steps=4)
    assert graphs.taken() == 1  # without PAG, which has its graph


def test_this_network_would_be_wrong_in_the_hosts_own_graph(alone, monkeypatch):
    """Else the tests above would show nothing."""

    monkeypatch.setattr(network, "compiler_of", lambda *inputs: None)
    model = tiny_models.sd15()
    plain = sample(compiled(model), steps=2)
    assert nearly(sample(compiled(METHODS["pladis"](model)), steps=2), plain, ROUNDING)  # as if PLADIS were not there


@pytest.mark.parametrize("name", ["pag", "ip-adapter", "controlnext"])
def test_a_node_that_compiles_may_come_before_the_others(name, model):
    expected = sample(METHODS[name](model), steps=2)
    sample(compiled(model), steps=2)
    assert nearly(sample(METHODS[name](compiled(model)), steps=2), expected, ROUNDING)


def test_parts_that_another_pack_compiled_are_seen(model, caplog):
    steered, path = METHODS["pag"](model), "diffusion_model.middle_block.1.transformer_blocks.0"
    expected = sample(steered, steps=2)
    for some in (model, steered):
        some = some.clone()
        some.add_object_patch(path, torch.compile(model.get_model_object(path), backend="eager"))
        out = sample(some, steps=2)
    assert nearly(out, expected, ROUNDING)
    assert told(caplog) == 1


def test_parts_that_the_hosts_wrapper_compiles_run_as_they_are_written(model, caplog):
    steered, part = METHODS["pag"](model), {"keys": ["diffusion_model.middle_block.1.transformer_blocks.0"]}
    expected = sample(steered, steps=2)
    sample(compiled(model, **part), steps=2)
    assert nearly(sample(compiled(steered, **part), steps=2), expected, ROUNDING)
    assert told(caplog) == 1


def test_beside_functions_of_another_pack_a_run_is_not_compiled(model, caplog):
    steered = METHODS["pag"](model)
    steered.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k, v))
    expected = sample(steered, steps=2)
    assert nearly(sample(compiled(steered), steps=2), expected, ROUNDING)
    assert told(caplog) == 1


def test_if_torch_cannot_compile_a_call_it_runs_as_it_is_written(alone, caplog):
    def failing(graph, inputs):
        raise OSError("no compiler here")

    steered = METHODS["pag"](tiny_models.sd15())
    expected = sample(steered, steps=3)
    assert nearly(sample(compiled(steered, failing), steps=3), expected, ROUNDING)
    (record,) = [record for record in caplog.records if TOLD in record.getMessage()]
    assert "no compiler here" in record.getMessage()


@pytest.mark.parametrize("name", ["pag", "apg", "controlnext"])
def test_the_log_says_once_that_a_run_is_not_compiled(name, model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(compiled(METHODS[name](model)), steps=3)
    assert told(caplog) == (name == "controlnext")


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
    assert not told(caplog)
