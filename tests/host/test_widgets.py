"""What a node shows of its widgets: few at first, the rest behind *Show advanced inputs* on hosts that know it."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
import reins
from comfy_api.latest import io
from reins.engine.unet import find_sites
from reins.models.ip_adapter.combine import parse_weights
from reins.models.ip_adapter.weights import TransformerPlace, parse_layer_weights
from reins.models.unicon.two_clocks import parse_schedule
from reins.nodes.inputs.layers import parse_layers
from reins.nodes.inputs.schema import make_input
from reins.tests.helpers.menu_names import ACRONYMS, names

KNOWS_ADVANCED = "advanced" in inspect.signature(io.Float.Input.__init__).parameters
AT_FIRST = 6  # widgets that a node shows


async def _listed() -> list[type[io.ComfyNode]]:
    return await (await reins.comfy_entrypoint()).get_node_list()


NODES = {node.define_schema().node_id: node for node in asyncio.run(_listed())}


def widgets(node: str) -> dict[str, io.WidgetInput]:
    return {socket.id: socket for socket in NODES[node].define_schema().inputs if isinstance(socket, io.WidgetInput)}


def options(socket: io.Input) -> dict[str, Any]:
    """What the editor gets of an input."""
    return socket.as_dict()


@pytest.mark.skipif(not KNOWS_ADVANCED, reason="this host knows no advanced inputs")
@pytest.mark.parametrize("node", NODES)
def test_a_node_shows_few_widgets_at_first(node):
    plain = [name for name, socket in widgets(node).items() if not options(socket).get("advanced")]
    assert len(plain) <= AT_FIRST, plain


@pytest.mark.parametrize("node", NODES)
def test_what_is_hidden_at_first_does_the_same_if_a_graph_leaves_it_out(node):
    given = inspect.signature(NODES[node].execute).parameters
    for name, socket in widgets(node).items():
        if options(socket).get("advanced") and name in given:
            assert given[name].default == socket.default, name


HIDDEN = {  # what a first user leaves alone, with the value at which it changes nothing or lets the file decide
    "adaptive_scale": 0.1, "share_layers": True, "refresh": 1, "image_tokens": "see text", "kernel_size": 0,
    "layer_weights": "", "scaling": "V only", "composition_weight": 1.0, "boost": 1.0,
    "lora_strength": 1.0, "peer_compatible": False, "only_for": "", "image_weights": "",
    "partner_sigma": 0.0413, "partner_seed": 0, "others_on": "image", "variant": "auto", "unet_mode": "auto",
    "stem_padding": "auto", "apply_to": "both", "pool": False, "method": "mean difference", "component": 1,
    "branch": "image", "texture": "plain", "batch_size": 1,
}  # fmt: skip
HIDDEN_IN = {"uncond": {"Reins_IPAdapterEncode": "paper", "Reins_ControlNeXtApply": "auto"}}


@pytest.mark.skipif(not KNOWS_ADVANCED, reason="this host knows no advanced inputs")
def test_what_is_hidden_is_neutral():
    hidden = {
        (node, name): socket.default
        for node in NODES
        for name, socket in widgets(node).items()
        if options(socket).get("advanced")
    }
    expected = {key: HIDDEN_IN[key[1]][key[0]] if key[1] in HIDDEN_IN else HIDDEN[key[1]] for key in hidden}
    assert hidden == expected
    assert {name for _, name in hidden} == {*HIDDEN, *HIDDEN_IN}


def test_a_host_that_does_not_know_advanced_gets_the_input_all_the_same():
    socket = make_input(io.Float, "boost", default=1.0, advanced=True)
    assert options(socket).get("advanced") is (True if KNOWS_ADVANCED else None)
    assert options(socket)["default"] == 1.0


READERS = {
    "layers": lambda text, model: parse_layers(text, find_sites(model, "attn1")),
    "layer_weights": lambda text, model: parse_layer_weights(text, [TransformerPlace("input", i) for i in range(16)]),
    "image_weights": lambda text, model: parse_weights(text, 2).tolist(),
    "schedule": lambda text, model: parse_schedule(text),
    "only_for": lambda text, model: text.strip() == text and text,
}


def test_a_text_with_a_form_shows_it_while_empty_and_the_form_is_one_that_is_read(sd15):
    shown = {}
    for node in NODES:
        for name, socket in widgets(node).items():
            if name in READERS:
                shown[node, name] = options(socket)["placeholder"]
                if (node, name) != ("Reins_SkipLayerGuidance", "layers"):  # blocks of a transformer
                    assert READERS[name](shown[node, name], sd15), (node, name)
    assert {name for _, name in shown} == set(READERS)
    assert shown["Reins_SkipLayerGuidance", "layers"] == "b7-9"


@pytest.mark.parametrize("node", ACRONYMS)
def test_the_search_for_nodes_knows_acronym_and_full_name_in_every_language_of_the_editor(node):
    schema = NODES[node].define_schema()
    known = getattr(schema, "search_aliases", None)
    if known is None:
        pytest.skip("this host knows no search aliases; names hold both")
    acronym, _, full = names("en")[node].partition(" – ")
    known = [alias.lower() for alias in known]
    assert {part.lower() for part in acronym.split("/")} <= set(known)
    assert full.lower() in known
