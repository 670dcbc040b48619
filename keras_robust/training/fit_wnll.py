"""Alternating training of a network with a WNLL head."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.layers.wnll_head import wnll_head
from keras_robust.losses import ModelLoss
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import check_images, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import all_layers
from keras_robust.model.patching import replaced
from keras_robust.training.adapt_template import adapt_template
from keras_robust.training.robust_model import RobustModel
from keras_robust.types import Images, Labels, Loss, Model
from keras_robust.whole_file import write_whole


def fit_wnll(
    model: Model,
    x: Images,
    y: Labels = None,
    passes: int = 2,
    linear_epochs: int = 400,
    wnll_epochs: int = 5,
    template_fraction: float = 0.5,
    linear_optimizer: Callable[[int, int], Any] | None = None,
    wnll_optimizer: Callable[[int, int], Any] | None = None,
    linear_loss: Any = None,
    wnll_loss: Any = None,
    linear_batch_size: int = 128,
    wnll_batch_size: int = 2000,
    validation_data: Any = None,
    callbacks: Sequence[Any] = (),
    directory: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: Any = "auto",
) -> dict[str, list[float]]:
    """Trains a network and its WNLL head in alternation.

    Each of the `passes` has two stages. Each stage calls `compile` and `fit`:

    1. The linear stage trains the whole network with the linear branch for `linear_epochs`.
    2. The WNLL stage trains only the buffer block with the WNLL branch for `wnll_epochs`. A random
       `template_fraction` of the data fills the template, and the rest is trained on.

    The head's `gradient` determines how the WNLL stage is differentiated. The papers use
    `"straight_through"` or `"linear"`. At the end, the template is filled from all data, the head
    is in its WNLL phase, and the model is compiled for further training: with the WNLL stage's
    optimizer for all weights, and its loss (cross-entropy in place of a `kr.losses.ModelLoss`).

    Args:
        model: Keras model that ends with a `kr.layers.WNLLHead` with `units`, or a
            `kr.RobustModel` of one.
        x: images, or a `tf.data.Dataset` of pairs. All data are held in memory.
        y: integer or one-hot labels; -1 marks an unlabeled example. Unlabeled examples do not
            enter the loss. They enter the template only if the head has an `unlabeled_size`.
            Defaults to `None`, for a data set.
        passes: int. How often the two stages alternate. Defaults to `2`.
        linear_epochs: int. Epochs of each linear stage. Defaults to `400`.
        wnll_epochs: int. Epochs of each WNLL stage. Defaults to `5`.
        template_fraction: float between 0 and 1. The fraction of the labeled examples that fills
            the template in the WNLL stage, at least the head's `template_size`. Defaults to `0.5`.
        linear_optimizer: callable that maps the number of the pass (0, 1, ...) and the number of
            steps per epoch to a Keras optimizer. Defaults to `None`: the papers' optimizer, SGD
            with momentum 0.9, weight decay 0.0005 and a learning rate of 0.05 that is halved every
            50 epochs. Later passes start from a fifth of this rate.
        wnll_optimizer: the same for the WNLL stage. Defaults to `None`: SGD with momentum 0.9 and
            a learning rate of 0.0005.
        linear_loss: loss of the linear stage: a Keras loss, or a `kr.losses.ModelLoss` such as
            `kr.losses.AdversarialTraining` (Algorithm 3). Defaults to `None`: cross-entropy.
        wnll_loss: loss of the WNLL stage. Defaults to `None`: cross-entropy.
        linear_batch_size: int. Defaults to `128`.
        wnll_batch_size: int. Defaults to `2000`.
        validation_data: as for `keras.Model.fit`. Defaults to `None`.
        callbacks: Keras callbacks, used in every stage. Defaults to `()`.
        directory: folder in which the model's weights are saved after each stage. Stages that are
            already saved there are not trained again. The data, the losses' arguments and the
            optimizers are assumed to be the same and are not checked. Defaults to `None`: nothing
            is saved.
        seed: int. Seed of the split. Defaults to `0`.
        verbose: as for `keras.Model.fit`. Defaults to `"auto"`.

    Returns:
        The joined histories of all stages: `"loss"`, `"accuracy"` and, with validation data,
        `"val_loss"` and `"val_accuracy"`. `"stage"` gives the number of each epoch's stage.

    Raises:
        ValueError: before training, if the model does not end with a `WNLLHead` with `units`; if
            an argument is out of its range; if the template would have too few examples, or none
            of a class; if `directory` holds stages of another schedule.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, units=16, template_size=100, gradient="straight_through")])
    >>> history = kr.training.fit_wnll(
    ...     model, x, y, linear_epochs=2, wnll_epochs=1, verbose=0)
    >>> history["stage"]
    [0, 0, 1, 2, 2, 3]

    Departures from the papers: the examples of the template are fixed during a WNLL stage, and each
    step transforms their features with the current buffer block. Batch-norm statistics are frozen
    in that stage, like everything except the buffer block.

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, Algorithms 1 and 3, section 4
    """
    model = getattr(model, "base_model", model)
    head = wnll_head(model)
    if head.units is None:
        raise ValueError(
            "Argument `model` must have a head with a buffer block, which the WNLL stage trains: "
            f"`WNLLHead(..., units=...)`. Received: {head!r} with units=None"
        )
    for name, value in [
        ("passes", passes), ("linear_epochs", linear_epochs), ("wnll_epochs", wnll_epochs),
        ("linear_batch_size", linear_batch_size), ("wnll_batch_size", wnll_batch_size),
    ]:  # fmt: skip
        validation.check_count(name, value)
    x, y = as_arrays(x, y)
    labels = sparse(y)
    labeled = np.flatnonzero(labels >= 0)
    fraction = validation.check_number("template_fraction", template_fraction)
    split = round(fraction * len(labeled))
    if not head.template_size <= split < len(labeled):
        raise ValueError(
            "Argument `template_fraction` must leave at least the head's `template_size`, "
            f"{head.template_size}, of the {len(labeled)} labeled examples for the template, "
            f"and some for training. Received: template_fraction={template_fraction}"
        )
    order = np.random.default_rng(seed).permutation(labeled)
    template, rest = np.sort(order[:split]), np.sort(order[split:])
    unlabeled = np.flatnonzero(labels < 0) if head.unlabeled_size else order[:0]
    template = np.concatenate([template, unlabeled])
    check_images(x)
    head.template.check_labels(labels)
    head.template.check_labels(labels[template])
    classifier = Classifier.of(model)
    classifier.build(x)
    schedule = {
        "passes": passes, "linear_epochs": linear_epochs, "wnll_epochs": wnll_epochs,
        "linear_batch_size": linear_batch_size, "wnll_batch_size": wnll_batch_size,
        "template_fraction": template_fraction, "seed": seed, "num_examples": len(x),
        "linear_loss": _name(linear_loss), "wnll_loss": _name(wnll_loss),
    }  # fmt: skip
    stages = _Stages(model, directory, schedule)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    linear_loss, wnll_loss = linear_loss or cross_entropy, wnll_loss or cross_entropy
    linear_optimizer, wnll_optimizer = linear_optimizer or _linear_sgd, wnll_optimizer or _wnll_sgd

    def train(rows: np.ndarray, loss: Loss, make_optimizer: Any, size: int, epochs: int) -> Any:
        stage = stages.num_done
        keras.utils.set_random_seed(seed + stage)
        for number, state in enumerate(classifier.random_state):
            state.assign([seed + stage, number])
        trained = RobustModel(model, seed=seed + stage) if isinstance(loss, ModelLoss) else model
        optimizer = make_optimizer(stage // 2, -(-len(rows) // size))
        trained.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
        return trained.fit(
            x[rows], labels[rows], batch_size=size, epochs=epochs, callbacks=list(callbacks),
            validation_data=validation_data, verbose=verbose,
        ).history  # fmt: skip

    for stage in range(stages.num_done, 2 * passes):
        if stage % 2 == 0:
            if head.is_adapted:
                head.phase = "linear"
            history = train(
                labeled, linear_loss, linear_optimizer, linear_batch_size, linear_epochs
            )
        else:
            adapt_template(model, x[template], labels[template])
            with _only_buffer_trainable(model, head):
                history = train(rest, wnll_loss, wnll_optimizer, wnll_batch_size, wnll_epochs)
        stages.save(history)
    adapt_template(model, x, labels)
    # The optimizer of the last stage has only the buffer block's weights.
    loss = cross_entropy if isinstance(wnll_loss, ModelLoss) else wnll_loss
    optimizer = wnll_optimizer(passes - 1, -(-len(rest) // wnll_batch_size))
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return stages.history()


def _linear_sgd(number: int, steps_per_epoch: int) -> Any:
    rate = keras.optimizers.schedules.ExponentialDecay(
        0.05 / (5 if number else 1), 50 * steps_per_epoch, 0.5, staircase=True
    )
    return keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4)


def _wnll_sgd(number: int, steps_per_epoch: int) -> Any:
    return keras.optimizers.SGD(0.0005, momentum=0.9)


@contextlib.contextmanager
def _only_buffer_trainable(model: Model, head: Any) -> Iterator[None]:
    """Makes only the head's buffer block trainable, and restores all flags on exit."""
    layers = all_layers(model)
    # Outer layers first and weights last, because a layer's flag is also set on everything inside.
    before = [(part, part.trainable) for part in [*layers, *model.weights]]
    for layer in layers[1:]:
        layer.trainable = False
    head.trainable = head.buffer.trainable = True
    head.linear.trainable = False
    try:
        yield
    finally:
        for part, trainable in before:
            part.trainable = trainable


def _without_optimizer(model: Model) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which the files of a compiled model hold only its weights."""
    if getattr(model, "optimizer", None) is None:
        return contextlib.nullcontext()
    return replaced(model, "optimizer", None)


def _name(loss: Loss) -> Any:
    return loss if loss is None or isinstance(loss, str) else type(loss).__name__


class _Stages:
    """The finished stages, saved in `directory` if there is one."""

    def __init__(self, model: Model, directory: Any, schedule: dict[str, Any]) -> None:
        self.model, self.schedule = model, schedule
        self.directory = None if directory is None else pathlib.Path(directory)
        self.histories: list[dict[str, list[float]]] = []
        if self.directory is not None and (self.directory / "stages.json").exists():
            saved = json.loads((self.directory / "stages.json").read_text())
            if saved["schedule"] != schedule:
                raise ValueError(
                    "Argument `directory` holds stages of another schedule. Expected "
                    f"{saved['schedule']}. Received: {schedule}"
                )
            self.histories = saved["histories"]
            if self.histories:
                with _without_optimizer(model):
                    model.load_weights(self._weights(self.num_done - 1))

    @property
    def num_done(self) -> int:
        return len(self.histories)

    def save(self, history: dict[str, list[float]]) -> None:
        self.histories.append({k: [float(v) for v in values] for k, values in history.items()})
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _without_optimizer(self.model):
                self.model.save_weights(self._weights(self.num_done - 1), overwrite=True)
            saved = json.dumps({"schedule": self.schedule, "histories": self.histories})
            # Written last, so that a recorded stage always has its weights.
            write_whole(self.directory / "stages.json", lambda file: file.write(saved.encode()))

    def history(self) -> dict[str, list[float]]:
        joined: dict[str, list[float]] = {"stage": []}
        for stage, history in enumerate(self.histories):
            joined["stage"] += [stage] * len(history["loss"])
            for name, values in history.items():
                joined.setdefault(name, []).extend(values)
        return joined

    def _weights(self, stage: int) -> pathlib.Path:
        return pathlib.Path(self.directory or "") / f"stage-{stage}.weights.h5"
