"""The floors of docs/design.md: imports point down only, backends stay in their place."""

import ast
import pathlib

import pytest

import keras_robust

PACKAGE = pathlib.Path(keras_robust.__file__).parent
FLOORS = {
    "backend": 1,
    "datasets": 1,
    "layer_access": 1,
    "layer_calls": 1,
    "ops": 2,
    "inference": 2,
    "validation": 2,
    "attacks": 3,
    "constraints": 3,
    "neighbors": 3,
    "regularizers": 3,
    "layers": 4,
    "evaluation": 4,
    "losses": 4,
    "callbacks": 5,
    "cli": 5,
    "training": 5,
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(path):
    """The dotted names that a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        root, *rest = name.split(".")
        if root in ("tensorflow", "tensorflow_datasets"):
            assert place in ("backend", "datasets"), name
        if root == "jax":
            assert place == "backend", name
        if root == "keras_robust":
            assert FLOORS[rest[0]] <= FLOORS[place], f"{place} imports {name}"


def test_every_part_has_a_floor():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts == set(FLOORS)
