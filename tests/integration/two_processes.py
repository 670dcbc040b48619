"""Trains in one process, or as one of two: python two_processes.py FILE [ADDRESS NUMBER]."""

import sys

import keras
import numpy as np

import keras_robust as kr

SIZE, EPOCHS = 32, 3
RNG = np.random.default_rng(0)
X, Y = RNG.random((64, 8, 8, 1), "float32"), RNG.integers(0, 10, 64)
ATTACK = kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=2, random_start=False)
CASES = {
    "adversarial training": (kr.losses.AdversarialTraining(ATTACK), lambda: keras.layers.Dense(10)),
    "TRADES": (kr.losses.TRADES(ATTACK), lambda: keras.layers.Dense(10)),
    "WNLL end to end": (
        kr.losses.GraphInterpolation(),
        lambda: kr.layers.WNLLHead(10, num_neighbors=8, template_size=32),
    ),
}


class Half(keras.utils.PyDataset):
    """Returns the part of each batch for one of `count` processes."""

    def __init__(self, number, count):
        super().__init__()
        self.number, self.count = number, count

    def __len__(self):
        return len(X) // SIZE

    def __getitem__(self, batch):
        size = SIZE // self.count
        begin = batch * SIZE + self.number * size
        return X[begin : begin + size], Y[begin : begin + size]


def make_model(loss, make_head, optimizer):
    keras.utils.set_random_seed(1)
    base = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(16, "tanh")]
    )
    base.add(make_head())
    model = kr.RobustModel(base)
    model.compile(optimizer, loss)
    return model


def own_callbacks(loss):
    """Returns the callbacks. They get all data, so that all processes have the same template."""
    is_wnll = isinstance(loss, kr.losses.GraphInterpolation)
    return [kr.callbacks.TemplateUpdate(X, Y)] if is_wnll else []


def join(address, number):
    """Joins this process with another one."""
    keras.distribution.initialize(address, num_processes=2, process_id=int(number))
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(parallel)
    assert parallel.device_mesh.shape == (2,)


def train(loss, make_head, data):
    model = make_model(loss, make_head, keras.optimizers.SGD(0.2))
    history = model.fit(
        data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=own_callbacks(loss)
    )
    return [*model.get_weights(), np.array(history.history["loss"])]


def main(file, address=None, number=0):
    if address is not None:
        join(address, number)
    data = Half(int(number), 1 if address is None else 2)
    found = {}
    for name, case in CASES.items():
        found |= {f"{name}/{i}": value for i, value in enumerate(train(*case, data))}
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
