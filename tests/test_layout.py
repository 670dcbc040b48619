"""The floors of docs/design.md: imports point strictly down, backends stay in their place."""

import ast
import graphlib
import pathlib

import pytest

import keras_robust

PACKAGE = pathlib.Path(keras_robust.__file__).parent
# From the bottom up: a part imports from itself and from the parts before it.
FLOORS = (
    "backend",
    "validation",
    "scheduled",
    "whole_file",
    "datasets",
    "ops",
    "neighbors",
    "model",
    "constraints",
    "regularizers",
    "layers",
    "attacks",
    "losses",
    "metrics",
    "report",
    "evaluation",
    "training",
    "callbacks",
    "cli",
)
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def place(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The dotted names that a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(name):
    """The file of the package that a dotted name is in; `None` outside of the package."""
    root, *parts = name.split(".")
    while root == "keras_robust" and parts:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE / "/".join(parts)):
            path = path / "__init__.py" if path.is_dir() else path
            if path.exists():
                return path
        parts.pop()
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    for name in imported(path):
        root, *rest = name.split(".")
        if root in ("tensorflow", "tensorflow_datasets"):
            assert place(path) in ("backend", "datasets"), name
        if root == "jax":
            assert place(path) == "backend", name
        if root == "keras_robust" and rest[0] != place(path):
            assert FLOORS.index(rest[0]) < FLOORS.index(place(path)), name


def test_every_part_has_a_floor():
    assert {place(path) for path in FILES} == set(FLOORS)


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside of functions and for type checkers count too."""
    graph = {path: {module(name) for name in imported(path)} - {None, path} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_backend_knows_no_layer():
    for path in FILES:
        if place(path) == "backend":
            assert "keras.layers" not in path.read_text(), path
