"""End-to-end training of a WNLL head, compared with softmax and with the papers' schedule."""

from typing import Any

import keras
from networks import CROSS_ENTROPY
from tables import Split

import keras_robust as kr

L = keras.layers
NUM_IMAGES, BATCH_SIZE = 1000, 334
METHODS = (
    "softmax, a third of the epochs",
    "softmax",
    "WNLL on softmax features",
    "alternating",
    "end to end",
    "end to end + linear",
    "end to end, buffer block",
)


def two_convolutions(shape: tuple[int, ...], head: Any) -> keras.Model:
    """Builds a small CNN that ends with `head`."""
    layers = [L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D()]
    layers += [L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(), L.Flatten()]
    return keras.Sequential([keras.Input(shape), *layers, head])


def adam(num_steps: int) -> keras.optimizers.Adam:
    """Returns Adam with cosine decay to 0, which is the same for softmax and end to end."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, num_steps))


def end_to_end(
    method: str,
    train: Split,
    epochs: int,
    seed: int,
    attack: kr.attacks.Attack | None = None,
    linear_weight: float = 1.0,
) -> keras.Model:
    """Trains a network of two convolutions by one of the `METHODS`.

    Every method trains for `epochs` epochs in total, or for a third of them if its name says so.
    With an `attack`, "softmax" and "end to end" are adversarial training. `linear_weight` is the
    weight of the linear branch's loss in "end to end + linear".
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
        robust.compile(optimizer=adam(num_steps(BATCH_SIZE)), loss=loss)
        robust.fit(*train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    return model
