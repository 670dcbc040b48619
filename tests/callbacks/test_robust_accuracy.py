"""The callback `RobustAccuracy` logs robust accuracy during training."""

import keras
import numpy as np
import pytest

import keras_robust as kr


def make_model():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    return model


@pytest.mark.slow_on_jax
def test_logs_the_value_of_robust_accuracy(embedded_data):
    (x, y), (x_test, y_test) = embedded_data
    attack = kr.attacks.PGD(0.01, num_steps=3)
    model = make_model()
    x_test, y_test = x_test[:100], y_test[:100]
    callback = kr.callbacks.RobustAccuracy(attack, x_test, y_test, batch_size=32, seed=3)
    seen = []
    after = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    history = model.fit(x[:2000], y[:2000], epochs=2, callbacks=[callback, after], verbose=0)
    logged = history.history["val_robust_accuracy"]
    assert [logs["val_robust_accuracy"] for logs in seen] == logged
    assert logged[-1] == kr.evaluation.robust_accuracy(
        model, x_test, y_test, attack=attack, batch_size=32, seed=3
    )
    clean = (model.predict(x_test, verbose=0).argmax(1) == y_test).mean()
    assert 0 < logged[-1] < clean


def test_takes_a_data_set_and_a_name(embedded_data):
    (x, y), (x_test, y_test) = embedded_data
    attack = kr.attacks.FGSM(0.02)
    test = kr.datasets.load("fashion_mnist_subset", "test").take(50)
    callbacks = [
        kr.callbacks.RobustAccuracy(attack, test.batch(20)),
        kr.callbacks.RobustAccuracy(attack, x_test[:50], y_test[:50], name="val_fgsm"),
    ]
    history = make_model().fit(x[:500], y[:500], callbacks=callbacks, verbose=0).history
    assert history["val_robust_accuracy"] == history["val_fgsm"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "pgd"}, "untargeted"),
        ({"attack": kr.attacks.PGD(0.1, targeted=True)}, "untargeted"),
        ({"x": np.full((4, 8, 8, 1), 255.0)}, "inside the attack's `bounds`"),
        ({"y": None}, "`y` must be given"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
    ids=["name", "targeted", "bounds", "labels", "batch_size"],
)
def test_bad_arguments(change, message):
    arguments = {
        "attack": kr.attacks.FGSM(0.1),
        "x": np.zeros((4, 8, 8, 1)),
        "y": np.zeros(4, "int32"),
    }
    with pytest.raises(ValueError, match=message):
        kr.callbacks.RobustAccuracy(**{**arguments, **change})


def test_a_wrong_label_is_found_before_training(small_data):
    x, y = small_data
    model = make_model()
    model.build((None, 8, 8, 1))
    callback = kr.callbacks.RobustAccuracy(kr.attacks.FGSM(0.1), x, y + 10)
    with pytest.raises(ValueError, match="from 0 to 9"):
        model.fit(x, y, callbacks=[callback], verbose=0)
    assert int(model.optimizer.iterations) == 0
