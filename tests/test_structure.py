"""The three floors: arrows run down only, the pack imports fast, and the networks live without the host."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"models": 0, "patches": 1, "nodes": 2}
DATA = "demo.scenes"  # the demo's world: drawn pictures and their words, below all floors
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "node_helpers", "execution", "latent_preview",
    "PIL",  # the host requires it, and hands pictures around with it
}  # fmt: skip
RUNTIME = {"torch", "safetensors", "einops", "numpy", *sys.stdlib_module_names}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).glob("**/*.py"))]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, relative level) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module, node.level
            else:
                yield from ((alias.name, node.level) for alias in node.names)


def faults(path: Path, floor: str) -> list[str]:
    found = []
    for name, level in imports(path):
        first = name.split(".")[0]
        if level >= 2 and name != DATA and FLOORS.get(first, 99) > FLOORS[floor]:
            found.append(f"{path.name} imports upwards: {name}")
        if level == 0 and first in HOST and floor == "models":
            found.append(f"{path.name} imports the host: {name}")
        if level == 0 and first not in RUNTIME | HOST:
            found.append(f"{path.name} imports {name}, which is not a runtime dependency")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_down_only(path):
    assert not faults(path, path.relative_to(ROOT).parts[0])


def test_the_arrow_test_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from ..nodes.schema import schema\nimport comfy.samplers\nimport requests\nfrom ..demo.judge import judge\n"
    )
    assert len(faults(wrong, "models")) == 4


def test_the_drawn_world_stands_on_torch_alone():
    names = {name.split(".")[0] for name, _ in imports(ROOT / Path(*DATA.split(".")).with_suffix(".py"))}
    assert names - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 50, node.name


def test_the_pack_and_its_formulas_import_without_the_host_in_an_instant():
    code = """
import importlib.util, sys, time
import torch, einops
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("reins", "__init__.py", submodule_search_locations=["."])
sys.modules["reins"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for name in MODELS: importlib.import_module("reins.models." + name)
assert not any(name.split(".")[0] in HOST for name in sys.modules), "the host was imported"
print(time.perf_counter() - start)
"""
    names = [path.stem for path in (ROOT / "models").glob("*.py") if path.stem != "__init__"]
    code = f"MODELS, HOST = {names!r}, {HOST!r}\n" + code
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3
