"""The wrapper that gives a loss access to the model."""

import contextlib
import dataclasses
import importlib.util
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_robust import backend
from keras_robust.losses import ModelLoss, weight
from keras_robust.losses.step import Step, current_step, step_scope
from keras_robust.model.arrays import as_array, first_batch, is_data_set, single
from keras_robust.model.augmentation import same_augmentation
from keras_robust.model.classifier import Classifier, call_model
from keras_robust.model.outputs import single_output
from keras_robust.training.fit_template import fit_and_fill
from keras_robust.types import Config, Images, Labels, Loss, Model, Scores, Seed, Shape

# The loss for which each model's first batch has been checked. Not an attribute of the model, which
# would count as part of the model's structure.
_checked: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


@keras.saving.register_keras_serializable(package="keras_robust")
class RobustModel(backend.TrainStep, keras.Model):
    """Wraps a classifier so that `compile` accepts losses that run the model again.

    The wrapper computes the same outputs as the classifier. `fit`, callbacks, metrics, saving,
    mixed precision and distribution are those of Keras. Only the training step differs, and only
    for a `kr.losses.ModelLoss`: the loss first prepares the step outside the gradient tape, for
    example by running its attack, and Keras's own training step follows. `base_model` holds the
    classifier, which can be saved and deployed without the wrapper.

    The random numbers of an attack depend on `seed` and `optimizer.iterations`. The latter is saved
    with the optimizer, so a resumed run continues with the same numbers as an uninterrupted run.
    With gradient accumulation, all steps of one update use the same random numbers.

    Args:
        base_model: Keras model, built or not: functional, sequential or subclassed. For each image
            of a batch, it must return a row of at least two class scores, or a single score as a
            binary classifier with `Dense(1)` does.
        seed: int. Seed of the attacks' random numbers. Defaults to `0`.
        name: string. Defaults to `None`: derived from the class name.

    Raises:
        ValueError: if `base_model` is not a Keras model, or is itself a `RobustModel`; by `fit`
            and `train_on_batch`, if the first batch does not fit the loss's attack (images outside
            its bounds, NaN, labels out of range, a softmax where logits are expected).

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> classifier = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model = kr.RobustModel(classifier)
    >>> model.compile(
    ...     optimizer="adam",
    ...     loss=kr.losses.AdversarialTraining(kr.attacks.PGD(epsilon=0.1, num_steps=7)),
    ...     metrics=["accuracy"],
    ... )
    >>> history = model.fit(x, y, verbose=0)
    >>> model.base_model is classifier
    True
    """

    def __init__(
        self, base_model: Model, seed: int = 0, name: str | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(base_model, keras.Model) or isinstance(base_model, RobustModel):
            raise ValueError(
                "Argument `base_model` must be a Keras model that is not already wrapped. "
                f"Received: base_model={base_model!r}"
            )
        kwargs.setdefault("dtype", base_model.dtype_policy)
        super().__init__(name=name, **kwargs)
        self.base_model = base_model
        self.seed = int(seed)
        self.autocast = False
        self.built = base_model.built

    def build(self, input_shape: Shape) -> None:
        if not self.base_model.built:
            if self._takes_pairs and isinstance(input_shape[0], tuple | list):
                input_shape = input_shape[0]
            # Calls the model, because the inherited `build` of a subclass creates no weights.
            self.base_model(keras.KerasTensor(input_shape), training=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        step = current_step()
        if step is not None and step.training and self.needs_preparation:
            return self.loss.forward(step)
        if self._takes_pairs and isinstance(inputs, tuple | list):
            inputs = inputs[0]
        if self.needs_preparation and hasattr(inputs, "shape"):
            return call_model(self.base_model, inputs, training)
        outputs = self.base_model(inputs, training=training)
        return single_output(outputs) if self.needs_preparation else outputs

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Loss = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures the model as Keras's `compile` does. A list or dict of one loss is unpacked.

        Raises:
            ValueError: if a loss that runs the model again is one of several, or a metric.
        """
        loss = _unwrap_single(_deserialized(loss))
        if isinstance(loss, ModelLoss):
            loss_weights = _unwrap_single(loss_weights)
        elif any(isinstance(v, ModelLoss) for v in keras.tree.flatten([loss, loss_weights])):
            raise ValueError(
                "A loss that runs the model again must be the only one, because the model has one "
                "output. To combine losses, add them: `loss=loss_1 + 0.5 * loss_2`. "
                f"Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        if any(isinstance(v, ModelLoss) for v in keras.tree.flatten([args, kwargs])):
            raise ValueError(
                "A loss that runs the model again cannot be a metric. For the accuracy under an "
                "attack, pass the callback `keras_robust.callbacks.RobustAccuracy` to `fit`. "
                f"Received: {kwargs or args}"
            )
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with the saved configuration."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def export(
        self, filepath: Any, format: str = "tf_saved_model", *args: Any, **kwargs: Any
    ) -> None:
        """Exports `base_model`, which computes the same outputs.

        The arguments are those of Keras's `export`.

        Raises:
            ImportError: if `format` is `"tf_saved_model"`, and TensorFlow is not installed.
        """
        if format == "tf_saved_model" and importlib.util.find_spec("tensorflow") is None:
            raise ImportError(
                "Exporting a SavedModel requires TensorFlow. Install it with the extra "
                "`tensorflow`: `pip install 'keras-robust[tensorflow]'`. Alternatively, "
                "`base_model.save('name.keras')` works without TensorFlow. "
                f"Received: format={format!r}"
            )
        self.base_model.export(filepath, format, *args, **kwargs)

    @property
    def output_names(self) -> list[str]:
        """The classifier's output names, which Keras uses for dicts of metrics and weights."""
        return self.base_model.output_names

    @property
    def needs_preparation(self) -> bool:
        """Whether the compiled loss takes part in the training step."""
        return isinstance(getattr(self, "loss", None), ModelLoss)

    @property
    def _takes_pairs(self) -> bool:
        return self.needs_preparation and self.loss.takes_pairs

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The classifier's non-trainable variables, and the variables among the loss's weights.

        On JAX, a training step can only use variables that are listed here.
        """
        own = super().non_trainable_variables
        return own + weight.variables(self.loss) if hasattr(self.loss, "call") else own

    @contextlib.contextmanager
    def prepared_step(self, x: Images, y: Labels, seed: Seed) -> Iterator[Any]:
        """Lets the loss prepare a step; yields the images for the predictions, and the labels."""
        step = Step(self.base_model, x, training=True)
        step.iterations = keras.ops.convert_to_tensor(self.optimizer.iterations)
        with contextlib.ExitStack() as stack:
            stack.enter_context(step_scope(step))
            if self.needs_preparation:
                step.loss = self.loss
                trained = self.loss.trained_part(self.base_model)
                stack.enter_context(same_augmentation(trained, seed))
                x, y = x if self._takes_pairs else single(x), single(y, "y")
                step.x, step.prepared = self.loss.prepare(self.base_model, x, y, seed)
            yield step.x, y

    def compute_loss(
        self,
        x: Images = None,
        y: Labels = None,
        y_pred: Scores = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        step = current_step()
        if training and self.needs_preparation and step is None:
            raise ValueError(
                f"{type(self.loss).__name__} must be prepared in `train_step`: use `fit` or "
                "`train_on_batch`. For the plain classification loss, call `compute_loss` with "
                "`training=False`."
            )
        if not training:
            step = Step(self.base_model, x)
        if step is not None:
            step = dataclasses.replace(step, losses=self.losses)
        with step_scope(step) if step is not None else contextlib.nullcontext():
            return super().compute_loss(x, y, y_pred, sample_weight)

    @property
    def losses(self) -> Any:
        # Running the model again would replace the penalties computed on the step's own images.
        step = current_step()
        return super().losses if step is None or step.losses is None else step.losses

    def fit(self, x: Images = None, y: Labels = None, *args: Any, **kwargs: Any) -> Any:
        if self.compiled and self.needs_preparation:
            x = self._check_first_batch(x, y)
            if not is_data_set(x):
                x, y = x if self._takes_pairs else single(x), single(y, "y")
        return fit_and_fill(self, super().fit, x, y, *args, **kwargs)

    def train_on_batch(self, x: Images, y: Labels = None, *args: Any, **kwargs: Any) -> Any:
        if self.compiled and self.needs_preparation and _checked.get(self) is not self.loss:
            self._check_first_batch(x, y)
        return super().train_on_batch(x, y, *args, **kwargs)

    def _check_first_batch(self, x: Images, y: Labels) -> Any:
        """Checks arrays or a data set's first batch; returns `x`, to be read from its start."""
        x, y, again = first_batch(x, y)
        if x is None:
            return again
        is_pair = self._takes_pairs and isinstance(x, tuple | list)
        images = [as_array(part) for part in (x if is_pair else [x])]
        strategy = getattr(self, "distribute_strategy", None)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            Classifier.of(self).build(images[0])
        labels = as_array(y, "y")
        self.loss.check(self.base_model, tuple(images) if is_pair else images[0], labels)
        _checked[self] = self.loss
        return again

    def get_config(self) -> Config:
        return {
            "base_model": keras.saving.serialize_keras_object(self.base_model),
            "seed": self.seed,
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "RobustModel":
        config = dict(config)
        config["base_model"] = keras.saving.deserialize_keras_object(
            config["base_model"], custom_objects=custom_objects
        )
        return cls(**config)


def _unwrap_single(value: Any) -> Any:
    """Returns the item of a list, tuple or dict with one item; any other value unchanged."""
    is_one = isinstance(value, list | tuple | dict) and len(value) == 1
    return next(iter(value.values() if isinstance(value, dict) else value)) if is_one else value


def _deserialized(loss: Loss) -> Any:
    """Returns losses with all serialized losses replaced by objects."""
    if isinstance(loss, dict):
        if {"class_name", "config"} <= set(loss):
            return keras.saving.deserialize_keras_object(loss)
        return {name: _deserialized(part) for name, part in loss.items()}
    return [_deserialized(part) for part in loss] if isinstance(loss, list | tuple) else loss
