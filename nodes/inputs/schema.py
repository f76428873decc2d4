"""Node schemas that load on every supported host, and the inputs that many nodes share."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io


def schema(**fields: Any) -> io.Schema:
    """Returns an io.Schema without the keywords that this host does not know. One such keyword hides the whole pack."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def make_input(kind: type, name: str, **fields: Any) -> io.Input:
    """Returns an input of a kind (io.Float, ...) without the keywords that this host does not know."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(name, **{key: value for key, value in fields.items() if key in known})


def model_input() -> io.Input:
    return make_input(io.Model, "model", tooltip="The model to steer. The node works on a copy.")


def model_output() -> io.Output:
    return io.Model.Output(tooltip="The steered model; connect it to a sampler or to the next node.")


def scale_input(default: float, minimum: float = 0.0, maximum: float = 100.0) -> io.Input:
    return make_input(
        io.Float, "scale", default=default, min=minimum, max=maximum, step=0.01,
        tooltip="How strongly the result is pushed away from the weakened prediction. 0 turns the node off.",
    )  # fmt: skip


def percent_inputs(end: float = 1.0, start: float = 0.0) -> list[io.Input]:
    return [
        make_input(
            io.Float, "start_percent", default=start, min=0.0, max=1.0, step=0.001,
            tooltip="Where in the sampling run the node starts to act: 0 is pure noise.",
        ),
        make_input(
            io.Float, "end_percent", default=end, min=0.0, max=1.0, step=0.001,
            tooltip="Where in the sampling run the node stops: 1 is the finished picture.",
        ),
    ]  # fmt: skip


def prefix_input(default: str) -> io.Input:
    return make_input(
        io.String, "filename_prefix", default=default,
        tooltip="The start of the file's name, with a folder if you like. A number follows.",
    )  # fmt: skip


def layers_input(what: str = "self-attention layers to weaken", example: str = "m0,u0-u3") -> io.Input:
    return make_input(
        io.String, "layers", default="auto", placeholder=example,
        tooltip=f"Which {what}. auto: m0 on UNets, and on transformers what the help page says. Else a letter and a "
        "number. UNets: d (down), m (middle), u (up), counted over the blocks that hold attention; ranges and "
        "transformers inside too: m0 · u0-u3 · d2.0-1,u1.4. Transformers: b7 · b7-9 · d3 (double) · s12 (single). all",
    )  # fmt: skip


def refresh_input() -> io.Input:
    return make_input(
        io.Int, "refresh", default=1, min=1, max=100, optional=True, advanced=True,
        tooltip="In every so many steps the weakened prediction is made anew, and its effect is kept between. 1: in "
        "each step. 2: half of the added time, with almost the same picture.",
    )  # fmt: skip


def share_input() -> io.Input:
    return make_input(
        io.Boolean, "share_layers", default=True, optional=True, advanced=True,
        tooltip="On: up to the first of the chosen layers, this prediction is the same as the positive, and both are "
        "computed once. The result is the same, but faster. Off is for comparison.",
    )  # fmt: skip
