"""What a person sees of the pack at work: its example workflows on a real server, and the small world they show.

`client`, `host`, `graphs`, `pictures`, `run` and `serve` handle a real ComfyUI from the outside; they import neither
the host nor the pack.  `world` draws the small world and has the model that knows it, `judge` reads its pictures,
`evaluate` measures a model with both, `training` makes the models.  `weightless` writes checkpoints for workflows that
need a large one.
"""
