"""The rules of the house: arrows run down only, the pack imports fast, and the networks live without the host."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"models": 0, "engine": 1, "nodes": 2, "demo": 3}
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "node_helpers", "execution", "latent_preview",
    "PIL",  # the host requires it, and hands pictures around with it
}  # fmt: skip
RUNTIME = {"torch", "safetensors", "einops", "numpy", *sys.stdlib_module_names}
DEMO_WORLD = ROOT / "demo" / "world"  # of the demo only this is a part of the nodes
FILES = [
    path for folder in ("models", "engine", "nodes", "demo/world") for path in sorted((ROOT / folder).glob("**/*.py"))
]


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


def target(path: Path, name: str, level: int) -> tuple[str, ...]:
    """The parts of a module's name, from the root of the pack, that a relative import in `path` names."""
    return (*path.parts[: len(path.parts) - level], *name.split("."))


def arrows(path: Path, source: Path) -> list[str]:
    """What is wrong with the imports of a file that stands at `path` in the pack and holds what `source` does."""
    floor, found = path.parts[0], []
    for name, level in imports(source):
        if level:
            found += _of_the_pack(path, target(path, name, level))
        elif (first := name.split(".")[0]) in HOST and floor == "models":
            found.append(f"{path} imports the host: {name}")
        elif first not in RUNTIME | HOST:
            found.append(f"{path} imports {name}, which is not a runtime dependency")
    return found


def _of_the_pack(path: Path, to: tuple[str, ...]) -> list[str]:
    floor, dotted = path.parts[0], ".".join(to)
    if FLOORS.get(to[0], 99) > FLOORS[floor]:
        return [f"{path} imports upwards: {dotted}"]
    if floor == "nodes" and path.parts[1] == "inputs" and to[0] == "nodes" and to[1:2] != ("inputs",):
        return [f"{path} imports upwards: {dotted}"]
    own, other = family(path.parts), family(to)
    if own and other and own != other:
        return [f"{path} is of the family {own} and imports {other}: {dotted}"]
    return []


def family(parts: tuple[str, ...]) -> str | None:
    """The family of methods that a module belongs to; None for what all of them share."""
    is_in_folder = len(parts) > 1 and parts[0] in ("nodes", "models") and (ROOT / parts[0] / parts[1]).is_dir()
    return parts[1] if is_in_folder and parts[1] != "inputs" else None


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_down_and_no_family_imports_another(path):
    assert not arrows(path.relative_to(ROOT), path)


WRONG = {
    "models/guidance/wrong.py": [
        "from ...engine.run import Run",
        "from ..ip_adapter.network import Resampler",
        "from .. import ip_adapter",
        "import comfy.samplers",
        "import requests",
        "from ...demo.judge import judge",
    ],
    "engine/wrong.py": ["from ..nodes.inputs.schema import schema", "from ..demo.world.scenes import draw"],
    "nodes/inputs/wrong.py": ["from ..unicon.apply import add_partner"],
    "nodes/guidance/wrong.py": [
        "from ..unicon.apply import add_partner",
        "from ...models.unicon.network import UniCon",
        "from ...demo.world import model",
    ],
}


@pytest.mark.parametrize(("path", "line"), [(path, line) for path, lines in WRONG.items() for line in lines])
def test_the_test_of_imports_sees_a_wrong_one(path, line, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(line, encoding="utf-8")
    assert len(arrows(Path(path), wrong)) == 1


SWEEP = sorted((ROOT / "sweep").glob("*.py"))
ON_RAY = ("cluster.py", "presence.py", "worker.py")


@pytest.mark.parametrize("path", SWEEP, ids=name_of)
def test_a_sweep_stands_on_the_demo_and_the_tools_and_three_of_its_files_on_ray(path):
    of_the_pack = {target(path.relative_to(ROOT), name, level)[0] for name, level in imports(path) if level}
    assert of_the_pack <= {"sweep", "demo", "tools"}
    others = {name.split(".")[0] for name, level in imports(path) if not level} - set(sys.stdlib_module_names)
    if path.name == "run.py":  # a script, which loads the pack by its name
        assert others == {"demo", "reins"}
    else:
        assert others <= {"aiohttp", "PIL", *(["ray"] if path.name in ON_RAY else [])}


def test_nothing_below_knows_of_sweeps():
    below = [path for folder in ("demo", "nodes", "engine", "models") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in below if any("sweep" in name.split(".") for name, _ in imports(path))]
    assert "sweep" not in (ROOT / "__init__.py").read_text(encoding="utf-8")


# --- the engine knows no method, and the rest no key of the host -----------------------------------------------------

ENGINE = [path for path in FILES if path.relative_to(ROOT).parts[0] == "engine"]
METHODS = re.compile(
    r"unicon|ip.?adapter|controlnext|prompt.diffusion|\bh.space|asyrp|pladis|autoguidance|sliding.window"
    r"|\b(?:pag|seg|swg|tpg|sag|nag|apg|fdg)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_names_no_method(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if METHODS.search(line)]


@pytest.mark.parametrize("line", ["raise ValueError('UniCon needs it')", "# as SAG does", "# h-space", "IPAdapter"])
def test_the_test_of_names_sees_one(line):
    assert METHODS.search(line)


KEYS = {  # of the host's transformer_options, and what it passes on beside them
    "uuids", "cond_or_uncond", "sigmas", "sample_sigmas", "activations_shape", "original_shape", "block", "block_index",
    "n_heads", "attn_precision", "patches", "patches_replace", "wrappers", "context_window", "ad_params",
    "model_function_wrapper", "optimized_attention_override",
}  # fmt: skip
SPELLERS = (
    "engine/compiled.py", "engine/dit/", "engine/layers/", "engine/network.py", "engine/rows/", "engine/run.py",
)  # fmt: skip


def keys_in(source: str) -> set[str]:
    """The keys of the host's options that a file spells."""
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {value for value in strings if isinstance(value, str) and value in KEYS}


@pytest.mark.parametrize("path", [path for path in FILES if not name_of(path).startswith("models/")], ids=name_of)
def test_few_places_spell_a_key_of_the_hosts_options(path):
    if not name_of(path).startswith(SPELLERS):
        assert not keys_in(path.read_text(encoding="utf-8"))


def test_the_test_of_keys_sees_one():
    assert keys_in('call.options["cond_or_uncond"] or options.get("uuids")') == {"cond_or_uncond", "uuids"}


@pytest.mark.parametrize("speller", SPELLERS)
def test_who_may_spell_a_key_does(speller):
    sources = [path.read_text(encoding="utf-8") for path in FILES if name_of(path).startswith(speller)]
    assert any(keys_in(source) for source in sources)


# --- families --------------------------------------------------------------------------------------------------------


def node_classes(path: Path) -> list[str]:
    """The nodes of a file."""
    classes = (item for item in _definitions(path) if isinstance(item, ast.ClassDef))
    return [item.name for item in classes if any(ast.unparse(base).endswith("ComfyNode") for base in item.bases)]


def _definitions(path: Path) -> list[ast.ClassDef | ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [item for item in tree.body if isinstance(item, (ast.ClassDef, ast.FunctionDef))]


GUIDANCE = [path for path in sorted((ROOT / "nodes" / "guidance").glob("*.py")) if path.stem != "__init__"]


@pytest.mark.parametrize("path", GUIDANCE, ids=name_of)
def test_a_guidance_method_is_one_file_whose_node_comes_first(path):
    assert node_classes(path) == [_definitions(path)[0].name]


OTHERS = [path for path in FILES if path.parent.name != "guidance" and node_classes(path)]


@pytest.mark.parametrize("path", OTHERS, ids=name_of)
def test_the_nodes_of_other_families_lie_in_files_named_after_them(path):
    assert path.stem.endswith("_node") or path.stem == "nodes"
    assert path.parent.parent.name in ("nodes", "demo")


def test_the_drawn_world_stands_on_torch_alone():
    names = {name.split(".")[0] for name, _ in imports(DEMO_WORLD / "scenes.py")}
    assert names - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("path", [*FILES, *SWEEP], ids=name_of)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
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
    models = ROOT / "models"
    names = [".".join(path.relative_to(models).with_suffix("").parts) for path in sorted(models.rglob("*.py"))]
    code = f"MODELS, HOST = {names!r}, {HOST!r}\n" + code
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3


# --- files -----------------------------------------------------------------------------------------------------------

ALL_OWN = [path for folder in ("models", "engine", "nodes", "demo") for path in sorted((ROOT / folder).glob("**/*.py"))]
NUMPY_FILES = re.compile(r"safetensors\.numpy|\b(?:np|numpy)\.(?:save\w*|load\w*|memmap)\b|\.tofile\(|\bfromfile\(")


@pytest.mark.parametrize("path", ALL_OWN, ids=name_of)
def test_no_file_is_written_or_read_through_numpy(path):
    """safetensors 0.8.0 stores a transposed array in the order of memory, without an error. numpy has no bfloat16."""
    assert not NUMPY_FILES.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line", ["from safetensors.numpy import save_file", "np.savez(path, a=a)", "array.tofile(path)", "np.load(path)"]
)
def test_the_test_of_numpy_sees_it(line):
    assert NUMPY_FILES.search(line)
