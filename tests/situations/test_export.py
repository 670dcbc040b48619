"""An exported model has the predictions of the model, or returns NaN."""

import keras
import numpy as np
import pytest

import keras_robust as kr

tf = pytest.importorskip("tensorflow", reason="SavedModel and TFLite are TensorFlow's")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*`native_serialization`:DeprecationWarning"),
]
layers = keras.layers
rng = np.random.default_rng(0)
X, Y = rng.random((40, 4, 4, 1), "float32"), np.arange(40) % 4
NEW = rng.random((5, 4, 4, 1), "float32")
IS_JAX = keras.backend.backend() == "jax"


def functional():
    image = keras.Input((4, 4, 1))
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(image)))


BASES = {
    "with an input": lambda: keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(4)]
    ),
    "functional": functional,
    "without an input": lambda: keras.Sequential([layers.Flatten(), layers.Dense(4)]),
}


def ending_in(*last):
    return keras.Sequential([keras.Input((4, 4, 1)), *last])


def with_head():
    head = kr.layers.WNLLHead(4, num_neighbors=10, template_size=40)
    model = ending_in(layers.Flatten(), head)
    kr.training.adapt_template(model, X, Y)
    head.joint = False
    return model


def with_total_variation():
    return ending_in(kr.layers.TotalVariation(drop_rate=0.0), layers.Flatten(), layers.Dense(4))


def from_saved_model(model, path):
    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)  # The variables live as long as `loaded`.
    return loaded.serve(tf.constant(NEW)).numpy()


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_saved_model_of_a_robust_model(base, tmp_path):
    model = kr.RobustModel(base())
    model.compile("adam", kr.losses.AdversarialTraining(kr.attacks.FGSM(0.1)))
    model.fit(X, Y, verbose=0)
    expected = model.predict(NEW, verbose=0)
    for number, exported in enumerate((model, model.base_model)):
        outputs = from_saved_model(exported, str(tmp_path / str(number)))
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.skipif(IS_JAX, reason="TensorFlow cannot read JAX's search for neighbours")
def test_saved_model_of_a_wnll_head(tmp_path):
    model = with_head()
    outputs = from_saved_model(model, str(tmp_path / "model"))
    np.testing.assert_allclose(outputs, model.predict(NEW, verbose=0), atol=1e-5)


@pytest.mark.skipif(not IS_JAX, reason="TensorFlow exports the head itself")
def test_saved_model_of_a_wnll_head_returns_nan_on_jax(tmp_path):
    model = with_head()
    assert np.isnan(from_saved_model(model, str(tmp_path / "wnll"))).all()
    model.layers[-1].phase = "linear"
    outputs = from_saved_model(model, str(tmp_path / "linear"))
    np.testing.assert_allclose(outputs, model.predict(NEW, verbose=0), atol=1e-5)


@pytest.mark.skipif(IS_JAX, reason="Keras exports to TFLite from TensorFlow alone")
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("make", [with_head, with_total_variation])
def test_tflite_agrees_with_the_model(make, tmp_path):
    model = make()
    path = str(tmp_path / "model.tflite")
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(model_path=path)
    image, scores = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    for count in (1, len(NEW)):
        interpreter.resize_tensor_input(image["index"], NEW[:count].shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], NEW[:count])
        interpreter.invoke()
        outputs = interpreter.get_tensor(scores["index"])
        np.testing.assert_allclose(outputs, model.predict(NEW[:count], verbose=0), atol=1e-4)
