"""Writes docs/schedules.md with the schedulers of the ComfyUI that COMFYUI_PATH names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.inside import ROOT, enter_host, load_pack


def main() -> int:
    load_pack()
    enter_host(os.environ["COMFYUI_PATH"].split(os.pathsep)[0], "--cpu")
    from reins.demo.schedules import page

    path = ROOT / "docs" / "schedules.md"
    path.write_text(page(), encoding="utf-8", newline="\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
