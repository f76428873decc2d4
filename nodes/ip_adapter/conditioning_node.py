"""Gives a prompt a name, for adapters that should act on it alone."""

from __future__ import annotations

import node_helpers
from comfy_api.latest import io

from ...engine.rows.conds import NAMES
from ..inputs.schema import make_input, schema


class IPAdapterConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_IPAdapterConditioning",
            display_name="IP-Adapter for Conditioning",
            category="reins/ip-adapter",
            description="Gives a prompt a name. An IP-Adapter Apply with that name in only_for acts on the prompts "
            "that have it and on no others; all still run in one batch.",
            search_aliases=["regional ipadapter", "attention couple", "regional conditioning"],
            inputs=[
                make_input(io.Conditioning, "conditioning", tooltip="The prompt to name, positive or negative."),
                make_input(
                    io.String, "name", default="subject",
                    tooltip="The same as in only_for. A prompt may get several names from several nodes.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The same prompt with the name.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, conditioning: list, name: str) -> io.NodeOutput:
        name = name.strip()
        if not name:
            raise ValueError("name is empty. Write the name that IP-Adapter Apply has in only_for.")
        named = [
            node_helpers.conditioning_set_values([cond], {NAMES: (*cond[1].get(NAMES, ()), name)})[0]
            for cond in conditioning
        ]
        return io.NodeOutput(named)
