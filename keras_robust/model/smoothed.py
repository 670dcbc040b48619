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
from keras_robust.types import Config, Images, Labels, Model, Scores, Seed

# Probability that chance alone makes a vote look like an attack's success.
_CHANCE = 1e-4
# The standard deviation of the noise is from 2^8 to 2^9 steps of the grid.
_STEPS_IN_STDDEV = 8


def grid_step(stddev: float) -> float:
    """Returns the step of the grid that noisy images are rounded to, a power of 2."""
    return math.ldexp(1.0, math.frexp(stddev)[1] - 1 - _STEPS_IN_STDDEV)


@keras.saving.register_keras_serializable(package="keras_robust")
class SmoothedClassifier(keras.Model):
    """Classifies by a vote of a model over noisy copies of each image.

        g(x) = argmax_c P(f(x + n) = c),    n ~ N(0, stddev^2)

    This is the classifier that `kr.evaluation.certify` certifies, as a model that can be attacked.
    Each call draws `num_votes` new noisy copies of each image. If the model classifies k_c of them
    as class c, the output for class c is `2 k_c / num_votes - 1`: 1 for all votes, -1 for none.

    Votes have no gradient. A gradient-based attack therefore needs
    `objective=kr.evaluation.noisy_logits`, the model's logits on a noisy copy. It averages their
    gradient over `num_samples` copies (expectation over transformation):

        kr.attacks.PGD(0.5, norm="l2", num_samples=16, objective=kr.evaluation.noisy_logits)

    Args:
        model: Keras model to be smoothed.
        stddev: float. Standard deviation of the noise, in units of the images.
        num_votes: int. Number of votes in a call. To judge an attack, `num_samples` times as many
            are counted. Defaults to `100`.
        seed: int. Seed of the noise. Defaults to `None`: a random one.
        **kwargs: other arguments of a Keras model, such as `name`.

    Call arguments:
        inputs: tensor of images, shape `(batch_size, ...)`.

    Returns:
        Tensor of shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `model` is not a Keras model, or another argument is out of range.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> smoothed = kr.evaluation.SmoothedClassifier(model, stddev=0.25, num_votes=10)
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> smoothed(x).shape[1]
    10

    The success of an attack is judged by `num_votes * num_samples` votes with new noise. An image
    counts as fooled only if another class leads by more than chance explains (Hoeffding's
    inequality, at 1 in 10,000 for each image that is judged). An attack therefore cannot succeed by
    repeating its queries.

    Reference:

    - [Cohen et al., 2019](https://arxiv.org/abs/1902.02918)
    - [Salman et al., 2019](https://arxiv.org/abs/1906.04584), who attack it by the gradients of
      noisy copies
    """

    def __init__(
        self,
        model: Model,
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

    def noisy_logits(self, x: Images) -> Any:
        """Returns the model's logits on one noisy copy of each image."""
        classifier, seed = Classifier.of(self.model), self.seed_generator.next()
        from_logits = final_activation(self.model) not in ("softmax", "sigmoid")
        noisy = self._noisy(x, backend.fold_in(seed, 0))
        return classifier.logits(noisy, from_logits)

    def largest_chance(self, num_samples: int, num_classes: int) -> float:
        """Returns the largest lead of one output over another that chance explains.

        The outputs are means over `num_samples` calls.
        """
        num_votes = self.num_votes * num_samples
        return math.sqrt(8 * math.log(num_classes / _CHANCE) / num_votes)

    def get_config(self) -> Config:
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

    def _class_scores(self, outputs: Scores) -> Any:
        activation = final_activation(self.model)
        scores = class_scores(outputs, from_logits=activation != "sigmoid")
        if scores is not outputs and activation is None:
            raise ValueError(
                "The last layer of a model with one output must tell whether the output is a logit "
                "or a probability: end the model in a `Dense` layer, with a sigmoid or without. "
                f"Received: model={self.model!r}"
            )
        return scores

    def _noisy(self, x: Images, seed: Seed) -> Any:
        dtype = working_dtype(x.dtype)
        noise = backend.normal(ops.shape(x), seed, dtype)
        return ops.cast(x, dtype) + self.stddev * noise


@keras.saving.register_keras_serializable(package="keras_robust")
def noisy_logits(model: Model, x: Images, y: Labels) -> Any:
    """Returns the logits on a noisy copy of each image, as the `objective` of an attack.

    The logits are `z(x + n)`, for the model that a `kr.evaluation.SmoothedClassifier` smooths.
    Gradient-based attacks on a `SmoothedClassifier` need this objective. Each of the attack's
    `num_samples` draws new noise.

    Args:
        model: `kr.evaluation.SmoothedClassifier`.
        x: tensor of images, shape `(batch_size, ...)`.
        y: labels, which are not used.

    Returns:
        Tensor of logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `model` is not a `SmoothedClassifier`.

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
