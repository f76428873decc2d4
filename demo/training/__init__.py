"""How the demo's weights are made: one loop for the base model and for every adapter on top of it."""
