"""Attacks do not have the silent failures that other libraries have."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

ATTACKS = {
    "fgsm": kr.attacks.FGSM(0.1),
    "pgd": kr.attacks.PGD(0.1, num_steps=5),
    "mim": kr.attacks.MIM(0.1, num_steps=5),
    "apgd": kr.attacks.APGD(0.1, num_steps=5),
    "deepfool": kr.attacks.DeepFool(num_steps=10),
    "carlini-wagner": kr.attacks.CarliniWagnerL2(
        learning_rate=0.1, num_steps=20, binary_search_steps=2, initial_const=1.0
    ),
    "square": kr.attacks.Square(0.1, num_queries=20),
    "hop-skip-jump": kr.attacks.HopSkipJump(num_queries=70),
    "ensemble": kr.attacks.Ensemble(
        [kr.attacks.APGD(0.1, num_steps=5), kr.attacks.FAB(0.1, num_steps=3)]
    ),
}


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:32] for values in embedded_data[1])


def in_mixed_precision(model):
    clone = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    clone.set_weights(model.get_weights())
    return clone


def test_mixed_precision_changes_every_image(trained_model, data):
    # In other libraries, gradients underflow in float16 and leave a quarter of images unchanged.
    x, y = data
    model = in_mixed_precision(trained_model)
    attack = kr.attacks.FGSM(0.1)
    function = Classifier(model).compiled("p", lambda model, x: attack.perturb(model, x, y, 0))
    moved = abs(ops.convert_to_numpy(function(x)) - x).reshape(len(x), -1)
    assert (moved.max(1) > 0.09).all()
    # The black background can only become brighter, so not all values change.
    plain = Classifier(trained_model).compiled("p", lambda model, x: attack.perturb(model, x, y, 0))
    expected = abs(ops.convert_to_numpy(plain(x)) - x).reshape(len(x), -1)
    np.testing.assert_allclose((moved > 0).mean(), (expected > 0).mean(), atol=0.02)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_failed_attack_returns_the_original_image_without_success(attack):
    # Class 0 has by far the largest logit everywhere, so no attack can succeed.
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    kernel, _ = model.get_weights()
    model.set_weights([0.01 * kernel, np.array([50, 0, 0, 0], "float32")])
    x = np.random.default_rng(0).uniform(0.2, 0.8, (6, 4, 4, 1)).astype("float32")
    result = attack.run(model, x, np.zeros(6, "int32"), seed=0)
    assert not result.success.any()
    np.testing.assert_array_equal(result.x_adv, x)
    assert (result.norms["l2"] == 0).all()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_logits_with_from_logits_false_are_an_error(attack, trained_model, data):
    config = attack.get_config()
    if "from_logits" not in config:
        attack = kr.attacks.Ensemble([kr.attacks.APGD(0.1, from_logits=False)])
    else:
        attack = type(attack).from_config({**config, "from_logits": False})
    with pytest.raises(ValueError, match="outputs are not probabilities"):
        attack(trained_model, *data)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_tensors_and_one_hot_labels_give_the_same_images(attack, trained_model, data):
    x, y = (values[:8] for values in data)
    expected = attack.run(trained_model, x, y, seed=0).x_adv
    tensors = attack.run(
        trained_model, ops.convert_to_tensor(x), ops.convert_to_tensor(np.eye(10)[y]), seed=0
    )
    np.testing.assert_array_equal(tensors.x_adv, expected)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_work_in_graph_mode(attack, trained_model, data):
    x, y = (values[:8] for values in data)
    function = Classifier(trained_model).compiled(
        attack.key, lambda model, x: attack(model, x, y, seed=0)
    )
    x_adv = ops.convert_to_numpy(function(x))
    success = attack.run(trained_model, x, y, seed=0).success
    predicted = ops.convert_to_numpy(trained_model(x_adv)).argmax(1)
    np.testing.assert_array_equal(predicted != y, success)
    assert success.any()
