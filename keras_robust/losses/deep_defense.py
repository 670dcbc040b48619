"""Deep Defense."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.losses import weight as weights
from keras_robust.losses.differentiable_deepfool import DifferentiableDeepFool
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import named_layers
from keras_robust.model.patching import frozen_batch_norm
from keras_robust.ops.balls import LEAST_SHARE
from keras_robust.ops.labels import sparse_labels
from keras_robust.types import Config, Images, Labels, Loss, Model, Scheduled, Scores, Seed, Tensor

# Above this exponent, the tangent replaces the exponential.
_LARGEST_EXPONENT = 5.0
# The rho of a misclassified image is clipped to this value.
_LARGEST_RHO = 10.0


@keras.saving.register_keras_serializable(package="keras_robust")
class DeepDefense(ModelLoss):
    """Enlarges the perturbations that DeepFool needs, by differentiating through DeepFool.

        L = CE(x, y) + lambda * R
        R = exp(-c rho)    where x is classified correctly,    exp(d rho) where it is misclassified
        rho = ||Delta_x||_p / ||x - mean||_p

    `Delta_x` is the perturbation that DeepFool finds in `num_steps` steps. For a correctly
    classified image it leads to the nearest other class, for a misclassified image to the true
    class. Its gradient with respect to the model's weights passes through every step: through the
    logits and through their gradients with respect to the image (second order). The discrete
    choices (which class each step moves to, and when an image is done) are made beforehand,
    outside the gradient tape.

    During `fit`, `accuracy` is clean accuracy. A step costs the DeepFool attack (up to `num_steps`
    times two forward and `num_candidates - 1` backward passes), an ordinary step, and for each
    DeepFool step one more image gradient, which is differentiated again. Memory grows linearly
    with `num_steps`.

    Args:
        weight: non-negative number, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. The weight `lambda` of the penalty.
            Defaults to `15.0`.
        c: float. How fast the penalty of a correctly classified image decreases with rho. Defaults
            to `25.0`.
        d: float. How fast the penalty of a misclassified image increases with rho. Defaults to
            `5.0`.
        num_steps: int. Number of DeepFool steps. Defaults to `5`.
        overshoot: float. The fraction by which each step goes beyond the linearised boundary. The
            overshoot is part of `Delta_x`. Defaults to `0.02`.
        norm: `"l2"` or `"linf"`. Defaults to `"l2"`.
        layers: sequence of layer names. The penalty's gradient reaches only the weights of these
            layers, while the cross-entropy trains all weights. A layer of a nested model goes by
            its path, such as `"encoder/conv2d"`. Defaults to `None`: all layers.
        freeze_batch_norm: bool. Whether batch norm also uses its moving statistics, without
            updating them, for the cross-entropy. DeepFool itself always runs in inference mode.
            Defaults to `True`.
        mean: number, or array that broadcasts to one image, in units of `x`: the mean of the
            training images. In the paper, the images already had it subtracted. Defaults to
            `0.0`.
        num_candidates: int, at least 2. How many classes DeepFool considers: the label and the
            most likely other classes at `x`. Defaults to `10`.
        gradient_offset: float. Added to each entry of DeepFool's gradients before their norm is
            computed. The paper uses 5e-6 on MNIST and 1e-5 on CIFAR-10. Defaults to `5e-06`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical depending on the labels.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.

    Raises:
        ValueError: if an argument is out of its range; when called by a model that is not a
            `kr.RobustModel`. Before training: if the images, labels or model outputs do not fit a
            classifier, `from_logits` or `mean`; if `layers` names a layer that does not exist or
            has no trainable weights (the message lists the available names).

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(32, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 32)
    >>> model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
    >>> model.compile(optimizer=keras.optimizers.SGD(5e-4, momentum=0.9),
    ...               loss=kr.losses.DeepDefense())
    >>> history = model.fit(x, y, verbose=0)

    Use this loss to fine-tune a trained model, as the paper does. An untrained model misclassifies
    nearly all images, and its DeepFool perturbations carry little information.

    Departures from the paper:

    - Where `d rho` exceeds 5, the tangent replaces the exponential. With the default `d`, this
      happens when the perturbation is longer than the image, for example where the gradient almost
      vanishes. Such an image would otherwise dominate the batch.
    - `||x - mean||` counts as at least a tenth of its mean over the batch. The norm of an image
      that nearly equals the mean, such as a black image, is close to zero, so the ratio would
      dominate the batch or be infinite. No image of MNIST, Fashion-MNIST or CIFAR-10 is affected.
    - The rho of a misclassified image is clipped to 10, and its gradient is zero beyond that. This
      bounds the penalty and its gradient for all images, including a batch of only black images.
      The cross-entropy still trains on every image.
    - For a misclassified image, each DeepFool step starts from the class that is most likely at
      that step.

    Reference:

    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, eqs. 2, 3 and
      6, figure 4 for `layers`
    """

    needs_attack = False

    def __init__(
        self,
        weight: Scheduled = 15.0,
        c: float = 25.0,
        d: float = 5.0,
        num_steps: int = 5,
        overshoot: float = 0.02,
        norm: str = "l2",
        layers: Sequence[str] | None = None,
        freeze_batch_norm: bool = True,
        mean: Tensor = 0.0,
        num_candidates: int = 10,
        gradient_offset: float = 5e-6,
        from_logits: bool = True,
        loss: Loss = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(None, loss, reduction, name, from_logits)
        self.weight = weights.check_weight("weight", weight)
        self.c = validation.check_number("c", c)
        self.d = validation.check_number("d", d)
        self.layers = validation.check_names("layers", layers)
        self.freeze_batch_norm = bool(freeze_batch_norm)
        self.mean = np.asarray(mean, "float32")
        if not np.isfinite(self.mean).all():
            raise ValueError(f"Argument `mean` must be finite. Received: mean={mean!r}")
        num_candidates = validation.check_count("num_candidates", num_candidates)
        if num_candidates < 2:
            raise ValueError(
                "Argument `num_candidates` must be at least 2, because the label is one of them. "
                f"Received: num_candidates={num_candidates}"
            )
        self.deepfool = DifferentiableDeepFool(
            norm=validation.check_choice("norm", norm, ("l2", "linf")),
            num_steps=validation.check_count("num_steps", num_steps),
            overshoot=validation.check_number("overshoot", overshoot),
            num_candidates=num_candidates,
            gradient_offset=validation.check_number("gradient_offset", gradient_offset),
            from_logits=self.from_logits,
        )

    def check(self, model: Model, x: Images, y: Labels) -> None:
        Classifier.of(model).check(x, y, (None, self.from_logits))
        try:
            np.broadcast_to(self.mean, (1, *x.shape[1:]))
        except ValueError:
            raise ValueError(
                f"Argument `mean` must be a number or broadcast to one image, shape {x.shape[1:]}. "
                f"Received: mean of shape {self.mean.shape}"
            ) from None
        self._regularized(model)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        work = ops.cast(x, "float32")
        return x, self.deepfool.choose(Classifier.of(model), work, sparse_labels(y))

    def forward(self, step: Step) -> Tensor:
        frozen = frozen_batch_norm(step.model)
        with frozen if self.freeze_batch_norm else contextlib.nullcontext():
            return super().forward(step)

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        rho = self.rho(step)
        growing = self.d * ops.minimum(rho, _LARGEST_RHO)
        exponent = ops.where(step.prepared.is_correct, -self.c * rho, growing)
        excess = ops.maximum(exponent - _LARGEST_EXPONENT, 0.0)
        penalty = ops.exp(ops.minimum(exponent, _LARGEST_EXPONENT)) * (1.0 + excess)
        values = self.classification_loss(y_true, y_pred)
        return values + ops.cast(weights.current(self.weight) * penalty, values.dtype)

    def rho(self, step: Step) -> Tensor:
        """Returns the relative length of each example's DeepFool perturbation."""
        x = ops.cast(step.x, "float32")
        with self._masked(step.model):
            delta = self.deepfool.perturbation(Classifier.of(step.model), x, step.prepared)
        size = self.deepfool.length(x - self.mean)
        return self.deepfool.length(delta) / ops.maximum(size, LEAST_SHARE * ops.mean(size))

    @contextlib.contextmanager
    def _masked(self, model: Model) -> Iterator[None]:
        """Stops gradients to the weights of layers that are not regularized."""
        if self.layers is None:
            yield
            return
        kept = {id(v) for layer in self._regularized(model) for v in layer.variables}
        mapping = [
            (v, v.value if id(v) in kept else ops.stop_gradient(v.value)) for v in model.variables
        ]
        with keras.StatelessScope(state_mapping=mapping):
            yield

    def _regularized(self, model: Model) -> list[Any]:
        if self.layers is None:
            return []
        known = {name: v for name, v in named_layers(model).items() if v.trainable_weights}
        for name in self.layers:
            if name not in known:
                raise ValueError(
                    f"Argument `layers` must name layers with trainable weights: {list(known)}. "
                    f"Received: {name!r} in layers={self.layers!r}"
                )
        return [known[name] for name in self.layers]

    def get_config(self) -> Config:
        config = super().get_config()
        del config["attack"]
        return {
            "weight": weights.saved(self.weight),
            "c": self.c,
            "d": self.d,
            "num_steps": self.deepfool.num_steps,
            "overshoot": self.deepfool.overshoot,
            "norm": self.deepfool.norm,
            "layers": self.layers,
            "freeze_batch_norm": self.freeze_batch_norm,
            "mean": self.mean.tolist(),
            "num_candidates": self.deepfool.num_candidates,
            "gradient_offset": self.deepfool.gradient_offset,
            "from_logits": self.from_logits,
            **config,
        }
