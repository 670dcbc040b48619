"""Losses with a mask for the attack."""

import keras
import numpy as np
import pytest

import keras_robust as kr

SHAPE = (4, 4, 1)
MASK = np.zeros(SHAPE)
MASK[1:3, 1:3] = 1
ATTACK = kr.attacks.PGD(0.2, num_steps=3, bounds=None)
LOSSES = {
    "adversarial training": kr.losses.AdversarialTraining,
    "TRADES": kr.losses.TRADES,
    "MART": kr.losses.MART,
    "latent disparity": kr.losses.LatentDisparity,
}


def classifier(rng):
    model = keras.Sequential([
        keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(6, activation="tanh"),
        keras.layers.Dense(3),
    ])  # fmt: skip
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "MART")) for name in LOSSES]
)
def test_the_attack_only_changes_the_masked_part(name):
    """Weights of a black pixel that the attack may not change have no gradient."""
    rng = np.random.default_rng()
    base = classifier(rng)
    x = rng.random((12, *SHAPE)).astype("float32") * (MASK == 0).astype("float32")
    y = rng.integers(0, 3, 12)
    x[..., 0, :] = 0  # The first column is black and outside of the mask.
    model = kr.RobustModel(base)
    model.compile(keras.optimizers.SGD(0.1), LOSSES[name](ATTACK, mask=MASK))
    before = base.layers[1].get_weights()[0].reshape(4, 4, 6)
    model.train_on_batch(x, y)
    change = np.abs(base.layers[1].get_weights()[0].reshape(4, 4, 6) - before).max(axis=2)
    assert (change[:, 0] == 0).all()
    assert (change[1:3, 1:3] > 0).all()  # Black, but changed by the attack.


@pytest.mark.parametrize("name", LOSSES)
def test_get_config_includes_the_mask(name):
    loss = LOSSES[name](ATTACK, mask=MASK)
    again = type(loss).from_config(loss.get_config())
    np.testing.assert_array_equal(again.mask, MASK == 1)


def test_bad_masks():
    rng = np.random.default_rng()
    x, y = rng.random((12, *SHAPE)).astype("float32"), rng.integers(0, 3, 12)
    model = kr.RobustModel(classifier(rng))
    model.compile("sgd", kr.losses.AdversarialTraining(ATTACK, mask=np.ones((5, 5, 1))))
    with pytest.raises(ValueError, match="array as `mask` must broadcast to one example"):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="`mask` must hold 0"):
        kr.losses.AdversarialTraining(ATTACK, mask=np.full(SHAPE, 2))
    with pytest.raises(ValueError, match="`mask` needs an `attack`"):
        kr.losses.LatentDisparity(None, mask=MASK)
