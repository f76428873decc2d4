"""What the inputs of a node take, as the server describes them, and values made of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError, what_there_is
from .values import spread

if TYPE_CHECKING:
    from ..demo.client import Json

COMBO = "COMBO"
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")  # the server also takes what is not listed
SAID = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class Spec(NamedTuple):
    """The type of an input, its choices if it is a combo box, and its limits if it is a number."""

    kind: str
    choices: tuple[Json, ...] | None = None
    least: float = -math.inf
    most: float = math.inf


def spec_of(object_info: Mapping[str, Json], class_type: str, name: str) -> Spec | None:
    """What the server says of an input, or None if it does not list the input. Hosts describe combos in two forms."""
    groups = object_info[class_type].get("input", {})
    for group in ("required", "optional"):
        if name in (groups.get(group) or {}):
            kind, *rest = groups[group][name]
            settings = rest[0] if rest and isinstance(rest[0], dict) else {}
            if isinstance(kind, list) or kind == COMBO:
                listed = kind if isinstance(kind, list) else settings.get("options")
                open_ended = listed is None or "remote" in settings or any(settings.get(each) for each in UPLOADS)
                return Spec(COMBO, None if open_ended else tuple(listed))
            return Spec(kind, None, settings.get("min", -math.inf), settings.get("max", math.inf))
    return None


def read_values(spec: Spec | None, present: Json, text: str, where: str) -> list[Json]:
    """The values that a text stands for. A range of numbers stands for several.

    Raises SweepError if the input does not take one of them.
    """
    kind = spec.kind if spec else kind_of(present)
    if kind in ("INT", "FLOAT"):
        return [_number(spec or Spec(kind), each, where) for each in spread(text)]
    if kind == "BOOLEAN":
        if text.casefold() not in SAID:
            raise SweepError(f"{where} is true or false, found {text}")
        return [SAID[text.casefold()]]
    if spec and spec.choices is not None:
        return [_choice(spec.choices, text, where)]
    if kind in ("STRING", COMBO):
        return [text]
    try:
        return [json.loads(text)]
    except ValueError:
        return [text]


def kind_of(value: Json) -> str:
    """The type of an input of which the server says nothing, by its value in the workflow."""
    kinds = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    return kinds.get(type(value), "")


def _number(spec: Spec, text: str, where: str) -> int | float:
    whole = spec.kind == "INT"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise SweepError(
            f"{where} takes {'whole numbers' if whole else 'numbers'}, found {text or 'nothing'}"
        ) from None
    if not whole and not math.isfinite(value):
        raise SweepError(f"{where} takes finite numbers, found {text}")
    if not spec.least <= value <= spec.most:
        raise SweepError(f"{where} takes numbers from {spec.least:g} to {spec.most:g}, found {text}")
    return value


def _choice(choices: tuple[Json, ...], text: str, where: str) -> Json:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise SweepError(f"{where} has no option {text}; {what_there_is(text, list(map(str, choices)))}")
