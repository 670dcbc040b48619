"""What an evaluation has computed so far, on disk, so that it can continue."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]

_FINGERPRINT = "fingerprint.json"


class Progress:
    """Arrays by name, in files of a folder; what is there is not computed again.

    Each file is written under another name and then renamed: it is whole or not there.

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
        saved = self._saved_fingerprint() if resume else None
        if saved is not None:
            names = {*saved, *fingerprint}
            different = sorted(n for n in names if saved.get(n) != fingerprint.get(n))
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
        self._write(_FINGERPRINT, json.dumps(fingerprint, indent=2).encode())

    def arrays(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays saved as `name`, or those that `compute` returns, which are saved."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npz"
        if path.exists():
            with np.load(path) as file:
                return dict(file)
        arrays = compute()
        temporary = path.with_suffix(".npz.part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
        return arrays

    def _saved_fingerprint(self) -> dict[str, str] | None:
        assert self.folder is not None
        path = self.folder / _FINGERPRINT
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, name: str, data: bytes) -> None:
        assert self.folder is not None
        temporary = self.folder / f"{name}.part"
        temporary.write_bytes(data)
        temporary.replace(self.folder / name)
