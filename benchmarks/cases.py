"""The cases of `training.py` and `memory.py`: models, shapes of images and attacks."""

import dataclasses
from collections.abc import Callable

import keras
import models
import numpy as np

import keras_robust as kr


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, the shape of its images, and the settings of the attacks on it.

    Args:
        attack_steps: Numbers of steps of the attacks that are timed outside of training.
        training_steps: Number of steps of the attack in adversarial training.
        gpu_batch_sizes: Batch sizes measured by default on a GPU. On a CPU, only the first is.
    """

    name: str
    make_model: Callable[[], keras.Model]
    image_shape: tuple[int, int, int]
    epsilon: float
    step_size: float
    attack_steps: tuple[int, ...]
    training_steps: int
    gpu_batch_sizes: tuple[int, ...]

    def attack(self, num_steps: int) -> kr.attacks.PGD:
        return kr.attacks.PGD(self.epsilon, step_size=self.step_size, num_steps=num_steps)


_CNN = Case(
    name="cnn",
    make_model=models.small_cnn,
    image_shape=(28, 28, 1),
    epsilon=0.3,
    step_size=0.01,
    attack_steps=(40,),
    training_steps=7,
    gpu_batch_sizes=(128,),
)
_RESNET20 = Case(
    name="resnet20",
    make_model=models.resnet20,
    image_shape=(32, 32, 3),
    epsilon=8 / 255,
    step_size=2 / 255,
    attack_steps=(20, 40),
    training_steps=10,
    gpu_batch_sizes=(128, 256, 512, 1024, 2048),
)
_VGG16 = Case(
    name="vgg16",
    make_model=models.vgg16,
    image_shape=(32, 32, 3),
    epsilon=8 / 255,
    step_size=2 / 255,
    attack_steps=(20,),
    training_steps=10,
    gpu_batch_sizes=(128, 256, 512),
)
CASES = {case.name: case for case in (_CNN, _RESNET20, _VGG16)}


def random_batch(case: Case, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uniform noise and random labels. The speed does not depend on the images' content."""
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *case.image_shape), dtype="float32")
    return x, rng.integers(0, 10, batch_size, dtype="int32")
