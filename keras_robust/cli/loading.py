"""Loading of the model, and of the user's modules."""

import importlib
import json
import pathlib
import re
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.types import Model

_NUM_PROBED = 64
# First bytes of files that are not zip archives, and what such files are.
_OTHER_FILES = {
    b"PK\x03\x04": "it is incomplete, as after an interrupted save, copy or download",
    b"\x89HDF": "it is an HDF5 file under another name: load it in Keras and save it as .keras",
    b"version https://git-lfs": "it is a Git LFS pointer: run `git lfs pull` to fetch the file",
    b"": "it is not a zip archive, which every .keras file is",
}


def import_modules(modules: Sequence[str]) -> None:
    """Imports the user's modules. The current folder is searched too."""
    if modules:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # The user's code may raise any error.
            raise ValueError(f"--import {module}: {type(error).__name__}: {error}") from error


def load_model(path: str) -> Any:
    """Loads the model in a file, without running code from the file."""
    if not path.endswith(".keras"):
        raise ValueError(
            f"{path!r} does not end in .keras: save the model as model.save('name.keras'). Other "
            "formats may run code when they are loaded"
        )
    file = pathlib.Path(path)
    if not file.exists():
        raise ValueError(f"there is no file {path!r}")
    fault = "it is a folder" if file.is_dir() else _fault(file)
    if fault:
        raise ValueError(f"{path!r} cannot be loaded: {fault}")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Damaged files raise errors of many types.
        raise ValueError(f"{path!r} cannot be loaded: {_loading_advice(str(error))}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{path!r} holds a {type(model).__name__}, not a model")
    return model


def _fault(file: pathlib.Path) -> str | None:
    """Returns what is wrong with a .keras file; `None` if it looks intact."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            beginning = opened.read(32)
        if not beginning:
            return "it is empty"
        return next(text for magic, text in _OTHER_FILES.items() if beginning.startswith(magic))
    with zipfile.ZipFile(file) as archive:
        if "config.json" not in archive.namelist():
            return "it is a zip archive, but not a model: it holds no config.json"
        try:
            damaged = archive.testzip()
            json.loads(archive.read("config.json"))
        except ValueError:
            damaged = "config.json"
        except Exception as error:  # Damaged archives raise errors of many types.
            return f"it is damaged. {type(error).__name__}: {error}"
    return None if damaged is None else f"its {damaged} is damaged"


def _loading_advice(message: str) -> str:
    unknown = re.search("Could not locate (?:class|function) '([^']*)'", message)
    if unknown:
        return (
            f"it needs {unknown[1]!r}, which is not registered. Pass --import MODULE, a Python "
            "module of yours that registers it with keras.saving.register_keras_serializable"
        )
    if "`Lambda`" in message:
        return (
            "it has a Lambda layer, and loading it would run code from the file. Replace it by a "
            "registered layer, save the model again, and pass --import MODULE, a Python module "
            "that registers the layer"
        )
    return message.strip().split("\n")[0]


def returns_logits(model: Model, x: np.ndarray | LazyImages, given: bool | None) -> bool:
    """Returns whether the model returns logits: as `given`, or as its outputs look."""
    classifier = Classifier.of(model)
    classifier.check_structure()
    _check_shape(model, x.shape[1:])
    probe = x[:_NUM_PROBED]
    try:
        classifier.predict(probe)
    except Exception as error:  # Backends raise their own types of errors.
        raise ValueError(
            f"the model cannot be run on images of shape {x.shape[1:]}: {error}"
        ) from error
    outputs = classifier.scores(probe)
    if given is not None:
        classifier.check_from_logits(outputs, given)
        return given
    try:
        classifier.check_from_logits(outputs, False)
    except ValueError:
        print("The model's outputs look like logits (--from-logits).")
        return True
    print("The model's outputs look like probabilities (--from-probabilities).")
    return False


def _check_shape(model: Model, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` if the model declares another shape of images."""
    expected = getattr(model, "input_shape", None)
    if not isinstance(expected, tuple) or not {type(n) for n in expected} <= {int, type(None)}:
        return
    expected = expected[1:]
    # Keras itself adds or removes a last axis of length 1.
    candidates = [shape, (*shape, 1), *([shape[:-1]] if shape[-1] == 1 else [])]
    for found in candidates:
        pairs = zip(found, expected, strict=False)
        if len(found) == len(expected) and all(n in (None, size) for size, n in pairs):
            return
    raise ValueError(
        f"the model cannot be run on images of shape {shape}, the shape in the data: it takes "
        f"images of shape {expected}"
    )
