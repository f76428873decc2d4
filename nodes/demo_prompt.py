"""Words of the small world as conditioning for the demo model."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.demo_model import BASE_FILE, BRANCHES, WORDS_KEY, tokens, word_indices
from ..patches.loading import read_file
from .demo_words import word_inputs
from .schema import make_input, schema


class DemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_DemoPrompt",
            display_name="Demo Prompt",
            category="reins/demo",
            description="A prompt for the Demo Model, one word per line. With every word at 'any' it is the empty "
            "prompt, which is what the negative wants.",
            search_aliases=["tiny prompt", "shapes prompt", "conditioning"],
            inputs=[
                *word_inputs(with_any=True),
                make_input(
                    io.Combo, "branch", options=list(BRANCHES), default=BRANCHES[0],
                    tooltip="image: an ordinary picture. depth: names the depth map to adapters that have learnt to "
                    "draw one; the model itself has not.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or the negative of a sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, branch: str, **words: str) -> io.NodeOutput:
        table = read_file(BASE_FILE)[WORDS_KEY].float()
        return io.NodeOutput([[table[tokens(word_indices(words), depth=branch == "depth")], {}]])
