"""Loads the pack and a host in this process, the pack under the name `reins`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> None:
    """Loads the pack alone. Its modules that import the host cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("reins", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["reins"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def enter_host(comfy: str | Path, *arguments: str) -> None:
    """Makes the host importable as its server does, with the server's command line arguments."""
    sys.path.insert(0, str(comfy))
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = argv
    importlib.import_module("reins.nodes.inputs.folders").register_folders()
