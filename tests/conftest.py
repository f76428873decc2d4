"""Loads the pack under the name `reins`; folders decide what a test needs: host, server, browser or nothing."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS = {"host": "host", "server": "server", "browser": "browser"}  # folder -> marker
HOST = os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[0]


def _load_pack() -> None:
    spec = importlib.util.spec_from_file_location("reins", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules["reins"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _enter_host() -> None:
    """Make the host importable as its own server does, on the CPU."""
    sys.path.insert(0, HOST)
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = argv


def _needs(path: Path) -> str | None:
    parts = path.relative_to(ROOT / "tests").parts
    return NEEDS.get(parts[0])


class _SkippedModule(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        pytest.skip("needs ComfyUI: set COMFYUI_PATH or run python3 dev.py test", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if HOST or _needs(module_path) is None:
        return None
    return _SkippedModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs = _needs(item.path)
        if needs:
            item.add_marker(needs)


def pytest_configure(config: pytest.Config) -> None:
    if HOST:
        config.pluginmanager.import_plugin("reins.tests.host.fixtures")


_load_pack()
if HOST:
    _enter_host()
