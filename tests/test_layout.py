"""Imports only point down in the order of docs/design.md, and only `backend` imports JAX."""

import ast
import graphlib
import pathlib

import pytest

import keras_robust

PACKAGE = pathlib.Path(keras_robust.__file__).parent
# From the bottom up. A part may import from itself and from the parts before it.
ORDER = (
    "types",
    "text_table",
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


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Yields the dotted names that a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(name):
    """Returns the file of the package with a dotted name, or `None` outside of the package."""
    root, *parts = name.split(".")
    while root == "keras_robust" and parts:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE / "/".join(parts)):
            path = path / "__init__.py" if path.is_dir() else path
            if path.exists():
                return path
        parts.pop()
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for name in imported(path):
        root, *rest = name.split(".")
        if root in ("tensorflow", "tensorflow_datasets"):
            assert part_of(path) in ("backend", "datasets"), name
        if root == "jax":
            assert part_of(path) == "backend", name
        if root == "keras_robust" and rest[0] != part_of(path):
            assert ORDER.index(rest[0]) < ORDER.index(part_of(path)), name


def test_every_part_is_in_the_order():
    assert {part_of(path) for path in FILES} == set(ORDER)


def test_there_are_no_circular_imports():
    """Imports inside of functions and for type checkers count, too."""
    graph = {path: {module(name) for name in imported(path)} - {None, path} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_backend_does_not_use_layers():
    for path in FILES:
        if part_of(path) == "backend":
            assert "keras.layers" not in path.read_text(), path
