"""The vote of a model over noisy copies of an image."""

import math
from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.model.classifier import Classifier
from keras_robust.model.patching import final_activation
from keras_robust.ops.logits import class_scores
from keras_robust.ops.precision import working_dtype

# How often a vote by chance may look like an attack's success.
_CHANCE = 1e-4
# The standard deviation of the noise, in steps of the grid, is from 2^8 to 2^9.
_STEPS_IN_STDDEV = 8


def grid_step(stddev: float) -> float:
    """The step of the grid that noisy images are rounded to, a power of 2."""
    return math.ldexp(1.0, math.frexp(stddev)[1] - 1 - _STEPS_IN_STDDEV)


@keras.saving.register_keras_serializable(package="keras_robust")
class SmoothedClassifier(keras.Model):
    """The classifier that `kr.evaluation.certify` certifies, so that it can be attacked.

        g(x) = argmax_c P(f(x + n) = c),    n ~ N(0, stddev^2)

    It draws `num_votes` noisy copies of each image, anew in each call, and lets the model vote. Its
    outputs are `2 k_c / num_votes - 1`, where `k_c` copies were given to class c: 1 for all votes,
    -1 for none.

    Votes have no gradient. An attack by gradients follows that of the model on a noisy copy, with
    `objective=kr.evaluation.noisy_logits`, averaged over `num_samples` of them (expectation over
    transformation):

        kr.attacks.PGD(0.5, norm="l2", num_samples=16, objective=kr.evaluation.noisy_logits)

    Its success is judged by `num_votes * num_samples` votes over other noise. It counts where the
    other class leads by more than chance explains (Hoeffding's inequality, at 1 in 10,000 for each
    image that is judged), so that no attack succeeds by asking again and again.

    Args:
        model: Keras model, the one to be smoothed.
        stddev: float. Standard deviation of the noise, in units of the images.
        num_votes: int. How many votes a call counts. Judging an attack takes `num_samples` times as
            many. Defaults to `100`.
        seed: int. Seed of the noise. Defaults to `None`: a random one.
        **kwargs: `name` and the like, as for any Keras model.

    Call arguments:
        inputs: tensor of images, shape `(batch_size, ...)`.

    Returns:
        Tensor of shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `model` is no Keras model, or another argument is out of its range.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> smoothed = kr.evaluation.SmoothedClassifier(model, stddev=0.25, num_votes=10)
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> smoothed(x).shape[1]
    10

    Reference:

    - [Cohen et al., 2019](https://arxiv.org/abs/1902.02918)
    - [Salman et al., 2019](https://arxiv.org/abs/1906.04584), who attack it by the gradients of
      noisy copies
    """

    def __init__(
        self,
        model: Any,
        stddev: float,
        num_votes: int = 100,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if not isinstance(model, keras.layers.Layer) or isinstance(model, SmoothedClassifier):
            raise ValueError(
                "Argument `model` must be a Keras model, the one to be smoothed. "
                f"Received: model={model!r}"
            )
        self.model = model
        self.stddev = validation.check_number("stddev", stddev, exclusive=True)
        self.num_votes = validation.check_count("num_votes", num_votes)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = model.built  # It has no weights of its own.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        classifier, seed = Classifier.of(self.model), self.seed_generator.next()
        step = grid_step(self.stddev)

        def votes(number: Any) -> Any:
            drawn = backend.fold_in(seed, number)
            noisy = step * ops.round(self._noisy(inputs, drawn) / step)
            with backend.seeded(classifier.random_state, drawn):
                scores = self._class_scores(classifier.outputs(noisy))
            return ops.one_hot(ops.argmax(scores, axis=-1), scores.shape[-1], dtype="float32")

        def add(number: Any, total: Any) -> Any:
            return total + votes(number)

        total = votes(0)
        if self.num_votes > 1:
            total = classifier.fori_loop(1, self.num_votes, add, total)
        return 2 * total / self.num_votes - 1

    def noisy_logits(self, x: Any) -> Any:
        """The model's logits on one noisy copy of each image."""
        classifier, seed = Classifier.of(self.model), self.seed_generator.next()
        from_logits = final_activation(self.model) not in ("softmax", "sigmoid")
        noisy = self._noisy(x, backend.fold_in(seed, 0))
        return classifier.logits(noisy, from_logits)

    def largest_chance(self, num_samples: int, num_classes: int) -> float:
        """By how much one output may lead another by chance, in the mean of so many calls."""
        num_votes = self.num_votes * num_samples
        return math.sqrt(8 * math.log(num_classes / _CHANCE) / num_votes)

    def get_config(self) -> dict[str, Any]:
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "stddev": self.stddev,
            "num_votes": self.num_votes,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})

    def _class_scores(self, outputs: Any) -> Any:
        activation = final_activation(self.model)
        scores = class_scores(outputs, from_logits=activation != "sigmoid")
        if scores is not outputs and activation is None:
            raise ValueError(
                "The last layer of a model of one output must say whether that is a logit or a "
                "probability: end it in a `Dense` layer, with a sigmoid or without. "
                f"Received: model={self.model!r}"
            )
        return scores

    def _noisy(self, x: Any, seed: Any) -> Any:
        dtype = working_dtype(x.dtype)
        noise = backend.normal(ops.shape(x), seed, dtype)
        return ops.cast(x, dtype) + self.stddev * noise


@keras.saving.register_keras_serializable(package="keras_robust")
def noisy_logits(model: Any, x: Any, y: Any) -> Any:
    """What attacks on a `kr.evaluation.SmoothedClassifier` follow, passed as their `objective`.

    The logits `z(x + n)` of the model that is smoothed, on one noisy copy of each image. Each of
    the attack's `num_samples` draws other noise.

    Args:
        model: `kr.evaluation.SmoothedClassifier`.
        x: tensor of images, shape `(batch_size, ...)`.
        y: labels, which it does not need.

    Returns:
        Tensor of logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if the model is another one.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.PGD(
    ...     epsilon=0.5, norm="l2", num_samples=16, objective=kr.evaluation.noisy_logits)
    """
    if not isinstance(model, SmoothedClassifier):
        raise ValueError(
            "The objective `kr.evaluation.noisy_logits` is for attacks on a "
            f"`kr.evaluation.SmoothedClassifier`. Received: model={model!r}"
        )
    return model.noisy_logits(x)
