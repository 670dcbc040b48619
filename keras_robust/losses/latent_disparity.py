"""Latent disparity regularization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.losses import weight as weights
from keras_robust.losses.pair_loss import PairLoss
from keras_robust.losses.step import Step
from keras_robust.model.augmentation import copies_in_batch
from keras_robust.model.calls import LayerCall, noted_calls, parts
from keras_robust.ops.balls import LEAST_SHARE
from keras_robust.ops.precision import working_dtype
from keras_robust.types import Config, Images, Labels, Loss, Model, Scheduled, Scores, Seed, Tensor

_RATIOS = ("batch", "sample")
# Layers that pass on their input, or part of it.
_NOT_HIDDEN = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianNoise,
)


@keras.saving.register_keras_serializable(package="keras_robust")
class LatentDisparity(PairLoss):
    """Penalizes the change that an attack causes in the outputs of the hidden layers (HLDR).

        L = (1 - xi) CE(x, y) + xi * sum_i |s_i(x) - s_i(x_a)|_1 / sum_i |s_i(x)|_1

    `x` are the images, `x_a` their adversarial copies and `s_i` the outputs of the hidden layers.
    Images and copies pass through the model together, as one batch of twice the size in training
    mode. They share the weights and the batch-norm statistics, which are computed over both halves.
    The attack itself runs on the model in inference mode. During `fit`, `accuracy` is clean
    accuracy. A step costs the gradients of the attack plus one step of twice the size.

    By default, **hidden layers** are all layers called before the last layer with weights, which
    returns the logits. Layers that only pass on their input do not count: `InputLayer`, `Flatten`,
    `Reshape`, `Permute`, dropout and noise. Activation, pooling, normalization and rescaling layers
    count if they are separate layers. The penalty works on layer calls, which are named as follows:

    - In a sequential or functional model, each call of each layer counts by the layer's name. The
      second call of a layer is `"dense:1"`.
    - The layers of a nested model count by their path, `"encoder/conv2d"`. The output of the nested
      model does not count again.
    - A subclassed model, or a custom layer that only calls other layers, is split into the layers
      that it holds as attributes, in lists or in dicts. They count by their path,
      `"block/conv2d"`. The block itself, `"block"`, counts only if `layers` names it. Keras's own
      layers are not split.

    Args:
        attack: untargeted `kr.attacks.Attack` that computes `x_a`. The paper uses FGSM. With
            `None`, batches must be pairs computed beforehand, `((x, x_a), y)`, and the model must
            return logits. `evaluate` and `validation_data` then take pairs, of which they use `x`,
            or plain images.
        weight: number from 0 to 1, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. The weight `xi` of the penalty.
            Defaults to `0.25`.
        layers: sequence of the names of the layers to compare. The paper's choice for its VGG is
            the batch norm after each convolution and the dense layer before the logits, without
            convolutions and pooling. Defaults to `None`: all hidden layers.
        ratio: `"batch"` computes one ratio of sums over the whole batch (on each device, if there
            are several), which is the same for each example. `"sample"` computes one ratio for
            each example. Defaults to `"batch"`.
        order: float `p`, at least 1. The sums of absolute values become the norms
            `(sum |.|^p)^(1/p)` over all entries of all layers. Defaults to `1`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical depending on the labels.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if an argument is out of its range; when called by a model that is not a
            `kr.RobustModel`. By `fit`: if the model has no hidden layers, or lacks one of those in
            `layers` (the message lists the available names); if batches are pairs although there
            is an attack, or are not pairs although there is none; if the tensors of a pair differ
            in shape.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> classifier = keras.Sequential([
    ...     keras.layers.Flatten(), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    >>> model = kr.RobustModel(classifier)
    >>> loss = kr.losses.LatentDisparity(kr.attacks.FGSM(epsilon=16 / 255), weight=0.25)
    >>> model.compile(optimizer="adam", loss=loss)
    >>> history = model.fit(x, y, verbose=0)

    With pairs computed beforehand:

    >>> x_adv = kr.attacks.FGSM(epsilon=16 / 255)(classifier, x, y)
    >>> model.compile(optimizer="adam", loss=kr.losses.LatentDisparity(attack=None))
    >>> history = model.fit((x, x_adv), y, verbose=0)

    Departures from the paper:

    - The authors compute their adversarial images once, before training. An `attack` follows the
      model as it trains; pass pairs to reproduce the paper.
    - In the authors' code, the copies pass through separate batch norms that are not trained, and
      two independent shuffles separate the images from their copies. Here both halves share all
      layers and stay aligned.
    - The authors leave `order` above 1 as an open question ("replacing the L1-norm in (3) with
      higher order norms").
    - A denominator below 1e-7, where the hidden layers output almost nothing, counts as 1e-7. With
      `ratio="sample"`, a denominator counts as at least a tenth of its mean over the batch. The
      ratio of an example with hardly any activations, such as a black image, would otherwise
      dominate the batch.

    Reference:

    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, eq. 3. `weight=0.25` is the value in their text; their code uses 0.5 for
      CIFAR-10
    """

    def __init__(
        self,
        attack: Attack | None,
        weight: Scheduled = 0.25,
        layers: Sequence[str] | None = None,
        ratio: str = "batch",
        order: float = 1,
        loss: Loss = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        if reduction in _RATIOS:
            raise ValueError(
                "Argument `reduction` must be a reduction of `keras.losses.Loss`. To choose what "
                f"the ratio is computed over, pass `ratio={reduction!r}`. "
                f"Received: reduction={reduction!r}"
            )
        super().__init__(attack, loss=loss, reduction=reduction, name=name, mask=mask)
        self.weight = weights.check_weight("weight", weight, maximum=1.0)
        self.layers = validation.check_names("layers", layers)
        self.ratio = validation.check_choice("ratio", ratio, _RATIOS)
        self.order = validation.check_number("order", order, minimum=1.0)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        return self.pair(model, x, y, seed)

    def check(self, model: Model, x: Images, y: Labels) -> None:
        super().check(model, x, y)
        images = x[0] if self.attack is None else x
        # In training mode, as in `forward`. The stateless scope discards the updates.
        with keras.StatelessScope(), noted_calls(model) as calls:
            model(ops.convert_to_tensor(images[:2]), training=True)
        self._chosen(calls)

    def forward(self, step: Step) -> Tensor:
        with noted_calls(step.model) as calls, copies_in_batch(2):
            outputs = step.predict(ops.concatenate([step.x, step.prepared]))
        values = [v for call in self._chosen(calls) for v in _floating(call)]
        step.kept = [ops.split(_working(value), 2) for value in values]
        return ops.split(outputs, 2)[0]

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        xi = weights.current(self.weight, maximum=1.0)
        differences = [benign - adversarial for benign, adversarial in step.kept]
        norm = self._norm([benign for benign, _ in step.kept])
        least = LEAST_SHARE * ops.stop_gradient(ops.mean(norm))
        norm = ops.maximum(norm, ops.maximum(least, keras.config.epsilon()))
        ratio = self._norm(differences) / norm
        values = self.classification_loss(y_true, y_pred)
        return (1 - xi) * values + xi * ops.cast(ratio, values.dtype)

    def _norm(self, values: list[Any]) -> Tensor:
        """Returns `(sum |.|^order)^(1 / order)` over all entries: a scalar, or a value per example.

        The gradient at 0 is 0. Dividing by the largest entry keeps powers from under- and
        overflowing.
        """

        def over_layers(reduce: Any, values: list[Any]) -> Tensor:
            axes = [range(self.ratio == "sample", len(v.shape)) for v in values]
            parts = [reduce(v, axis=tuple(a)) for v, a in zip(values, axes, strict=True)]
            return reduce(ops.stack(parts), axis=0)

        # Not `abs`, whose gradient at 0 is 1 on JAX.
        values = [value * ops.stop_gradient(ops.sign(value)) for value in values]
        if self.order == 1:
            return over_layers(ops.sum, values)
        largest = ops.stop_gradient(over_layers(ops.max, values))
        is_zero = largest == 0
        scale = ops.where(is_zero, ops.ones_like(largest), largest)
        scaled = [
            value / ops.reshape(scale, (-1, *[1] * (len(value.shape) - 1))) for value in values
        ]
        total = over_layers(ops.sum, [value**self.order for value in scaled])
        total = ops.where(is_zero, ops.ones_like(total), total)
        return ops.where(is_zero, ops.zeros_like(total), scale * total ** (1 / self.order))

    def _chosen(self, calls: list[LayerCall]) -> list[LayerCall]:
        """Returns the calls whose outputs are compared."""
        if self.layers is not None:
            by_name = {call.name: call for call in calls}
            missing = [name for name in self.layers if name not in by_name]
            if missing:
                raise ValueError(
                    f"Argument `layers` must name layers that the model calls: {list(by_name)}. "
                    f"Received: layers={self.layers}, of which {missing} do not exist"
                )
            return [by_name[name] for name in self.layers]
        calls = parts(calls)
        with_weights = [number for number, call in enumerate(calls) if call.layer.weights]
        last = with_weights[-1] if with_weights else 0
        hidden = [call for call in calls[:last] if not isinstance(call.layer, _NOT_HIDDEN)]
        if not hidden:
            raise ValueError(
                "The model must have hidden layers before the last layer with weights, and must "
                "hold them as attributes. "
                f"Received: a model with the layers {[call.name for call in calls]}"
            )
        return hidden

    def get_config(self) -> Config:
        return {
            "mask": self.saved_mask,
            **super().get_config(),
            "weight": weights.saved(self.weight),
            "layers": self.layers,
            "ratio": self.ratio,
            "order": self.order,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LatentDisparity":
        # Versions before 0.2.0 saved the ratio as `reduction`.
        if config.get("reduction") in _RATIOS:
            config = {**config, "ratio": config["reduction"], "reduction": "sum_over_batch_size"}
        return super().from_config(config)


def _floating(call: LayerCall) -> list[Any]:
    """Returns the floating-point tensors among a layer's outputs."""
    tensors = [v for v in keras.tree.flatten(call.outputs) if v is not None]
    return [v for v in tensors if keras.backend.is_float_dtype(v.dtype)]


def _working(value: Any) -> Tensor:
    """Casts to float32 or higher, because sums over a batch overflow in half precision."""
    return ops.cast(value, working_dtype(value.dtype))
