"""Networks with a softmax or a WNLL output, trained on clean images or by PGD."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from judging import SOFTMAX, WNLL, accuracy, first
from networks import (
    CROSS_ENTROPY,
    augmentation,
    growing,
    resnet,
    small_cnn,
    vgg11,
    with_fast_statistics,
)
from tables import Run, Split
from wnll_attacks import ATTACKED, BATCH, Attacked

import keras_robust as kr

L = keras.layers
NATURAL, ADVERSARIAL = "trained on clean images", "trained by PGD at 0.3"


@dataclasses.dataclass
class Natural:
    """A network that is trained on clean images, with either output.

    Args:
        run: `Run`.
        network: "ResNet-20", "ResNet-56", "VGG-11" or "Small-CNN".
        output: SOFTMAX or WNLL.
        images: number of training images.
        seed: seed of the training. Defaults to `0`.
        labeled: number of labeled training images. Defaults to `None`: all.
        dataset: name of the data set. Defaults to `"cifar10_jpeg"`.
    """

    run: Run
    network: str
    output: str
    images: int
    seed: int = 0
    labeled: int | None = None
    dataset: str = "cifar10_jpeg"

    @property
    def epochs(self) -> int:
        """The number of epochs. For WNLL, each of the two linear stages has half of them.

        An epoch has only the labeled images.
        """
        return self.run.pick(60 if (self.labeled or self.images) == 1000 else 12, 800)

    @property
    def name(self) -> str:
        labels = f", {self.labeled} labeled" if self.labeled else ""
        size = f"{self.images} images{labels}, {self.epochs} epochs"
        return f"{self.dataset}, {self.network}, {self.output}, {size}"

    @property
    def settings(self) -> dict[str, Any]:
        found = {"dataset": self.dataset, "images": self.images, "epochs": self.epochs}
        return {**found, **({"labeled": self.labeled} if self.labeled else {})}

    @property
    def test_batch(self) -> int:
        """The batch size of tests."""
        return 2000 if self.output == WNLL else 500

    def trained(self) -> keras.Model:
        return self.run.network(self.name, self.build, self.fit, self.seed)

    def test_error(self) -> dict[str, float]:
        """Returns the error of the trained network on all test images."""
        _, test = self.run.data(self.dataset)
        return {"error": 1 - accuracy(self.trained(), test, self.test_batch)}

    def log(self) -> dict[str, list[float]]:
        """Returns the logged values of each epoch, for WNLL of all stages."""
        model = self.trained()
        if self.output == SOFTMAX:
            return self.run.training_log(self.name, self.seed)
        # Trains nothing, since all stages are saved.
        history = self.fit(model, [])
        return {name: values for name, values in history.items() if name != "stage"}

    def build(self) -> keras.Model:
        (x, _), _ = self.run.data(self.dataset)
        head: Any = L.Dense(10)
        if self.output == WNLL:
            labeled = self.labeled or self.images
            head = kr.layers.WNLLHead(
                10, units=64, template_size=min(labeled // 3, 1000), gradient="straight_through",
                unlabeled_size=min(1000, self.images - labeled),
            )  # fmt: skip
        shape = x.shape[1:]
        if self.network == "Small-CNN":
            model = small_cnn(shape, head)
        elif self.network == "VGG-11":
            model = vgg11(shape, [head], self.run.pick(0.25, 1.0), augmentation())
        else:
            depth = int(self.network.split("-")[1])
            model = resnet(depth, shape, [head], front=augmentation())
        return with_fast_statistics(model)

    def fit(self, model: Any, callbacks: list[Any]) -> Any:
        """Trains the network, and saves each finished stage of WNLL for resuming.

        Returns the history.
        """
        return self.train(model, callbacks, self.run.cache / f"{self.name}, seed {self.seed}")

    def train(
        self, model: Any, callbacks: Sequence[Any] = (), directory: pathlib.Path | None = None
    ) -> Any:
        """Trains the network and returns the history. WNLL saves its stages in `directory`."""
        (x, y), test = self.run.data(self.dataset, self.images)
        if self.labeled:
            y = np.where(np.arange(len(y)) < self.labeled, y, -1)
        watched = first(test, 1000)
        if self.output == SOFTMAX:
            steps = -(-len(x) // 128) * self.epochs
            model.compile(sgd(0.05, steps), CROSS_ENTROPY, metrics=["accuracy"])
            return model.fit(
                x, y, batch_size=128, epochs=self.epochs, verbose=2, validation_data=watched,
                callbacks=callbacks,
            ).history  # fmt: skip
        half = self.epochs // 2
        return kr.training.fit_wnll(
            model, x, y, linear_epochs=half, wnll_epochs=5, verbose=2, validation_data=watched,
            linear_optimizer=lambda number, steps: sgd(0.01 if number else 0.05, half * steps),
            directory=directory,
        )  # fmt: skip


def sgd(rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Returns the papers' optimizer, whose learning rate is halved after each eighth of `steps`."""
    schedule = keras.optimizers.schedules.ExponentialDecay(
        rate, max(1, steps // 8), 0.5, staircase=True
    )
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)


@dataclasses.dataclass
class Robust:
    """A network that is trained by PGD, with a WNLL head.

    Training uses the linear branch of the head, which is also the softmax output. Softmax and WNLL
    are therefore outputs of the same network.

    Args:
        run: `Run`.
        dataset: "mnist" or "cifar10_jpeg".
        neighbors: (m, n) of the head. Defaults to `(30, 15)`.
    """

    run: Run
    dataset: str
    neighbors: tuple[int, int] = (30, 15)

    @property
    def setting(self) -> Attacked:
        return ATTACKED[self.dataset]

    @property
    def images(self) -> int | None:
        return self.run.pick(10_000 if self.dataset == "cifar10_jpeg" else 20_000, None)

    @property
    def epochs(self) -> int:
        return self.run.pick(8, 100 if self.dataset == "mnist" else 120)

    @property
    def name(self) -> str:
        size = f"{self.images or 'all'} images, {self.epochs} epochs"
        return f"{self.dataset}, {self.setting.network}, PGD, {size}"

    @property
    def settings(self) -> dict[str, Any]:
        found = {"dataset": self.dataset, "images": self.images or "all", "epochs": self.epochs}
        return {**found, "neighbors": list(self.neighbors)}

    def trained(self, output: str) -> keras.Model:
        """Returns the network with a softmax or a WNLL output.

        WNLL has a template of training images.
        """
        model = self.run.network(self.name, self.build, self.fit)
        head = model.layers[-1]
        if output == SOFTMAX:
            head.phase = "linear"
        elif self.neighbors != (head.num_neighbors, head.sigma_neighbor):
            model = with_neighbors(model, *self.neighbors)
            train, _ = self.run.data(self.dataset, self.images)
            kr.training.adapt_template(model, *train)
        return model

    def build(self) -> keras.Model:
        (x, _), _ = self.run.data(self.dataset)
        head = kr.layers.WNLLHead(10, units=64, template_size=BATCH)
        if self.setting.network == "Small-CNN":
            return small_cnn(x.shape[1:], head, self.run.pick(0.5, 1.0))
        return resnet(20, x.shape[1:], [head], width=self.run.pick(8, 16))

    def fit(self, model: Any, callbacks: list[Any]) -> None:
        train, _ = self.run.data(self.dataset, self.images)
        setting, steps = self.setting, -(-len(train[0]) // 128)
        options = {"num_steps": 7}
        if self.run.scale == "paper":
            options = {"num_steps": setting.training_steps, "step_size": setting.training_step}
        radius = growing(setting.epsilon, self.epochs * steps)
        if self.run.scale == "paper":
            marks = {"mnist": (50,), "cifar10_jpeg": (80, 100, 110)}[self.dataset]
            rates = [0.1 / 10**number for number in range(len(marks) + 1)]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
                [mark * steps for mark in marks], rates
            )
            optimizer: Any = keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=2e-4)
        else:
            schedule = keras.optimizers.schedules.CosineDecay(2e-3, self.epochs * steps)
            optimizer = keras.optimizers.Adam(schedule)
        loss = kr.losses.AdversarialTraining(kr.attacks.PGD(radius, **options))
        robust = kr.RobustModel(model)
        robust.compile(optimizer, loss, metrics=["accuracy"])
        robust.fit(*train, batch_size=128, epochs=self.epochs, verbose=2, callbacks=callbacks)
        kr.training.adapt_template(model, *train)


def with_neighbors(model: keras.Model, num_neighbors: int, sigma_neighbor: int) -> keras.Model:
    """Returns a copy of the network whose WNLL head has other numbers of neighbours."""

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, kr.layers.WNLLHead):
            config |= {"num_neighbors": num_neighbors, "sigma_neighbor": sigma_neighbor}
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    for new, old in zip(copy.layers[:-1], model.layers[:-1], strict=True):
        new.set_weights(old.get_weights())
    for new, old in zip(
        copy.layers[-1].trainable_weights, model.layers[-1].trainable_weights, strict=True
    ):
        new.assign(old)
    return copy


def strided(run: Run, training: str, train: Split) -> keras.Model:
    """Returns a trained network of two strided convolutions with a WNLL head.

    It is trained through the linear branch, on clean images or by PGD.
    """

    def build() -> keras.Model:
        layers = [L.Conv2D(32, 3, strides=2, activation="relu")]
        layers += [L.Conv2D(64, 3, strides=2, activation="relu"), L.Flatten()]
        head = kr.layers.WNLLHead(10, units=200, template_size=BATCH)
        return keras.Sequential([keras.Input((28, 28, 1)), *layers, head])

    def fit(model: keras.Model, callbacks: list[Any]) -> None:
        if training == NATURAL:
            model.compile("adam", CROSS_ENTROPY)
            model.fit(*train, batch_size=128, epochs=3, verbose=2, callbacks=callbacks)
        else:
            robust = kr.RobustModel(model)
            # The radius grows with each epoch. The network learns nothing if it starts at 0.3.
            for epoch in range(3):
                attack = kr.attacks.PGD(0.1 * (epoch + 1), num_steps=7)
                robust.compile("adam", kr.losses.AdversarialTraining(attack))
                robust.fit(*train, batch_size=128, verbose=2)
        kr.training.adapt_template(model, *train)

    return run.network(f"mnist, strided, {training}", build, fit)
