"""Files that are whole or not there."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under another name, and renames it once it is on the disk.

    Args:
        path: where the file is to be.
        write: function that writes to an open file.
    """
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
