"""index.html: a page with the grid that works from the disk, without any other file than the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .plan import seeds
from .records import PICTURES, shown, write_whole

if TYPE_CHECKING:
    from .choice import Choice
    from .plan import Plan
    from .records import Records

TEMPLATE = Path(__file__).with_name("page.html")
DATA = "/*DATA*/"


def write_page(plan: Plan, records: Records, choice: Choice, name: str) -> None:
    """Writes it as a whole, with the rows that have ended."""
    values = [[shown(value) for value in plan.values_of(place)] for place in range(len(plan.labels))]
    numbers = [{value: number for number, value in enumerate(column)} for column in values]
    rows = []
    for row in plan.rows:
        if record := records.by_key.get(row.key):
            rows.append(
                {
                    "values": [numbers[place][shown(value)] for place, value in enumerate(row.values)],
                    "pictures": [f"{PICTURES}/{picture}" for picture in record.pictures],
                    "seed": " ".join(map(str, seeds(row.graph))),
                    "seconds": record.seconds,
                    "worker": record.worker,
                    "error": record.error,
                }
            )
    data = {
        "name": name, "labels": plan.labels, "values": values, "count": len(plan.rows), "rows": rows,
        "choice": choice,
    }  # fmt: skip
    text = json.dumps(data).replace("<", "\\u003c")  # no text of a prompt may end the script
    write_whole(records.folder / "index.html", TEMPLATE.read_text(encoding="utf-8").replace(DATA, text).encode())
