"""The demo model's second network: a diffusion transformer of the host's SD3 class, small enough to ship."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .model import CONTEXT, POOLED, WEIGHTS, start_as_torch_does

DIT_FILE = WEIGHTS / "reins-demo-dit.safetensors"
HEADS = 2  # of 64 numbers each, which the host's class takes for granted
WIDTH = 64 * HEADS

# The host's OpenAISignatureMMDITWrapper. Its `depth` is the number of heads, and `num_blocks` that of joint blocks.
# A picture is 16x16 tokens. Without a table of positions the class computes sines of any size by itself.
DIT: Mapping[str, object] = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 3,
    "depth": HEADS,
    "num_blocks": 8,
    "mlp_ratio": 2.0,
    "adm_in_channels": POOLED,
    "qk_norm": "rms",
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CONTEXT, "out_features": WIDTH},
    },
}


def initialise_dit(network: nn.Module) -> nn.Module:
    """The transformer with weights to start training from.

    Its last layer is silent, and the time changes nothing in the blocks. The gates of the blocks are open, so that
    all of them act from the first step on.
    """
    for name, module in network.named_modules():
        start_as_torch_does(module)
        if name.endswith(("ln_q", "ln_k")):
            nn.init.ones_(module.weight)
        elif name.endswith("adaLN_modulation.1") or name == "final_layer.linear":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        if name.endswith("adaLN_modulation.1") and len(module.bias) == 6 * WIDTH:
            for gate in (2, 5):  # of shift, scale and gate of the attention, and the same of the layer after it
                nn.init.ones_(module.bias[gate * WIDTH : (gate + 1) * WIDTH])
    return network
