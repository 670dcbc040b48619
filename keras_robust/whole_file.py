"""Atomic writing of files."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically.

    The content goes to a temporary file with the suffix `.part`, which is renamed to `path` once it
    is on the disk. An interruption therefore leaves no incomplete file at `path`.

    Args:
        path: path of the file.
        write: function that writes the content to an open binary file.
    """
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
