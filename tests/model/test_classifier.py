"""`Classifier` follows changes of the model, and checks its input and outputs once."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model import classifier as module
from keras_robust.model.classifier import Classifier

L = keras.layers
X = np.random.default_rng(0).random((40, 4, 4, 1), "float32")
Y = np.arange(40) % 4


def make(*last):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            L.Normalization(mean=0.0, variance=1.0, name="given"),
            L.Flatten(),
            L.Dense(8, "relu", name="hidden"),
            L.Dropout(0.5, name="dropout"),
            *(last or [L.Dense(4, name="head")]),
        ]
    )


def clean(model, **options):
    attack = kr.attacks.FGSM(0.0, **options)
    report = kr.evaluate(model, X, Y, {"none": attack}, checks=False, verbose=0)
    return report.row("clean").correct


def replace_head(model):
    model.pop()
    model.add(L.Dense(4))
    model.layers[-1].set_weights([-w for w in model.layers[-1].get_weights()])


def change_activation(model):
    model.get_layer("hidden").activation = keras.activations.tanh


def enable_lora(model):
    model.get_layer("hidden").enable_lora(2)
    for weight in model.get_layer("hidden").trainable_weights:
        weight.assign(0.5 * np.random.default_rng(0).normal(size=weight.shape))


CHANGES = {
    "another head": replace_head,
    "another activation": change_activation,
    "lora": enable_lora,
    "quantized": lambda model: model.quantize("int8"),
    "dropout rate": lambda model: setattr(model.get_layer("dropout"), "rate", 0.1),
    "not trainable": lambda model: setattr(model.get_layer("hidden"), "trainable", False),
    "new weights": lambda model: model.set_weights([-w for w in model.get_weights()]),
}


def classes(model, x):
    """Predicts without `predict`, whose compiled function does not follow changes."""
    return ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)


@pytest.mark.slow_on_jax
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_attacks_follow_changes_of_the_model(change):
    model = make()
    attack = kr.attacks.PGD(0.2, num_steps=3, random_start=False)
    attack.run(model, X, Y)
    np.testing.assert_array_equal(clean(model), classes(model, X) == Y)
    change(model)
    np.testing.assert_array_equal(clean(model), classes(model, X) == Y)
    # The result of the attack agrees with the changed model.
    found = attack.run(model, X, Y)
    fooled = classes(model, found.x_adv) != Y
    np.testing.assert_array_equal(found.success, fooled)


def test_predictions_follow_adapted_statistics():
    layer = L.Normalization(axis=None)
    model = keras.Sequential([keras.Input((4, 4, 1)), layer, L.Flatten(), L.Dense(4)])
    for factor in (1.0, 0.01):
        layer.adapt(X * factor)
        expected = ops.convert_to_numpy(model(X))
        np.testing.assert_allclose(Classifier(model).predict(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow_on_jax
def test_training_does_not_change_the_structure():
    model = make()
    structure = Classifier(model).structure
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    callback = kr.callbacks.RobustAccuracy(kr.attacks.FGSM(0.1), X, Y)
    model.compile("adam", loss)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    model.evaluate(X, Y, verbose=0)
    assert Classifier(model).structure == structure
    robust = kr.RobustModel(model)
    structure = Classifier(robust).structure
    robust.compile("adam", kr.losses.AdversarialTraining(kr.attacks.FGSM(0.1)))
    robust.fit(X, Y, verbose=0)
    assert Classifier(robust).structure == structure


def test_a_callable_follows_changes_of_its_closure():
    model = make()
    scale = 1.0

    def scaled(x):
        return scale * model(x)

    first = Classifier(scaled).predict(X)
    scale = -2.0
    np.testing.assert_allclose(Classifier(scaled).predict(X), -2 * first, rtol=1e-5)


@pytest.mark.slow_on_jax
def test_an_evaluation_checks_input_and_outputs_once(monkeypatch):
    counts = {"images": 0, "outputs": 0}
    check_images, predict = module.check_images, Classifier.predict

    def counting_images(x):
        counts["images"] += 1
        return check_images(x)

    def counting_probes(classifier, x, seed=0):
        counts["outputs"] += len(x) == 8
        return predict(classifier, x, seed)

    monkeypatch.setattr(module, "check_images", counting_images)
    monkeypatch.setattr(Classifier, "predict", counting_probes)
    attacks = [kr.attacks.FGSM(0.1), kr.attacks.PGD(0.1, num_steps=2), kr.attacks.MIM(0.1)]
    ensemble = kr.attacks.Ensemble(
        [kr.attacks.APGD(0.1, num_steps=2), kr.attacks.FAB(0.1, num_steps=2)]
    )
    kr.evaluate(make(), X, Y, [*attacks, ensemble], batch_size=20, checks=False, verbose=0)
    assert counts == {"images": 1, "outputs": 1}


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("last", ["sigmoid", "softmax"])
def test_the_last_activation_determines_from_logits(last):
    heads = {
        "in the layer": [L.Dense(4, last)],
        "a layer of its own": [L.Dense(4), L.Activation(last)],
    }
    for head in heads.values():
        model = make(*head)
        attack = kr.attacks.PGD(0.3, num_steps=5, from_logits=False, random_start=False)
        messages = set()
        for number in range(20):
            one = slice(number, number + 1)
            attack.run(model, X[one], Y[one], seed=0)
            with pytest.raises(ValueError, match=f"ends in a {last}") as error:
                attack.replace(from_logits=True).run(model, X[one], Y[one])
            messages.add(str(error.value))
        assert len(messages) == 1
        # The attack uses the logits, as for the same network without the activation.
        logits = make(L.Dense(4))
        logits.set_weights(model.get_weights())
        expected = attack.replace(from_logits=True).run(logits, X, Y)
        np.testing.assert_allclose(attack.run(model, X, Y).x_adv, expected.x_adv, atol=1e-6)
    with pytest.raises(ValueError, match="are not probabilities"):
        attack.run(make(), X, Y)


def test_logits_may_look_like_probabilities():
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(2)])
    model.set_weights([np.zeros((16, 2)), np.full(2, 0.5)])
    kr.attacks.FGSM(0.1).run(model, X, Y % 2)


def two_outputs():
    x = keras.Input((4, 4, 1))
    h = L.Flatten()(x)
    return keras.Model(x, {"logits": L.Dense(4)(h), "features": h})


def two_inputs():
    x, z = keras.Input((4, 4, 1)), keras.Input((3,))
    return keras.Model([x, z], L.Dense(4)(L.Concatenate()([L.Flatten()(x), z])))


class ReturnsTuple(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.head = L.Flatten(), L.Dense(4)

    def call(self, x):
        return self.head(self.flat(x)), x


ATTACK = kr.attacks.FGSM(0.1)
REMEDY = r'keras.Model\(m.input, m.output\["logits"\]\)'


def fit(model, x, y):
    robust = kr.RobustModel(model)
    robust.compile("sgd", kr.losses.AdversarialTraining(ATTACK))
    robust.fit(x, y, verbose=0)


USES = {
    "attack": lambda model, x, y: ATTACK(model, x, y),
    "evaluate": lambda model, x, y: kr.evaluate(model, x, y, [ATTACK], verbose=0),
    "check": lambda model, x, y: kr.evaluation.check(model, x, y, attack=ATTACK, verbose=0),
    "rho": lambda model, x, y: kr.evaluation.rho(model, x, attack=ATTACK, verbose=0),
    "noise": lambda model, x, y: kr.evaluation.noise_accuracy(model, x, y, stddevs=[0.1]),
    "fit": fit,
}


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("make_model", [two_outputs, two_inputs, ReturnsTuple])
def test_several_inputs_or_outputs_are_an_error(use, make_model):
    x = [X, np.zeros((40, 3), "float32")] if make_model is two_inputs else X
    with pytest.raises(ValueError, match=REMEDY):
        use(make_model(), x, Y)


def test_one_input_and_output_in_a_structure():
    x = keras.Input((4, 4, 1), name="image")
    head = L.Dense(4)
    plain = keras.Model(x, head(L.Flatten()(x)))
    expected = ATTACK.run(plain, X, Y, seed=0).x_adv
    in_dicts = keras.Model({"image": x}, {"logits": head(L.Flatten()(x))})
    in_lists = keras.Model([x], [head(L.Flatten()(x))])
    for model in (in_dicts, in_lists):
        for images, labels in ((X, Y), ([X], [Y]), ({"image": X}, {"logits": Y})):
            np.testing.assert_array_equal(ATTACK.run(model, images, labels, seed=0).x_adv, expected)
            assert kr.evaluate(model, images, labels, [ATTACK], verbose=0, checks=False)
    for images, labels in (([X], [Y]), ({"image": X}, Y)):
        fit(in_dicts, images, labels)


ATTACKS = [
    kr.attacks.PGD(0.2, num_steps=3),
    kr.attacks.MIM(0.2, num_steps=3, norm="l2"),
    kr.attacks.APGD(0.2, num_steps=5),
    kr.attacks.MultiTargeted(0.2, num_steps=3),
    kr.attacks.FAB(num_steps=5, norm="l2"),
    kr.attacks.DeepFool(),
    kr.attacks.CarliniWagnerL2(num_steps=10, binary_search_steps=2),
    kr.attacks.Square(0.2, num_queries=20, norm="l2"),
    kr.attacks.GaussianNoise(0.2),
]


# By default, JAX computes in float32 instead of float64, and warns.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64"),
                                    ("float16", "float32")], ids=str)  # fmt: skip
def test_images_and_models_of_other_precision(attack, dtypes):
    images, layer = dtypes
    model, reference = make(L.Dense(4, dtype=layer)), make()
    reference.set_weights(model.get_weights())
    x = X.astype("float16").astype(images)
    found = attack.run(model, x, Y, seed=0)
    assert found.x_adv.dtype == images
    predicted = model.predict(found.x_adv, verbose=0).argmax(axis=1)
    assert (found.success == (predicted != Y)).mean() > 0.9
    expected = attack.run(reference, x.astype("float32"), Y, seed=0).success.mean()
    assert abs(found.success.mean() - expected) <= 0.15


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integer_images_are_an_error_everywhere(dtype):
    x = (255 * X).astype(dtype)
    for use in USES.values():
        with pytest.raises(ValueError, match="must be floating"):
            use(make(), x, Y)
    with pytest.raises(ValueError, match="must be floating"):
        ATTACK.perturb(make(), ops.convert_to_tensor(x), Y, 0)


LOSSES = {
    "adversarial training": lambda: kr.losses.AdversarialTraining(ATTACK),
    "TRADES": lambda: kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=2)),
    "MART": lambda: kr.losses.MART(ATTACK),
    "Deep Defense": lambda: kr.losses.DeepDefense(weight=1.0, num_steps=2),
    "latent disparity": lambda: kr.losses.LatentDisparity(ATTACK),
    "stability": lambda: kr.losses.StabilityTraining(0.1, 0.1),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")], ids=str)
def test_losses_for_images_and_models_of_other_precision(loss, dtypes):
    values = {}
    for images, layer in (dtypes, ("float32", "float32")):
        keras.utils.set_random_seed(1)
        model, reference = make(L.Dense(4, dtype=layer)), make()
        model.set_weights(reference.get_weights())
        robust = kr.RobustModel(model)
        robust.compile(keras.optimizers.SGD(0.0), loss())
        values[images, layer] = robust.fit(X.astype(images), Y, verbose=0).history["loss"]
    np.testing.assert_allclose(values[dtypes], values["float32", "float32"], rtol=0.2)


def test_seed_generators_are_found_by_their_type():
    class Noisy(L.Layer):
        """Adds noise by a generator in a list, whose state has another name."""

        def __init__(self):
            super().__init__()
            self.generators = [keras.random.SeedGenerator(3, name="mine")]

        def call(self, x):
            return x + keras.random.normal(ops.shape(x), seed=self.generators[0])

    model = keras.Sequential([keras.Input((4, 4, 1)), Noisy(), L.Flatten(), L.Dense(4)])
    classifier = Classifier(model)
    assert len(classifier.random_state) == 1
    first, second, other = (classifier.predict(X, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert abs(first - other).max() > 1e-3


def test_compiled_functions_are_reused_until_the_structure_changes():
    model, calls = make(), []

    def counted(classifier, x):
        calls.append(1)
        return classifier.outputs(x)

    for _ in range(2):
        Classifier(model).compiled("noted", counted)(X)
    once = len(calls)
    assert once == {"tensorflow": 1, "jax": 2}[keras.backend.backend()]
    change_activation(model)
    Classifier(model).compiled("noted", counted)(X)
    assert len(calls) == 2 * once
    assert (keras.backend.backend() == "tensorflow") == backend.DYNAMIC_BATCH
