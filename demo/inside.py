"""Brings the pack up beside a host in this process, under the name `reins`, as the host itself would."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> None:
    """Only the pack; what of it imports the host cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("reins", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["reins"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def enter_host(comfy: str | Path, *arguments: str) -> None:
    """Makes the host importable as its own server does, with the server's command line arguments."""
    sys.path.insert(0, str(comfy))
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = argv
