"""Robust accuracy during training."""

from typing import Any

import keras

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.metrics.accuracy import robust_accuracy
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import check_images, check_range
from keras_robust.types import Images, Labels


class RobustAccuracy(keras.callbacks.Callback):
    """Logs the accuracy under an attack at the end of each epoch.

    The value is logged as `val_robust_accuracy`. It appears in the progress bar and the history,
    and every later callback in the list can monitor it:
    `EarlyStopping("val_robust_accuracy", mode="max")` or
    `ModelCheckpoint(path, monitor="val_robust_accuracy", mode="max", save_best_only=True)`. A
    KerasTuner search takes `keras_tuner.Objective("val_robust_accuracy", "max")`. The callback
    works with any Keras model, not only a `kr.RobustModel`.

    The attack uses the same random numbers in each epoch, so that epochs are comparable.

    Args:
        attack: untargeted `kr.attacks.Attack`.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels, as for
            `kr.evaluate`. A few hundred images are enough. The cost is that of the attack.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the attack's random numbers. Defaults to `0`.
        name: string. The name in the logs. Several of these callbacks need different names.
            Defaults to `"val_robust_accuracy"`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.

    Raises:
        ValueError: if `attack` is not an untargeted attack; when training begins, if `x`, `y` or
            the model does not fit the attack, or another callback logs the same `name`; at the end
            of the first epoch, if a metric has the same name.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(optimizer="adam", loss=loss)
    >>> callback = kr.callbacks.RobustAccuracy(kr.attacks.PGD(epsilon=0.1), x, y)
    >>> history = model.fit(x, y, callbacks=[callback], verbose=0)
    >>> list(history.history)
    ['loss', 'val_robust_accuracy']

    To select a model with this value, use images that are not part of the final report.
    """

    def __init__(
        self,
        attack: Attack,
        x: Images,
        y: Labels = None,
        batch_size: int = 128,
        seed: int = 0,
        name: str = "val_robust_accuracy",
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.attack = check_attack(attack)
        self.x, self.y = as_arrays(x, y, steps)
        check_images(self.x)
        check_range(self.x, attack.bounds)
        self.batch_size = validation.check_count("batch_size", batch_size)
        self.seed = int(seed)
        self.name = name

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._check_name_is_free(logs)
        if logs is not None:
            # All callbacks share this mapping, so the next `RobustAccuracy` sees the name.
            logs[self.name] = None
        if self.model.built:
            self.attack.check(self.model, self.x, self.y)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check_name_is_free(logs)
        accuracy = robust_accuracy(
            self.model,
            self.x,
            self.y,
            attack=self.attack,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        if logs is not None:
            logs[self.name] = accuracy

    def _check_name_is_free(self, logs: dict[str, Any] | None) -> None:
        if logs is not None and self.name in logs:
            raise ValueError(
                f"Another callback or metric is already logged as {self.name!r}. Pass another "
                "`name` to this `RobustAccuracy`, such as "
                f"'val_{type(self.attack).__name__.lower()}_accuracy'. Received: name={self.name!r}"
            )
