"""PGD, FGSM and IFGSM agree with closed forms, stay in their ball, and fool trained models."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

TABLE = {
    "fgsm": kr.attacks.FGSM(0.1),
    "fgsm-l2": kr.attacks.FGSM(0.1, norm="l2"),
    "ifgsm": kr.attacks.IFGSM(0.1, num_steps=3),
    "pgd": kr.attacks.PGD(0.1, num_steps=3),
    "pgd-l2": kr.attacks.PGD(0.1, num_steps=3, norm="l2"),
    "pgd-l1": kr.attacks.PGD(1.0, num_steps=3, norm="l1"),
    "pgd-restarts": kr.attacks.PGD(0.1, num_steps=2, num_restarts=3),
    "pgd-targeted": kr.attacks.PGD(0.1, num_steps=3, targeted=True),
    "pgd-l2-large": kr.attacks.PGD(3.0, num_steps=3, norm="l2"),
    "pgd-margin": kr.attacks.PGD(0.1, num_steps=3, loss="margin"),
    "mim": kr.attacks.MIM(0.1, num_steps=3),
    "mim-l2": kr.attacks.MIM(0.1, num_steps=3, norm="l2"),
    "multi": kr.attacks.MultiTargeted(0.1, num_steps=3),
    "multi-l2": kr.attacks.MultiTargeted(0.1, num_steps=3, norm="l2"),
    "apgd": kr.attacks.APGD(0.1, num_steps=5),
    "apgd-l2": kr.attacks.APGD(0.1, num_steps=5, norm="l2"),
    "apgd-l1": kr.attacks.APGD(1.0, num_steps=5, norm="l1"),
    "apgd-classes": kr.attacks.APGD(0.1, num_steps=5, loss="margin_targeted"),
}
ATTACKS, IDS = list(TABLE.values()), list(TABLE)


def linear_model(num_classes=3, shape=(4, 4, 1), seed=0, scale=1.0):
    """Returns a linear classifier and its weights of shape (features, num_classes)."""
    rng = np.random.default_rng(seed)
    weights = scale * rng.normal(size=(np.prod(shape), num_classes)).astype("float32")
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )
    model.set_weights([weights, np.zeros(num_classes, "float32")])
    return model, weights


def images(num=16, shape=(4, 4, 1), low=0.0, high=1.0, dtype="float32", seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, (num, *shape)).astype(dtype)


def run(attack, *args, **kwargs):
    return ops.convert_to_numpy(attack(*args, **kwargs))


def perturbed(attack, model, x, y, seed=0):
    """Returns the last image for every example, including those on which the attack fails."""
    function = Classifier(model).compiled(attack.key, lambda m, *args: attack.perturb(m, *args))
    return ops.convert_to_numpy(function(x, y, backend.make_seed(seed)))


def norms(delta, norm):
    flat = delta.reshape(len(delta), -1).astype("float64")
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [
        ("float16", (0.0, 1.0)),
        ("float16", (-2.1, 2.6)),
        ("float32", (0.0, 1.0)),
        ("float32", (-2.1, 2.6)),
        ("float64", (0.0, 1.0)),
    ],
)
def test_stays_in_the_ball_and_the_bounds(attack, dtype, bounds):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on")
    model, _ = linear_model()
    x = images(dtype=dtype, low=bounds[0], high=bounds[1])
    x[0], x[1] = bounds
    y = np.arange(len(x)) % 3
    attack = type(attack).from_config({**attack.get_config(), "bounds": bounds})
    x_adv = perturbed(attack, model, x, y)
    assert x_adv.dtype == x.dtype
    assert x_adv.shape == x.shape
    limits = np.array(bounds, dtype)
    assert x_adv.min() >= limits[0]
    assert x_adv.max() <= limits[1]
    # Rounding x_adv to the dtype changes each value by at most half a unit in the last place.
    rounding = float(np.finfo(np.dtype(dtype).type).eps) * max(map(abs, bounds))
    rounding *= {"linf": 1, "l2": np.sqrt(x[0].size), "l1": x[0].size}[attack.norm]
    assert norms(x_adv - x.astype(dtype), attack.norm).max() <= attack.epsilon + rounding
    assert (norms(x_adv - x, attack.norm) > 0).all()


# Without APGD in L2: it returns the image with the largest margin, whose position on the sphere
# depends on rounding.
@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.parametrize(
    "attack",
    [a for i, a in TABLE.items() if i != "apgd-l2"],
    ids=[i for i in IDS if i != "apgd-l2"],
)
def test_closed_form_on_a_linear_binary_model(attack):
    # With two classes the loss is an increasing function of <w, x>, w = w_other - w_y. The worst
    # point of the ball is x + epsilon sign(w) in L-infinity and x + epsilon w / ||w|| in L2. In L1
    # the value with the largest |w_i| changes by epsilon.
    model, weights = linear_model(num_classes=2)
    x, y = images(low=0.4, high=0.6), np.arange(16) % 2
    config = {**attack.get_config(), "epsilon": 0.3}
    if attack.num_steps > 1:
        config |= {"num_steps": 30}
    if "step_size" in config:
        config |= {"step_size": 0.3}
    attack = type(attack).from_config(config)
    w = np.where(y[:, None] == 0, 1, -1) * (weights[:, 1] - weights[:, 0])
    if attack.targeted:
        w = -w
    unit = {
        "linf": np.sign(w),
        "l2": w / np.linalg.norm(w, axis=1, keepdims=True),
        "l1": np.sign(w) * (abs(w) == abs(w).max(axis=1, keepdims=True)),
    }[attack.norm]
    expected = x + 0.3 * unit.reshape(x.shape)
    np.testing.assert_allclose(perturbed(attack, model, x, y), expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_closed_form_on_a_linear_convolution(norm):
    # As above, where w sums the kernels at all positions.
    rng = np.random.default_rng(2)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(2, 3, strides=2, use_bias=False),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    kernel = rng.normal(size=(3, 3, 2, 2)).astype("float32")
    model.set_weights([kernel])
    direction = np.zeros((8, 8, 2))
    for row in (0, 2, 4):
        for column in (0, 2, 4):
            direction[row : row + 3, column : column + 3] += kernel[..., 1] - kernel[..., 0]
    x, y = images(shape=(8, 8, 2), low=0.4, high=0.6), np.arange(16) % 2
    w = np.where(y == 0, 1, -1)[:, None, None, None] * direction
    lengths = np.sqrt((w**2).sum((1, 2, 3), keepdims=True))
    expected = x + 0.3 * (np.sign(w) if norm == "linf" else w / lengths)
    attack = kr.attacks.PGD(0.3, step_size=0.3, num_steps=30, norm=norm)
    found = perturbed(attack, model, x, y)
    untouched = np.broadcast_to(w == 0, x.shape)  # The last row and column have no gradient.
    np.testing.assert_allclose(found[~untouched], expected[~untouched], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.parametrize(
    "attack", [kr.attacks.PGD(2.5, num_steps=40, norm="l1"), kr.attacks.APGD(2.5, norm="l1")]
)
def test_closed_form_in_l1_at_the_bounds(attack):
    # The values go to their bounds one after the other, in the order of |w_i|.
    model, weights = linear_model(num_classes=2)
    x, y = images(), np.arange(16) % 2
    w = np.where(y[:, None] == 0, 1, -1) * (weights[:, 1] - weights[:, 0])
    flat = x.reshape(16, -1).astype("float64")
    room = np.where(w > 0, 1 - flat, flat)
    order = np.argsort(-abs(w), axis=1)
    sorted_room = np.take_along_axis(room, order, axis=1)
    before = np.cumsum(sorted_room, axis=1) - sorted_room
    moved = np.zeros_like(room)
    np.put_along_axis(moved, order, np.clip(2.5 - before, 0, sorted_room), axis=1)
    found = perturbed(attack, model, x, y).reshape(16, -1)
    margins = ((found - flat) * w).sum(axis=1)
    is_pgd = isinstance(attack, kr.attacks.PGD)
    # APGD is less precise, because its shortest steps are a tenth of the radius.
    np.testing.assert_allclose(margins, (moved * abs(w)).sum(axis=1), rtol=1e-3 if is_pgd else 0.05)
    if is_pgd:
        np.testing.assert_allclose(found, flat + np.sign(w) * moved, atol=2e-2)


@pytest.mark.gpu
def test_closed_form_at_the_bounds():
    model, weights = linear_model(num_classes=2)
    x, y = images(), np.arange(16) % 2
    w = np.where(y[:, None] == 0, 1, -1) * (weights[:, 1] - weights[:, 0])
    expected = np.clip(x + 0.5 * np.sign(w).reshape(x.shape), 0, 1)
    for attack in (kr.attacks.FGSM(0.5), kr.attacks.PGD(0.5, num_steps=10)):
        np.testing.assert_allclose(perturbed(attack, model, x, y), expected, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_follows_the_gradient_of_the_cross_entropy(norm):
    # On a linear softmax classifier that gradient is W (p - onehot(y)).
    model, weights = linear_model(num_classes=5)
    x, y = images(low=0.3, high=0.7), np.arange(16) % 5
    logits = x.reshape(16, -1).astype("float64") @ weights
    p = np.exp(logits - logits.max(1, keepdims=True))
    gradient = (p / p.sum(1, keepdims=True) - np.eye(5)[y]) @ weights.T
    if norm == "linf":
        direction = np.sign(gradient)
    else:
        direction = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    expected = x + 0.2 * direction.reshape(x.shape)
    np.testing.assert_allclose(
        perturbed(kr.attacks.FGSM(0.2, norm=norm), model, x, y), expected, atol=1e-5
    )


@pytest.mark.gpu
def test_ifgsm_agrees_with_equation_16():
    model, weights = linear_model(num_classes=4)
    x, y = images(), np.arange(16) % 4
    expected = x.astype("float64")
    for _ in range(5):
        logits = expected.reshape(16, -1) @ weights
        p = np.exp(logits - logits.max(1, keepdims=True))
        gradient = ((p / p.sum(1, keepdims=True) - np.eye(4)[y]) @ weights.T).reshape(x.shape)
        moved = expected + 0.03 * np.sign(gradient)
        expected = np.minimum(1, np.minimum(x + 0.1, np.maximum(0, np.maximum(x - 0.1, moved))))
    x_adv = perturbed(kr.attacks.IFGSM(0.1, step_size=0.03, num_steps=5), model, x, y)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if not a.targeted], ids=[i for i in IDS if "targeted" not in i]
)
def test_raises_the_loss_and_lowers_the_accuracy(attack, trained_model, embedded_data):
    x, y = (values[:128] for values in embedded_data[1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x_adv = attack(trained_model, x, y, seed=0)
    before, after = (trained_model(images) for images in (x, x_adv))
    assert float(loss(y, after)) > float(loss(y, before))
    accuracies = [(ops.convert_to_numpy(z).argmax(1) == y).mean() for z in (before, after)]
    assert accuracies[1] < accuracies[0] - (
        0.3 if attack.norm == "linf" or attack.epsilon > 1 else 0
    )


def test_targeted_attack_reaches_the_target(trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    target = (y + 1) % 10
    attack = kr.attacks.PGD(0.4, num_steps=20, targeted=True)
    classes = ops.convert_to_numpy(trained_model(attack(trained_model, x, target, seed=0))).argmax(
        1
    )
    assert (classes == target).mean() > 0.95


@pytest.mark.slow_on_jax
def test_more_steps_and_restarts_are_stronger(trained_model, embedded_data):
    x, y = (values[:256] for values in embedded_data[1])
    accuracies = [
        kr.evaluation.robust_accuracy(trained_model, x, y, attack=attack)
        for attack in (
            kr.attacks.FGSM(0.08),
            kr.attacks.PGD(0.08, num_steps=10),
            kr.attacks.PGD(0.08, num_steps=10, num_restarts=3),
        )
    ]
    assert accuracies[0] > accuracies[1] >= accuracies[2]


@pytest.mark.slow_on_jax
def test_restarts_take_the_largest_margin(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])

    def margins(num_restarts):
        attack = kr.attacks.PGD(0.01, num_steps=2, num_restarts=num_restarts)
        logits = ops.convert_to_numpy(trained_model(perturbed(attack, trained_model, x, y, 3)))
        others = np.where(np.eye(10, dtype=bool)[y], -np.inf, logits)
        return others.max(1) - logits[np.arange(len(y)), y]

    one, five = margins(1), margins(5)
    assert (five >= one - 1e-5).all()
    assert (five > one + 1e-5).mean() > 0.3


def test_seeds():
    (model, _), x, y = linear_model(), images(), np.arange(16) % 3
    attack = kr.attacks.PGD(0.1, num_steps=2)
    first, again, other = (perturbed(attack, model, x, y, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 0.01
    for large in (2**31, 2**40 + 1):
        assert abs(perturbed(attack, model, x, y, large) - first).max() > 0.01
    y = ops.convert_to_numpy(model(x)).argmax(1)
    attack = kr.attacks.PGD(0.9, num_steps=2)
    np.testing.assert_array_equal(
        run(attack, model, x, y, seed=1), run(attack, model, x, y, seed=1)
    )
    assert abs(run(attack, model, x, y) - run(attack, model, x, y)).max() > 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_random_start_fills_the_ball(norm):
    # A tiny step leaves the random start. The norm of a uniform point of the L2 or L1 ball in d
    # dimensions has mean epsilon d / (d + 1). The values of a uniform point of the cube have mean
    # 0 and standard deviation epsilon / sqrt(3).
    model, _ = linear_model()
    x, y = np.full((4000, 4, 4, 1), 0.5, "float32"), np.zeros(4000, "int32")
    attack = kr.attacks.PGD(0.2, step_size=1e-9, num_steps=1, norm=norm)
    delta = (perturbed(attack, model, x, y) - x).reshape(4000, -1)
    assert abs(delta.mean(0)).max() < 0.02
    if norm == "linf":
        np.testing.assert_allclose(delta.std(), 0.2 / np.sqrt(3), rtol=0.02)
        assert abs(delta).max() > 0.199
    else:
        np.testing.assert_allclose(norms(delta, norm).mean(), 0.2 * 16 / 17, rtol=0.01)


@pytest.mark.slow_on_jax
def test_all_forms_of_labels_give_the_same_images():
    (model, _), x, y = linear_model(), images(), np.arange(16) % 3
    attack = kr.attacks.PGD(0.1, num_steps=2)
    expected = run(attack, model, x, y, seed=0)
    for labels in (y[:, None], np.eye(3)[y], np.eye(3, dtype="int32")[y], y.astype("uint8")):
        np.testing.assert_array_equal(run(attack, model, x, labels, seed=0), expected)


def test_probabilities_and_logits_give_the_same_images(trained_model, embedded_data):
    x, y = (values[:32] for values in embedded_data[1])
    softmax = keras.Sequential([trained_model, keras.layers.Softmax()])
    expected = run(kr.attacks.FGSM(0.1), trained_model, x, y)
    x_adv = run(kr.attacks.FGSM(0.1, from_logits=False), softmax, x, y)
    assert (abs(x_adv - expected) < 1e-6).mean() > 0.99


def test_any_callable_can_be_attacked():
    (model, _), x, y = linear_model(), images(), np.arange(16) % 3
    attack = kr.attacks.PGD(0.1, num_steps=2)
    expected = run(attack, model, x, y, seed=0)
    np.testing.assert_array_equal(
        run(attack, lambda z: model(z, training=False), x, y, seed=0), expected
    )
    robust = kr.RobustModel(model)
    np.testing.assert_array_equal(run(attack, robust, x, y, seed=0), expected)


def test_tensors_can_be_passed():
    (model, _), x, y = linear_model(), images(), np.arange(16) % 3
    attack = kr.attacks.FGSM(0.1)
    np.testing.assert_array_equal(
        run(attack, model, ops.convert_to_tensor(x), ops.convert_to_tensor(y)),
        run(attack, model, x, y),
    )


def test_a_changed_model_is_attacked_with_its_new_weights():
    model, weights = linear_model(num_classes=2)
    x, y = images(low=0.4, high=0.6), np.zeros(16, "int32")
    attack = kr.attacks.FGSM(0.1)
    first = perturbed(attack, model, x, y)
    model.set_weights([-weights, np.zeros(2, "float32")])
    np.testing.assert_allclose(perturbed(attack, model, x, y) - x, x - first, atol=1e-6)


def test_an_attack_is_immutable():
    model, _ = linear_model()
    x, y = images(low=0.4, high=0.6), np.zeros(16, "int32")
    attack = kr.attacks.IFGSM(0.1, num_steps=3)
    run(attack, model, x, y)
    with pytest.raises(AttributeError, match=r"attack.replace\(epsilon=...\)"):
        attack.epsilon = 0.2
    larger = attack.replace(epsilon=0.2)
    assert attack.epsilon == 0.1
    assert larger.get_config() == {**attack.get_config(), "epsilon": 0.2}
    np.testing.assert_allclose(abs(run(larger, model, x, y) - x).max(), 0.2, atol=1e-6)
    with pytest.raises(ValueError, match="no argument `size`"):
        attack.replace(size=0.2)


@pytest.mark.gpu
def test_the_model_is_not_changed():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    before = copy.deepcopy(model.get_weights())
    attack = kr.attacks.PGD(0.1, num_steps=2)
    x, y = images(), np.zeros(16, "int32")
    first = run(attack, model, x, y, seed=0)
    np.testing.assert_array_equal(first, run(attack, model, x, y, seed=0))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_dlr_needs_three_classes():
    x, y = np.full((2, 4), 0.5, "float32"), np.zeros(2, int)
    attack = kr.attacks.PGD(0.1, num_steps=2, loss="dlr")

    def linear(num_classes):
        return lambda x: ops.matmul(x, -np.eye(4, num_classes, dtype="float32"))

    attack.run(linear(3), x, y)
    with pytest.raises(ValueError, match=r"model of 2 classes.*Received: loss='dlr'"):
        attack.run(linear(2), x, y)


def test_epsilon_0_changes_nothing():
    model, _ = linear_model()
    x, y = images(), np.zeros(16, "int32")
    for norm in ("linf", "l2", "l1"):
        for attack in (kr.attacks.PGD(0.0, norm=norm), kr.attacks.APGD(0.0, norm, num_steps=4)):
            np.testing.assert_array_equal(run(attack, model, x, y, seed=0), x)
