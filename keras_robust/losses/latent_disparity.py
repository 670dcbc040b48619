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
from keras_robust.ops import LEAST_SHARE
from keras_robust.ops.precision import working_dtype

_RATIOS = ("batch", "sample")
# Layers that hand on what they are given, or part of it.
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
    """Penalizes how far an attack moves what the hidden layers compute (HLDR).

        L = (1 - xi) CE(x, y) + xi * sum_i |s_i(x) - s_i(x_a)|_1 / sum_i |s_i(x)|_1

    for images `x`, their adversarial copies `x_a` and the outputs `s_i` of the hidden layers.
    Images and copies go through the model together, as one batch of twice the size in training
    mode: the weights are the same, and batch norm's statistics, those of both halves together,
    too. The attack itself runs on the model in inference mode. During `fit`, `accuracy` is that
    on clean images. A step costs the gradients of the attack plus one step of twice the size.

    **Hidden layers** are, unless `layers` names others, all that are called before the last one
    that has weights (which gives the logits), except those that only hand on what they are
    given: `InputLayer`, `Flatten`, `Reshape`, `Permute`, dropout and noise. So activation,
    pooling and normalization layers count, if they are layers of their own, and so does
    rescaling. It is calls that are counted:

    - in a sequential or functional model each call of each layer, by its name; a second call of
      one layer is `"dense:1"`;
    - layers of models inside of the model, not these models' outputs once more, by their path,
      `"encoder/conv2d"`;
    - in a subclassed model, and in a layer of yours that does nothing but call others, those
      layers that it has as attributes, in lists or in dicts, by their path, `"block/conv2d"`. The
      block itself, `"block"`, counts where `layers` names it. Keras's own layers count as one.

    The paper's choice for its VGG is the batch norms, one after each convolution, and the dense
    layer before the logits: pass their names. It leaves out the convolutions and poolings.

    Args:
        attack: `kr.attacks.Attack`, untargeted, that makes `x_a`: FGSM in the paper. `None` where
            the batches bring pairs, `((x, x_a), y)`, made beforehand; the model then returns
            logits. `evaluate` and `validation_data` take pairs, of which they use `x`, or images.
        weight: number from 0 to 1, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`, xi. Defaults to `0.25`.
        layers: sequence of the names of the layers to compare. Defaults to `None`: all hidden
            layers, as above.
        ratio: `"batch"`: one ratio of sums over the whole batch, the same for each example
            (on each device, where there are several). `"sample"`: a ratio for each example.
            Defaults to `"batch"`.
        order: number `p`, at least 1. Of the norms `(sum |.|^p)^(1/p)` over all entries of all
            layers, instead of sums of absolute values. Defaults to `1`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical as the labels are.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.
        mask: array of 0 and 1 that broadcasts to one image, 1 where the attack may change it.
            Defaults to `None`: everywhere.

    Raises:
        ValueError: if an argument is out of its range; when called by a model that is not a
            `kr.RobustModel`; by `fit`, if the model has no hidden layers, or none of a name in
            `layers`, with the names that it has; if pairs come although there is an attack, or
            do not come although there is none, or are of unequal shapes.

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

    With pairs that were made beforehand:

    >>> x_adv = kr.attacks.FGSM(epsilon=16 / 255)(classifier, x, y)
    >>> model.compile(optimizer="adam", loss=kr.losses.LatentDisparity(attack=None))
    >>> history = model.fit((x, x_adv), y, verbose=0)

    Departures from the paper:

    - The authors make their adversarial images once, before training. An attack given here
      follows the model as it learns; pairs give theirs.
    - In their code the copies pass through batch norms of their own that are not trained, and
      two shuffles part the images from their copies. Here both halves share everything and stay
      aligned.
    - `order` above 1 is the question they leave open ("replacing the L1-norm in (3) with higher
      order norms").
    - A denominator below 1e-7, of a network whose hidden layers are silent, counts as 1e-7. With
      `ratio="sample"` it counts as at least a tenth of its mean over the batch: of an example
      that leaves the layers all but silent, such as a black image, the ratio would outweigh all
      others.

    Reference:

    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, eq. 3. `weight=0.25` is their text's; their code has 0.5 for CIFAR-10
    """

    def __init__(
        self,
        attack: Attack | None,
        weight: Any = 0.25,
        layers: Sequence[str] | None = None,
        ratio: str = "batch",
        order: float = 1,
        loss: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Any = None,
    ) -> None:
        if reduction in _RATIOS:
            raise ValueError(
                "Argument `reduction` must be one of Keras's, of the examples' losses: what the "
                f"ratio is formed over is `ratio={reduction!r}`. Received: reduction={reduction!r}"
            )
        super().__init__(attack, loss=loss, reduction=reduction, name=name, mask=mask)
        self.weight = weights.check_weight("weight", weight, maximum=1.0)
        self.layers = validation.check_names("layers", layers)
        self.ratio = validation.check_choice("ratio", ratio, _RATIOS)
        self.order = validation.check_number("order", order, minimum=1.0)

    def prepare(self, model: Any, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        return self.pair(model, x, y, seed)

    def check(self, model: Any, x: Any, y: Any) -> None:
        super().check(model, x, y)
        images = x[0] if self.attack is None else x
        # In training mode, as in `forward`; a stateless scope throws the updates away.
        with keras.StatelessScope(), noted_calls(model) as calls:
            model(ops.convert_to_tensor(images[:2]), training=True)
        self._chosen(calls)

    def forward(self, step: Step) -> Any:
        with noted_calls(step.model) as calls, copies_in_batch(2):
            outputs = step.predict(ops.concatenate([step.x, step.prepared]))
        values = [v for call in self._chosen(calls) for v in _floating(call)]
        step.kept = [ops.split(_working(value), 2) for value in values]
        return ops.split(outputs, 2)[0]

    def training_loss(self, step: Step, y_true: Any, y_pred: Any) -> Any:
        xi = weights.current(self.weight, maximum=1.0)
        differences = [benign - adversarial for benign, adversarial in step.kept]
        norm = self._norm([benign for benign, _ in step.kept])
        least = LEAST_SHARE * ops.stop_gradient(ops.mean(norm))
        norm = ops.maximum(norm, ops.maximum(least, keras.config.epsilon()))
        ratio = self._norm(differences) / norm
        values = self.classification_loss(y_true, y_pred)
        return (1 - xi) * values + xi * ops.cast(ratio, values.dtype)

    def _norm(self, values: list[Any]) -> Any:
        """`(sum |.|^order)^(1 / order)` over all entries: a scalar, or one for each example.

        The gradient at 0 is 0. Divided by the largest entry, no power can under- or overflow.
        """

        def over_layers(reduce: Any, values: list[Any]) -> Any:
            axes = [range(self.ratio == "sample", len(v.shape)) for v in values]
            parts = [reduce(v, axis=tuple(a)) for v, a in zip(values, axes, strict=True)]
            return reduce(ops.stack(parts), axis=0)

        # On JAX the gradient of `abs` at 0 is 1.
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
        """The calls whose outputs are compared."""
        if self.layers is not None:
            by_name = {call.name: call for call in calls}
            missing = [name for name in self.layers if name not in by_name]
            if missing:
                raise ValueError(
                    f"Argument `layers` must name layers that the model calls: {list(by_name)}. "
                    f"Received: layers={self.layers}, of which {missing} are not among them"
                )
            return [by_name[name] for name in self.layers]
        calls = parts(calls)
        with_weights = [number for number, call in enumerate(calls) if call.layer.weights]
        last = with_weights[-1] if with_weights else 0
        hidden = [call for call in calls[:last] if not isinstance(call.layer, _NOT_HIDDEN)]
        if not hidden:
            raise ValueError(
                "The model must have hidden layers, before the last layer that has weights, as "
                f"layers that it holds as attributes. Received: {[call.name for call in calls]}"
            )
        return hidden

    def get_config(self) -> dict[str, Any]:
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
        if config.get("reduction") in _RATIOS:  # As files of version 0.1.0 have it.
            config = {**config, "ratio": config["reduction"], "reduction": "sum_over_batch_size"}
        return super().from_config(config)


def _floating(call: LayerCall) -> list[Any]:
    """The floating tensors that a layer returned."""
    tensors = [v for v in keras.tree.flatten(call.outputs) if v is not None]
    return [v for v in tensors if keras.backend.is_float_dtype(v.dtype)]


def _working(value: Any) -> Any:
    """In float32 where it was lower: sums over a batch overflow in half precision."""
    return ops.cast(value, working_dtype(value.dtype))
