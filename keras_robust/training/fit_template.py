"""`fit` that also fills the template of a WNLL head trained through its graph."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_robust.layers.wnll_head import wnll_head
from keras_robust.losses import GraphInterpolation
from keras_robust.model.arrays import as_array, can_be_read_again, is_data_set
from keras_robust.training.adapt_template import head_inputs
from keras_robust.training.template_draw import draw_from_data_set, draw_rows
from keras_robust.training.template_filling import TemplateFilling
from keras_robust.types import Images, Labels, Loss, Model

# The arguments of `fit` after images and labels.
_FIT_ARGUMENTS = list(inspect.signature(keras.Model.fit).parameters)[3:]
_REMEDY = (
    "Pass `keras_robust.callbacks.TemplateUpdate(x, y)` to `fit`, or call "
    "`keras_robust.training.adapt_template(model, x, y)` after `fit`."
)


def fit_and_fill(
    model: Model, fit: Callable[..., Any], x: Images, y: Labels, *args: Any, **kwargs: Any
) -> Any:
    """Calls Keras's `fit`, and fills the template if a loss trains a WNLL head through its graph.

    The template is filled from the training data, without the `validation_split` part, at the end
    of training. With validation or callbacks, it is also filled at the end of each epoch. If
    `callbacks` contain a `kr.callbacks.TemplateUpdate`, only that callback fills it.

    Raises:
        ValueError: before training, if the data hold too few examples for the template, or a
            batch of arrays is too small for the loss's folds.
    """
    losses = graph_losses(getattr(model, "loss", None))
    if not losses:
        return fit(x, y, *args, **kwargs)
    given = {"x": x, "y": y, **dict(zip(_FIT_ARGUMENTS, args, strict=False)), **kwargs}
    callbacks = given.get("callbacks")
    callbacks = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])
    split = given.get("validation_split") or 0.0
    if not is_data_set(x):
        num_examples = int(len(y) * (1 - split))
        for loss in losses:
            loss.check_batch_size(min(given.get("batch_size") or 32, num_examples))
        y = y[:num_examples]
    if any(isinstance(callback, TemplateFilling) for callback in callbacks):
        return fit(**given)
    draw = _draw_template(model, x, y, given.get("steps_per_epoch"))
    if draw is None:
        warnings.warn(
            "`fit` received data that cannot be read twice, so the template of the WNLL head is "
            "not filled from them. Until it is filled, `predict`, `evaluate` and validation use "
            "the existing template if there is one, and otherwise the linear branch, which "
            f"`GraphInterpolation` trains only if `linear_weight` is positive. {_REMEDY}",
            stacklevel=3,
        )
        return fit(**given)
    filling = _FitFilling(model, *draw)
    if callbacks or split or given.get("validation_data") is not None:
        given["callbacks"] = [filling, *callbacks]
    history = fit(**given)
    filling.fill()
    return history


def graph_losses(loss: Loss) -> list[GraphInterpolation]:
    """Returns the losses that train a WNLL head through its graph, including nested ones."""
    found: list[GraphInterpolation] = []
    for part in keras.tree.flatten(loss):
        if isinstance(part, GraphInterpolation):
            found.append(part)
        elif isinstance(getattr(part, "losses", None), Sequence):
            found += graph_losses(list(part.losses))
    return found


class _FitFilling(TemplateFilling):
    """Fills the template from examples drawn before training.

    During the training part of each epoch, the head is in the phase it had before training, because
    other losses of a sum may use its output.
    """

    def __init__(self, trained: Any, images: Callable[[], np.ndarray], labels: np.ndarray) -> None:
        super().__init__()
        self.trained, self.images, self.labels = trained, images, labels
        self.head = wnll_head(trained)

    def fill(self) -> None:
        features = head_inputs(self.trained, self.images())
        if np.isfinite(features).all():
            self.head.adapt(features, self.labels)
        else:
            warnings.warn(
                "The template of the WNLL head was not filled: the features of the training "
                "images contain NaN or infinite values.",
                stacklevel=2,
            )

    def on_train_begin(self, logs: Any = None) -> None:
        self._phase = self.head.phase

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self.head.phase = self._phase


def _draw_template(
    model: Model, x: Images, y: Labels, steps: int | None
) -> tuple[Callable[[], np.ndarray], np.ndarray] | None:
    """Returns a function that gives the template's images, and their labels.

    Returns `None` if the data cannot be read twice.
    """
    template = wnll_head(model).template
    try:
        if not is_data_set(x):
            # Pairs consist of clean and adversarial images: use the clean ones.
            images = as_array(x[0] if isinstance(x, tuple | list) else x)
            rows, labels = draw_rows(template, y)
            return lambda: images[rows], labels
        if not can_be_read_again(x, steps):
            return None
        drawn, labels = draw_from_data_set(template, x, steps)
        return lambda: drawn, labels
    except ValueError as error:
        raise ValueError(
            "`fit` with `GraphInterpolation` fills the template of the WNLL head from the training "
            f"data, but these data cannot fill it. {error}. Reduce `template_size`, or pass "
            "`keras_robust.callbacks.TemplateUpdate(x, y)` with other data."
        ) from error
