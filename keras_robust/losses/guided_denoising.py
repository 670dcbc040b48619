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
from keras_robust.types import Config, Images, Labels, Loss, Model, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class GuidedDenoising(PairLoss):
    """Trains a denoiser to restore what a frozen classifier computes from clean images (HGD).

        L = |s(x_hat) - s(x)|_1,    x_hat = x_a + d(x_a)

    `x` are the images, `x_a` their adversarial copies, `d` is the denoiser's correction and `s` the
    output of a layer of the classifier. The norm sums the absolute differences over all entries.
    The model must be a `kr.layers.GuidedDenoiser` followed by a classifier. Only the denoiser is
    trained: the classifier always runs in inference mode and must have no trainable weights. Only
    the attack uses the labels. During `fit`, `accuracy` is computed on `x_hat`. `evaluate` and
    `val_loss` report the classification loss of the denoiser and the classifier, as for every loss
    here.

    A step costs the gradients of the attack on the classifier, one forward pass of the classifier
    on `x`, one on `x_hat` with the gradient with respect to its input, and one forward and backward
    pass of the denoiser.

    Args:
        attack: untargeted `kr.attacks.Attack` that computes `x_a`. The papers use FGSM. With
            `None`, batches must be pairs computed beforehand, `((x, x_a), y)`, and the model must
            return logits. `evaluate` and `validation_data` then take pairs, of which they use `x`,
            or plain images.
        layer: string. Name of the classifier's layer whose output is `s`. A layer of a nested model
            goes by its path, such as `"encoder/conv2d"`. Defaults to `None`: the last convolution,
            which is the last called layer with weights of rank 4 (the Feature Guided Denoiser, FGD,
            the best in the papers). The output includes the layer's own activation function, but
            not a following activation layer. With the layer that returns the logits, this is the
            Logits Guided Denoiser (LGD) of Liao et al.
        loss: the classification loss for `evaluate`: a `keras.losses.Loss`, or the name of one.
            Defaults to `None`: cross-entropy, sparse or categorical depending on the labels.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `loss` and `attack` disagree on
            `from_logits`; when called by a model that is not a `kr.RobustModel`. By `fit`: if the
            model is not a `kr.layers.GuidedDenoiser` and a classifier without trainable weights;
            if the classifier has no convolution, or no layer named `layer` (the message lists the
            available names); if batches are pairs although there is an attack, or are not pairs
            although there is none; if the tensors of a pair differ in shape.

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

    **The attack does not see the denoiser.** As in the papers, the adversarial images are computed
    for the classifier alone, so the denoiser learns to undo attacks that do not know about it.
    `kr.evaluate(model, ...)` and `kr.callbacks.RobustAccuracy` attack the denoiser and the
    classifier together. They measure robustness against attacks that know about the denoiser.

    Departure from the papers: they compute the adversarial images once, before training, with
    several radii, and also train on clean images. To reproduce this, pass pairs, some of them with
    `x_a = x`. FGSM given as `attack` uses a single radius.

    Reference:

    - [Liao et al., 2018](https://arxiv.org/abs/1712.02976), section 4.3
    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, sections II.C and V
    """

    def __init__(
        self,
        attack: Attack | None,
        layer: str | None = None,
        loss: Loss = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        super().__init__(attack, loss=loss, reduction=reduction, name=name, mask=mask)
        if layer is not None and not isinstance(layer, str):
            raise ValueError(
                f"Argument `layer` must be the name of a layer, or None. Received: layer={layer!r}"
            )
        self.layer = layer

    def trained_part(self, model: Model) -> Tensor:
        return _parts(model)[0]

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        _, classifier = _parts(model)
        x, x_adv = self.pair(classifier, x, y, seed)
        return x_adv, self._guide(classifier, x)[1]

    def check(self, model: Model, x: Images, y: Labels) -> None:
        _, classifier = _parts(model)
        super().check(classifier, x, y)
        images = x[0] if self.attack is None else x
        self._guide(classifier, ops.convert_to_tensor(images[:1]))

    def forward(self, step: Step) -> Tensor:
        denoiser, classifier = _parts(step.model)
        outputs, step.kept = self._guide(classifier, denoiser(step.x, training=True))
        return outputs

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        difference = ops.cast(step.kept, y_pred.dtype) - ops.cast(step.prepared, y_pred.dtype)
        return ops.sum(ops.abs(difference), axis=range(1, len(difference.shape)))

    def _guide(self, classifier: Any, x: Images) -> tuple[Tensor, Tensor]:
        """Returns the classifier's outputs in inference mode, and the guiding layer's output."""
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
                "The classifier has no convolution to guide the denoiser. Pass the name of one of "
                f"its layers as argument `layer`. Expected one of {names}. Received: layer=None"
            )
        return convolutions[-1]

    def get_config(self) -> Config:
        return {"layer": self.layer, "mask": self.saved_mask, **super().get_config()}


def _parts(model: Model) -> tuple[Tensor, Tensor]:
    """Returns the denoiser and the classifier that follows it."""
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
            "The classifier must be frozen: set `classifier.trainable = False` before compiling "
            f"the model. Received: a classifier with {len(layers[1].trainable_weights)} trainable "
            "weights"
        )
    return layers[0], layers[1]
