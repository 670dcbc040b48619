"""Trains models with a WNLL head on one device and on two: python distributed_wnll.py FILE."""

import sys

import keras
import numpy as np
from distributed_training import BACKEND, set_up, two_devices

import keras_robust as kr

RNG = np.random.default_rng(0)
Y = np.arange(96) % 3
X = np.clip(RNG.uniform(0.2, 0.8, (3, 6))[Y] + 0.2 * RNG.normal(size=(96, 6)), 0, 1)
X = X.astype("float32")
# Separate data, because rounding would decide on the edges of queries that are template points.
TEMPLATE = X[48:], Y[48:]
X, Y = X[:48], Y[:48]


def make_model():
    keras.utils.set_random_seed(1)
    head = kr.layers.WNLLHead(3, units=8, num_neighbors=8, sigma_neighbor=4, template_size=30)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh"), head])


def fit(model, x, y, **arguments):
    """Trains two steps on the whole batch. Returns losses, weights and predictions."""
    size = len(x)
    history = model.fit(x, y, batch_size=size, epochs=2, shuffle=False, verbose=0, **arguments)
    arrays = {name: np.array(values) for name, values in history.history.items()}
    for number, weight in enumerate(model.weights):
        # The copies of all replicas.
        copies = getattr(weight.value, "values", [weight.value])
        arrays[f"weight_{number}"] = np.stack([np.asarray(copy) for copy in copies])
    return arrays | {"predictions": model.predict(X, batch_size=size, verbose=0)}


def end_to_end(x, y):
    """Trains with folds of the batch, and updates the template."""
    model = kr.RobustModel(make_model())
    model.compile(keras.optimizers.SGD(0.2), kr.losses.GraphInterpolation(linear_weight=1.0))
    return fit(model, x, y, callbacks=[kr.callbacks.TemplateUpdate(*TEMPLATE)])


def in_the_wnll_phase(x, y):
    """Trains on log u with an ordinary loss, first with `joint=False`, then with `joint=True`."""
    model = make_model()
    kr.training.adapt_template(model, *TEMPLATE)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.layers[-1].joint = False
    separate = fit(model, x, y)
    model.layers[-1].joint = True
    return {"separate": separate, "joint": fit(model, x, y)}


def run(x, y):
    return {"end_to_end": end_to_end(x, y), **in_the_wnll_phase(x, y)}


def main(file):
    x, y = X[:24], Y[:24]
    one = run(x, y)
    if BACKEND == "tensorflow":
        # On TensorFlow each replica builds the graph of its half, on JAX of the whole batch.
        x, y = np.tile(x, (2, 1)), np.tile(y, 2)
    with two_devices():
        two = run(x, y)
    results = {
        f"{name}/{training}/{key}": value
        for name, trainings in (("one", one), ("two", two))
        for training, arrays in trainings.items()
        for key, value in arrays.items()
    }
    np.savez(file, **results)


if __name__ == "__main__":
    set_up()
    main(sys.argv[1])
