"""Keeps the template of a WNLL head up to date during training."""

from typing import Any

from keras_robust import validation
from keras_robust.model.arrays import as_arrays
from keras_robust.training.adapt_template import adapt_template
from keras_robust.training.template_filling import TemplateFilling
from keras_robust.types import Images, Labels


class TemplateUpdate(TemplateFilling):
    """Refills the template of the model's `kr.layers.WNLLHead` as the network trains.

    The callback fills the template before the first epoch, after the training part of every
    `every`-th epoch (before validation), and at the end of training. It also puts the head in its
    WNLL phase.

    `fit` with `kr.losses.GraphInterpolation` fills the template from its own training data. With
    this callback it does not. Use the callback to fill the template from other data, to train from
    a generator, or to fill the template less often.

    Args:
        x: images to fill the template from, or a `tf.data.Dataset` of pairs.
        y: labels, integer or one-hot; -1 marks an unlabeled example. Defaults to `None`, for a
            data set.
        every: int. Fill the template every `every` epochs. Defaults to `1`.
        batch_size: int. Batch size of the forward passes. Defaults to `128`.
        seed: int. Seed for drawing the examples, the same each time. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.

    Raises:
        ValueError: if an argument is out of its range; by `fit`, if the model does not end with
            a `WNLLHead`, or there are too few examples for its template.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, template_size=100)])
    >>> robust = kr.RobustModel(model)
    >>> robust.compile(optimizer="adam", loss=kr.losses.GraphInterpolation())
    >>> history = robust.fit(
    ...     x, y, verbose=0, callbacks=[kr.callbacks.TemplateUpdate(x, y)])

    List this callback before callbacks that use the template at the end of an epoch. With `every`
    above 1, list it after a callback that restores earlier weights at the end of training.
    """

    def __init__(
        self,
        x: Images,
        y: Labels = None,
        every: int = 1,
        batch_size: int = 128,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.x, self.y = as_arrays(x, y, steps)
        self.every = validation.check_count("every", every)
        self.batch_size = validation.check_count("batch_size", batch_size)
        self.seed = int(seed)

    def fill(self) -> None:
        adapt_template(self.model, self.x, self.y, self.batch_size, self.seed)

    def on_train_begin(self, logs: Any = None) -> None:
        self.fill()

    def on_train_end(self, logs: Any = None) -> None:
        # Unconditional, because another callback may have restored weights of an earlier epoch.
        self.fill()
