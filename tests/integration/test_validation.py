"""`evaluate` and `validation_data` use clean images and the plain loss."""

import keras
import numpy as np

import keras_robust as kr


def clean_results(model, x, y):
    """Returns cross-entropy and accuracy on clean images."""
    logits = model.predict(x, verbose=0).astype("float64")
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return losses.mean(), (logits.argmax(axis=1) == y).mean()


def test_validation_is_clean(make_base, make_robust, loss, small_data):
    x, y = small_data
    robust = make_robust(loss, make_base(batch_norm=True), metrics=["accuracy"])
    history = robust.fit(x, y, validation_data=(x[:40], y[:40]), shuffle=False, verbose=0).history
    expected = clean_results(robust.base_model, x[:40], y[:40])
    np.testing.assert_allclose(
        [history["val_loss"][0], history["val_accuracy"][0]], expected, rtol=1e-5
    )


def test_evaluate_is_clean(make_base, make_robust, loss, small_data):
    x, y = small_data
    robust = make_robust(loss, make_base(batch_norm=True), metrics=["accuracy"])
    robust.fit(x, y, verbose=0)
    expected = clean_results(robust.base_model, x, y)
    np.testing.assert_allclose(robust.evaluate(x, y, verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(robust.test_on_batch(x, y), expected, rtol=1e-5)


def test_evaluate_does_not_change_weights(make_base, make_robust, loss, small_data):
    robust = make_robust(loss, make_base(batch_norm=True))
    robust.fit(*small_data, verbose=0)
    before = robust.get_weights()
    robust.evaluate(*small_data, verbose=0)
    for old, new in zip(before, robust.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_accuracy_in_fit_is_on_the_images_of_the_loss(make_base, make_robust, easy_data):
    # With a learning rate of 0. `accuracy` is adversarial with one loss and clean with the other.
    x, y = easy_data
    base = make_base()
    base.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    base.fit(x, y, epochs=10, verbose=0)
    attack = kr.attacks.PGD(epsilon=0.3, num_steps=3, random_start=False)
    clean = clean_results(base, x, y)[1]
    adversarial = clean_results(base, np.asarray(attack(base, x, y)), y)[1]
    assert adversarial < clean - 0.3

    for loss, expected in (
        (kr.losses.AdversarialTraining(attack), adversarial),
        (kr.losses.TRADES(attack), clean),
    ):
        robust = make_robust(loss, base, keras.optimizers.SGD(0.0), metrics=["accuracy"])
        history = robust.fit(x, y, verbose=0).history
        np.testing.assert_allclose(history["accuracy"], expected, rtol=1e-6)
