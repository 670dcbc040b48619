"""The classifier on tanh features agrees with NumPy, and its logits are bounded."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 7)).astype("float32")


def activations(slope):
    return {
        "tanh": np.tanh,
        "relu": lambda h: np.maximum(h, 0),
        "leaky_relu": lambda h: np.where(h > 0, h, 0.2 * h),
        "prelu": lambda h: np.where(h > 0, h, slope * h),
    }


@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu", "prelu"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_output_agrees_with_numpy(activation, use_bias, error_of_terms):
    layer = kr.layers.TanhClassifier(4, activation=activation, use_bias=use_bias)
    layer.build((None, 7))
    weights = [RNG.normal(size=w.shape).astype("float32") for w in layer.weights]
    layer.set_weights(weights)
    by_name = {w.name: value for w, value in zip(layer.weights, weights, strict=True)}
    assert set(by_name) == {"kernel"} | ({"bias"} if use_bias else set()) | (
        {"alpha"} if activation == "prelu" else set()
    )
    features = activations(by_name.get("alpha"))[activation](X)
    expected = features @ by_name["kernel"] + by_name.get("bias", 0)
    bound = 1e-5 + error_of_terms * (abs(features) @ abs(by_name["kernel"]))
    assert (abs(ops.convert_to_numpy(layer(X)) - expected) < bound).all()
    assert layer.compute_output_shape((None, 7)) == (None, 4)


def test_the_loss_includes_the_penalty():
    layer = kr.layers.TanhClassifier(4, penalty=3.0, scale=0.2)
    layer(X)
    penalty = kr.regularizers.AngularPenalty(3.0, 0.2)
    np.testing.assert_allclose(
        [float(loss) for loss in layer.losses], [float(penalty(layer.kernel))], rtol=1e-6
    )
    bias = kr.layers.TanhClassifier(4, use_bias=True)
    bias(X)
    assert len(bias.losses) == 1


def test_mixed_float16():
    layer = kr.layers.TanhClassifier(4, activation="prelu", dtype="mixed_float16")
    assert keras.backend.standardize_dtype(layer(X).dtype) == "float16"
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {"float32"}
    assert all(np.isfinite(float(loss)) for loss in layer.losses)


def test_training_bounds_the_logits(embedded_data):
    # If the penalty is 0, each weight vector has length s, so |logit| <= s sqrt(P).
    (x, y), (x_test, y_test) = embedded_data
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(100),
            kr.layers.TanhClassifier(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(x, y, batch_size=128, epochs=10, verbose=0)
    logits = model.predict(x_test, verbose=0)
    assert (logits.argmax(1) == y_test).mean() > 0.75
    lengths = np.linalg.norm(ops.convert_to_numpy(model.layers[-1].kernel), axis=0)
    assert abs(lengths - 0.1).max() < 0.03
    assert abs(logits).max() <= lengths.max() * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"num_classes": 2.5}, "`num_classes`"),
        ({"penalty": -1.0}, "`penalty`"),
        ({"scale": -1.0}, "`scale`"),
        ({"activation": "gelu"}, "`activation`.*'tanh', 'relu', 'prelu', 'leaky_relu'"),
        ({"norm": "l2"}, "`norm`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.layers.TanhClassifier(**{"num_classes": 4, **arguments})


def test_theorem_1_needs_enough_features():
    assert kr.layers.TanhClassifier(8)(X).shape == (5, 8)
    with pytest.raises(ValueError, match=r"one more than the number of features.*num_classes=9"):
        kr.layers.TanhClassifier(9)(X)


def test_images_must_be_flattened():
    with pytest.raises(ValueError, match="expected ndim=2"):
        kr.layers.TanhClassifier(4)(np.zeros((2, 4, 4, 1)))
