"""Gaussian noise, as a baseline for attacks."""

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.types import Images, Scheduled, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class GaussianNoise(Attack):
    """Adds Gaussian noise to the inputs, as a baseline for attacks.

        x_adv = clip(x + n, bounds),    n ~ N(0, stddev^2) for each value

    The noise does not depend on the model. A useful attack fools the model more often than noise of
    the same size. For inputs with `d` values, the L2 norm of the noise is about `stddev * sqrt(d)`,
    or less where the noise is clipped. Its L-infinity norm has no limit.

    Args:
        stddev: float, or array that broadcasts to one example. Standard deviation of the noise, in
            units of `x`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        num_samples: int. Number of draws of a random model over which the logits are averaged to
            judge whether the model is fooled. Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`.

    Returns:
        Same as `kr.attacks.PGD`, except that there is no ball.

    Raises:
        ValueError: if `stddev` is negative or not finite; when called, same as `kr.attacks.PGD`.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.GaussianNoise(stddev=0.1)
    """

    uses_gradient = False
    data_names = ("stddev",)

    def __init__(
        self,
        stddev: Scheduled,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        num_samples: int = 1,
    ) -> None:
        super().__init__(bounds=bounds, from_logits=from_logits, num_samples=num_samples)
        self.stddev = validation.check_number_or_array("stddev", stddev)

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed
    ) -> Tensor:
        return x + self.stddev * backend.normal(ops.shape(x), seed, x.dtype)
