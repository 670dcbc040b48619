"""TRADES."""

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks import PGD, Attack
from keras_robust.attacks.space import Space
from keras_robust.losses import weight
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.model.classifier import Classifier
from keras_robust.ops.logits import kl_divergence, log_probabilities
from keras_robust.types import Config, Images, Labels, Loss, Model, Scheduled, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class TRADES(ModelLoss):
    """Trades clean accuracy against the stability of the predictions around each image.

        min_theta E_(x, y) [ L(p(x), y) + beta * max_{||x' - x|| <= epsilon} KL(p(x) || p(x')) ]

    `p` is the model's softmax. Projected gradient ascent on the divergence approximates the
    maximum, on the model in inference mode. The ascent starts from `x + 0.001 N(0, 1)`, because the
    divergence has a zero gradient at `x` itself. The gradient of the loss flows through both `p(x)`
    and `p(x')`. During `fit`, `accuracy` is clean accuracy. A step costs the gradients of the
    attack plus two forward and backward passes.

    Args:
        attack: untargeted `kr.attacks.PGD` with a single restart. It provides the norm ball, the
            bounds, the step size and the number of steps. `start_stddev` replaces its random start.
        beta: non-negative number, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. Weight of the divergence. The paper
            uses 1 on MNIST and 6 on CIFAR. Defaults to `6.0`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical depending on the labels.
        start_stddev: float. Standard deviation of the noise added to the start of the ascent, in
            units of `x`. Defaults to `0.001`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if `attack` is not an untargeted `kr.attacks.PGD` with a single restart; if
            `beta` is negative, or `start_stddev` not positive; if `loss` and `attack` disagree on
            `from_logits`; when called by a model that is not a `kr.RobustModel`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> classifier = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model = kr.RobustModel(classifier)
    >>> attack = kr.attacks.PGD(epsilon=0.031, step_size=0.007, num_steps=10)
    >>> model.compile(optimizer="adam", loss=kr.losses.TRADES(attack, beta=6.0))
    >>> history = model.fit(x, y, verbose=0)

    Reference:

    - [Zhang et al., 2019](https://arxiv.org/abs/1901.08573), eq. 5 and algorithm 1
    """

    def __init__(
        self,
        attack: Attack,
        beta: Scheduled = 6.0,
        loss: Loss = None,
        start_stddev: float = 0.001,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        super().__init__(attack, loss=loss, reduction=reduction, name=name, mask=mask)
        if not isinstance(self.attack, PGD) or self.attack.num_restarts > 1:
            raise ValueError(
                "Argument `attack` must be a `keras_robust.attacks.PGD` with a single restart. "
                f"Received: attack={attack!r}"
            )
        self.beta = weight.check_weight("beta", beta)
        self.start_stddev = validation.check_number("start_stddev", start_stddev, exclusive=True)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        classifier = Classifier.of(model)

        def log_p(z: Tensor) -> Tensor:
            return log_probabilities(classifier.outputs(z), self.attack.from_logits)

        work = ops.cast(x, "float32")
        log_p_clean = ops.stop_gradient(log_p(work))
        noise = backend.normal(ops.shape(work), seed, "float32")

        mask = self.mask
        if mask is not None:
            mask = ops.broadcast_to(ops.convert_to_tensor(mask), ops.shape(work))
        space = Space(self.current_attack(work), work, mask)

        def gradient(z: Tensor, step: Tensor) -> Tensor:
            return backend.input_gradient(
                lambda z: ops.sum(kl_divergence(log_p_clean, log_p(space.outside(z)))), z
            )

        start = space.inside(work + self.start_stddev * noise)
        z = space.attack.ascend(gradient, space.inside(work), start)
        return x, ops.cast(space.outside(z), x.dtype)

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        from_logits = self.attack.from_logits
        adversarial = ops.cast(step.predict(step.prepared), y_pred.dtype)
        divergence = kl_divergence(
            log_probabilities(y_pred, from_logits), log_probabilities(adversarial, from_logits)
        )
        return self.classification_loss(y_true, y_pred) + weight.current(self.beta) * divergence

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "beta": weight.saved(self.beta),
            "start_stddev": self.start_stddev,
            "mask": self.saved_mask,
        }
