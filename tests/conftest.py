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
OF_NEWEST = 40  # one in so many
OF_OLDER = 64
OF_STORED = 2  # the same for stored results
OF_PACKS = 6  # the same for cases beside other packs
OF_NUMBERS = 2  # the same for what is measured on the demo models
OF_METHODS = 4  # one in so many, where each test takes every method through the ways of grouping rows
LONG = (
    "test_any_folder", "test_compile", "test_controlnext", "test_dit_compile", "test_dit_laws", "test_dit_nag",
    "test_dit_pag", "test_dit_seg", "test_dit_sharing", "test_dit_slg", "test_dit_tpg", "test_dit_with_others",
    "test_h_space", "test_hold", "test_ip_adapter", "test_laws_on_transformers", "test_methods",
    "test_prompt_diffusion", "test_quantised", "test_shared_rows", "test_together",
    "test_transformer_ip_adapter_cost", "test_transformer_ip_adapter_files", "test_transformer_ip_adapter_formula",
    "test_transformer_ip_adapter_guidance",
    "test_transformer_ip_adapter_others", "test_transformer_ip_adapter_refused", "test_transformer_ip_adapter_regions",
    "test_transformer_ip_adapter_runs", "test_transformer_ip_adapter_types", "test_unicon", "test_unicon_with_others",
)  # fmt: skip
BY_QUARTERS = ("test_batch", "test_laws")
PACKS = ("test_caches", "test_effects", "test_other_packs", "test_passes", "test_pre_cfg", "test_regions")
TWICE = "test_an_example_runs_through_the_api"  # the browser's tests run each of them too
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
        if item.path.stem.endswith("_numbers"):  # with server and browser about half of the work
            item.add_marker("slow")
    impossible = [item for item in items if _is_impossible(item)]
    config.hook.pytest_deselected(items=impossible)
    items[:] = [item for item in items if item not in impossible]
    chosen = {"REINS_BRIEF": _brief, "REINS_COVERING": _covering}
    for choose in (choose for variable, choose in chosen.items() if os.environ.get(variable)):
        kept = choose(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _is_impossible(item: pytest.Item) -> bool:
    """A method on a model that there are no files for; that its node says so has tests of its own."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    named = [params[name] for name in ("method", "name") if isinstance(params.get(name), str)]
    return params.get("model") == "sdxl" and any(name.startswith("unicon") for name in named)


def _brief(items: list[pytest.Item]) -> set[pytest.Item]:
    """For older hosts: of a test with more than two cases the first and a few more; half of the stored results.

    REINS_BRIEF may name a share, like 0/2: laws, stored results and what a host imports are for every older host, the
    other tests for one.
    """
    share, _, shares = os.environ["REINS_BRIEF"].partition("/")
    if shares:
        items = [item for item in items if _is_for_all(item) or _is_in_share(item, int(share), int(shares))]
    by_test: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    chosen: set[pytest.Item] = set()
    for cases in by_test.values():
        each = OF_STORED if "goldens" in cases[0].path.stem else OF_OLDER
        chosen |= set(cases if len(cases) <= MANY else _some(cases, each))
    return chosen


def _is_for_all(item: pytest.Item) -> bool:
    of_method = "method" in getattr(getattr(item, "callspec", None), "params", {})
    return of_method or "goldens" in item.path.stem or item.path.stem == "test_host_environment"


def _is_in_share(item: pytest.Item, share: int, shares: int) -> bool:
    """Numbers measured on the demo model take long and depend on the host least: the newest has them."""
    return not item.path.stem.endswith("_numbers") and _number(item) % shares == share


def _number(item: pytest.Item) -> int:
    """Of a test, with all its cases; the same each time."""
    return crc32(f"{item.path.stem}.{getattr(item, 'originalname', item.name)}".encode())


def _covering(items: list[pytest.Item]) -> set[pytest.Item]:
    """For the continuous run: of many cases a seeded 32nd, of every law one or more for some methods.

    Laws, and how rows are grouped (test_batch), are shown for a quarter of the methods in each test.
    Of what is measured on the demo models every second number is measured.
    Beside other packs a sixth of the cases of each test is tried.
    Files of bad input, stored results and every pair of methods (test_combinations) stay whole.
    """
    by_method: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        if item.path.stem.endswith("_numbers") and _number(item) % OF_NUMBERS:
            continue
        params = getattr(getattr(item, "callspec", None), "params", {})
        many = item.path.stem in (*LONG, *PACKS) or "pair" in params or getattr(item, "originalname", "") == TWICE
        named = params.get("name", item) if item.path.stem == "test_laws" else item
        method = params.get("method", "" if many and "combinations" not in item.path.stem else named)
        by_method.setdefault((item.path, getattr(item, "originalname", item.name), method), []).append(item)
    first_method: dict[tuple, tuple] = {}
    chosen: set[pytest.Item] = set()
    for key, cases in by_method.items():
        path, test, method = key
        is_first = first_method.setdefault((path, test), key) == key
        if path.stem in BY_QUARTERS and not is_first and crc32(f"{test}.{method}".encode()) % OF_METHODS:
            continue
        each = OF_PACKS if path.stem in PACKS else OF_NEWEST
        chosen |= set(_few(cases) if len(cases) <= MANY else _some(cases, each))
    return chosen


def _few(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Of two cases of a law, which differ in the model or in cfg, each method has one."""
    of_method = "method" in getattr(getattr(cases[0], "callspec", None), "params", {})
    return [cases[crc32(cases[0].name.encode()) % len(cases)]] if of_method else cases


def _some(cases: list[pytest.Item], each: int) -> list[pytest.Item]:
    """The first case and about one in `each` of the others, the same each time."""
    return [case for i, case in enumerate(cases) if i == 0 or crc32(case.name.encode()) % each == 0]


class RootIsNoPackage:
    """Keeps pytest from importing the pack's `__init__.py` as a lone file, which it does in a folder with a hyphen.

    A plugin, for pytest asks the hooks of this file only about what lies below it.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoPackage())
    if HOST:
        config.pluginmanager.import_plugin("reins.tests.host.fixtures")


_inside().load_pack()
if HOST:
    _inside().enter_host(HOST, "--cpu")
