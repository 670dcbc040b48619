"""What the command reads: a model, data, and modules of the user's."""

import argparse
import importlib
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_robust.datasets.load import load
from keras_robust.model.arrays import as_arrays
from keras_robust.model.classifier import Classifier, check_outputs

_PROBED = 64


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
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{path!r} cannot be loaded: {_loading_advice(str(error))}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{path!r} holds no model but a {type(model).__name__}")
    return model


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


def load_data(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    try:
        data = load(options.dataset, options.split, options.data_dir)
        return as_arrays(data.take(options.num_examples or -1))
    except Exception as error:  # downloads fail in many ways
        raise ValueError(f"--dataset {options.dataset}: {error}") from error


def returns_logits(model: Any, x: np.ndarray, given: bool | None) -> bool:
    """Whether the model returns logits: as the user says, or as it looks."""
    classifier = Classifier.of(model)
    classifier.check_structure()
    probe = x[:_PROBED]
    try:
        outputs = classifier.predict(probe)
    except Exception as error:  # backends raise errors of their own
        raise ValueError(
            f"the model cannot be run on images of shape {x.shape[1:]}: {error}"
        ) from error
    check_outputs(outputs, len(probe))
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
