"""Keeps what prompts have made in a folder: the pictures, and a small file for each row. Both appear as a whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import SweepError

if TYPE_CHECKING:
    from ..demo.client import Json
    from .outcome import Outcome
    from .plan import Plan, Row

PICTURES, ROWS = "pictures", "rows"
PARTIAL = ".partial"
LONGEST = 150  # bytes of a file's name that tell the settings


class Record(NamedTuple):
    """How a row ended, without the pictures themselves."""

    pictures: tuple[str, ...]
    seconds: float
    worker: str
    pixels: str
    error: str


class Records:
    """The rows of a folder that have ended."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Reads what is there of this plan. Raises SweepError if nothing can be written there."""
        self.folder = folder
        self._plan = plan
        try:
            for name in (PICTURES, ROWS):
                (folder / name).mkdir(parents=True, exist_ok=True)
                for left in (folder / name).glob(f"*{PARTIAL}"):  # of a run that was killed
                    left.unlink()
        except OSError as error:
            raise SweepError(f"no result can be saved in {folder}: {error.strerror}") from error
        found = {row.key: self._read(row.key) for row in plan.rows}
        self.by_key: dict[str, Record] = {key: record for key, record in found.items() if record is not None}

    def is_done(self, row: Row) -> bool:
        """Whether a row has its pictures. One that ended with an error may be tried again."""
        record = self.by_key.get(row.key)
        return record is not None and not record.error

    def _read(self, key: str) -> Record | None:
        """What a file says of a row, or None if it is missing, not ours, or if a picture of it is gone."""
        try:
            record = Record(**json.loads((self.folder / ROWS / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        there = all((self.folder / PICTURES / name).is_file() for name in record.pictures)
        return record._replace(pictures=tuple(record.pictures)) if there else None

    def write(self, row: Row, outcome: Outcome) -> None:
        """Saves the pictures, and then the file that says that the row has ended.

        Raises SweepError if the disk takes no more.
        """
        try:
            self._write(row, outcome)
        except OSError as error:
            raise SweepError(f"no result can be saved in {self.folder}: {error.strerror}") from error

    def _write(self, row: Row, outcome: Outcome) -> None:
        name = file_name(self._plan.labels, row)
        pictures = []
        for file in outcome.files:
            pictures.append(f"{name}-{safe(file.title)}{safe(file.suffix)}")
            write_whole(self.folder / PICTURES / pictures[-1], file.content)
        record = Record(tuple(pictures), round(outcome.seconds, 3), outcome.worker, outcome.pixels, outcome.error)
        write_whole(self.folder / ROWS / f"{row.key}.json", json.dumps(record._asdict()).encode())
        self.by_key[row.key] = record


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there as a whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)


def file_name(labels: tuple[str, ...], row: Row) -> str:
    """The settings of a row, cut if they are long, and the beginning of its hash."""
    settings = "_".join(f"{safe(label)}={safe(shown(value))}" for label, value in zip(labels, row.values, strict=True))
    cut = settings.encode()[:LONGEST].decode("utf-8", "ignore")
    return f"{cut}_{row.key[:8]}" if cut else row.key[:8]


def safe(text: str) -> str:
    """The text as a part of a file's name on every system."""
    return re.sub(r"[^\w.+-]+", "-", text)


def shown(value: Json) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
