"""Compiled functions that are kept for later runs of the command."""

import os
import pathlib
import re

from keras_robust import backend


def keep_compiled() -> None:
    """Makes JAX keep its compiled functions for later runs of the command on the same device.

    They are kept in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`. The folder may be deleted at
    any time. If JAX already has a cache folder, for example from `JAX_COMPILATION_CACHE_DIR`,
    nothing changes. Code that is compiled for one processor can crash on another, so each kind of
    device has its own folder.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    device = re.sub(r"\W+", "-", backend.device()).lower()
    backend.keep_compiled(pathlib.Path(caches) / "keras_robust" / "jax" / device)
