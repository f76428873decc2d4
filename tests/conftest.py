"""Loads the pack under the name `reins`; folders decide what a test needs: host, server, browser or nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from zlib import crc32

import pytest

ROOT = Path(__file__).parents[1]
NEEDS = {"host": "host", "server": "server", "browser": "browser"}  # folder -> marker
MANY = 2  # cases of one test
SLOW = ("_numbers", "_combinations")
HOST = os.environ.get("COMFYUI_PATH", "").split(os.pathsep)[0]


def _inside() -> ModuleType:
    """The demo's way into a host; not yet importable by name, for the pack is not loaded."""
    spec = importlib.util.spec_from_file_location("reins_inside", ROOT / "demo" / "inside.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        needs = _needs(item.path)
        if needs:
            item.add_marker(needs)
        if item.path.stem.endswith(SLOW):
            item.add_marker("slow")
    impossible = [item for item in items if _is_impossible(item)]
    config.hook.pytest_deselected(items=impossible)
    items[:] = [item for item in items if item not in impossible]
    if os.environ.get("REINS_BRIEF"):
        kept = _brief(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _is_impossible(item: pytest.Item) -> bool:
    """A method on a model that there are no files for; that its node says so has tests of its own."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    named = [params[name] for name in ("method", "name") if isinstance(params.get(name), str)]
    return params.get("model") == "sdxl" and any(name.startswith("unicon") for name in named)


def _brief(items: list[pytest.Item]) -> set[pytest.Item]:
    """For older hosts: of a test with more than two cases the first and about every seventh; all stored results."""
    by_test: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    kept: set[pytest.Item] = set()
    for (path, _), cases in by_test.items():
        whole = len(cases) <= MANY or "goldens" in path.stem
        kept.update(case for i, case in enumerate(cases) if whole or i == 0 or crc32(case.name.encode()) % 7 == 0)
    return kept


def pytest_configure(config: pytest.Config) -> None:
    if HOST:
        config.pluginmanager.import_plugin("reins.tests.host.fixtures")


_inside().load_pack()
if HOST:
    _inside().enter_host(HOST, "--cpu")
