"""What the command reads: a model, and modules of the user's."""

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
from keras_robust.model.images import Images

_PROBED = 64
# What files that are no archives begin with, and what they are.
_OTHER_FILES = {
    b"PK\x03\x04": "it is cut short, as an interrupted save, copy or download leaves it",
    b"\x89HDF": "it is an HDF5 file under another name: load it in Keras and save it as .keras",
    b"version https://git-lfs": "it is a pointer of Git LFS: `git lfs pull` brings the file itself",
    b"": "it is no zip archive, as .keras files are",
}


def import_modules(modules: Sequence[str]) -> None:
    """Imports modules of the user's, from the current folder too."""
    if modules:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the user's own code raises
            raise ValueError(f"--import {module}: {type(error).__name__}: {error}") from error


def load_model(path: str) -> Any:
    """The model in a file, of which no code is run."""
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
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{path!r} cannot be loaded: {_loading_advice(str(error))}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{path!r} holds no model but a {type(model).__name__}")
    return model


def _fault(file: pathlib.Path) -> str | None:
    """What is wrong with a file that is to be an archive of Keras; `None` if nothing is."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            beginning = opened.read(32)
        if not beginning:
            return "it is empty"
        return next(text for magic, text in _OTHER_FILES.items() if beginning.startswith(magic))
    with zipfile.ZipFile(file) as archive:
        if "config.json" not in archive.namelist():
            return "it is an archive, but not of a model: it holds no config.json"
        try:
            damaged = archive.testzip()
            json.loads(archive.read("config.json"))
        except ValueError:
            damaged = "config.json"
        except Exception as error:  # what lies in a damaged archive raises anything
            return f"it is damaged. {type(error).__name__}: {error}"
    return None if damaged is None else f"its {damaged} is damaged"


def _loading_advice(message: str) -> str:
    unknown = re.search("Could not locate (?:class|function) '([^']*)'", message)
    if unknown:
        return (
            f"it needs {unknown[1]!r}, which is not known here. Pass --import MODULE, a Python "
            "module of yours that registers it with keras.saving.register_keras_serializable"
        )
    if "`Lambda`" in message:
        return (
            "it has a Lambda layer, and loading that would run code from the file. Save the model "
            "with a registered layer in its place, and pass --import MODULE, a Python module "
            "that registers that layer"
        )
    return message.strip().split("\n")[0]


def returns_logits(model: Any, x: np.ndarray | Images, given: bool | None) -> bool:
    """Whether the model returns logits: as the user says, or as it looks."""
    classifier = Classifier.of(model)
    classifier.check_structure()
    _check_shape(model, x.shape[1:])
    probe = x[:_PROBED]
    try:
        classifier.predict(probe)
    except Exception as error:  # backends raise errors of their own
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


def _check_shape(model: Any, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` where a model says that it takes images of another shape."""
    expected = getattr(model, "input_shape", None)
    if not isinstance(expected, tuple) or not {type(n) for n in expected} <= {int, type(None)}:
        return
    expected = expected[1:]
    # Keras adds or drops a last axis of one by itself.
    candidates = [shape, (*shape, 1), *([shape[:-1]] if shape[-1] == 1 else [])]
    for found in candidates:
        pairs = zip(found, expected, strict=False)
        if len(found) == len(expected) and all(n in (None, size) for size, n in pairs):
            return
    raise ValueError(
        f"the model cannot be run on images of shape {shape}, as the data set has them: it takes "
        f"images of shape {expected}"
    )
