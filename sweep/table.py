"""results.csv: one line for each row that has ended, in the order of the plan."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from .plan import seeds
from .records import PICTURES, shown, write_whole

if TYPE_CHECKING:
    from .plan import Plan
    from .records import Records

COLUMNS = ("seed", "seconds", "worker", "pixels_sha256", "pictures", "error")


def write_table(plan: Plan, records: Records) -> None:
    """Writes it as a whole."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*plan.labels, *COLUMNS])
    for row in plan.rows:
        if record := records.by_key.get(row.key):
            pictures = " ".join(f"{PICTURES}/{name}" for name in record.pictures)
            seed = " ".join(map(str, seeds(row.graph)))
            settings = map(shown, row.values)
            lines.writerow([*settings, seed, record.seconds, record.worker, record.pixels, pictures, record.error])
    write_whole(records.folder / "results.csv", text.getvalue().encode())
