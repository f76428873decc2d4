"""How far a sampling step goes through the pack's own files: counts, for those who read and debug it."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from reins.tests.helpers.methods import METHODS
from reins.tests.helpers.steps import Steps, steps_of

from . import result_tables

NOTE = (
    "On the tiny UNet with ten transformers, cfg 5, counted by Python's profile hook: the calls of the pack's own "
    "functions in one step, and those of them that lie in another file than the call before."
)


def measure(model: ModelPatcher) -> dict[str, Steps]:
    """Each method of the tests, by itself."""
    return {name: steps_of(method(model)) for name, method in METHODS.items()}


def table(steps: dict[str, Steps]) -> list[str]:
    rows = [(name, f"{of_method.calls}", f"{of_method.changes}") for name, of_method in steps.items()]
    return result_tables.table(
        "From file to file", NOTE, ("method", "calls per step", "changes of file per step"), rows
    )
