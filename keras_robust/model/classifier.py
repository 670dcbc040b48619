"""The model under test, with all that the library needs to know about it."""

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.model.batches import padded_batches
from keras_robust.model.black_box import BlackBox
from keras_robust.model.calls import noted_calls
from keras_robust.model.checks import check_images, check_labels, check_range
from keras_robust.model.images import LazyImages
from keras_robust.model.keys import value_key
from keras_robust.model.layers import HasSwitch, all_layers, held_by
from keras_robust.model.outputs import (
    ROUNDED,
    are_probabilities,
    check_outputs,
    several,
    single_output,
)
from keras_robust.model.patching import (
    convolutions_for_loops,
    final_activation,
    fixed_switches,
    without_final_activation,
)
from keras_robust.ops.logits import class_scores, probabilities_to_logits
from keras_robust.ops.precision import working_dtype
from keras_robust.types import Images, Model, Scores, Seed

# Number of images on which the outputs are examined.
_NUM_PROBED = 8
_PRECISIONS = ("bfloat16", "float16", "float32", "float64")
Setting = tuple[tuple[float, float] | None, bool | None]


class Classifier:
    """A model in inference mode, and what is known about it.

    One instance is made for an evaluation, an attack or a training run, and passed on. It stays
    valid when the weights change. Any other change of the model (another layer, another activation)
    needs a new instance.

    A model with one output stands for two classes. A logit z means the logits `(0, z)`, and a
    probability p of class 1 means `(1 - p, p)`. `outputs` and `predict` return the single output.
    All other methods work with two scores.

    Args:
        model: Keras model, `kr.RobustModel`, `kr.BlackBox`, or a callable `x -> outputs`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.is_keras = isinstance(model, keras.layers.Layer)
        self.is_black_box = isinstance(model, BlackBox)
        self.num_classes = 0  # Set by `check`.
        self.has_one_output = False  # Set by `logits` and `scores`.
        # For a model with one output: the final activation that a run has shown. If it has shown
        # none, the values for the first images decide whether they are probabilities.
        self._last_activation: str | None = None
        self._looks_like_probability: bool | None = None

    @classmethod
    def of(cls, model: Model) -> "Classifier":
        """Returns the classifier of a model. A `Classifier` is returned as it is."""
        return model if isinstance(model, cls) else cls(model)

    @functools.cached_property
    def layers(self) -> list[Any]:
        """The model and all layers inside it."""
        return all_layers(self.model)

    @functools.cached_property
    def switched(self) -> list[HasSwitch]:
        """The layers that have a switch between several functions."""
        return [layer for layer in self.layers if hasattr(type(layer), "switch")]

    @functools.cached_property
    def structure(self) -> Hashable:
        """The key of a compiled function: it covers all but the values of variables."""
        return value_key(self.model)

    @functools.cached_property
    def random_state(self) -> list[Any]:
        """The states of a Keras model's seed generators, which dropout and noise draw from."""
        if not self.is_keras:
            return []
        states = {
            id(generator.state): generator.state
            for layer in self.layers
            for generator in held_by(layer, keras.random.SeedGenerator)
        }
        in_order = [v for v in self.model.non_trainable_variables if id(v) in states]
        known = {id(state) for state in in_order}
        return in_order + [state for number, state in states.items() if number not in known]

    @functools.cached_property
    def precision(self) -> str:
        """The name of the least precise dtype that the model computes in, as far as known."""
        found = {getattr(layer, "compute_dtype", None) for layer in self.layers}
        if "float64" not in found:
            found.add(backend.product_precision())
        return next(name for name in _PRECISIONS if name in found)

    @property
    def depends_on_batch(self) -> bool:
        """Whether the prediction for an example depends on the other examples in its batch."""
        return any(getattr(layer, "depends_on_batch", False) for layer in self.layers)

    @property
    def returns_classes(self) -> bool:
        """Whether the outputs tell only the predicted class."""
        return self.is_black_box and self.model.num_classes is not None

    @property
    def takes_any_batch_size(self) -> bool:
        """Whether a function of the model, compiled once, accepts any batch size."""
        return self.is_black_box or (backend.DYNAMIC_BATCH and self.is_keras)

    def outputs(self, x: Images) -> Any:
        """Returns the outputs for a tensor, in the precision of `x` but at least in float32."""
        if self.is_keras:
            with convolutions_for_loops(self.layers if backend.is_tracing(x) else []):
                outputs = call_model(self.model, x, training=False)
        elif self.is_black_box or not backend.is_tracing(x):
            outputs = single_output(self.model(x))
        else:
            outputs = single_output(self._traced(x))
        dtype = working_dtype(x.dtype)
        return ops.cast(outputs, dtype) if outputs.dtype != dtype else outputs

    def logits(self, x: Images, from_logits: bool) -> Any:
        """Returns the logits for a tensor.

        With `from_logits=False`, a saturated softmax or sigmoid would hide the logits: its outputs
        are exactly 0 and 1, and its gradient is 0. If the activation is the last operation of a
        Keras model, it is left out. Otherwise (in a callable or a subclassed model), the logarithm
        of the probabilities is taken.
        """
        if from_logits:
            return self._two_scores(self.outputs(x), from_logits=True)
        with without_final_activation(self.model) as left_out:
            outputs = self.outputs(x)
        scores = self._two_scores(outputs, from_logits=left_out)
        return scores if left_out else probabilities_to_logits(scores)

    def probabilities(self, logits: Scores) -> Any:
        """Converts logits that `logits(x, from_logits=False)` returned to class scores."""
        activation = self._final_activation()
        if activation == "softmax" or (activation == "sigmoid" and self.has_one_output):
            return ops.softmax(logits)
        return ops.sigmoid(logits) if activation == "sigmoid" else ops.exp(logits)

    def while_loop(self, condition: Any, body: Any, state: Any, **options: Any) -> Any:
        """Runs `keras.ops.while_loop`. For a black box, runs a Python loop."""
        if not self.is_black_box:
            return ops.while_loop(condition, body, state, **options)
        count = options.get("maximum_iterations")
        while condition(*state) and count != 0:
            state = body(*state)
            count = None if count is None else count - 1
        return state

    def fori_loop(self, lower: int, upper: int, body: Any, state: Any) -> Any:
        """Runs `keras.ops.fori_loop`. For a black box, runs a Python loop."""
        if not self.is_black_box:
            return ops.fori_loop(lower, upper, body, state)
        for number in range(lower, upper):
            state = body(number, state)
        return state

    def cond(self, condition: Any, if_true: Any, if_false: Any) -> Any:
        """Runs `keras.ops.cond`. For a black box, runs a Python conditional."""
        if not self.is_black_box:
            return ops.cond(condition, if_true, if_false)
        return if_true() if condition else if_false()

    def compiled(
        self, key: Hashable, function: Callable[..., Any], num_batched: int = 0
    ) -> Callable[..., Any]:
        """Returns `function(classifier, *tensors)`, compiled once per key, structure and shapes.

        On TensorFlow, the first axis of the first `num_batched` tensors may have any size. For a
        black box, nothing is compiled.
        """
        if self.is_black_box:
            return lambda *args: function(self, *map(ops.convert_to_tensor, args))
        # A cached function that held the model would keep it alive forever.
        reference = weakref.ref(self)
        positions = tuple(layer.switch for layer in self.switched)

        def traced(*args: Any) -> Any:
            classifier = reference()
            assert classifier is not None
            with fixed_switches(classifier.switched, positions):
                return function(classifier, *args)

        key = (self.structure, positions, key)
        run = backend.compiled(self.model, key, traced, num_batched)
        return functools.partial(_run_with, self, run)

    def build(self, x: Images) -> None:
        """Creates a Keras model's weights, which is impossible while a function is compiled."""
        if self.is_keras and not self.model.built:
            call_model(self.model, ops.convert_to_tensor(x[:1]), training=False)
            for name in ("layers", "switched", "structure", "random_state", "precision"):
                vars(self).pop(name, None)

    def predict(self, x: np.ndarray, seed: int = 0) -> np.ndarray:
        """Returns the outputs on one batch, by a function that is compiled once.

        Random layers draw from `seed`. The model's own generators keep their state.
        """
        self.build(x)
        num_batched = int(self.takes_any_batch_size)
        function = self.compiled("outputs", _seeded_outputs, num_batched=num_batched)
        return ops.convert_to_numpy(function(ops.convert_to_tensor(x), backend.make_seed(seed)))

    def scores(self, x: np.ndarray, seed: int = 0) -> np.ndarray:
        """Returns the outputs of `predict`, checked, as a row of class scores per example."""
        outputs = self.predict(x, seed)
        check_outputs(outputs, len(x))
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs
        is_logit = not self._are_probabilities(x, outputs)
        return ops.convert_to_numpy(self._two_scores(outputs, is_logit))

    def classes(self, x: np.ndarray | LazyImages, batch_size: int) -> np.ndarray:
        """Returns the class with the highest score for each example."""
        classes = []
        for indices in self.batches(np.arange(len(x)), batch_size):
            classes.append(self.scores(x[indices]).argmax(axis=1))
        return np.concatenate(classes)[: len(x)]

    def batches(self, indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Splits indices into batches of one size. The last one is filled up with its last index.

        It is not filled up if predictions depend on the batch, or if they cost queries.
        """
        if self.depends_on_batch or self.is_black_box:
            return np.split(indices, range(batch_size, len(indices), batch_size))
        return padded_batches(indices, batch_size)

    def check(self, x: np.ndarray | LazyImages, y: np.ndarray, *settings: Setting) -> int:
        """Raises a `ValueError` if images, labels or outputs are not valid for a classifier.

        Args:
            x: images.
            y: labels.
            *settings: pairs `(bounds, from_logits)` to check. `None` is not checked.

        Returns:
            The number of classes.
        """
        check_images(x)
        given = {value_key(bounds): bounds for bounds, _ in settings if bounds is not None}
        for bounds in given.values():
            check_range(x, bounds)
        self.check_structure()
        outputs = self.scores(x[:_NUM_PROBED])
        for from_logits in dict.fromkeys(from_logits for _, from_logits in settings):
            if from_logits is not None:
                self.check_from_logits(outputs, from_logits)
        self.num_classes = outputs.shape[1]
        check_labels(y, len(x), 1 if self.has_one_output else self.num_classes)
        return self.num_classes

    def check_structure(self) -> None:
        """Raises a `ValueError` if a Keras model has several inputs or outputs."""
        for name in ("inputs", "outputs"):
            tensors = getattr(self.model, name, None) if self.is_keras else None
            if isinstance(tensors, list | tuple) and len(tensors) > 1:
                raise ValueError(several(name, [tensor.name for tensor in tensors]))

    def check_from_logits(self, outputs: np.ndarray, from_logits: bool) -> None:
        """Raises a `ValueError` if the outputs contradict `from_logits`.

        The activation of the last layer decides. If it is unknown, the values in `outputs`, as
        returned by `scores`, decide. One-hot predicted classes pass as either.
        """
        if self.returns_classes:
            return
        activation = self._final_activation()
        if activation is None and self.has_one_output:
            if from_logits and self._looks_like_probability:
                raise ValueError(_MAY_BE_A_LOGIT)
            activation = "sigmoid" if self._looks_like_probability else "linear"
        elif activation is None:
            activation = "softmax" if are_probabilities(outputs) else "linear"
        if from_logits and activation != "linear":
            raise ValueError(_NOT_LOGITS.format(activation=activation))
        if not from_logits and activation == "linear":
            outputs = outputs[:, 1:] if self.has_one_output else outputs
            sums = outputs.astype("float64").sum(axis=1)
            raise ValueError(
                "`from_logits=False` was given, but the model's outputs are not probabilities. "
                f"Pass `from_logits=True`. Received: outputs from {outputs.min():g} to "
                f"{outputs.max():g}, row sums from {sums.min():g} to {sums.max():g}"
            )

    def _final_activation(self) -> str | None:
        """Returns a Keras model's final activation, if it is known."""
        return (final_activation(self.model) if self.is_keras else None) or self._last_activation

    def _two_scores(self, outputs: Scores, from_logits: bool) -> Any:
        """Returns the class scores in the outputs. A single output becomes two scores."""
        scores = class_scores(outputs, from_logits)
        self.has_one_output = scores is not outputs
        return scores

    def _are_probabilities(self, x: np.ndarray, output: np.ndarray) -> bool:
        """Returns whether a single output is the probability of class 1 rather than its logit.

        If the activation of the last layer is unknown, the values for the first images decide.
        """
        is_first = self._looks_like_probability is None
        if self.is_keras and is_first and self._final_activation() is None:
            self._last_activation = self._activation_in_a_run(x)
        activation = self._final_activation()
        if activation == "softmax":
            raise ValueError(
                "The model ends in a softmax over one output, which is always 1. End it in a "
                f"sigmoid, or (better) in the logit. Received: model={self.model!r}"
            )
        if activation is not None:
            return activation == "sigmoid"
        is_inside = bool(output.min() >= 0 and output.max() <= 1 + ROUNDED)
        if self._looks_like_probability and not is_inside:
            raise ValueError(
                "The model's one output was from 0 to 1 for the first images, as a probability "
                f"is. Received: outputs from {output.min():g} to {output.max():g} for later images"
            )
        if is_first:
            self._looks_like_probability = is_inside
        return bool(self._looks_like_probability)

    def _activation_in_a_run(self, x: np.ndarray) -> str | None:
        """Returns the activation of the layer that computes the output, found by a run."""
        drawn = backend.seeded(self.random_state, backend.make_seed(0))
        with drawn, noted_calls(self.model) as calls:
            output = call_model(self.model, ops.convert_to_tensor(x[:1]), training=False)
        found = [final_activation(call.layer) for call in calls if call.outputs is output]
        return next(filter(None, found), None)

    def _traced(self, x: Images) -> Any:
        """Calls a callable on a symbolic tensor. If that fails, advises `kr.BlackBox`."""
        try:
            return self.model(x)
        except (ValueError, backend.NoGradientError):
            raise
        except Exception as error:  # NumPy code can raise any error on a symbolic tensor.
            raise ValueError(
                f"The function {self.model!r} cannot be compiled: it must consist of operations "
                "of `keras.ops` or Keras models. Wrap a function of NumPy arrays, as in "
                f"`keras_robust.BlackBox(function)`. {type(error).__name__}: {error}"
            ) from error


def call_model(model: Model, x: Images, training: bool | None) -> Any:
    """Returns the one output of a Keras model for one tensor.

    The model may take its input in a dict, and return its output in a list or a dict.
    """
    try:
        structure = model.input  # Functional models have one.
    except (AttributeError, ValueError):
        structure = None
    is_dict_of_one = isinstance(structure, dict) and len(structure) == 1
    inputs = dict.fromkeys(structure, x) if is_dict_of_one else x
    return single_output(model(inputs, training=training))


_NOT_LOGITS = (
    "`from_logits=True` was given, but the model ends in a {activation}: its outputs are "
    "probabilities. Pass `from_logits=False`. Better, so that no precision is lost, remove the "
    "{activation} from the model's end."
)
_MAY_BE_A_LOGIT = (
    "`from_logits=True` was given, but the model's one output is from 0 to 1 for the first images, "
    "as a probability is. Pass `from_logits=False`. If it is a logit z, return two: `(0, z)`."
)


def _seeded_outputs(classifier: Classifier, x: Images, seed: Seed) -> Any:
    with backend.seeded(classifier.random_state, seed):
        return classifier.outputs(x)


def _run_with(classifier: Classifier, run: Callable[..., Any], *args: Any) -> Any:
    """Runs a compiled function, and keeps the classifier alive, which tracing needs."""
    return run(*args)
