"""A ResNet for airplanes and automobiles, whose features are plotted in two dimensions."""

import dataclasses
from typing import Any

import keras
import numpy as np
from judging import WNLL, correct, objective
from networks import CROSS_ENTROPY, resnet, with_fast_statistics
from tables import Run, Split

import keras_robust as kr
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.model.classifier import Classifier

L = keras.layers


@dataclasses.dataclass
class TwoClasses:
    """The network whose features the papers plot.

    It has 1,000 training images and 100 test images per class.

    Args:
        run: `Run`.
        output: SOFTMAX or WNLL.
        planar: whether to add a dense layer of 2 features before the output. Defaults to `False`.
    """

    run: Run
    output: str
    planar: bool = False

    @property
    def epochs(self) -> int:
        return self.run.pick(15, 200)

    @property
    def depth(self) -> int:
        return self.run.pick(20, 56)

    @property
    def name(self) -> str:
        features = "2 features" if self.planar else "64 features"
        size = f"{features}, {self.epochs} epochs, momentum 0.9"
        return f"two classes, ResNet-{self.depth}, {self.output}, {size}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"dataset": "cifar10_jpeg", "images": 2000, "epochs": self.epochs, "tested": 200}

    def data(self) -> tuple[Split, Split]:
        splits = []
        for (x, y), count in zip(self.run.data("cifar10_jpeg"), (1000, 100), strict=True):
            rows = np.concatenate([np.flatnonzero(y == label)[:count] for label in (0, 1)])
            rows = np.random.default_rng(0).permutation(rows)
            splits.append((x[rows], y[rows]))
        return splits[0], splits[1]

    def trained(self) -> keras.Model:
        return self.run.network(self.name, self.build, self.fit)

    def log(self) -> dict[str, list[float]]:
        self.trained()
        return self.run.training_log(self.name)

    def build(self) -> keras.Model:
        head: list[Any] = [L.Dense(2, name="plane")] if self.planar else []
        if self.output == WNLL:
            head.append(
                kr.layers.WNLLHead(2, units=64, template_size=500, gradient="straight_through")
            )
        else:
            head.append(L.Dense(2))
        return with_fast_statistics(resnet(self.depth, (32, 32, 3), head))

    def fit(self, model: Any, callbacks: list[Any]) -> None:
        train, test = self.data()
        if self.output == WNLL:
            kr.training.fit_wnll(
                model, *train, passes=1, linear_epochs=self.epochs, wnll_epochs=3, verbose=2,
                linear_optimizer=lambda number, steps: keras.optimizers.Adam(1e-3),
            )  # fmt: skip
            return
        model.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
        model.fit(
            *train, batch_size=128, epochs=self.epochs, verbose=2, validation_data=test,
            callbacks=callbacks,
        )  # fmt: skip

    def images(self, part: str, epsilon: float) -> Split:
        """Returns images and labels.

        Args:
            part: "train", "test", "attacked" (test images attacked by FGSM), or "attacked, TVM"
                (the same, reconstructed by TVM).
            epsilon: radius of the attack.
        """
        train, (x, y) = self.data()
        if part in ("train", "test"):
            return train if part == "train" else (x, y)
        attack = kr.attacks.FGSM(epsilon, objective=objective(self.output))
        x = perturbed_images(Classifier.of(self.trained()), x, y, attack, len(x), 0)
        if part == "attacked, TVM":
            x = keras.ops.convert_to_numpy(kr.layers.TotalVariation(seed=0)(x))
        return x, y

    def places(self, part: str, epsilon: float = 8 / 255) -> dict[str, Any]:
        """Returns the accuracy, the x and y of the features in two dimensions, and their classes.

        Features of more dimensions are projected to their first two principal components.
        """
        model, (x, y) = self.trained(), self.images(part, epsilon)
        layer = "plane" if self.planar else "features"
        found = kr.evaluation.features(model, x, layer=layer, batch_size=200)
        if not self.planar:
            centered = found - found.mean(axis=0)
            found = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
        right = correct(model, (x, y), 200)
        return {
            "accuracy": float(right.mean()),
            "places": np.round(np.asarray(found.T, float), 3).tolist(),
            "classes": y.tolist(),
        }
