"""What an evaluation has computed so far, on disk, so that it can continue."""

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
    """Arrays by name, in files of a folder; what is there is not computed again.

    Each file is written under another name and then renamed: it is whole or not there.

    An attack that is run to compute them notes each of its rounds, in files of their own in the
    folder `rounds`. They are deleted once the arrays are saved, which say all that they did.

    Args:
        folder: where the files are. Defaults to `None`: nothing is kept.
        fingerprint: mapping of names to strings, all that the arrays depend on. Defaults to an
            empty mapping.
        resume: bool. Whether to use what is there; otherwise it is deleted. Defaults to `False`.

    Raises:
        ValueError: if `resume` is true, and what is there was computed with another fingerprint;
            the message names what differs.
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
                    f"it was run with other {', '.join(different)}. Run it with what it was begun "
                    "with, in another folder, or with `resume=False`, which begins anew."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / _FINGERPRINT, *self.folder.glob("*.npz*")):
            path.unlink(missing_ok=True)
        self._forget_rounds()
        text = json.dumps(fingerprint, indent=2)
        write_whole(self.folder / _FINGERPRINT, lambda file: file.write(text.encode()))

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays saved as `name`, or those that `compute` returns, which are saved."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npz"
        saved = _load(path)
        if saved is not None:
            return saved
        arrays = compute()
        _save(path, arrays)
        self._forget_rounds()
        return arrays

    def attacked(
        self, name: str, attack: Callable[[Journal], Arrays], meter: Meter | None = None
    ) -> Arrays:
        """`arrays` for an attack, which goes on after the last round that was finished.

        Args:
            attack: function that runs the attack with a journal.
            meter: what shows how far it is. Defaults to `None`: nothing.
        """
        store = None if self.folder is None else _Rounds(self.folder / _ROUNDS / name)
        return self.arrays(name, functools.partial(attack, Journal(meter, store)))

    def _forget_rounds(self) -> None:
        assert self.folder is not None
        for path in (self.folder / _ROUNDS).glob("*.npz*"):
            path.unlink()


class _Rounds:
    """A store of `kr.attacks`' journals: files whose names begin as `path`."""

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
    """Raises a `ValueError` where there is nothing to continue in."""
    if resume and output is None:
        raise ValueError(
            "Argument `resume` needs the folder `output` that the evaluation was begun in. "
            "Received: resume=True, output=None"
        )


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of what differs between two fingerprints, in order."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def load_fingerprint(folder: pathlib.Path) -> dict[str, str] | None:
    """What the arrays in a folder depend on; `None` where there are none."""
    path = folder / _FINGERPRINT
    return json.loads(path.read_text()) if path.exists() else None


def load_arrays(path: pathlib.Path) -> Arrays:
    """The arrays of a file."""
    with np.load(path) as file:
        return dict(file)


def _load(path: pathlib.Path) -> Arrays | None:
    return load_arrays(path) if path.exists() else None


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
