"""The words of the demo's small world as inputs, and back."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo.scenes import SLOTS
from .schema import make_input

ANY = "any"
TOOLTIPS = {
    "shape": "What is drawn",
    "colour": "The shape's colour",
    "place": "Where the shape lies in the picture",
    "size": "How large the shape is",
    "background": "Brightness of the ground",
    "texture": "Pattern over the whole picture",
}


def word_inputs(with_any: bool) -> list[io.Input]:
    """A combo box per slot."""
    found = []
    for slot, words in SLOTS.items():
        options = [ANY, *words] if with_any else list(words)
        free = f" '{ANY}' leaves it to the model." if with_any else ""
        style = " The model itself does not know 'checked': load the LoRA reins-demo-checked for it."
        tooltip = f"{TOOLTIPS[slot]}: {', '.join(options)}.{free}{style if with_any and slot == 'texture' else ''}"
        found.append(make_input(io.Combo, slot, options=options, default=options[0], tooltip=tooltip))
    return found
