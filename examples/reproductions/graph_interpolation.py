"""The WNLL head: graph interpolation in place of softmax, and how robust it is."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from judging import SOFTMAX, WNLL, accuracies, accuracy, first, objective, within
from networks import CROSS_ENTROPY, augmentation, resnet, small_cnn, vgg11
from pictures import draw_images
from tables import Paper, Run, Split, in_percent
from two_classes import TwoClasses

import keras_robust as kr
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.model.classifier import Classifier

L = keras.layers
PAPER = Paper(
    "graph_interpolation",
    "Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies in "
    "Data-Efficient Deep Learning",
    "WNLL is attacked by the paper's attacks through the linear branch, in batches of 500 images "
    "and 500 template points. The worst case adds PGD-50 by two losses through each of four "
    "surrogates of WNLL, and Square.",
)
# Queries and template points of an attacked batch.
BATCH = 500


# ---- Raw pixels -------------------------------------------------------------------------------

# Neighbours m and n are counted without the point itself.
PIXEL_SETTINGS = {
    "paper's kernel, (30, 15)": {"num_neighbors": 30, "sigma_neighbor": 15},
    "paper's kernel, (15, 8)": {"num_neighbors": 15, "sigma_neighbor": 8},
    "published code: quartic, (14, 7), gamma 1": {
        "num_neighbors": 14, "sigma_neighbor": 7, "kernel": "quartic", "template_weight": 1.0,
    },
}  # fmt: skip


@PAPER.table(
    "Table 2",
    "softmax and WNLL on raw pixels, all training images as template",
    small=10,
    paper=10,
    wanted=1,
    published={
        "mnist, softmax": {"accuracy": 0.9265},
        "mnist, published code: quartic, (14, 7), gamma 1": {"accuracy": 0.9774},
        "cifar10_jpeg, softmax": {"accuracy": 0.3991},
        "cifar10_jpeg, published code: quartic, (14, 7), gamma 1": {"accuracy": 0.4073},
        "svhn_cropped, softmax": {"accuracy": 0.2466},
        "svhn_cropped, published code: quartic, (14, 7), gamma 1": {"accuracy": 0.5617},
    },
)
def table_2(run: Run) -> None:
    for dataset in ("mnist", "cifar10_jpeg", *run.pick((), ("svhn_cropped",))):
        train, test = ((x.reshape(len(x), -1), y) for x, y in run.data(dataset))
        size = {"dataset": dataset, "images": len(train[0]), "tested": len(test[0])}

        def softmax(train: Split = train, test: Split = test) -> dict[str, float]:
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input(train[0].shape[1:]), L.Dense(10)])
            model.compile("adam", CROSS_ENTROPY)
            model.fit(*train, batch_size=128, epochs=10, verbose=0)
            return {"accuracy": accuracy(model, test)}

        run.measure(f"{dataset}, softmax", softmax, epochs=10, **size)
        distances = functools.cache(functools.partial(neighbor_distances, train[0], 30))
        for name, options in PIXEL_SETTINGS.items():

            def wnll(
                options: dict[str, Any] = options, train: Split = train, test: Split = test,
                distances: Callable[[], np.ndarray] = distances,
            ) -> dict[str, float]:  # fmt: skip
                head = kr.layers.WNLLHead(10, template_size=len(train[0]), **options)
                model = keras.Sequential([keras.Input(train[0].shape[1:]), head])
                known = distances()[:, : head.num_neighbors] if head.template.has_reach else None
                head.adapt(*train, distances=known)
                return {"accuracy": accuracy(model, test, batch_size=10_000)}

            run.measure(f"{dataset}, {name}", wnll, epochs=0, **size)


def neighbor_distances(features: np.ndarray, num_neighbors: int) -> np.ndarray:
    """The squared distances to each point's nearest others: one search for all settings."""
    index = kr.neighbors.ExactIndex(features)
    batches = np.split(features, range(4096, len(features), 4096))
    # The first neighbour is the point itself.
    return np.concatenate([index.search(b, num_neighbors + 1)[0][:, 1:] for b in batches])


# ---- Accuracy from few images -----------------------------------------------------------------


@dataclasses.dataclass
class Natural:
    """A network trained on clean images from CIFAR-10, with either output.

    Args:
        run: `Run`.
        network: "ResNet-20", "VGG-11", ...
        output: SOFTMAX or WNLL.
        images: number of training images.
        seed: of the training.
        labeled: how many of the images are labeled. Defaults to `None`: all.
        dataset: name of the data set.
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
        """Of both passes together."""
        return self.run.pick(100 if self.images == 1000 else 16, 800)

    @property
    def name(self) -> str:
        labels = f", {self.labeled} labeled" if self.labeled else ""
        size = f"{self.images} images{labels}, {self.epochs} epochs"
        return f"{self.dataset}, {self.network}, {self.output}, {size}"

    @property
    def settings(self) -> dict[str, Any]:
        found = {"dataset": self.dataset, "images": self.images, "epochs": self.epochs}
        return {**found, **({"labeled": self.labeled} if self.labeled else {})}

    def trained(self) -> keras.Model:
        return self.run.network(self.name, self.build, self.fit, self.seed)

    def log(self) -> dict[str, list[float]]:
        self.trained()
        return self.run.training_log(self.name, self.seed)

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
            return small_cnn(shape, head)
        if self.network == "VGG-11":
            return vgg11(shape, [head], self.run.pick(0.25, 1.0), augmentation())
        return resnet(int(self.network.split("-")[1]), shape, [head], front=augmentation())

    def fit(self, model: Any, callbacks: list[Any]) -> None:
        """Trains and keeps what the stages of an interrupted training have reached."""
        self.train(model, callbacks, self.run.cache / f"{self.name}, seed {self.seed}")

    def train(
        self, model: Any, callbacks: Sequence[Any] = (), directory: pathlib.Path | None = None
    ) -> None:
        (x, y), test = self.run.data(self.dataset, self.images)
        if self.labeled:
            y = np.where(np.arange(len(y)) < self.labeled, y, -1)
        watched = first(test, 1000)
        if self.output == SOFTMAX:
            steps = -(-len(x) // 128) * self.epochs
            model.compile(sgd(0.05, steps), CROSS_ENTROPY, metrics=["accuracy"])
            model.fit(
                x, y, batch_size=128, epochs=self.epochs, verbose=2, validation_data=watched,
                callbacks=callbacks,
            )  # fmt: skip
            return
        half = self.epochs // 2
        kr.training.fit_wnll(
            model, x, y, linear_epochs=half, wnll_epochs=5, verbose=2, validation_data=watched,
            linear_optimizer=lambda number, steps: sgd(0.01 if number else 0.05, half * steps),
            callbacks=[c for c in callbacks if isinstance(c, keras.callbacks.CSVLogger)],
            directory=directory,
        )  # fmt: skip


def sgd(rate: float, steps: int) -> keras.optimizers.Optimizer:
    """The papers' optimizer; the rate is halved eight times in its course, as in theirs."""
    schedule = keras.optimizers.schedules.ExponentialDecay(
        rate, max(1, steps // 8), 0.5, staircase=True
    )
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)


PUBLISHED_ERRORS = {
    # Network: softmax, WNLL from 10,000 images; the same from 1,000.
    "ResNet-20": (12.83, 9.96, 34.90, 29.91),
    "VGG-11": (10.37, 8.88, 26.75, 24.10),
}


def row(network: str, output: str, images: int) -> str:
    return f"{network}, {images} images, {output}"


@PAPER.table(
    "Table 3",
    "test error of softmax and WNLL from 1,000 and 10,000 images of CIFAR-10",
    small=60,
    paper=600,
    wanted=1,
    published={
        row(network, output, images): {"error": errors[2 * (images == 1000) + number] / 100}
        for network, errors in PUBLISHED_ERRORS.items()
        for number, output in enumerate((SOFTMAX, WNLL))
        for images in (10_000, 1000)
    },
)
def table_3(run: Run) -> None:
    networks = run.pick(tuple(PUBLISHED_ERRORS), ("ResNet-20", "ResNet-56", "VGG-11"))
    for images in (1000, 10_000):
        for seed in range(run.pick(3 if images == 1000 else 1, 5)):
            for network in networks:
                for output in (SOFTMAX, WNLL):
                    natural = Natural(run, network, output, images, seed)

                    def error(natural: Natural = natural) -> dict[str, float]:
                        _, test = run.data("cifar10_jpeg")
                        batch = 2000 if natural.output == WNLL else 500
                        return {"error": 1 - accuracy(natural.trained(), test, batch)}

                    run.measure(
                        row(network, output, images), error, seed, **natural.settings,
                        tested=10_000,
                    )  # fmt: skip


@PAPER.table(
    "Figure 4", "test accuracy in training from 1,000 images, ResNet-20", small=15, paper=60
)
def figure_4(run: Run) -> None:
    for output in (SOFTMAX, WNLL):
        natural = Natural(run, "ResNet-20", output, 1000)
        run.measure(output, natural.log, **natural.settings, tested=1000)


@PAPER.table(
    "Table 11",
    "test error with few labels among many images",
    small=60,
    paper=600,
    published={
        "cifar10_jpeg, ResNet-20, 1000 labeled": {"error": 0.2702},
        "cifar10_jpeg, ResNet-20, 10000 labeled": {"error": 0.0901},
    },
)
def table_11(run: Run) -> None:
    cases = [("mnist", "Small-CNN", run.pick(5000, 60_000), (1000,))]
    labeled = run.pick((1000,), (1000, 10_000))
    cases.append(("cifar10_jpeg", "ResNet-20", run.pick(5000, 50_000), labeled))
    for dataset, network, images, counts in cases:
        for count in counts:
            natural = Natural(run, network, WNLL, images, labeled=count, dataset=dataset)

            def error(natural: Natural = natural) -> dict[str, float]:
                _, test = run.data(natural.dataset)
                return {"error": 1 - accuracy(natural.trained(), test, 2000)}

            run.measure(
                f"{dataset}, {network}, {count} labeled", error, **natural.settings, tested=10_000
            )


# ---- End to end: what the papers could not do ---------------------------------------------------

END_TO_END_IMAGES, END_TO_END_BATCH = 1000, 334
END_TO_END_METHODS = (
    "softmax, a third of the epochs",
    "softmax",
    "WNLL on softmax features",
    "alternating",
    "end to end",
    "end to end + linear",
    "end to end, buffer block",
)


def two_convolutions(shape: tuple[int, ...], head: Any) -> keras.Model:
    layers = [L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D()]
    layers += [L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(), L.Flatten()]
    return keras.Sequential([keras.Input(shape), *layers, head])


def adam(num_steps: int) -> keras.optimizers.Adam:
    """Adam, whose rate falls to 0 by a cosine: the same for softmax and end to end."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, num_steps))


def end_to_end(
    method: str,
    train: Split,
    epochs: int,
    seed: int,
    attack: kr.attacks.Attack | None = None,
    linear_weight: float = 1.0,
) -> keras.Model:
    """Trains a network of two convolutions by one of the methods, on as many images each.

    `attack` makes "softmax" and "end to end" adversarial training; `linear_weight` is the weight of
    the linear branch's loss in "end to end + linear".
    """
    keras.utils.set_random_seed(seed)
    shape, size = train[0].shape[1:], len(train[0])

    def num_steps(batch_size: int) -> int:
        return -(-size // batch_size) * epochs

    def head(size: int, **options: Any) -> kr.layers.WNLLHead:
        return kr.layers.WNLLHead(10, template_size=size, **options)

    if method.startswith("softmax"):
        model = two_convolutions(shape, L.Dense(10))
        part = epochs // 3 if "third" in method else epochs
        wrapped, loss = model, CROSS_ENTROPY
        if attack is not None:
            wrapped, loss = kr.RobustModel(model), kr.losses.AdversarialTraining(attack)
        wrapped.compile(adam(num_steps(100) * part // epochs), loss)
        wrapped.fit(*train, batch_size=100, epochs=part, verbose=0)
    elif method == "WNLL on softmax features":
        model = two_convolutions(shape, head(size))
        model.compile(adam(num_steps(100)), CROSS_ENTROPY)
        model.fit(*train, batch_size=100, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    elif method == "alternating":
        options = {"units": 200, "gradient": "straight_through"}
        model = two_convolutions(shape, head(size // 2, **options))
        kr.training.fit_wnll(
            model, *train, linear_epochs=epochs // 2 - 5, wnll_epochs=5, linear_batch_size=100,
            linear_optimizer=lambda number, steps: keras.optimizers.Adam(5e-4 if number else 1e-3),
            verbose=0, seed=seed,
        )  # fmt: skip
    else:
        units = 200 if method.endswith("block") else None
        model = two_convolutions(shape, head(size, units=units))
        weight = linear_weight if method.endswith("linear") else 0.0
        loss = kr.losses.GraphInterpolation(linear_weight=weight, attack=attack)
        robust = kr.RobustModel(model)
        robust.compile(optimizer=adam(num_steps(END_TO_END_BATCH)), loss=loss)
        robust.fit(*train, batch_size=END_TO_END_BATCH, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    return model


@PAPER.table(
    "End to end",
    "training through the graph, which the papers do not do, from 1,000 images",
    small=60,
    paper=60,
    wanted=1,
)
def table_end_to_end(run: Run) -> None:
    epochs = 180
    for dataset in ("mnist", "cifar10_jpeg"):
        train, test = run.data(dataset, END_TO_END_IMAGES)
        for seed in range(3):
            for method in END_TO_END_METHODS:

                def found(
                    method: str = method, train: Split = train, test: Split = test, seed: int = seed
                ) -> dict[str, float]:
                    return {"accuracy": accuracy(end_to_end(method, train, epochs, seed), test)}

                run.measure(
                    f"{dataset}, {method}", found, seed, dataset=dataset,
                    images=END_TO_END_IMAGES, epochs=epochs, tested=len(test[0]),
                )  # fmt: skip


@PAPER.table(
    "End to end, adversarial",
    "softmax and WNLL trained by PGD-5 through the graph, 1,000 images of MNIST, epsilon 0.1",
    small=30,
    paper=30,
)
def table_end_to_end_adversarial(run: Run) -> None:
    epsilon, epochs = 0.1, 40
    train, test = run.data("mnist", END_TO_END_IMAGES)
    long = {"num_steps": 100, "num_restarts": 2}
    attacks = {
        "PGD": kr.attacks.PGD(epsilon, **long),
        "PGD, margin": kr.attacks.PGD(epsilon, **long, loss="margin"),
        "Square": kr.attacks.Square(epsilon, num_queries=1000),
    }
    for seed in range(3):
        for method in ("softmax", "end to end"):

            def found(method: str = method, seed: int = seed) -> dict[str, float]:
                attack = kr.attacks.PGD(epsilon, num_steps=5)
                model = end_to_end(method, train, epochs, seed, attack)
                worst = accuracies(model, first(test, BATCH), attacks, BATCH)["worst case"]
                return {"accuracy": accuracy(model, test), "worst case": worst}

            run.measure(
                method, found, seed, dataset="mnist", images=END_TO_END_IMAGES, epochs=epochs,
                tested=len(test[0]), attacked=BATCH,
            )  # fmt: skip


@PAPER.table(
    "Linear loss added",
    "end to end with the linear branch's loss, by its weight and the length of training, MNIST",
    small=60,
    paper=60,
)
def table_linear_loss(run: Run) -> None:
    train, test = run.data("mnist", END_TO_END_IMAGES)
    for seed in range(3):
        for weight, epochs in ((0.01, 180), (0.1, 180), (1.0, 180), (1.0, 720)):

            def found(
                weight: float = weight, epochs: int = epochs, seed: int = seed
            ) -> dict[str, float]:
                model = end_to_end("end to end + linear", train, epochs, seed, linear_weight=weight)
                by_graph = accuracy(model, test)
                model.layers[-1].phase = "linear"
                return {"by the graph": by_graph, "by the linear branch": accuracy(model, test)}

            run.measure(
                f"weight {weight:g}, {epochs} epochs", found, seed, dataset="mnist",
                images=END_TO_END_IMAGES, epochs=epochs, tested=len(test[0]),
            )  # fmt: skip


# ---- Robustness -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attacked:
    """How the paper trains by PGD and attacks on a data set."""

    network: str
    epsilon: float
    training_step: float
    training_steps: int
    step: float
    num_steps: tuple[int, int]
    carlini_steps: int
    carlini_rate: float


ATTACKED = {
    "mnist": Attacked("Small-CNN", 0.3, 0.01, 40, 0.01, (40, 100), 100, 0.003),
    "cifar10_jpeg": Attacked("ResNet-20", 8 / 255, 2 / 255, 10, 1 / 255, (20, 100), 50, 0.006),
}


@dataclasses.dataclass
class Robust:
    """A network trained by PGD, with a WNLL head whose linear branch is the softmax network.

    Args:
        run: `Run`.
        dataset: "mnist" or "cifar10_jpeg".
        neighbors: (m, n) of the head.
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
        """The network, with the output by softmax or by WNLL on a template of training images."""
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
        # The radius grows in the first half: at MNIST's 0.3 from the start nothing is learnt.
        radius = keras.optimizers.schedules.PolynomialDecay(
            0.0, max(1, self.epochs * steps // 2), setting.epsilon
        )
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
    """A copy of the network whose head interpolates from so many neighbours."""

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


def published_attacks(setting: Attacked, output: str) -> dict[str, kr.attacks.Attack]:
    """The paper's attacks; on WNLL they take the gradient of the linear branch at WNLL's loss."""
    given: dict[str, Any] = {"objective": objective(output)}
    attacks: dict[str, kr.attacks.Attack] = {"FGSM": kr.attacks.FGSM(setting.epsilon, **given)}
    for number in setting.num_steps:
        attacks[f"IFGSM-{number}"] = kr.attacks.IFGSM(
            setting.epsilon, step_size=setting.step, num_steps=number, **given
        )
    return attacks


def carlini(setting: Attacked, output: str) -> kr.attacks.Attack:
    """The paper's: one constant, few steps; for WNLL on the logits of the linear branch."""
    return kr.attacks.CarliniWagnerL2(
        initial_const=10.0, binary_search_steps=1, num_steps=setting.carlini_steps,
        learning_rate=setting.carlini_rate,
        objective=objective(output, "linear"),
    )  # fmt: skip


def strongest_attacks(
    epsilon: float, output: str, num_queries: int
) -> dict[str, kr.attacks.Attack]:
    """PGD by two losses, through every surrogate of a WNLL head, and Square."""
    every = ("straight_through", "linear", "exact", "soft_neighbors")
    attacks: dict[str, kr.attacks.Attack] = {
        f"PGD, {loss}, {surrogate}": kr.attacks.PGD(
            epsilon, num_steps=50, loss=loss, objective=objective(output, surrogate)
        )
        for surrogate in (every if output == WNLL else every[:1])
        for loss in ("ce", "margin")
    }
    return {**attacks, "Square": kr.attacks.Square(epsilon, num_queries=num_queries)}


def robust_accuracies(run: Run, robust: Robust, output: str) -> dict[str, float]:
    """Clean, under the paper's four attacks, and in the worst case of ours in L-infinity."""
    model, setting = robust.trained(output), robust.setting
    _, test = run.data(robust.dataset)
    some = first(test, run.pick(BATCH, 2000))
    found = accuracies(model, some, published_attacks(setting, output), BATCH)
    least = found.pop("worst case")
    found["C&W"] = within(model, some, carlini(setting, output), batch_size=BATCH)
    strong = strongest_attacks(setting.epsilon, output, run.pick(500, 5000))
    worst = accuracies(model, some, strong, BATCH)["worst case"]
    return {**found, "worst case": min(least, worst)}


def robust_rows(run: Run, dataset: str) -> None:
    for output in (SOFTMAX, WNLL):
        robust = Robust(run, dataset)
        run.measure(
            output,
            lambda robust=robust, output=output: robust_accuracies(run, robust, output),
            **robust.settings,
            tested=run.pick(BATCH, 2000),
        )


def black_box(run: Run, dataset: str) -> None:
    """WNLL on images that were made to fool softmax."""
    robust = Robust(run, dataset)

    def found() -> dict[str, float]:
        _, test = run.data(dataset)
        x, y = first(test, run.pick(BATCH, 2000))
        attacks = {**published_attacks(robust.setting, SOFTMAX), "C&W": carlini(
            robust.setting, SOFTMAX
        )}  # fmt: skip
        source = Classifier.of(robust.trained(SOFTMAX))
        images = {
            name: perturbed_images(source, x, y, attack, BATCH, 0)
            for name, attack in attacks.items()
        }
        model = robust.trained(WNLL)
        return {name: accuracy(model, (x_adv, y), BATCH) for name, x_adv in images.items()}

    run.measure("WNLL", found, **robust.settings, tested=run.pick(BATCH, 2000))


def named(columns: str, **rows: tuple[float, ...]) -> dict[str, dict[str, float]]:
    return in_percent(columns.split(), rows)


MNIST_COLUMNS = "FGSM IFGSM-40 IFGSM-100 C&W"
CIFAR_COLUMNS = "FGSM IFGSM-20 IFGSM-100 C&W"


@PAPER.table(
    "Table 6",
    "MNIST, trained by PGD at 0.3, softmax and WNLL under attack",
    small=40,
    paper=60,
    wanted=1,
    published=named(
        f"clean {MNIST_COLUMNS}",
        softmax=(99.33, 98.17, 96.27, 96.09, 95.31),
        WNLL=(99.39, 98.35, 97.36, 96.90, 97.55),
    ),
)
def table_6(run: Run) -> None:
    robust_rows(run, "mnist")


@PAPER.table(
    "Table 7",
    "the same, attacked by softmax's images",
    small=5,
    paper=10,
    published=named(MNIST_COLUMNS, WNLL=(98.40, 97.47, 97.40, 98.14)),
)
def table_7(run: Run) -> None:
    black_box(run, "mnist")


@PAPER.table(
    "Table 8",
    "CIFAR-10, ResNet-20 trained by PGD at 8/255, softmax and WNLL under attack",
    small=60,
    paper=300,
    wanted=1,
    published=named(
        f"clean {CIFAR_COLUMNS}",
        softmax=(75.11, 50.89, 46.03, 46.01, 58.73),
        WNLL=(75.53, 55.76, 53.31, 53.26, 63.82),
    ),
)
def table_8(run: Run) -> None:
    robust_rows(run, "cifar10_jpeg")


@PAPER.table(
    "Table 9",
    "the same, attacked by softmax's images",
    small=5,
    paper=20,
    published=named(CIFAR_COLUMNS, WNLL=(55.91, 53.44, 53.35, 65.13)),
)
def table_9(run: Run) -> None:
    black_box(run, "cifar10_jpeg")


@PAPER.table(
    "Table 10",
    "numbers of neighbours (m, n), CIFAR-10 (the paper: ResNet-56)",
    small=40,
    paper=120,
    published=named(
        f"clean {CIFAR_COLUMNS}",
        **{
            "(15, 8)": (79.89, 59.71, 57.85, 56.53, 67.91),
            "(30, 15)": (79.52, 60.50, 58.19, 57.26, 67.93),
            "(45, 23)": (78.92, 59.50, 57.94, 57.06, 66.26),
            "(60, 30)": (77.92, 58.04, 55.80, 54.97, 67.74),
        },
    ),
)
def table_10(run: Run) -> None:
    for neighbors in ((15, 8), (30, 15), (45, 23), (60, 30)):
        robust = Robust(run, "cifar10_jpeg", neighbors)
        run.measure(
            str(neighbors),
            lambda robust=robust: robust_accuracies(run, robust, WNLL),
            **robust.settings,
            tested=run.pick(BATCH, 2000),
        )


NATURAL, ADVERSARIAL = "trained on clean images", "trained by PGD at 0.3"


@PAPER.table(
    "Surrogates",
    "WNLL on MNIST under the published attack and under each of ours, beside softmax",
    small=40,
    paper=40,
    wanted=1,
)
def table_surrogates(run: Run) -> None:
    train, test = run.data("mnist")
    some = first(test, BATCH)
    for training, radii in ((NATURAL, (0.05, 0.1, 0.15)), (ADVERSARIAL, (0.1, 0.2, 0.3))):
        for output in (SOFTMAX, WNLL):
            for epsilon in radii:

                def found(
                    training: str = training, output: str = output, epsilon: float = epsilon
                ) -> dict[str, float]:
                    model = strided(run, training, train)
                    model.layers[-1].phase = "linear" if output == SOFTMAX else "wnll"
                    return accuracies(model, some, by_surrogate(epsilon, output), BATCH)

                run.measure(
                    f"{training}, {output}, epsilon {epsilon:g}", found, dataset="mnist",
                    images="all", epochs=3, tested=BATCH,
                )  # fmt: skip


def strided(run: Run, training: str, train: Split) -> keras.Model:
    """A network of two strided convolutions with a WNLL head, trained by its linear branch."""

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
            # The radius grows from epoch to epoch: at 0.3 from the start nothing is learnt.
            for epoch in range(3):
                attack = kr.attacks.PGD(0.1 * (epoch + 1), num_steps=7)
                robust.compile("adam", kr.losses.AdversarialTraining(attack))
                robust.fit(*train, batch_size=128, verbose=2)
        kr.training.adapt_template(model, *train)

    return run.network(f"mnist, strided, {training}", build, fit)


def by_surrogate(epsilon: float, output: str) -> dict[str, kr.attacks.Attack]:
    """PGD-20: the published attack first, for WNLL through each surrogate; Square last."""

    def pgd(loss: str, surrogate: str | None = None) -> kr.attacks.Attack:
        through = objective(output, surrogate) if surrogate else None
        return kr.attacks.PGD(epsilon, num_steps=20, loss=loss, objective=through)

    square = {"Square": kr.attacks.Square(epsilon, num_queries=500)}
    if output == SOFTMAX:
        return {"PGD": pgd("ce"), "PGD, margin": pgd("margin"), **square}
    return {
        "straight-through (published)": pgd("ce", "straight_through"),
        "linear branch transferred": pgd("ce", "linear"),
        "exact, cross-entropy": pgd("ce", "exact"),
        "exact, margin": pgd("margin", "exact"),
        "soft neighbours": pgd("margin", "soft_neighbors"),
        **square,
    }


# ---- Pictures ---------------------------------------------------------------------------------


@PAPER.table("Figure 5", "images that fool softmax and WNLL, MNIST", small=10, paper=10, wanted=3)
def figure_5(run: Run) -> None:
    fooling_images(run, "mnist")


@PAPER.table(
    "Figure 6", "images that fool softmax and WNLL, CIFAR-10", small=10, paper=10, wanted=3
)
def figure_6(run: Run) -> None:
    fooling_images(run, "cifar10_jpeg")


def fooling_images(run: Run, dataset: str) -> None:
    """Draws clean and perturbed images; the record has the classes that are seen in them."""
    robust = Robust(run, dataset)
    _, test = run.data(dataset)
    x, y = first(test, BATCH)

    def draw() -> dict[str, Any]:
        sheets: dict[str, np.ndarray] = {"clean": x}
        classes: dict[str, np.ndarray] = {}
        for output in (SOFTMAX, WNLL):
            model = robust.trained(output)
            name = f"IFGSM-{robust.setting.num_steps[0]}"
            attacks = {
                name: published_attacks(robust.setting, output)[name],
                "C&W": carlini(robust.setting, output),
            }
            for attack_name, attack in attacks.items():
                result = attack.run(model, x, y, seed=0)
                key = f"{output}, {attack_name}"
                sheets[key] = np.asarray(result.x_adv)
                outputs = model.predict(sheets[key], batch_size=BATCH, verbose=0)
                classes[key] = outputs.argmax(axis=1)
        fooled = np.all([found != y for found in classes.values()], axis=0)
        chosen = np.flatnonzero(fooled)[:5] if fooled.any() else np.arange(5)
        path = run.picture()
        draw_images({key: images[chosen] for key, images in sheets.items()}, path)
        return {
            "labels": y[chosen].tolist(),
            **{key: found[chosen].tolist() for key, found in classes.items()},
        }

    run.measure("images", draw, **robust.settings, tested=BATCH)


@PAPER.table(
    "Figure 7", "accuracy in training with and without 2 features before softmax", small=20,
    paper=60, wanted=3,
)  # fmt: skip
def figure_7(run: Run) -> None:
    for planar in (False, True):
        two = TwoClasses(run, SOFTMAX, planar)
        row = "2 features" if planar else "64 features"
        run.measure(row, two.log, **two.settings, tested=100)


@PAPER.table(
    "Figure 8", "features of clean images of two classes, in 2 dimensions", small=20, paper=60,
    wanted=3,
)  # fmt: skip
def figure_8(run: Run) -> None:
    for row, output, planar, part in (
        ("softmax, 2 features", SOFTMAX, True, "test"),
        ("softmax, principal components", SOFTMAX, False, "test"),
        ("WNLL, training images", WNLL, False, "train"),
        ("WNLL, test images", WNLL, False, "test"),
    ):
        two = TwoClasses(run, output, planar)
        run.measure(row, functools.partial(two.places, part), **two.settings, tested=100)


@PAPER.table(
    "Figure 9", "features of attacked images of two classes, in 2 dimensions", small=20, paper=60,
    wanted=3,
)  # fmt: skip
def figure_9(run: Run) -> None:
    for output in (SOFTMAX, WNLL):
        two = TwoClasses(run, output, False)
        run.measure(output, functools.partial(two.places, "attacked"), **two.settings, tested=100)


@PAPER.table(
    "Figure 10", "the training images nearest to an attacked one", small=15, paper=20, wanted=3
)
def figure_10(run: Run) -> None:
    for dataset in ATTACKED:
        robust = Robust(run, dataset)

        def nearest(robust: Robust = robust) -> dict[str, Any]:
            train, test = run.data(robust.dataset, robust.images)
            x, y = first(test, BATCH)
            model = robust.trained(SOFTMAX)
            attack = published_attacks(robust.setting, SOFTMAX)
            result = list(attack.values())[1].run(model, x, y, seed=0)
            place = int(np.argmax(result.success))
            found = kr.evaluation.nearest_images(
                robust.trained(WNLL), result.x_adv[place : place + 1], *train, batch_size=BATCH
            )
            return {
                "label": int(y[place]),
                "classes of the nearest": np.ravel(found.labels).tolist(),
            }

        run.measure(dataset, nearest, **robust.settings, tested=1)
