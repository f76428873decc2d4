"""What `dev.py sweep` runs: the pack is loaded under its name first."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.inside import load_pack

TERMINATED = 143


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that servers are ended on the way out
    load_pack()
    from reins.sweep.command import parse, sweep

    return sweep(parse())


if __name__ == "__main__":
    sys.exit(main())
