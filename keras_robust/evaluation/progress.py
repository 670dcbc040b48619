"""Saves the intermediate results of an evaluation, so that it can be resumed."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from keras_robust.attacks.journal import Arrays, Journal
from keras_robust.attacks.meter import Meter
from keras_robust.whole_file import write_whole

_FINGERPRINT = "fingerprint.json"
_ROUNDS = "rounds"


class Progress:
    """Stores arrays by name in the files of a folder, and computes only those that are missing.

    Each file is written under a temporary name and then renamed, so it is never incomplete.

    While an attack computes the arrays, it saves each of its rounds in separate files in the
    subfolder `rounds`. These files are deleted as soon as the arrays are saved.

    Args:
        folder: path of the folder. Defaults to `None`: nothing is saved.
        fingerprint: mapping of names to strings: everything that the arrays depend on. Defaults to
            an empty mapping.
        resume: bool. Whether to reuse the files in the folder instead of deleting them. Defaults to
            `False`.

    Raises:
        ValueError: if `resume` is true and the files in the folder have a different fingerprint.
            The message names the differences.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        fingerprint: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        self.folder = None if folder is None else pathlib.Path(folder)
        if self.folder is None:
            return
        fingerprint = dict(fingerprint or {})
        saved = load_fingerprint(self.folder) if resume else None
        if saved is not None:
            different = differing(saved, fingerprint)
            if different:
                raise ValueError(
                    f"`resume=True` cannot continue the evaluation in {str(self.folder.parent)!r}: "
                    f"it was run with other {', '.join(different)}. Resume it with the same "
                    "arguments, use another folder, or pass `resume=False` to start over."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / _FINGERPRINT, *self.folder.glob("*.npz*")):
            path.unlink(missing_ok=True)
        self._delete_rounds()
        text = json.dumps(fingerprint, indent=2)
        write_whole(self.folder / _FINGERPRINT, lambda file: file.write(text.encode()))

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Returns the arrays saved as `name`. If there are none, computes and saves them."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npz"
        saved = _load(path)
        if saved is not None:
            return saved
        arrays = compute()
        _save(path, arrays)
        self._delete_rounds()
        return arrays

    def attacked(
        self, name: str, attack: Callable[[Journal], Arrays], meter: Meter | None = None
    ) -> Arrays:
        """Runs `arrays` for an attack, which resumes after its last finished round.

        Args:
            name: string. Name under which the arrays are saved.
            attack: function that runs the attack with a journal.
            meter: shows the progress of the attack. Defaults to `None`: nothing is shown.
        """
        store = None if self.folder is None else _Rounds(self.folder / _ROUNDS / name)
        return self.arrays(name, functools.partial(attack, Journal(meter, store)))

    def _delete_rounds(self) -> None:
        assert self.folder is not None
        for path in (self.folder / _ROUNDS).glob("*.npz*"):
            path.unlink()


class _Rounds:
    """A store for the journals of `kr.attacks`: files whose names begin with `path`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def read(self, name: str) -> Arrays | None:
        return _load(self._file(name))

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        _save(self._file(name), arrays)

    def _file(self, name: str) -> pathlib.Path:
        return self.path.with_name(f"{self.path.name}{name and '.'}{name}.npz")


def check_resume(resume: bool, output: str | os.PathLike[str] | None) -> None:
    """Raises a `ValueError` if `resume` is true without an `output` to resume from."""
    if resume and output is None:
        raise ValueError(
            "Argument `resume` needs the folder `output` in which the evaluation was started. "
            "Received: resume=True, output=None"
        )


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Returns the sorted names of the entries in which two fingerprints differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def load_fingerprint(folder: pathlib.Path) -> dict[str, str] | None:
    """Loads the fingerprint of the arrays in a folder, or returns `None` if there is none."""
    path = folder / _FINGERPRINT
    return json.loads(path.read_text()) if path.exists() else None


def load_arrays(path: pathlib.Path) -> Arrays:
    """Loads the arrays of a file."""
    with np.load(path) as file:
        return dict(file)


def _load(path: pathlib.Path) -> Arrays | None:
    return load_arrays(path) if path.exists() else None


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
