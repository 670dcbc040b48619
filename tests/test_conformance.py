"""All public classes have config round trips, documented defaults and a compiled fit."""

import copy
import inspect
import re

import keras
import numpy as np
import pytest
from attack_table import ATTACKS

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

PGD = kr.attacks.PGD(0.1, num_steps=2)
SMALL = (np.full((8, 4, 4, 1), 0.5, "float32"), np.arange(8) % 3)


# At least one object of each public class, if possible with no argument at its default.
OBJECTS = [
    *ATTACKS,
    kr.losses.AdversarialTraining(
        PGD, loss="sparse_categorical_crossentropy", reduction="sum", name="at"
    ),
    kr.losses.AdversarialTraining(PGD, loss=keras.losses.CategoricalHinge()),
    kr.losses.TRADES(
        PGD, beta=2.0, loss="SparseCategoricalCrossentropy", start_stddev=0.01, reduction="sum",
        name="trades",
    ),
    kr.layers.TanhClassifier(
        3, penalty=2.0, scale=0.5, activation="prelu", use_bias=True, norm="spectral",
        kernel_initializer="he_normal", name="head",
    ),
    kr.layers.TanhClassifier(3, activation="relu"),
    kr.layers.TotalVariation(
        drop_rate=0.0, weight=20.0, num_steps=2, seed=3, gradient="exact", name="tvm"
    ),
    kr.attacks.WNLLSurrogate("linear", from_logits=False),
    kr.layers.WNLLHead(
        3, units=5, num_neighbors=4, sigma_neighbor=2, kernel="quartic", template_weight=0.5,
        gradient="straight_through", joint=False, template_size=6, neighbors="scann",
        vote="majority", template_batches=2, name="head",
    ),
    kr.layers.WNLLHead(3, template_size=6, unlabeled_size=2),
    kr.losses.GraphInterpolation(num_folds=2, linear_weight=0.5, reduction="sum", name="gi"),
    kr.losses.GraphInterpolation(
        attack=kr.attacks.PGD(0.1, num_steps=2, objective=kr.attacks.WNLLSurrogate("linear")),
        linear_weight=0.5,
    ),
    kr.losses.MART(PGD, beta=2.0, reduction="sum", name="mart"),
    kr.losses.StabilityTraining(0.5, stddev=0.2, reduction="sum", name="stability"),
    kr.layers.MaxMahalanobisClassifier(3, scale=2.0, name="mmc"),
    kr.losses.MaxMahalanobis(reduction="sum", name="mm"),
    kr.constraints.ParsevalTightness(0.1, sample_rate=0.5),
    kr.losses.DeepDefense(
        2.0, c=5.0, d=2.0, num_steps=2, overshoot=0.1, norm="linf",
        freeze_batch_norm=False, mean=0.25, num_candidates=2, gradient_offset=1e-6, reduction="sum",
        name="dd",
    ),
    kr.losses.FisherInformation(weight=0.1, max_inverse=50.0, reduction="sum", name="fisher"),
    kr.losses.Sum(
        [kr.losses.AdversarialTraining(PGD), kr.losses.FisherInformation()], weights=[0.5, 2.0],
        reduction="sum", name="both",
    ),
    kr.losses.LatentDisparity(
        PGD, weight=0.5, layers=["hidden"], ratio="sample", order=2,
        loss="sparse_categorical_crossentropy", name="hldr",
    ),
    kr.losses.LatentDisparity(kr.attacks.FGSM(0.1)),
    kr.losses.GuidedDenoising(
        PGD, layer="hidden", loss="sparse_categorical_crossentropy", reduction="sum", name="hgd"
    ),
    kr.layers.GuidedDenoiser(widths=[2, 3], name="denoiser"),
    kr.regularizers.AngularPenalty(penalty=2.0, scale=0.5, norm="spectral"),
]  # fmt: skip
IDS = [f"{type(value).__name__}-{index}" for index, value in enumerate(OBJECTS)]

PUBLIC_CLASSES = [
    value
    for module in (
        kr.attacks,
        kr.callbacks,
        kr.constraints,
        kr.datasets,
        kr.layers,
        kr.losses,
        kr.neighbors,
        kr.regularizers,
    )
    for value in vars(module).values()
    if inspect.isclass(value)
] + [kr.RobustModel]
PUBLIC_FUNCTIONS = [
    value
    for module in (kr.evaluation, kr.datasets, kr.training)
    for name, value in vars(module).items()
    if inspect.isfunction(value)
]
BASE_CLASSES = (kr.attacks.Attack, kr.losses.ModelLoss)
ATTACK_PARTS = (kr.attacks.Attack, kr.attacks.BPDA, kr.attacks.WNLLSurrogate)


def config_of(value):
    return keras.saving.serialize_keras_object(value)["config"]


RESULTS = (kr.attacks.AttackResult, kr.attacks.RoundResult)


def test_all_public_classes_are_in_the_table():
    with_config = set(PUBLIC_CLASSES) - {
        kr.RobustModel,
        kr.callbacks.RobustAccuracy,
        kr.callbacks.TemplateUpdate,
        kr.attacks.AttackResult,
        kr.attacks.RoundResult,
        kr.datasets.ArrayDataset,
        kr.neighbors.ExactIndex,
        kr.neighbors.ScannIndex,
    }
    assert {type(value) for value in OBJECTS} == with_config - set(BASE_CLASSES)


@pytest.mark.parametrize("value", OBJECTS, ids=IDS)
def test_config_round_trip(value):
    arguments = inspect.signature(type(value)).parameters
    base = {"name", "trainable", "dtype"} if isinstance(value, keras.layers.Layer) else set()
    config = value.get_config()
    assert set(config) - base == {n for n in arguments if n != "kwargs"} - base
    serialized = keras.saving.serialize_keras_object(value)
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(value)
    assert keras.saving.serialize_keras_object(again) == serialized
    assert config_of(type(value).from_config(value.get_config())) == config_of(value)


@pytest.mark.parametrize("value", OBJECTS, ids=IDS)
def test_deepcopy(value):
    again = copy.deepcopy(value)
    assert again is not value
    assert config_of(again) == config_of(value)


def test_deepcopy_of_a_callback():
    callback = kr.callbacks.RobustAccuracy(PGD, *SMALL, batch_size=4, seed=3, name="val_pgd")
    again = copy.deepcopy(callback)
    np.testing.assert_array_equal(again.x, callback.x)
    assert repr(again.attack) == repr(callback.attack)
    assert (again.batch_size, again.seed, again.name) == (4, 3, "val_pgd")


@pytest.mark.parametrize("value", PUBLIC_CLASSES + PUBLIC_FUNCTIONS, ids=lambda v: v.__name__)
def test_documented_defaults_agree_with_the_signature(value):
    documentation = inspect.getdoc(value)
    if "Args:" not in documentation:
        assert not inspect.signature(value).parameters
        return
    arguments = re.split(r"\n\S", documentation.split("Args:\n")[1])[0]
    entries = re.split(r"\n    (?=[\w*`])", "\n" + arguments)
    documented = {
        entry.split(":")[0].strip(): " ".join(entry.split()) for entry in entries if entry
    }
    for name, parameter in inspect.signature(value).parameters.items():
        if name in ("kwargs", "config"):
            continue
        assert name in documented, f"{name} is not documented"
        if parameter.default is inspect.Parameter.empty:
            assert "Defaults to" not in documented[name], name
            continue
        match = re.search(r"Defaults to (?:`([^`]*)`|an empty)", documented[name])
        assert match, f"the default of {name} is not documented"
        default = parameter.default
        if match[1] is not None:
            assert match[1] == (f'"{default}"' if isinstance(default, str) else repr(default)), name


@pytest.mark.parametrize(
    "value", [v for v in PUBLIC_CLASSES if v not in RESULTS],
    ids=lambda v: v.__name__,
)  # fmt: skip
def test_docstrings_have_raises_and_an_example(value):
    documentation = inspect.getdoc(value)
    assert "raises:" in documentation.lower()
    assert ">>> " in documentation or value in BASE_CLASSES


def trained_objects():
    """Yields all objects to train and save. The second ones of WNLL are slow to compile."""
    seen = set()
    for index, value in enumerate(OBJECTS):
        if not isinstance(value, ATTACK_PARTS):
            is_second = type(value) in seen & {kr.layers.WNLLHead, kr.losses.GraphInterpolation}
            seen.add(type(value))
            marks = [pytest.mark.slow] if is_second else []
            yield pytest.param(value, id=IDS[index], marks=marks)


@pytest.mark.parametrize("value", list(trained_objects()))
def test_fit_and_keras_file(value, tmp_path):
    x, y = SMALL
    head = keras.layers.Dense(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    first = []
    if isinstance(value, kr.layers.TotalVariation | kr.layers.GuidedDenoiser):
        first = [type(value).from_config(value.get_config())]
    elif isinstance(value, keras.layers.Layer):
        head = type(value).from_config(value.get_config())
    elif isinstance(value, keras.regularizers.Regularizer):
        head = keras.layers.Dense(3, kernel_regularizer=value)
    elif isinstance(value, keras.constraints.Constraint):
        head = keras.layers.Dense(3, kernel_constraint=value)
    else:
        loss = value
        if isinstance(value, kr.losses.MaxMahalanobis):
            head = kr.layers.MaxMahalanobisClassifier(3, scale=1.0)
        if isinstance(value, kr.losses.LatentDisparity | kr.losses.GuidedDenoising):
            first = [keras.layers.Dense(3, name="hidden")]
        if isinstance(value, kr.losses.GraphInterpolation):
            head = kr.layers.WNLLHead(3, num_neighbors=4, sigma_neighbor=2, template_size=6)
        if "Hinge" in str(value.get_config().get("loss")):
            y = np.eye(3, dtype="float32")[y]
    if isinstance(head, kr.layers.MaxMahalanobisClassifier):
        first = [keras.layers.Dense(1)]  # The head has no trainable weights.
    layers = [keras.Input((4, 4, 1)), *first, keras.layers.Flatten(), head]
    base = keras.Sequential(layers)
    if isinstance(value, kr.losses.GuidedDenoising):
        base = keras.Sequential(
            [keras.Input((4, 4, 1)), kr.layers.GuidedDenoiser(widths=(2, 3)), base]
        )
        base.layers[-1].trainable = False
    model = kr.RobustModel(base)
    model.compile(optimizer="sgd", loss=loss)
    history = model.fit(x, y, verbose=0, epochs=2).history["loss"]
    assert np.isfinite(history).all()
    assert history[1] != history[0]
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert type(again.loss) is type(model.loss)
    assert config_of(again.loss) == config_of(model.loss)
    losses = [m.fit(x, y, shuffle=False, verbose=0).history["loss"] for m in (again, model)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_data_sets_are_converted_to_arrays():
    data = kr.datasets.load("fashion_mnist_subset", "test").take(10)
    for dataset in (data, data.batch(4)):
        x, y = as_arrays(dataset)
        assert x.shape == (10, 28, 28, 1)
        assert y.shape == (10,)
