"""Transformers that the host's node TorchCompileModel compiles."""

from __future__ import annotations

import pytest
import torch
from reins.tests.helpers.compiling import TOLD, Graphs, compiled, use_torch_attention
from reins.tests.helpers.tiny_models import nearly
from reins.tests.helpers.tiny_transformers import MODELS, sample
from reins.tests.helpers.transformer_terms import EACH, term

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="this torch cannot turn itself off"),
    pytest.mark.filterwarnings("ignore"),
]
WITHOUT_WRAPPERS = ("sd3",)  # networks that call no wrappers, so that no call of them can be compiled apart
ROUNDING = 1e-4


@pytest.mark.parametrize(("family", "name"), sorted(EACH, key=lambda each: each[0] in WITHOUT_WRAPPERS))
def test_a_term_is_right_between_plain_runs_and_has_one_graph(family, name, monkeypatch, caplog):
    use_torch_attention(monkeypatch)
    torch._dynamo.reset()
    model, graphs = MODELS[family](), Graphs()
    plain = sample(family, model, steps=4)
    expected = sample(family, term(name, family, model), steps=4)
    assert not nearly(expected, plain, ROUNDING)
    counts = []
    for _ in range(2):
        assert nearly(sample(family, compiled(model, graphs), steps=4), plain, ROUNDING)
        graphs.taken()
        assert nearly(sample(family, compiled(term(name, family, model), graphs), steps=4), expected, ROUNDING)
        counts.append(graphs.taken())
    is_told = any(TOLD in record.getMessage() for record in caplog.records)
    assert (counts, is_told) == (([0, 0], True) if family in WITHOUT_WRAPPERS else ([1, 0], False))
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["flux", "lumina", "wan"])
def test_terms_of_as_many_rows_do_not_take_each_others_code(family, monkeypatch):
    """The shapes in a call do not tell which of them acts."""
    use_torch_attention(monkeypatch)
    torch._dynamo.reset()
    model = MODELS[family]()
    steered = [term(name, family, model) for name in ("pag", "seg", "slg")]
    for some in steered * 2:
        expected = sample(family, some, steps=2)
        assert nearly(sample(family, compiled(some), steps=2), expected, ROUNDING)
    torch._dynamo.reset()
