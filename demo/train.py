"""python3 dev.py train NAME: makes one of the files in demo/weights, or goes on with a run that was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.inside import ROOT, enter_host, load_pack

CONVERGENCE = "controlnext-convergence"  # a comparison, which makes a plot and no weights
TASKS = (
    "base",
    "checked",
    "clip-vision",
    "controlnet",
    "controlnext",
    CONVERGENCE,
    "dit",
    "dit-ip-adapter",
    "ip-adapter",
    "prompt-diffusion",
    "unicon",
)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument("--steps", type=int, help="how many in all (default: what the shipped file was made with)")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run instead of resuming it")
    parser.add_argument("--out", type=Path, help="the file to write (default: the shipped one, in demo/weights)")
    parser.add_argument("--state", type=Path, default=ROOT / "output" / "train", help="where runs keep their state")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    return parser.parse_args()


def main() -> int:
    options = parse()
    load_pack()
    enter_host(os.environ["COMFYUI_PATH"].split(os.pathsep)[0], *(["--cpu"] if options.cpu or not has_gpu() else []))
    import torch
    from reins.demo.training.run import run

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    if options.name == CONVERGENCE:
        from reins.demo.training.convergence import compare

        return compare(options.state)
    changed = {
        name: getattr(options, name) for name in ("steps", "batch", "seed") if getattr(options, name) is not None
    }
    return run(options.name, lambda plan: replace(plan, **changed), options.state, options.out, options.fresh)


def has_gpu() -> bool:
    """Whether there is a GPU."""
    from demo.host import has_accelerator

    return has_accelerator()


if __name__ == "__main__":
    sys.exit(main())
