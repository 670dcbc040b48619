"""Compiled functions that outlive the process."""

import os
import pathlib
import re

from keras_robust import backend


def keep_compiled() -> None:
    """Has JAX keep what it compiles for the next call of the command, on this kind of device.

    The folder is in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`, and may be deleted at any
    time. A folder that JAX has been given already, by `JAX_COMPILATION_CACHE_DIR` say, stays. What
    is compiled for one processor can crash another, so each has a folder of its own.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    device = re.sub(r"\W+", "-", backend.device()).lower()
    backend.keep_compiled(pathlib.Path(caches) / "keras_robust" / "jax" / device)
