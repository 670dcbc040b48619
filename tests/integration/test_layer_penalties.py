"""Losses include the penalties of the model's layers and weights."""

import keras
import numpy as np
import pytest

import keras_robust as kr


class MeanOfInput(keras.layers.Layer):
    """Adds the mean of its input to the loss."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


def make_classifier():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            MeanOfInput(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.5)),
        ]
    )


def logged_losses(loss, data, batch_size=64):
    """Returns the loss in `evaluate` before training, and that of the first training step."""
    x, y = data
    base = make_classifier()
    robust = kr.RobustModel(base)
    robust.compile("sgd", loss)
    evaluated = robust.evaluate(x, y, batch_size=batch_size, verbose=0)
    trained = robust.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0).history["loss"][0]
    return evaluated, trained


def weight_penalty():
    return 0.5 * float((make_classifier().layers[-1].kernel.numpy() ** 2).sum())


def cross_entropy(x, y):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return float(loss(y, make_classifier()(x)))


@pytest.mark.slow_on_jax
def test_trades_adds_the_penalty_of_the_clean_images_once(small_data):
    x, y = small_data
    attack = kr.attacks.PGD(epsilon=0.3, step_size=0.3, num_steps=2)
    expected = cross_entropy(x, y) + x.mean() + weight_penalty()
    evaluated, trained = logged_losses(kr.losses.TRADES(attack, beta=0.0), small_data)
    assert evaluated == pytest.approx(expected, rel=1e-5)
    assert trained == pytest.approx(expected, rel=1e-5)


def test_adversarial_training_adds_the_penalty_of_the_adversarial_images(small_data):
    x, y = small_data
    attack = kr.attacks.IFGSM(epsilon=0.3, step_size=0.3, num_steps=2)
    x_adv = np.asarray(attack(make_classifier(), x, y))
    assert cross_entropy(x_adv, y) > cross_entropy(x, y) + 0.1
    evaluated, trained = logged_losses(kr.losses.AdversarialTraining(attack), small_data)
    assert evaluated == pytest.approx(cross_entropy(x, y) + x.mean() + weight_penalty(), rel=1e-5)
    assert trained == pytest.approx(
        cross_entropy(x_adv, y) + x_adv.mean() + weight_penalty(), rel=1e-5
    )
