"""When the template of a WNLL head is filled during `fit`."""

from typing import Any

import keras


class TemplateFilling(keras.callbacks.Callback):
    """Base class of callbacks that fill the template after every `every`-th epoch.

    The template is filled after the epoch's training part: before validation if there is any,
    otherwise before the later callbacks in the list. Subclasses implement `fill`.
    """

    every = 1

    def __init__(self) -> None:
        super().__init__()
        self._is_stale = False

    def fill(self) -> None:
        """Fills the template of `self.model`, and puts the head in its WNLL phase."""
        raise NotImplementedError

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._is_stale = (epoch + 1) % self.every == 0

    def on_test_begin(self, logs: Any = None) -> None:
        self._fill_if_stale()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._fill_if_stale()

    def _fill_if_stale(self) -> None:
        if self._is_stale:
            self._is_stale = False
            self.fill()
