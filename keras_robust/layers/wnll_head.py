"""An output layer that interpolates labels on a graph."""

from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.layers.in_batch import current_template
from keras_robust.layers.wnll_surrogates import WNLLSurrogates
from keras_robust.layers.wnll_template import WNLLTemplate
from keras_robust.model.layers import all_layers, output_layer
from keras_robust.ops.precision import working_dtype
from keras_robust.ops.wnll import check_graph
from keras_robust.types import Config, Labels, Model, Shape, Tensor

_PHASES = ("linear", "wnll")
_GRADIENTS = ("exact", "straight_through", "linear")
_VOTES = ("sum", "majority")
_NEIGHBORS = ("exact", "scann")
# Added to u in each class, so that its logarithm is finite.
_FLOOR = 1e-6


@keras.saving.register_keras_serializable(package="keras_robust")
class WNLLHead(WNLLSurrogates, keras.layers.Layer):
    """Classifies deep features by interpolating labels on a graph of nearest neighbours.

    The layer replaces a softmax output layer:

        h = ReLU(W_B x + b_B)                     buffer block, on features and template alike
        z = W_L h + b_L                           linear branch
        u = WNLL(h, h^te, y^te)                   WNLL branch, see `kr.ops.wnll`

    The output is always logits: z in the linear phase and `log u` in the WNLL phase. u is a
    probability vector, to which 1e-6 is added in each class, so that `softmax(log u) = u`. Losses,
    metrics and attacks with `from_logits=True` are therefore correct in both phases.

    The template (`h^te`, `y^te`) is a set of labeled features. It is part of the layer's weights,
    so it is saved, loaded and moved to a device with the model.
    `kr.training.adapt_template(model, x, y)` fills it from images, and `adapt(features, labels)`
    fills it from features. Both put the head in its WNLL phase. Fill the template again whenever
    the network below has changed. `kr.callbacks.TemplateUpdate` does that during `fit`.

    Args:
        num_classes: int. The number of classes.
        units: int. Width of the buffer block. Defaults to `None`: there is no buffer block, and the
            graph is built from the input features themselves.
        num_neighbors: int. m, the length of each point's list of neighbours. Defaults to `30`.
        sigma_neighbor: int. n: sigma is the distance to the n-th neighbour. Defaults to `None`:
            half of m, rounded up.
        kernel: `"gaussian"` (as in the papers) or `"quartic"` (as in their code), see
            `kr.ops.wnll`. Defaults to `"gaussian"`.
        template_weight: float. gamma, the additional weight of the template. Defaults to `None`:
            `N / t - 1`, for N points in the graph and t points in the template.
        gradient: `"exact"`, `"straight_through"` or `"linear"`. What is differentiated in the WNLL
            phase. `"exact"` differentiates u. `"straight_through"` takes the loss's gradient at u
            and passes it to the linear branch, as the papers' code does in training and attacks.
            `"linear"` uses the linear branch with its own gradient, as the papers' text describes:
            attacks maximize the loss of z, and the output in training is z. Success and accuracy
            are always judged on u. Defaults to `"exact"`.
        joint: bool. Whether the examples of a batch are points of one graph. It can be changed on
            a trained head. Defaults to `True`.
        template_size: int. The number of labeled points in the template. Defaults to `1000`.
        unlabeled_size: int. The number of unlabeled points that the graph holds in addition
            (semi-supervised learning, approach I). Requires `joint=True`. Defaults to `0`.
        neighbors: `"exact"`, or `"scann"` for an approximate search by ScaNN (TensorFlow only).
            Defaults to `"exact"`.
        vote: `"sum"` or `"majority"`. How the results of several template batches are combined.
            With `"sum"`, u is their mean. With `"majority"`, u is the share of template batches
            that predict each class, and its gradient is that of the mean. Defaults to `"sum"`.
        template_batches: int. The number of batches into which the template is split. Each of them
            forms a separate graph with the queries. Defaults to `1`.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Call arguments:
        inputs: float tensor, shape `(batch_size, features)`.
        training: bool. Whether the layer runs in training mode.

    Returns:
        Logits, shape `(batch_size, num_classes)`, in float32 or float64 whatever the precision of
        the features. In the WNLL phase, a row is NaN if its features hold NaN, infinite values, or
        values so large that their squares overflow. Such a row does not affect the other rows.

    Raises:
        ValueError: if an argument is out of its range; when called, if the input is not of rank 2.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, units=16, template_size=100)])
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = model.fit(x, y, verbose=0)  # the linear branch
    >>> kr.training.adapt_template(model, x, y)
    >>> model.layers[-1].phase
    'wnll'
    >>> model.predict(x, verbose=0).shape
    (200, 10)

    **With `joint=True`, a prediction depends on the other examples of its batch**, as in the
    papers: all examples of a batch are points of one graph. For serving set `head.joint = False`.
    Each example is then classified on its own, against the template.

    The neighbours of each template point within the template are found once, when the template is
    filled. How queries enter these lists depends on the size of the template:

    - Up to 2,000 points in a template batch, with exact search: the result is exactly that of
      `kr.ops.wnll`. Queries enter the lists, push other points out and change sigma. If the buffer
      block has been trained since the template was filled, the lists are computed again in each
      call, which takes longer, until the template is filled again.
    - More than 2,000 points, or ScaNN: a query enters a list if it is nearer than the last point of
      the list. With `joint=True` this is an approximation: queries neither push one another out of
      a list nor change its sigma. In addition, each query considers only `4 m` of the template
      points whose lists it may enter, those with the largest weights (with ScaNN, those among its
      `2 m` nearest). `benchmarks/wnll.py` measures the difference. What is stored of the lists does
      not follow the buffer block, so train the block in small steps and fill the template again.

    Departures from the papers:

    - Their code passes u to a softmax as if it were logits. With 10 classes, the largest
      probability is then at most `e / (e + 9)`. Here `softmax(log u) = u`.
    - `kr.losses.GraphInterpolation` trains the whole network through u, which the papers could not
    do.

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, section 3
    - Wang et al., Adversarial Defense via Data Dependent Activation Function and Total Variation
      Minimization, section 2
    """

    # The value of `switch` for which a function is being compiled; `None`: read the variables.
    fixed_switch: int | None = None

    def __init__(
        self,
        num_classes: int,
        units: int | None = None,
        num_neighbors: int = 30,
        sigma_neighbor: int | None = None,
        kernel: str = "gaussian",
        template_weight: float | None = None,
        gradient: str = "exact",
        joint: bool = True,
        template_size: int = 1000,
        unlabeled_size: int = 0,
        neighbors: str = "exact",
        vote: str = "sum",
        template_batches: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sigma_neighbor = check_graph(num_neighbors, sigma_neighbor, kernel, template_weight)
        self.num_classes = validation.check_count("num_classes", num_classes, minimum=2)
        self.units = units if units is None else validation.check_count("units", units)
        self.num_neighbors = int(num_neighbors)
        self.kernel, self.template_weight = kernel, template_weight
        self._gradient = validation.check_choice("gradient", gradient, _GRADIENTS)
        self.template_size = validation.check_count("template_size", template_size)
        self.unlabeled_size = 0
        if unlabeled_size != 0:
            self.unlabeled_size = validation.check_count("unlabeled_size", unlabeled_size)
        self.neighbors = validation.check_choice("neighbors", neighbors, _NEIGHBORS)
        self.vote = validation.check_choice("vote", vote, _VOTES)
        self.template_batches = validation.check_count("template_batches", template_batches)
        if template_size % template_batches or template_size < num_classes * template_batches:
            raise ValueError(
                "Argument `template_batches` must divide `template_size` into batches of at least "
                f"`num_classes` points. Received: template_batches={template_batches}, "
                f"template_size={template_size}, num_classes={num_classes}"
            )
        self._start_joint = self._checked_joint(joint)
        self.buffer = (
            None
            if units is None
            else keras.layers.Dense(units, _relu, name="buffer", dtype=self.dtype_policy)
        )
        self.linear = keras.layers.Dense(num_classes, name="linear", dtype=self.dtype_policy)
        self.template = WNLLTemplate(
            self.template_size, num_classes, *self._graph, self.unlabeled_size, neighbors,
            self.template_batches, self.units, name="template", dtype=self.dtype_policy,
        )  # fmt: skip
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        if self.buffer is not None:
            self.buffer.build(input_shape)
        self.linear.build((None, self.units or width))
        self.template.build(input_shape)
        self._is_wnll = self._add_flag("is_wnll", False)
        self._is_joint = self._add_flag("is_joint", self._start_joint)
        self.built = True

    @property
    def phase(self) -> str:
        """The phase, `"linear"` or `"wnll"`. It is saved with the weights."""
        return _PHASES[int(ops.convert_to_numpy(self._is_wnll))] if self.built else "linear"

    @phase.setter
    def phase(self, phase: str) -> None:
        validation.check_choice("phase", phase, _PHASES)
        if phase == "wnll" and not self.is_adapted:
            raise ValueError(
                "The template is empty. Call `keras_robust.training.adapt_template(model, x, y)` "
                "before setting the WNLL phase. Received: phase='wnll'"
            )
        if self.built:
            self._is_wnll.assign(_PHASES.index(phase))

    @property
    def joint(self) -> bool:
        """Whether the examples of a batch are points of one graph. It is saved with the weights."""
        return bool(ops.convert_to_numpy(self._is_joint)) if self.built else self._start_joint

    @joint.setter
    def joint(self, joint: bool) -> None:
        self._start_joint = self._checked_joint(joint)
        if self.built:
            self._is_joint.assign(int(joint))

    @property
    def gradient(self) -> str:
        """The function that is differentiated in the WNLL phase: the argument `gradient`."""
        return self._gradient

    @property
    def is_adapted(self) -> bool:
        """Whether the template has been filled."""
        return self.template.is_filled

    @property
    def depends_on_batch(self) -> bool:
        """Whether a prediction depends on the other examples of its batch."""
        return self.phase == "wnll" and self.joint

    @property
    def switch(self) -> int:
        """The branch in use: 0 is linear, 1 computes u on a joint graph, 2 on separate graphs."""
        return _PHASES.index(self.phase) * (1 if self.joint else 2)

    def adapt(
        self, features: Tensor, labels: Labels, seed: int = 0, distances: Tensor = None
    ) -> None:
        """Fills the template and puts the head in its WNLL phase.

        Args:
            features: array, shape `(num_points, features)`: inputs of the head, with at least
                `template_size` labeled points. If there are more, `template_size` of them are drawn
                at random, at least one of each class.
            labels: integers, shape `(num_points,)`, or one-hot vectors. -1 marks an unlabeled
                point. `unlabeled_size` of the unlabeled points are used.
            seed: int. Seed of the drawing. Defaults to `0`.
            distances: array, shape `(template_size, num_neighbors)`: the squared distances from
                each point to its nearest other points, in ascending order. Computing them takes the
                most time for a large template, so pass them if they are known. Requires a head
                without a buffer block that uses all points, all of them labeled, as one template
                batch of more than 2,000 points (or of any size with ScaNN). Defaults to `None`.

        Raises:
            ValueError: if there are too few points, if a class has no points, or if labels,
                features or distances are not as described above.
        """
        if distances is not None and not self._can_use_distances:
            raise ValueError(
                "Argument `distances` must be None, unless the head has no buffer block and uses "
                "all points as one template batch that has more than 2,000 points or is searched "
                f"by ScaNN. Received: distances, and a head with units={self.units}, "
                f"template_batches={self.template_batches}, template_size={self.template_size}"
            )
        features, labels, distances = self.template.checked(features, labels, distances)
        if not self.built:
            self.build(features.shape)
        self.template.fill(features, labels, seed, distances, self._buffered, self._block)
        self.phase = "wnll"

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        features = self._buffered(inputs)
        linear = self._linear_logits(features)
        template = current_template()
        if template is not None and (training or template.in_inference):
            template.linear_logits = linear
            u = template.interpolate(features, self.num_classes, *self._graph)
            return _log(u) if training else self._logits(u, linear)
        if self._gradient == "linear" and training:
            return linear
        branches = [
            lambda: linear,
            lambda: self._wnll_logits(features, linear, True),
            lambda: self._wnll_logits(features, linear, False),
        ]
        if self.fixed_switch is not None:
            return branches[self.fixed_switch]()
        phase = ops.convert_to_tensor(self._is_wnll)
        return backend.switch(phase * (2 - ops.convert_to_tensor(self._is_joint)), branches)

    def compute_output_spec(self, inputs: Tensor, training: bool | None = None) -> Any:
        return keras.KerasTensor((inputs.shape[0], self.num_classes), dtype=self._precision)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "units": self.units,
            "num_neighbors": self.num_neighbors,
            "sigma_neighbor": self.sigma_neighbor,
            "kernel": self.kernel,
            "template_weight": self.template_weight,
            "gradient": self.gradient,
            "joint": self.joint,
            "template_size": self.template_size,
            "unlabeled_size": self.unlabeled_size,
            "neighbors": self.neighbors,
            "vote": self.vote,
            "template_batches": self.template_batches,
        }

    def _buffered(self, inputs: Tensor) -> Tensor:
        """Computes the points of the graph in full precision; NaN where an input is not finite."""
        features = inputs if self.buffer is None else self.buffer(self._narrow(inputs))
        features = ops.cast(features, self._precision)
        # The buffer block may turn an infinite input into 0.
        is_finite = ops.all(ops.isfinite(inputs), axis=1, keepdims=True)
        return ops.where(is_finite, features, ops.full_like(features, float("nan")))

    @property
    def _block(self) -> list[Any]:
        """The weights of the buffer block."""
        return [] if self.buffer is None else [self.buffer.kernel, self.buffer.bias]

    def _linear_logits(self, features: Tensor) -> Tensor:
        return ops.cast(self.linear(self._narrow(features)), features.dtype)

    def _narrow(self, x: Tensor) -> Tensor:
        return ops.cast(x, self.compute_dtype)

    def _wnll_logits(self, features: Tensor, linear: Tensor, joint: bool) -> Tensor:
        """Computes log u, or NaN if the batch size is symbolic, which occurs on JAX.

        Keras calls the layer with a symbolic batch size to infer the shapes of an enclosing layer
        and to export a model. The exported model returns NaN in the WNLL phase: TensorFlow cannot
        read JAX's search for neighbours.
        """
        if not isinstance(features.shape[0], int | None):
            return ops.full_like(linear, float("nan"))
        return self._logits(self._interpolate(features, joint), linear)

    def _interpolate(self, features: Tensor, joint: bool) -> Tensor:
        """Computes u on the batch and combines the results of the template batches."""
        answers = self.template.answers(features, joint, self._buffered, self._block)
        mean = sum(answers) / len(answers)
        if self.vote == "sum":
            return mean
        votes = [ops.one_hot(ops.argmax(u, axis=1), self.num_classes) for u in answers]
        share = ops.cast(sum(votes) / len(votes), mean.dtype)
        return mean + ops.stop_gradient(share - mean)

    def _add_flag(self, name: str, value: bool) -> Any:
        start = keras.initializers.Constant(int(value))
        return self.add_weight(
            name=name, shape=(), initializer=start, dtype="int32", trainable=False, autocast=False
        )

    @property
    def _can_use_distances(self) -> bool:
        return self.units is None and self.template_batches == 1 and self.template.keeps_radii_only

    def _checked_joint(self, joint: Any) -> bool:
        if self.unlabeled_size and not joint:
            raise ValueError(
                "Argument `joint` must be True if the graph holds unlabeled points, because they "
                "are interpolated together with the queries. Received: joint=False, "
                f"unlabeled_size={self.unlabeled_size}"
            )
        return bool(joint)

    def _logits(self, u: Tensor, linear: Tensor) -> Tensor:
        """Computes log u with the gradient that the argument `gradient` selects."""
        logits = _log(u)
        if self._gradient == "exact":
            return logits
        return ops.stop_gradient(logits) + (linear - ops.stop_gradient(linear))

    @property
    def _graph(self) -> tuple[int, int, str, float | None]:
        return self.num_neighbors, self.sigma_neighbor, self.kernel, self.template_weight

    @property
    def _precision(self) -> str:
        return working_dtype(self.compute_dtype)


def wnll_head(model: Model) -> WNLLHead:
    """Returns the WNLL head at the end of a model, or of a layer that contains layers."""
    last = output_layer(model)
    heads = [v for v in all_layers(model if last is None else last) if isinstance(v, WNLLHead)]
    if len(heads) != 1:
        raise ValueError(
            "Argument `model` must end with a `keras_robust.layers.WNLLHead`. "
            f"Received: a model that ends with {last!r}"
        )
    return heads[0]


def _relu(x: Tensor) -> Tensor:
    """Computes ReLU and keeps NaN.

    Keras's own ReLU returns 0 for NaN in a dense layer that TensorFlow compiles.
    """
    return ops.where(x <= 0, ops.zeros_like(x), x)


def _log(u: Tensor) -> Tensor:
    u = ops.maximum(u, 0.0) + _FLOOR
    return ops.log(u / ops.sum(u, axis=1, keepdims=True))
