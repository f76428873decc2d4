"""Tests take what they share from helpers: no test file is imported, and bench/ knows the helpers alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path, source: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions; `path` is where it stands in the pack."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ("reins", *path.parts)[: len(path.parts) + 1 - node.level] if node.level else ()
            module = (*above, *([node.module] if node.module else []))
            yield from (".".join((*module, alias.name)) for alias in node.names)


def wrong_imports(path: Path, source: Path) -> list[str]:
    """What is wrong with the imports of a file that stands at `path` in the pack and holds what `source` does."""
    wrong = []
    for name in imported(path, source):
        parts = name.split(".")
        if any(part.startswith("test_") for part in parts):
            wrong.append(f"{path} imports a test: {name}")
        elif path.parts[0] == "bench" and parts[:2] == ["reins", "tests"] and parts[2:3] != ["helpers"]:
            wrong.append(f"{path} imports more of the tests than their helpers: {name}")
    return wrong


def test_no_test_is_imported_and_bench_takes_helpers_alone():
    assert not [wrong for path in FILES for wrong in wrong_imports(path.relative_to(ROOT), path)]


WRONG = {
    "tests/host/test_wrong.py": [
        "from reins.tests.host.test_batch import sample",
        "from reins.tests.host import test_batch",
        "import reins.tests.test_blur",
        "from .test_batch import sample",
        "from .. import test_blur",
        "def later():\n    from reins.tests.test_blur import gaussian_blur",
    ],
    "tests/helpers/wrong.py": ["from reins.tests.test_blur import gaussian_blur"],
    "bench/wrong.py": [
        "from reins.tests.host.test_batch import sample",
        "from reins.tests.host import fixtures",
        "from reins.tests import conftest",
        "from ..tests.host import fixtures",
        "from ..tests.conftest import ROOT",
    ],
}


@pytest.mark.parametrize(("path", "line"), [(path, line) for path, lines in WRONG.items() for line in lines])
def test_the_test_of_imports_sees_a_wrong_one(path, line, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(line, encoding="utf-8")
    assert len(wrong_imports(Path(path), wrong)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("bench/right.py", "from reins.tests.helpers import tiny_models"),
        ("bench/right.py", "from ..tests.helpers.tiny_models import sample"),
        ("tests/host/test_right.py", "from reins.tests.helpers.conds import areas"),
        ("tests/server/test_right.py", "from reins.tests.server.pictures import picture"),
    ],
)
def test_helpers_may_be_imported(path, line, tmp_path):
    right = tmp_path / "right.py"
    right.write_text(line, encoding="utf-8")
    assert not wrong_imports(Path(path), right)
