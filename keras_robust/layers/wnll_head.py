"""A graph-interpolating output layer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.layer_access import replaced
from keras_robust.layers.in_batch import current_template
from keras_robust.layers.template import choose_template
from keras_robust.neighbors import ScannIndex
from keras_robust.ops.nearest import nearest_in_two_ways, squared_distances
from keras_robust.ops.neighbor_graph import (
    Reach,
    edges_to_template,
    own_sigma,
    reach_of_lists,
    template_reach,
)
from keras_robust.ops.wnll import check_graph, extend, wnll

_PHASES = ("linear", "wnll")
_GRADIENTS = ("exact", "straight_through", "linear")
_VOTES = ("sum", "majority")
_NEIGHBORS = ("exact", "scann")
# Up to so many template points the graph of template and queries is built anew in each call.
_MAX_UNION = 2000
# With more: how many times m candidates are searched for that may have an edge to a query.
_REVERSE_PER_NEIGHBOR = {"exact": 4, "scann": 2}
# What every class has at least, so that no logarithm is infinite.
_FLOOR = 1e-6


@keras.saving.register_keras_serializable(package="keras_robust")
class WNLLHead(keras.layers.Layer):
    """Classifies by interpolating labels on a graph of deep features, instead of by a softmax.

        h = ReLU(W_B x + b_B)                     buffer block, on features and template alike
        z = W_L h + b_L                           linear branch
        u = WNLL(h, h^te, y^te)                   WNLL branch, `kr.ops.wnll`

    The output is always logits: z in the linear phase, `log u` in the WNLL phase, where u is a
    probability vector (raised by 1e-6 in each class), so that `softmax(log u) = u`. Every loss,
    metric and attack with `from_logits=True` is right in both.

    The template is a set of labeled features that is kept in the layer's weights: saved, loaded
    and moved to the device with the model. `kr.training.adapt_template(model, x, y)` fills it
    from images, `adapt(features, labels)` from features, and both put the head in its WNLL
    phase. It must be filled anew when the network below has changed: `kr.callbacks.TemplateUpdate`
    does that during `fit`.

    With `joint=True`, as in the papers, the examples of a batch are points of one graph, and
    **a prediction depends on the batch that it is made in**. For serving set `head.joint = False`:
    each example is then classified by itself against the template.

    Args:
        num_classes: int.
        units: int. Width of the buffer block. Defaults to `None`: no buffer block, the graph is
            that of the features themselves.
        num_neighbors: int. m, the length of each point's list of neighbours. Defaults to `30`.
        sigma_neighbor: int. n, the neighbour whose distance is sigma. Defaults to `15`.
        kernel: `"gaussian"` (the papers') or `"quartic"` (their code's), see `kr.ops.wnll`.
            Defaults to `"gaussian"`.
        template_weight: float. gamma, the additional weight of the template. Defaults to `None`:
            `N / t - 1`.
        gradient: what is differentiated in the WNLL phase. `"exact"`: u itself.
            `"straight_through"`: the linear branch, with the loss's gradient at u, as the
            papers' code trains and attacks. `"linear"`: the linear branch with its own gradient,
            as the papers' text has it: attacks climb z, and in training the output is z. Success
            and accuracy are always those of u. Defaults to `"exact"`.
        joint: bool. Whether the examples of a batch are points of one graph. May be switched on
            a trained head. Defaults to `True`.
        template_size: int. How many labeled points the template holds. Defaults to `1000`.
        unlabeled_size: int. How many unlabeled points the graph holds beside them
            (semi-supervised learning, approach I). Needs `joint=True`. Defaults to `0`.
        neighbors: `"exact"`, or `"scann"`: approximately, by ScaNN (TensorFlow alone).
            Defaults to `"exact"`.
        vote: how the answers of several template batches are combined: `"sum"`, u is their mean;
            `"majority"`, u is the share of the batches whose largest entry it is (its gradient
            is that of the mean). Defaults to `"sum"`.
        template_batches: int. Into how many batches the template is split, each of which forms a
            graph with the queries by itself. Defaults to `1`.
        **kwargs: `name`, `dtype` and the like, as for any Keras layer.

    Call arguments:
        inputs: float tensor, shape `(batch_size, features)`.
        training: bool.

    Returns:
        Logits, shape `(batch_size, num_classes)`, in float32 or float64 whatever the precision
        of the features.

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

    With up to 2,000 points the template's lists of neighbours are made anew for each batch, on
    the exact union of template and queries. With more, each template point's list and sigma are
    those among the template alone, found when the template is filled, and a query enters the
    list if it is nearer than the last in it. What that approximates: queries neither push one
    another out of a list nor change its sigma (with `joint=False` nothing is approximated by
    it); and of the template points into whose lists a query may come the `4 m` that weigh most
    are considered (with ScaNN those among the `2 m` nearest). `benchmarks/wnll.py` measures the
    difference. Train the buffer block with small steps then, and fill the template anew: what is
    kept of it does not follow the block.

    Departures from the papers:

    - Their code feeds u into a softmax as if it were logits, whose largest probability is then
      `e / (e + 9)` with 10 classes. Here `softmax(log u) = u`.
    - `kr.losses.GraphInterpolation` trains the whole network through u, which they could not.

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, section 3
    - Wang et al., Adversarial Defense via Data Dependent Activation Function and Total Variation
      Minimization, section 2
    """

    def __init__(
        self,
        num_classes: int,
        units: int | None = None,
        num_neighbors: int = 30,
        sigma_neighbor: int = 15,
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
        check_graph(num_neighbors, sigma_neighbor, kernel, template_weight)
        self.num_classes = validation.check_count("num_classes", num_classes)
        self.units = units if units is None else validation.check_count("units", units)
        self.num_neighbors, self.sigma_neighbor = int(num_neighbors), int(sigma_neighbor)
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
        self._indices: dict[int, ScannIndex] = {}
        self.buffer = (
            None
            if units is None
            else keras.layers.Dense(units, "relu", name="buffer", dtype=self.dtype_policy)
        )
        self.linear = keras.layers.Dense(num_classes, name="linear", dtype=self.dtype_policy)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        if self.buffer is not None:
            self.buffer.build(input_shape)
        self.linear.build((None, self.units or width))

        def add(name: str, shape: tuple[int, ...], value: Any, dtype: Any = None) -> Any:
            start = keras.initializers.Constant(value)
            # Not in half precision, which squared distances exceed.
            return self.add_weight(
                name=name, shape=shape, initializer=start, dtype=dtype, trainable=False,
                autocast=False,
            )  # fmt: skip

        self.template_features = add("template_features", (self.template_size, width), 0.0)
        self.template_labels = add("template_labels", (self.template_size,), -1, "int32")
        if self.unlabeled_size:
            shape = (self.unlabeled_size, width)
            self.unlabeled_features = add("unlabeled_features", shape, 0.0)
        if self._has_lists:
            self.reach = add("reach", (3, self.template_size), 0.0, "float32")
        self._is_wnll = add("is_wnll", (), 0, "int32")
        self._is_joint = add("is_joint", (), int(self._start_joint), "int32")
        self.built = True

    @property
    def phase(self) -> str:
        """`"linear"` or `"wnll"`. It is saved with the weights."""
        return _PHASES[int(ops.convert_to_numpy(self._is_wnll))] if self.built else "linear"

    @phase.setter
    def phase(self, phase: str) -> None:
        validation.check_choice("phase", phase, _PHASES)
        if phase == "wnll" and not self.is_adapted:
            raise ValueError(
                "The template is empty: call `keras_robust.training.adapt_template(model, x, y)` "
                "before the head is put in its WNLL phase. Received: phase='wnll'"
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
        """What is differentiated in the WNLL phase."""
        return self._gradient

    @property
    def is_adapted(self) -> bool:
        """Whether the template has been filled."""
        return bool(self.built and (ops.convert_to_numpy(self.template_labels) >= 0).all())

    @property
    def depends_on_batch(self) -> bool:
        """Whether a prediction depends on the batch that it is made in."""
        return self.phase == "wnll" and self.joint

    def adapt(self, features: Any, labels: Any, seed: int = 0, distances: Any = None) -> None:
        """Fills the template, and puts the head in its WNLL phase.

        Args:
            features: array, shape `(num_points, features)`: what enters the head, at least
                `template_size` labeled points. If there are more, as many are drawn at random,
                at least one of each class.
            labels: integers, shape `(num_points,)`, or one-hot vectors; -1 marks an unlabeled
                point, of which `unlabeled_size` are used.
            seed: int. Seed of the drawing. Defaults to `0`.
            distances: array, shape `(template_size, num_neighbors)`, the squared distances from
                each point to its nearest others, in ascending order, where they are known: what
                takes longest with a large template. Possible without a buffer block, if all
                points are labeled and used, in one template batch of more than 2,000. Defaults
                to `None`.

        Raises:
            ValueError: if there are too few points, or a class has none; if labels or features
                are not as described above.
        """
        features = ops.convert_to_numpy(features).astype(self.variable_dtype)
        labels = ops.convert_to_numpy(labels)
        if labels.ndim == 2 and labels.shape[1] == self.num_classes > 1:
            labels = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
        labels = labels.reshape(-1)
        self._check_template(features, labels)
        if distances is not None:
            distances = self._checked_distances(distances, labels)
        if not self.built:
            self.build(features.shape)
        rows = choose_template(labels, self.template_size, self.num_classes, seed)
        # Dealt out to the template batches, so that each has its share of every class.
        rows = rows[np.argsort(labels[rows], kind="stable")]
        rows = rows.reshape(-1, self.template_batches).T.reshape(-1)
        self.template_features.assign(features[rows])
        self.template_labels.assign(labels[rows].astype("int32"))
        if self.unlabeled_size:
            others = np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))
            self.unlabeled_features.assign(features[np.sort(others[: self.unlabeled_size])])
        self._indices.clear()
        if self._has_lists and distances is not None:
            self.reach.assign(ops.stack(reach_of_lists(distances[rows], self.sigma_neighbor)))
        elif self._has_lists:
            self.reach.assign(self._find_reach())
        if self.neighbors == "scann":
            self._scann_index(0, self._num_candidates)
        self.phase = "wnll"

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        features = self._buffered(inputs)
        linear = ops.cast(self.linear(self._narrow(features)), features.dtype)
        template = current_template() if training else None
        if template is not None:
            template.linear_logits = linear
            return _log(template.interpolate(features, self.num_classes, *self._graph))
        if self._gradient == "linear" and training:
            return linear
        phase = ops.convert_to_tensor(self._is_wnll)
        branch = phase * (2 - ops.convert_to_tensor(self._is_joint))
        return ops.switch(
            branch,
            [
                lambda: linear,
                lambda: self._logits(self._interpolate(features, True), linear),
                lambda: self._logits(self._interpolate(features, False), linear),
            ],
        )

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self._indices.clear()

    @contextlib.contextmanager
    def attacked_as(self, surrogate: str | None = None) -> Iterator[bool]:
        """Inside, the layer computes what an attack is to differentiate instead of its output.

        Args:
            surrogate: `"linear"`, `"straight_through"`, `"exact"` or `"soft_neighbors"`, see
                `kr.attacks.WNLLSurrogate`. Defaults to `None`: as the head's own `gradient` says.

        Yields:
            Whether this is something else than the layer's output.
        """
        surrogate = surrogate or self._gradient
        calls = {"linear": self._linear_call, "soft_neighbors": self._soft_call}
        if surrogate in calls:
            with replaced(self, "call", calls[surrogate]):
                yield True
        else:
            with replaced(self, "_gradient", surrogate):
                yield False

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor((inputs.shape[0], self.num_classes), dtype=self._precision)

    def get_config(self) -> dict[str, Any]:
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

    def _linear_call(self, inputs: Any, training: bool | None = None) -> Any:
        features = self._buffered(inputs)
        return ops.cast(self.linear(self._narrow(features)), features.dtype)

    def _soft_call(self, inputs: Any, training: bool | None = None) -> Any:
        """log sum_{y of the class} exp(-d^2 / sigma^2), over all of the template: no list jumps."""
        features, template = self._buffered(inputs), self._buffered(self.template_features)
        center = ops.stop_gradient(ops.mean(template, axis=0))
        distances = squared_distances(features - center, template - center)
        count = min(self.sigma_neighbor, self.template_size)
        nearest_few = -ops.top_k(-ops.stop_gradient(distances), count)[0]
        scores = -distances / own_sigma(nearest_few, count)
        labels = ops.convert_to_tensor(self.template_labels)
        lowest = ops.full_like(scores, -1e9)
        columns = [
            ops.logsumexp(ops.where(labels == label, scores, lowest), axis=1)
            for label in range(self.num_classes)
        ]
        return ops.stack(columns, axis=1)

    def _buffered(self, inputs: Any) -> Any:
        """What the graph is made of, in full precision."""
        features = inputs if self.buffer is None else self.buffer(self._narrow(inputs))
        return ops.cast(features, self._precision)

    def _narrow(self, x: Any) -> Any:
        return ops.cast(x, self.compute_dtype)

    def _interpolate(self, features: Any, joint: bool) -> Any:
        """u on the batch: each template batch is asked, and they vote."""
        num_queries = ops.shape(features)[0]
        if self.unlabeled_size and joint:
            features = ops.concatenate([features, self._buffered(self.unlabeled_features)])
        template = self._buffered(self.template_features)
        answers = []
        for number in range(self.template_batches):
            part = self._part(number)
            values = ops.one_hot(self.template_labels[part], self.num_classes, dtype=template.dtype)
            if self._has_lists:
                u = self._from_lists(features, template[part], values, number, joint)
            else:
                u = wnll(features, template[part], values, *self._graph, joint=joint)
            answers.append(u[:num_queries])
        mean = sum(answers) / len(answers)
        if self.vote == "sum":
            return mean
        votes = [ops.one_hot(ops.argmax(u, axis=1), self.num_classes) for u in answers]
        share = ops.cast(sum(votes) / len(votes), mean.dtype)
        return mean + ops.stop_gradient(share - mean)

    def _from_lists(
        self, queries: Any, template: Any, values: Any, number: int, joint: bool
    ) -> Any:
        center = ops.stop_gradient(ops.mean(template, axis=0))
        queries, template = queries - center, template - center
        part = self._part(number)
        rows = ops.cast(ops.convert_to_tensor(self.reach), template.dtype)
        reach = Reach(*(rows[row, part] for row in range(3)))
        found = self._search(number, queries, template, reach)
        edges = edges_to_template(
            queries, template, reach, found, self.sigma_neighbor, self.kernel, joint
        )
        return extend(edges, values, ops.shape(queries)[0], self.template_weight, joint)

    def _search(self, number: int, queries: Any, template: Any, reach: Reach) -> Any:
        """What `nearest_in_two_ways` finds; by ScaNN, the second are the nearest, too."""
        m, count = self.num_neighbors, self._num_candidates
        queries, template = ops.stop_gradient(queries), ops.stop_gradient(template)
        if self.neighbors == "exact":
            return nearest_in_two_ways(
                queries, template, m, ops.stop_gradient(reach.scale()), count
            )
        distances, indices = backend.host_call(
            lambda x: self._scann_index(number, count).search(x, count),
            queries,
            (("float32", count), ("int32", count)),
        )
        return distances[:, :m], indices[:, :m], distances, indices

    def _scann_index(self, number: int, count: int) -> ScannIndex:
        if number not in self._indices:
            points = ops.convert_to_numpy(
                self._buffered(self.template_features)[self._part(number)]
            )
            self._indices[number] = ScannIndex(points - points.mean(axis=0), count)
        return self._indices[number]

    def _find_reach(self) -> Any:
        """Each template point's reach, for each template batch by itself."""
        template = self._buffered(self.template_features)
        parts = [
            ops.stack(
                template_reach(
                    part - ops.mean(part, axis=0), self.num_neighbors, self.sigma_neighbor
                )
            )
            for part in (template[self._part(n)] for n in range(self.template_batches))
        ]
        return ops.concatenate(parts, axis=1)

    def _part(self, number: int) -> slice:
        size = self.template_size // self.template_batches
        return slice(number * size, (number + 1) * size)

    def _check_template(self, features: np.ndarray, labels: np.ndarray) -> None:
        width = self.template_features.shape[1] if self.built else None
        if (
            features.ndim != 2
            or not len(features) == len(labels) > 0
            or width not in (None, features.shape[1])
        ):
            raise ValueError(
                "Arguments `features` and `labels` must have shapes `(num_points, "
                f"{width or 'features'})` and `(num_points,)`, with at least one point. "
                f"Received: shapes {features.shape} and {labels.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                "Argument `features` must hold finite numbers. Received: features with "
                f"{int((~np.isfinite(features)).sum())} values that are NaN or infinite"
            )
        self.check_labels(labels)

    def check_labels(self, labels: np.ndarray) -> None:
        """Raises a `ValueError` for integer labels that make no template."""
        low, high = labels.min(), labels.max()
        if not np.issubdtype(labels.dtype, np.integer) or low < -1 or high >= self.num_classes:
            raise ValueError(
                f"Argument `labels` must hold integers below {self.num_classes}, -1 for unlabeled "
                f"points. Received: labels from {low} to {high} of dtype {labels.dtype}"
            )
        missing = sorted(set(range(self.num_classes)) - set(labels.tolist()))
        if missing:
            raise ValueError(
                "Argument `labels` must hold every class: the head could not predict one that its "
                f"template lacks. Received: labels without the classes {missing}"
            )
        num_labeled = int((labels >= 0).sum())
        if num_labeled < self.template_size:
            raise ValueError(
                f"Argument `labels` must hold at least `template_size`, {self.template_size}, "
                f"labeled points. Received: {num_labeled} labeled points"
            )
        if len(labels) - num_labeled < self.unlabeled_size:
            raise ValueError(
                f"Argument `labels` must hold at least `unlabeled_size`, {self.unlabeled_size}, "
                f"points labeled -1. Received: {len(labels) - num_labeled} of them"
            )

    def _checked_distances(self, distances: Any, labels: np.ndarray) -> Any:
        distances = ops.convert_to_numpy(distances)
        shape = (self.template_size, self.num_neighbors)
        is_possible = self.units is None and self.template_batches == 1 and self._has_lists
        if not is_possible or distances.shape != shape or len(labels) != self.template_size:
            raise ValueError(
                f"Argument `distances` must have the shape {shape}, for a head without a buffer "
                "block that uses all points as one large template. Received: shape "
                f"{distances.shape}, {len(labels)} points, units={self.units}, "
                f"template_batches={self.template_batches}"
            )
        return distances

    def _checked_joint(self, joint: Any) -> bool:
        if self.unlabeled_size and not joint:
            raise ValueError(
                "Argument `joint` must be True where the graph holds unlabeled points, which are "
                "interpolated together with the queries. Received: joint=False, "
                f"unlabeled_size={self.unlabeled_size}"
            )
        return bool(joint)

    def _logits(self, u: Any, linear: Any) -> Any:
        """log u, with the gradient that was asked for."""
        logits = _log(u)
        if self._gradient == "exact":
            return logits
        return ops.stop_gradient(logits) + (linear - ops.stop_gradient(linear))

    @property
    def _graph(self) -> tuple[int, int, str, float | None]:
        return self.num_neighbors, self.sigma_neighbor, self.kernel, self.template_weight

    @property
    def _num_candidates(self) -> int:
        """How many template points are considered for an edge to a query."""
        size = self.template_size // self.template_batches
        return min(_REVERSE_PER_NEIGHBOR[self.neighbors] * self.num_neighbors, size)

    @property
    def _has_lists(self) -> bool:
        """Whether the template points' lists are kept, rather than made anew in each call."""
        size = self.template_size // self.template_batches
        return size > _MAX_UNION or self.neighbors == "scann"

    @property
    def _precision(self) -> str:
        return "float64" if self.compute_dtype == "float64" else "float32"


def _log(u: Any) -> Any:
    u = ops.maximum(u, 0.0) + _FLOOR
    return ops.log(u / ops.sum(u, axis=1, keepdims=True))
