"""The base class of losses that compare an image with its adversarial copy."""

from keras import ops

from keras_robust.losses.model_loss import ModelLoss
from keras_robust.model.checks import check_images
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model, Seed, Tensor


class PairLoss(ModelLoss):
    """Base class of losses on pairs, computed by the attack or given as `((x, x_a), y)`."""

    needs_attack = False
    takes_pairs = True

    def pair(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        """Returns the images and their adversarial copies, given or computed by the attack."""
        if not self._is_pair(x):
            return x, self.perturbed(model, x, y, seed)
        x, x_a = x
        return x, ops.cast(x_a, x.dtype)

    def check(self, model: Model, x: Images, y: Labels) -> None:
        if not self._is_pair(x):
            super().check(model, x, y)
            return
        images, adversarial = x
        check_images(adversarial)
        Classifier.of(model).check(images, y, (None, self.from_logits))

    def _is_pair(self, x: Images) -> bool:
        """Returns whether `x` is a pair; raises a `ValueError` if that does not fit the attack.

        Without an attack, `x` must be a pair. With an attack, it must not.
        """
        if isinstance(x, tuple | list) != (self.attack is None):
            expected = (
                "images to attack, `(x, y)`"
                if self.attack is not None
                else "pairs, `((x, x_a), y)`, or an `attack` that computes them"
            )
            received = "pairs" if isinstance(x, tuple | list) else "images only"
            raise ValueError(
                f"{type(self).__name__} with attack={self.attack!r} expects batches of "
                f"{expected}. Received: {received}"
            )
        if self.attack is not None:
            return False
        shapes = [tuple(part.shape) for part in x]
        if len(x) != 2 or len({len(shape) for shape in shapes}) > 1 or not _agree(*shapes):
            raise ValueError(
                "A pair must be two tensors of the same shape: images and their adversarial "
                f"copies. Received: {len(x)} tensors of shapes {shapes}"
            )
        return True


def _agree(shape: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Returns whether two shapes are equal in all known dimensions."""
    return all(a is None or b is None or a == b for a, b in zip(shape, other, strict=True))
