"""Training of a guided denoiser."""

from typing import Any

import keras
from keras import ops

from keras_robust.attacks import Attack
from keras_robust.layers import GuidedDenoiser
from keras_robust.losses.pair_loss import PairLoss
from keras_robust.losses.step import Step
from keras_robust.model.calls import LayerCall, noted_calls, parts
from keras_robust.model.classifier import call_model


@keras.saving.register_keras_serializable(package="keras_robust")
class GuidedDenoising(PairLoss):
    """Trains a denoiser so that the classifier behind it sees what it sees of clean images (HGD).

        L = |s(x_hat) - s(x)|_1,    x_hat = x_a + d(x_a)

    for images `x`, their adversarial copies `x_a`, the denoiser's correction `d`, and `s` what a
    layer of the classifier computes: the sum of absolute differences over all of its entries. The
    model is a `kr.layers.GuidedDenoiser`, which learns, followed by a classifier, which does not:
    it is in inference mode throughout, and must have no trainable weights. Labels are for the
    attack alone. During `fit`, `accuracy` is that on `x_hat`; `evaluate` and `val_loss` are the
    classification loss of denoiser and classifier, as for every loss here.

    The adversarial images are made for the classifier **without** the denoiser, as in the papers:
    it learns to undo attacks that do not know of it. What it is worth against those that do,
    `kr.evaluate(model, ...)` and `kr.callbacks.RobustAccuracy` show: they attack the whole.

    A step costs the gradients of the attack in the classifier, one run of it on `x`, one on
    `x_hat` with the gradient in its input, and one forward and backward pass of the denoiser.

    Args:
        attack: `kr.attacks.Attack`, untargeted, that makes `x_a`: FGSM in the papers. `None` where
            the batches bring pairs, `((x, x_a), y)`, made beforehand; the model then returns
            logits. `evaluate` and `validation_data` take pairs, of which they use `x`, or images.
        layer: string. Name of the classifier's layer whose output is `s`; in a model inside of
            the classifier by its path, `"encoder/conv2d"`. Defaults to `None`: the last
            convolution, that is the last layer to be called that has weights of rank 4 (the
            Feature Guided Denoiser, FGD, the best of the papers). Its own activation function is
            part of it, a layer that follows is not. The name of the layer that gives the logits
            makes it Liao et al.'s Logits Guided Denoiser (LGD).
        loss: the classification loss of `evaluate`: a `keras.losses.Loss`, or the name of one.
            Defaults to `None`: cross-entropy, sparse or categorical as the labels are.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.
        mask: array of 0 and 1 that broadcasts to one image, 1 where the attack may change it.
            Defaults to `None`: everywhere.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `loss` has another `from_logits`
            than the attack; when called by a model that is not a `kr.RobustModel`; by `fit`, if
            the model is not a `kr.layers.GuidedDenoiser` and a classifier without trainable
            weights; if that has no convolution, or no layer named `layer`, with the names that it
            has; if pairs come although there is an attack, or do not come although there is
            none, or are of unequal shapes.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> classifier = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"),
    ...     keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> classifier.trainable = False
    >>> denoiser = kr.layers.GuidedDenoiser(widths=(4, 8))
    >>> model = kr.RobustModel(keras.Sequential([denoiser, classifier]))
    >>> loss = kr.losses.GuidedDenoising(kr.attacks.FGSM(epsilon=16 / 255))
    >>> model.compile(optimizer="adam", loss=loss)
    >>> history = model.fit(x, y, verbose=0)

    Departure from the papers: they make the adversarial images once, before training, of several
    sizes, and train on clean images beside them. Pairs do the same, some with `x_a = x`. FGSM
    given as `attack` makes images of one size.

    Reference:

    - [Liao et al., 2018](https://arxiv.org/abs/1712.02976), section 4.3
    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, sections II.C and V
    """

    def __init__(
        self,
        attack: Attack | None,
        layer: str | None = None,
        loss: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Any = None,
    ) -> None:
        super().__init__(attack, loss=loss, reduction=reduction, name=name, mask=mask)
        if layer is not None and not isinstance(layer, str):
            raise ValueError(
                f"Argument `layer` must be the name of a layer, or None. Received: layer={layer!r}"
            )
        self.layer = layer

    def trained_part(self, model: Any) -> Any:
        return _parts(model)[0]

    def prepare(self, model: Any, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        _, classifier = _parts(model)
        x, x_adv = self.pair(classifier, x, y, seed)
        return x_adv, self._guide(classifier, x)[1]

    def check(self, model: Any, x: Any, y: Any) -> None:
        _, classifier = _parts(model)
        super().check(classifier, x, y)
        images = x[0] if self.attack is None else x
        self._guide(classifier, ops.convert_to_tensor(images[:1]))

    def forward(self, step: Step) -> Any:
        denoiser, classifier = _parts(step.model)
        outputs, step.kept = self._guide(classifier, denoiser(step.x, training=True))
        return outputs

    def training_loss(self, step: Step, y_true: Any, y_pred: Any) -> Any:
        difference = ops.cast(step.kept, y_pred.dtype) - ops.cast(step.prepared, y_pred.dtype)
        return ops.sum(ops.abs(difference), axis=range(1, len(difference.shape)))

    def _guide(self, classifier: Any, x: Any) -> tuple[Any, Any]:
        """The classifier's outputs in inference mode, and what the guiding layer computes."""
        with noted_calls(classifier) as calls:
            outputs = call_model(classifier, x, training=False)
        return outputs, keras.tree.flatten(self._chosen(calls).outputs)[0]

    def _chosen(self, calls: list[LayerCall]) -> LayerCall:
        names = [call.name for call in calls]
        if self.layer is not None:
            if self.layer not in names:
                raise ValueError(
                    f"Argument `layer` must name a layer that the classifier calls: {names}. "
                    f"Received: layer={self.layer!r}"
                )
            return calls[names.index(self.layer)]
        convolutions = [c for c in parts(calls) if any(len(w.shape) == 4 for w in c.layer.weights)]
        if not convolutions:
            raise ValueError(
                "The classifier has no convolution to guide the denoiser: name one of its layers "
                f"as argument `layer`. Expected one of {names}. Received: layer=None"
            )
        return convolutions[-1]

    def get_config(self) -> dict[str, Any]:
        return {"layer": self.layer, "mask": self.saved_mask, **super().get_config()}


def _parts(model: Any) -> tuple[Any, Any]:
    """The denoiser and the classifier behind it."""
    layers = [v for v in model.layers if not isinstance(v, keras.layers.InputLayer)]
    if (
        len(layers) != 2
        or not isinstance(layers[0], GuidedDenoiser)
        or not isinstance(layers[1], keras.Model)
    ):
        raise ValueError(
            "The model must be a `keras_robust.layers.GuidedDenoiser` followed by a classifier "
            "that is a Keras model: `keras.Sequential([kr.layers.GuidedDenoiser(), classifier])`. "
            f"Received: a model of the layers {layers}"
        )
    if layers[1].trainable_weights:
        raise ValueError(
            "Only the denoiser may learn: set `classifier.trainable = False` before the model is "
            f"compiled. Received: a classifier with {len(layers[1].trainable_weights)} trainable "
            "weights"
        )
    return layers[0], layers[1]
