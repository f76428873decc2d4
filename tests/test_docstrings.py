"""Docstrings say what is returned, give the shapes of tensors, and name errors last."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "engine", "nodes", "demo/world", "sweep")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# The axes that a shape may name. What stands in parentheses is a shape only if it is made of these.
AXES = set(
    re.findall(
        r"\w+",
        """
    b c d h k l m n t w x y any batch cells channels chunks clip_width columns context count dim faces frames groups
    heads hidden hints images inputs keys kinds layers levels outputs pairs parts pixels queries rank rows samples
    size SIZE slots steps text textures time token tokens values vocabulary width words
""",
    )
)
PARENTHESES = re.compile(r"\(([^()]+)\)")
AXIS = re.compile(r"\.\.\.|[A-Za-z_]\w*|\d+")
ERROR = re.compile(r"\b[A-Z]\w*Error\b")


class Function(NamedTuple):
    """A public function: its name, its docstring, and the docstring that may speak for it if it has none."""

    name: str
    node: ast.FunctionDef
    text: str
    other_text: str = ""


def is_shape(text: str) -> bool:
    """Whether what stands in parentheses is a shape: (b, c, h, w), (1 or b, c), (b, tokens, heads * d), (n,)."""
    axes = [axis.strip() for axis in text.removesuffix(",").split(",")]
    if len(axes) == 1 and not text.endswith(","):
        return False
    return all(_is_axis(axis) for axis in axes)


def _is_axis(text: str) -> bool:
    if re.sub(r"\.\.\.|[\w\s*/+-]", "", text):
        return False
    words = [word for word in AXIS.findall(text) if word != "or"]
    return bool(words) and all(word in AXES or word == "..." or word.isdigit() for word in words)


def has_shape(text: str) -> bool:
    return any(is_shape(inner) for inner in PARENTHESES.findall(text))


def functions(tree: ast.Module) -> Iterator[Function]:
    """The public functions of a module, and the public methods of its public classes.

    The class, or a Protocol of the module with a method of that name, may speak for a method without a docstring.
    """
    classes = [item for item in tree.body if isinstance(item, ast.ClassDef)]
    protocols = [item for item in classes if "Protocol" in map(ast.unparse, item.bases)]
    documented = {node.name: ast.get_docstring(node) or "" for item in protocols for node in _public(item)}
    for node in _public(tree):
        yield Function(node.name, node, ast.get_docstring(node) or "")
    for item in classes:
        for node in _public(item) if not item.name.startswith("_") else ():
            others = f"{ast.get_docstring(item)} {documented.get(node.name)}"
            yield Function(f"{item.name}.{node.name}", node, ast.get_docstring(node) or "", others)


def _public(item: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    functions = [node for node in item.body if isinstance(node, ast.FunctionDef)]
    # the schema of a node documents what its execute takes and returns
    return [node for node in functions if not node.name.startswith("_") and node.name != "execute"]


def takes_or_returns_tensors(node: ast.FunctionDef) -> bool:
    """Whether an annotation names a tensor. The tensors of a file, in a mapping by their names, have no one shape."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [node.returns]
    return any(annotation is not None and _names_tensor(annotation) for annotation in annotations)


def _names_tensor(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Mapping", "dict", "Callable"):
        return False
    if ast.unparse(annotation) in ("Tensor", "torch.Tensor"):
        return True
    return any(_names_tensor(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr))


def faults(source: str) -> list[str]:
    """What is wrong with the docstrings of a module."""
    tree, found = ast.parse(source), []
    for function in functions(tree):
        if takes_or_returns_tensors(function.node) and not has_shape(function.text or function.other_text):
            found.append(f"{function.name}: no shape of its tensors, such as (b, c, h, w)")
        if ";" in function.text:
            found.append(f"{function.name}: a semicolon hides a second sentence")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            found += _faults_of_errors(getattr(node, "name", "module"), ast.get_docstring(node) or "")
    return found


def _faults_of_errors(name: str, text: str) -> list[str]:
    """Errors stand in a sentence that begins with Raises and is the last one."""
    sentences = [
        sentence.strip()
        for part in text.split("\n\n")
        for sentence in re.split(r"(?<=[.;:])\s", part)
        if sentence.strip()
    ]
    named = [number for number, sentence in enumerate(sentences) if ERROR.search(sentence)]
    raising = [number for number, sentence in enumerate(sentences) if sentence.startswith("Raises ")]
    faults = []
    if any(re.search(rf"{ERROR.pattern} where|^{ERROR.pattern}", sentence) for sentence in sentences):
        faults.append(f"{name}: write 'Raises ValueError if ...'")
    elif set(named) - set(raising):
        faults.append(f"{name}: an error outside of the sentence that begins with Raises")
    if raising and raising[-1] != len(sentences) - 1:
        faults.append(f"{name}: what is raised stands last")
    return faults


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_give_shapes_and_name_errors_last(path):
    assert faults(path.read_text(encoding="utf-8")) == []


def documented(head: str, text: str, *body: str) -> str:
    """The source of a function or class with a docstring."""
    return "\n    ".join([f"{head}:", f'"""{text}"""', *body])


RIGHT = [
    documented("def half(x: Tensor) -> Tensor", "Every second cell (b, c, h / 2, w / 2) of x (b, c, h, w)."),
    documented("def kernel(size: int) -> Tensor", "The weights (size,).\n\n    Raises ValueError if size is even."),
    documented("def read(weights: Mapping[str, Tensor]) -> int", "The width. Raises ValueError if there is none."),
    documented("class Net", "Tokens (b, tokens, c) of x (b, n, c).", "def forward(self, x: Tensor) -> Tensor: ..."),
    "def _inner(x: Tensor) -> Tensor: ...",
]
METHOD = documented("def prepare(self, x: Tensor) -> Net", "    The net that is ready.").replace("\n", "\n    ")
WRONG = [
    "def half(x: Tensor) -> Tensor: ...",
    documented("def half(x: Tensor) -> Tensor", "Every second cell (rows, then columns)."),
    documented("def half(x: torch.Tensor | None = None) -> int", "How many cells x has."),
    documented("def pair(x: int) -> tuple[Tensor, Tensor]", "Both halves (left and right)."),
    documented("class Net", "A net of x (b, c).", METHOD),
    documented("class Net", "A net of x.", "def forward(self, x: Tensor) -> Tensor: ..."),
    documented("def read(path: Path) -> int", "The width; 1 for none."),
    documented("def read(path: Path) -> int", "The width. ValueError if there is none."),
    documented("def read(path: Path) -> int", "The width, ValueError where there is none."),
    documented("def _read(path: Path) -> int", "RuntimeError if there is no width."),
    documented("def read(path: Path) -> int", "The width, or a ValueError if there is none."),
    documented("def read(path: Path) -> int", "Raises ValueError if there is no width. Else the width."),
]


@pytest.mark.parametrize("source", RIGHT)
def test_the_test_of_docstrings_passes_good_ones(source):
    assert faults(source) == []


@pytest.mark.parametrize("source", WRONG)
def test_the_test_of_docstrings_sees_a_bad_one(source):
    assert len(faults(source)) == 1
