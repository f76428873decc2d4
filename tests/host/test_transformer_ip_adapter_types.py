"""An IP-Adapter on a transformer whose weights are in half precision."""

from __future__ import annotations

import pytest
import torch
from reins.nodes.ip_adapter.apply_node import IPAdapterApply
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.nodes.ip_adapter.load import make_ip_adapter
from reins.tests.helpers.steered_transformers import FORMS, begun, file_of, read
from reins.tests.helpers.tiny_transformers import make, text
from reins.tests.helpers.transformers_by_hand import predict

EACH = pytest.mark.parametrize("form", FORMS)


def model_of(family):
    """Flux without the number for guidance, whose waves of many thousands drown in bfloat16."""
    return make(family, **({"guidance_embed": False} if family == "flux" else {}))


def halved(family, dtype):
    """A model with its weights rounded, computed in `dtype`."""
    model = model_of(family)
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    model.model.manual_cast_dtype = None
    model.model.get_dtype_inference = lambda: dtype
    return model


def steered(form, model, file, weight=1.0, **settings):
    made = make_ip_adapter(file, "tiny.safetensors")
    (tokens,) = IPAdapterEncode.execute(made, clip_vision_output=read(form, 4)).result
    return IPAdapterApply.execute(model, made, tokens, weight, **settings).result[0]


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_file", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_any_type_works_on_a_model_of_any_type(form, dtype, of_file):
    family, _, x = begun(form)
    model, half, positive = model_of(family), halved(family, dtype), text(1, family=family)
    weights = {key: value.to(of_file) for key, value in file_of(form).items()}
    exact = {key: value.float() for key, value in weights.items()}
    plain, expected = (predict(family, one, x, positive) for one in (model, steered(form, model, exact)))
    plain_half, found = (predict(family, one, x, positive) for one in (half, steered(form, half, weights)))
    rounding = (plain_half - plain).abs().mean()
    assert found.isfinite().all()
    assert (found - expected).abs().mean() < 2 * rounding < 0.5 * (expected - plain).abs().mean()
