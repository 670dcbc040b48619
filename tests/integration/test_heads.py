"""Both heads learn in a compiled `fit` with every loss for classifiers."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

L = keras.layers
PGD = kr.attacks.PGD(0.05, num_steps=1)
LOSSES = {
    "adversarial": lambda: kr.losses.AdversarialTraining(PGD),
    "trades": lambda: kr.losses.TRADES(PGD),
    "mart": lambda: kr.losses.MART(PGD),
    "stability": lambda: kr.losses.StabilityTraining(0.1, stddev=0.05),
    "fisher": kr.losses.FisherInformation,
    "mahalanobis": kr.losses.MaxMahalanobis,
    "latent-disparity": lambda: kr.losses.LatentDisparity(PGD),
    "deep-defense": lambda: kr.losses.DeepDefense(num_steps=2, num_candidates=2),
    "sum": lambda: kr.losses.FisherInformation() + kr.losses.AdversarialTraining(PGD),
}
HEADS = {
    "tanh": lambda: kr.layers.TanhClassifier(3, penalty=0.1),
    "wnll": lambda: kr.layers.WNLLHead(3, template_size=30, num_neighbors=8, sigma_neighbor=4),
}


def separable(seed, count=60):
    """Returns images of three classes, each with a bright row."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = rng.uniform(0, 0.3, (count, 3, 4, 1)).astype("float32")
    x[np.arange(count), y] += 0.5
    return x, y


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_under_a_loss(head, name):
    x, y = separable(seed=0)
    model = keras.Sequential(
        [keras.Input((3, 4, 1)), L.Flatten(), L.Dense(12, activation="tanh"), HEADS[head]()]
    )
    callbacks = [kr.callbacks.TemplateUpdate(*separable(seed=1))] if head == "wnll" else []
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.Adam(0.01), LOSSES[name]())
    before = [w.copy() for w in model.layers[1].get_weights()]
    losses = robust.fit(
        x, y, batch_size=20, epochs=25, verbose=0, callbacks=callbacks
    ).history["loss"]  # fmt: skip
    assert np.isfinite(losses).all()
    assert all(
        abs(w - v).max() > 1e-4 for w, v in zip(model.layers[1].get_weights(), before, strict=True)
    )
    assert (model.predict(x, verbose=0).argmax(1) == y).mean() > 0.9
