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
from keras_robust.ops import LEAST_SHARE, sparse_labels

# From here on the exponential is continued by its tangent.
_LARGEST_EXPONENT = 5.0
# What a misclassified image's rho counts as at most.
_LARGEST_RHO = 10.0


@keras.saving.register_keras_serializable(package="keras_robust")
class DeepDefense(ModelLoss):
    """Makes the perturbations that DeepFool needs larger, by differentiating through DeepFool.

        L = CE(x, y) + lambda * R
        R = exp(-c rho)    where x is classified correctly,    exp(d rho) where it is not
        rho = ||Delta_x||_p / ||x - mean||_p

    `Delta_x` is DeepFool's perturbation, with `num_steps` steps: of an image that is classified
    correctly to the nearest other class, of one that is misclassified to its true class. Its
    gradient in the model's weights goes through every step, through the logits and through their
    gradients in the image (second order). What is discrete in it, namely which class each step
    goes to and when an image is done, is chosen before, outside of the gradient tape.

    During `fit`, `accuracy` is that on clean images. A step costs DeepFool (up to `num_steps`
    times one pass forward and `num_candidates - 1` backward), then an ordinary step, and for each
    DeepFool step one more gradient in the image that is differentiated again. Memory grows
    linearly in `num_steps`. The papers fine-tune a trained model: from scratch everything is
    misclassified, and the perturbations mean little.

    Args:
        weight: number from 0, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`, lambda. Defaults to `15.0`.
        c: float. How fast the penalty of a correct example falls with rho. Defaults to `25.0`.
        d: float. How fast that of a misclassified one grows. Defaults to `5.0`.
        num_steps: int. Steps of DeepFool. Defaults to `5`.
        overshoot: float. How much longer than to the linearised boundary each is, which counts in
            `Delta_x`. Defaults to `0.02`.
        norm: `"l2"` or `"linf"`. Defaults to `"l2"`.
        layers: sequence of layer names: the penalty's gradient is that in the weights of these
            layers alone, while the cross-entropy trains all. A layer of a model inside of the
            model goes by its path, `"encoder/conv2d"`. Defaults to `None`: all.
        freeze_batch_norm: bool. Whether batch norm keeps its moving statistics and uses them in
            the cross-entropy too. DeepFool itself always runs in inference mode. Defaults to
            `True`.
        mean: number, or array that `x - mean` can be formed with, in units of `x`. The paper's
            images had the mean of the training set subtracted. Defaults to `0.0`.
        num_candidates: int, at least 2. How many classes DeepFool looks at: the label and those
            most likely at `x` among the others. Defaults to `10`.
        gradient_offset: float, added to each entry of DeepFool's gradients before their norm is
            taken: 5e-6 on MNIST and 1e-5 on CIFAR-10 in the paper. Defaults to `5e-06`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical as the labels are.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.

    Raises:
        ValueError: if an argument is out of its range; before training, if images, labels or the
            model's outputs are not those of a classifier, or `from_logits` or `mean` does not fit
            them; if the model has no layer with weights of a name in `layers`, with the names
            that it has; when called by a model that is not a `kr.RobustModel`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(32, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 32)
    >>> model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
    >>> model.compile(optimizer=keras.optimizers.SGD(5e-4, momentum=0.9),
    ...               loss=kr.losses.DeepDefense())
    >>> history = model.fit(x, y, verbose=0)

    Departures from the paper:

    - Where `d rho` exceeds 5, the exponential is continued by its tangent, so that a perturbation
      longer than the image (by the default `d`), as where a gradient almost vanishes, does not
      outweigh all others.
    - `||x - mean||` counts as at least a tenth of its mean over the batch. Of an image that is all
      but equal to the mean, a black one say, the ratio would outweigh all others, or be infinite.
      No image of MNIST, Fashion-MNIST or CIFAR-10 is that short.
    - Of a misclassified image rho counts as at most 10, with no gradient beyond: in a batch of
      nothing but black images there is no length to measure by. So both the penalty and its
      gradient are bounded, whatever the images are; the cross-entropy trains on all of them.
    - Of a misclassified image each step goes from the class that is the most likely one then.

    Reference:

    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, eqs. 2, 3 and
      6, figure 4 for `layers`
    """

    needs_attack = False

    def __init__(
        self,
        weight: Any = 15.0,
        c: float = 25.0,
        d: float = 5.0,
        num_steps: int = 5,
        overshoot: float = 0.02,
        norm: str = "l2",
        layers: Sequence[str] | None = None,
        freeze_batch_norm: bool = True,
        mean: Any = 0.0,
        num_candidates: int = 10,
        gradient_offset: float = 5e-6,
        from_logits: bool = True,
        loss: Any = None,
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
                "Argument `num_candidates` must be at least 2: the label is one of them. "
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

    def check(self, model: Any, x: Any, y: Any) -> None:
        Classifier.of(model).check(x, y, (None, self.from_logits))
        try:
            np.broadcast_to(self.mean, (1, *x.shape[1:]))
        except ValueError:
            raise ValueError(
                f"Argument `mean` must be a number, or of the images' shape {x.shape[1:]}. "
                f"Received: mean of shape {self.mean.shape}"
            ) from None
        self._regularized(model)

    def prepare(self, model: Any, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        work = ops.cast(x, "float32")
        return x, self.deepfool.choose(Classifier.of(model), work, sparse_labels(y))

    def forward(self, step: Step) -> Any:
        frozen = frozen_batch_norm(step.model)
        with frozen if self.freeze_batch_norm else contextlib.nullcontext():
            return super().forward(step)

    def training_loss(self, step: Step, y_true: Any, y_pred: Any) -> Any:
        rho = self.rho(step)
        growing = self.d * ops.minimum(rho, _LARGEST_RHO)
        exponent = ops.where(step.prepared.is_correct, -self.c * rho, growing)
        excess = ops.maximum(exponent - _LARGEST_EXPONENT, 0.0)
        penalty = ops.exp(ops.minimum(exponent, _LARGEST_EXPONENT)) * (1.0 + excess)
        values = self.classification_loss(y_true, y_pred)
        return values + ops.cast(weights.current(self.weight) * penalty, values.dtype)

    def rho(self, step: Step) -> Any:
        """The relative length of DeepFool's perturbation of each example."""
        x = ops.cast(step.x, "float32")
        with self._masked(step.model):
            delta = self.deepfool.perturbation(Classifier.of(step.model), x, step.prepared)
        size = self.deepfool.length(x - self.mean)
        return self.deepfool.length(delta) / ops.maximum(size, LEAST_SHARE * ops.mean(size))

    @contextlib.contextmanager
    def _masked(self, model: Any) -> Iterator[None]:
        """Inside, no gradient reaches the weights of layers that are not to be regularized."""
        if self.layers is None:
            yield
            return
        kept = {id(v) for layer in self._regularized(model) for v in layer.variables}
        mapping = [
            (v, v.value if id(v) in kept else ops.stop_gradient(v.value)) for v in model.variables
        ]
        with keras.StatelessScope(state_mapping=mapping):
            yield

    def _regularized(self, model: Any) -> list[Any]:
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

    def get_config(self) -> dict[str, Any]:
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
