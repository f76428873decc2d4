"""Shows a person the pack at work: its example workflows on a real server, and the small world that they draw.

`client`, `host`, `graphs`, `pictures`, `run` and `serve` handle a real ComfyUI from the outside, and import neither the
host nor the pack. `world` draws the small world and has the model that knows it. `judge` reads its pictures, `evaluate`
measures a model with both, and `training` makes the models. `weightless` writes checkpoints for workflows that need a
large one. `real_hints` makes hints of photographs, and `real_photographs` those that ship.
"""
