"""Deep Defense agrees with closed forms on linear models, and with finite differences."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.losses.step import Step, step_scope

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (12, 2, 3, 1)).astype("float32")
Y = np.arange(12) % 3
WEIGHTS = RNG.normal(size=(6, 3)).astype("float32")


def linear_model(weights=WEIGHTS):
    model = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(weights.shape[1], use_bias=False),
        ]
    )
    model.set_weights([weights])
    return model


def smooth_model(width=7, **dtype):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((2, 3, 1), **dtype),
            keras.layers.Flatten(**dtype),
            keras.layers.Dense(width, activation="tanh", name="hidden", **dtype),
            keras.layers.Dense(3, name="logits", **dtype),
        ]
    )
    model.set_weights([2 * w + 0.1 for w in model.get_weights()])
    return model


def rho_of(model, loss, x=X, y=Y):
    x = ops.convert_to_tensor(x)
    return ops.convert_to_numpy(loss.rho(Step(model, *loss.prepare(model, x, y, None))))


def cross_entropy(logits, y=Y):
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]


def value_of(loss, model, x=X, y=Y, sample_weight=None):
    """Computes the loss of a batch as in a training step."""
    x = ops.convert_to_tensor(x)
    step = Step(
        model, *loss.prepare(model, x, ops.convert_to_tensor(y), None), training=True, loss=loss
    )
    with step_scope(step):
        return float(loss(y, loss.forward(step), sample_weight=sample_weight))


# A linear model needs one step: rho = (1 + overshoot) |z_k - z_y| / ||w_k - w_y||_q / ||x||_p. Here
# k is the nearest class for correct examples, and the most likely one for the others.
def linear_rho(x, y, weights, norm, overshoot=0.02, mean=0.0):
    x, weights = x.reshape(len(x), -1).astype("float64"), weights.astype("float64")
    z, order = x @ weights, {"l2": 2, "linf": 1}[norm]
    rho, correct = np.zeros(len(x)), z.argmax(1) == y
    for i in range(len(x)):
        others = [k for k in range(weights.shape[1]) if k != y[i]]
        distances = [
            abs(z[i, k] - z[i, y[i]]) / np.linalg.norm(weights[:, k] - weights[:, y[i]], order)
            for k in others
        ]
        index = np.argmin(distances) if correct[i] else np.argmax(z[i, others])
        size = np.linalg.norm(x[i] - mean, {"l2": 2, "linf": np.inf}[norm])
        rho[i] = (1 + overshoot) * distances[index] / size
    return rho, correct


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_step_of_a_linear_model(norm):
    # With two classes, so that the step cannot lead to a third class.
    weights, y = WEIGHTS[:, :2], Y % 2
    loss = kr.losses.DeepDefense(norm=norm, gradient_offset=0.0, mean=0.3, overshoot=0.05)
    expected, correct = linear_rho(X, y, weights, norm, overshoot=0.05, mean=0.3)
    assert 2 < correct.sum() < 10
    np.testing.assert_allclose(rho_of(linear_model(weights), loss, X, y), expected, rtol=1e-4)


def test_nearest_class_of_several():
    loss = kr.losses.DeepDefense(num_steps=1, gradient_offset=0.0)
    expected, correct = linear_rho(X, Y, WEIGHTS, "l2")
    assert 2 < correct.sum() < 10
    np.testing.assert_allclose(rho_of(linear_model(), loss), expected, rtol=1e-4)


def test_two_candidates_are_the_label_and_the_most_likely_other_class():
    loss = kr.losses.DeepDefense(num_steps=1, gradient_offset=0.0, num_candidates=2)
    x = X.reshape(12, -1).astype("float64")
    z, w = x @ WEIGHTS, WEIGHTS.astype("float64")
    z_others = np.where(np.eye(3)[Y] > 0, -np.inf, z)
    k = z_others.argmax(1)
    length = np.linalg.norm(w[:, k] - w[:, Y], axis=0)
    expected = 1.02 * abs(z[np.arange(12), k] - z[np.arange(12), Y]) / length
    np.testing.assert_allclose(
        rho_of(linear_model(), loss), expected / np.linalg.norm(x, axis=1), rtol=1e-4
    )


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    "y", [Y % 2, (Y % 2)[:, None], np.eye(2, dtype="float32")[Y % 2]], ids=["", "1", "hot"]
)
def test_value_on_a_linear_binary_model(y):
    weights = WEIGHTS[:, :2]
    rho, correct = linear_rho(X, Y % 2, weights, "l2")
    penalty = np.where(correct, np.exp(-2 * rho), np.exp(3 * rho))
    loss = kr.losses.DeepDefense(weight=0.7, c=2.0, d=3.0, gradient_offset=0.0)
    z = X.reshape(12, -1) @ weights
    expected = cross_entropy(z, Y % 2) + 0.7 * penalty
    found = value_of(loss, linear_model(weights), y=y)
    assert found == pytest.approx(expected.mean(), rel=1e-4)


def test_the_penalty_grows_linearly_for_exponents_greater_than_five():
    weights, y = WEIGHTS[:, :2], Y % 2
    rho, correct = linear_rho(X, y, weights, "l2")
    exponent = np.where(correct, -25 * rho, 60 * rho)
    assert sum(exponent < 5) > 3
    assert sum(exponent > 6) > 1
    penalty = np.where(exponent < 5, np.exp(exponent), np.exp(5) * (exponent - 4))
    expected = cross_entropy(X.reshape(12, -1) @ weights, y) + 15 * penalty
    loss = kr.losses.DeepDefense(d=60.0, gradient_offset=0.0)
    assert value_of(loss, linear_model(weights), y=y) == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_lengths_are_at_least_a_tenth_of_the_mean_length(norm):
    """Its length after subtracting `mean` is close to 0. The ratios of others do not change."""
    weights, y = WEIGHTS[:, :2], Y % 2
    x = X.copy()
    x[3], x[8], x[10] = 0.4, 0.4001, 0.45
    loss = kr.losses.DeepDefense(norm=norm, gradient_offset=0.0, mean=0.4)
    rho, _ = linear_rho(x + 1e-9, y, weights, norm, mean=0.4)
    order = {"l2": 2, "linf": np.inf}[norm]
    sizes = np.linalg.norm((x - 0.4).reshape(12, -1), order, axis=1)
    expected = rho * sizes / np.maximum(sizes, 0.1 * sizes.mean())
    assert (sizes < 0.1 * sizes.mean()).sum() == 2
    found = rho_of(linear_model(weights), loss, x, y)
    np.testing.assert_allclose(np.delete(found, 3), np.delete(expected, 3), rtol=1e-3)
    assert 0 < found[3] < 10


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_rho_of_misclassified_examples_is_at_most_10():
    """Greater values have no gradient."""
    weights = WEIGHTS[:, :2]
    black = np.zeros((4, 2, 3, 1), "float32")
    model = keras.Sequential(
        [keras.Input((2, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([weights, np.array([0.3, 0.0], "float32")])
    values = [cross_entropy(np.tile([[0.3, 0.0]], (4, 1)), np.full(4, k)).mean() for k in (0, 1)]
    loss = kr.losses.DeepDefense(weight=1.0)
    found = [value_of(loss, model, black, np.full(4, k)) for k in (0, 1)]
    np.testing.assert_allclose(found, [values[0], values[1] + np.exp(5) * 46], rtol=1e-4)
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.SGD(1.0), loss)
    robust.fit(black, np.ones(4, "int32"), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], weights)
    p = np.exp(0.3) / (1 + np.exp(0.3))
    np.testing.assert_allclose(model.get_weights()[1], [0.3 - p, p], rtol=1e-4)


@pytest.mark.slow_on_jax
def test_reduction_and_sample_weight():
    weights, y = WEIGHTS[:, :2], Y % 2
    rho, correct = linear_rho(X, y, weights, "l2")
    penalty = np.where(correct, np.exp(-25 * rho), np.exp(5 * rho))
    expected = cross_entropy(X.reshape(12, -1) @ weights, y) + 15 * penalty
    loss = kr.losses.DeepDefense(gradient_offset=0.0, reduction="sum")
    assert value_of(loss, linear_model(weights), y=y) == pytest.approx(expected.sum(), rel=1e-4)
    factors = RNG.uniform(0, 2, 12).astype("float32")
    found = value_of(
        kr.losses.DeepDefense(gradient_offset=0.0), linear_model(weights), y=y,
        sample_weight=factors,
    )  # fmt: skip
    assert found == pytest.approx((factors * expected).mean(), rel=1e-4)


def test_gradient_on_a_linear_binary_model():
    # rho = (1 + o) |x' v| / (||v|| ||x||) with v = w_1 - w_0, differentiated in v by hand.
    weights, y = WEIGHTS[:, :2].copy(), Y % 2
    x = X.reshape(12, -1).astype("float64")
    v = (weights[:, 1] - weights[:, 0]).astype("float64")
    rho, correct = linear_rho(X, y, weights, "l2")
    sizes, length = np.linalg.norm(x, axis=1), np.linalg.norm(v)
    rho_gradient = 1.02 * np.sign(x @ v)[:, None] * (x / length - np.outer(x @ v, v) / length**3)
    rho_gradient /= sizes[:, None]
    slope = np.where(correct, -2 * np.exp(-2 * rho), 3 * np.exp(3 * rho))
    expected = 0.7 * (slope[:, None] * rho_gradient).mean(0)
    z = x @ weights
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    cross_entropy_gradient = x.T @ (p - np.eye(2)[y]) / 12
    model = linear_model(weights)
    robust = kr.RobustModel(model)
    robust.compile(
        keras.optimizers.SGD(1.0),
        kr.losses.DeepDefense(weight=0.7, c=2.0, d=3.0, gradient_offset=0.0),
    )
    robust.fit(X, y, batch_size=12, shuffle=False, verbose=0)
    gradient = weights - model.get_weights()[0]
    np.testing.assert_allclose(
        gradient - cross_entropy_gradient, np.stack([-expected, expected], axis=1), atol=2e-5
    )


def reference_rho(weights, x, y, norm, num_steps, overshoot, offset):
    """Computes rho in float64 for a network with one hidden tanh layer, with manual gradients."""
    w1, b1, w2, b2 = weights
    order = {"l2": 2, "linf": 1}[norm]

    def network(x):
        h = np.tanh(x @ w1 + b1)
        return h @ w2 + b2, (w1 * (1 - h**2)) @ w2

    rho = np.zeros(len(x))
    for i, label in enumerate(y):
        start = x[i].ravel().astype("float64")
        z, _ = network(start)
        correct, point = z.argmax() == label, start.copy()
        for _ in range(num_steps):
            z, jacobian = network(point)
            if (z.argmax() == label) != correct:
                break
            others = [k for k in range(len(z)) if k != label]
            if correct:

                def distance(k, z=z, jacobian=jacobian, label=label):
                    w = jacobian[:, k] - jacobian[:, label] + offset
                    return abs(z[k] - z[label]) / np.linalg.norm(w, order)

                a, b = label, min(others, key=distance)
            else:
                a, b = max(others, key=lambda k, z=z: z[k]), label
            w, f = jacobian[:, b] - jacobian[:, a] + offset, abs(z[b] - z[a])
            step = f / np.linalg.norm(w, order)
            direction = np.sign(w) if norm == "linf" else w / np.linalg.norm(w)
            point = point + (1 + overshoot) * step * direction
        p = {"l2": 2, "linf": np.inf}[norm]
        rho[i] = np.linalg.norm(point - start, p) / np.linalg.norm(start, p)
    return rho, np.array([network(v.ravel())[0].argmax() for v in x]) == y


def reference_loss(weights, norm, offset=0.01):
    w1, b1, w2, b2 = weights
    rho, correct = reference_rho(weights, X, Y, norm, 5, 0.02, offset)
    z = np.tanh(X.reshape(12, -1) @ w1 + b1) @ w2 + b2
    exponent = np.where(correct, -4 * rho, 3 * rho)
    penalty = np.where(exponent < 5, np.exp(exponent), np.exp(5) * (exponent - 4))
    return (cross_entropy(z) + 2 * penalty).mean()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_value_and_gradient_through_five_steps(norm):
    model = smooth_model()
    weights = [w.astype("float64") for w in model.get_weights()]
    loss = kr.losses.DeepDefense(weight=2.0, c=4.0, d=3.0, norm=norm, gradient_offset=0.01)
    choices = loss.prepare(model, ops.convert_to_tensor(X), Y, None)[1]
    taken = ops.convert_to_numpy(choices.is_taken).sum(0)
    assert taken.max() >= 3
    assert taken.min() >= 1
    assert 2 < ops.convert_to_numpy(choices.is_correct).sum() < 10
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.SGD(0.1), loss)
    found = robust.fit(X, Y, batch_size=12, shuffle=False, verbose=0).history["loss"][0]
    assert found == pytest.approx(reference_loss(weights, norm), rel=1e-4)
    gradient = [(w - v) / 0.1 for w, v in zip(weights, model.get_weights(), strict=True)]
    for _ in range(5):
        direction = [RNG.normal(size=w.shape) for w in weights]
        ahead, behind = (
            reference_loss([w + h * v for w, v in zip(weights, direction, strict=True)], norm)
            for h in (1e-6, -1e-6)
        )
        slope = sum((g * v).sum() for g, v in zip(gradient, direction, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=2e-3, abs=2e-3)


@pytest.mark.slow_on_jax
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX reports its allocations")
def test_memory_is_linear_in_steps_and_constant_without_gradient():
    import jax

    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv2D(8, 5, activation="tanh")
    layers = [convolution, keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    x = ops.convert_to_tensor(RNG.uniform(size=(32, 28, 28, 1)), "float32")
    y = np.arange(32) % 10
    weights = [v.value for v in model.trainable_variables]

    def allocated(function, *arguments):
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def memory_of_gradient(num_steps):
        loss = kr.losses.DeepDefense(num_steps=num_steps)
        choices = loss.prepare(model, x, y, None)[1]

        def total(values):
            mapping = list(zip(model.trainable_variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return ops.sum(loss.rho(Step(model, x, choices)))

        return allocated(jax.grad(total), weights)

    def memory_of_choices(num_steps):
        loss = kr.losses.DeepDefense(num_steps=num_steps)
        return allocated(lambda x: loss.prepare(model, x, y, None)[1].target, x)

    sizes = {num_steps: memory_of_gradient(num_steps) for num_steps in (2, 4, 8)}
    per_step = (sizes[4] - sizes[2]) / 2
    assert per_step > x.nbytes
    assert 0.5 * per_step < (sizes[8] - sizes[4]) / 4 < 1.25 * per_step
    assert memory_of_choices(8) - memory_of_choices(2) < x.nbytes


def step_in_weights(**arguments):
    """Returns the change of each weight of the smooth model in one step of SGD."""
    arguments = {"num_steps": 2, **arguments}
    model = smooth_model()
    before = model.get_weights()
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.SGD(1.0), kr.losses.DeepDefense(**arguments))
    robust.fit(X, Y, batch_size=12, shuffle=False, verbose=0)
    return [a - b for a, b in zip(before, model.get_weights(), strict=True)]


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_only_named_layers_have_the_penalty():
    plain, full = step_in_weights(weight=0.0), step_in_weights()
    for name, regularized in (("hidden", (0, 1)), ("logits", (2,))):
        masked = step_in_weights(layers=[name])
        for i in range(4):
            if i in regularized:
                np.testing.assert_allclose(masked[i], full[i], rtol=1e-4, atol=1e-5)
                assert abs(full[i] - plain[i]).max() > 1e-2
            elif i < 3:
                np.testing.assert_allclose(masked[i], plain[i], rtol=1e-4, atol=1e-5)


@pytest.mark.slow_on_jax
def test_the_error_for_a_wrong_name_lists_the_layers():
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="a")], name="encoder")
    model = keras.Sequential(
        [keras.Input((2, 3, 1)), keras.layers.Flatten(), inner, keras.layers.Dense(3, name="b")]
    )
    robust = kr.RobustModel(model)
    robust.compile("sgd", kr.losses.DeepDefense(num_steps=1, layers=["encoder/a"]))
    robust.fit(X, Y, verbose=0)
    robust.compile("sgd", kr.losses.DeepDefense(layers=["a"]))
    with pytest.raises(ValueError, match=r"\['encoder/a', 'b'\].*Received: 'a' in layers"):
        robust.fit(X, Y, verbose=0)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_batch_norm(frozen):
    model = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    expected = cross_entropy(ops.convert_to_numpy(model(X, training=not frozen)))
    model.layers[0].moving_mean.assign([0.0])
    model.layers[0].moving_variance.assign([1.0])
    statistics = [ops.convert_to_numpy(v) for v in model.layers[0].non_trainable_variables]
    value = value_of(kr.losses.DeepDefense(weight=0.0, freeze_batch_norm=frozen), model)
    assert value == pytest.approx(expected.mean(), rel=1e-3)
    after = [ops.convert_to_numpy(v) for v in model.layers[0].non_trainable_variables]
    assert all(np.array_equal(a, b) for a, b in zip(statistics, after, strict=True)) == frozen


def test_evaluation_is_the_plain_loss():
    robust = kr.RobustModel(linear_model())
    robust.compile("sgd", kr.losses.DeepDefense())
    expected = cross_entropy(X.reshape(12, -1) @ WEIGHTS).mean()
    assert robust.evaluate(X, Y, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow_on_jax
def test_probabilities_and_logits_have_the_same_loss():
    model = keras.Sequential([linear_model(), keras.layers.Softmax()])
    found = value_of(kr.losses.DeepDefense(from_logits=False), model)
    assert found == pytest.approx(value_of(kr.losses.DeepDefense(), linear_model()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_finite_where_the_gradient_vanishes():
    zero = linear_model(np.zeros((6, 3), "float32"))
    loss = kr.losses.DeepDefense(gradient_offset=0.0, num_steps=2)
    for model in (zero, linear_model(1e-18 * WEIGHTS), linear_model(1e6 * WEIGHTS)):
        robust = kr.RobustModel(model)
        robust.compile(keras.optimizers.SGD(1e-3), loss)
        assert np.isfinite(robust.fit(X, Y, verbose=0).history["loss"]).all()
        assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_mixed_precision_and_other_heads():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            keras.layers.Conv2D(4, 2, activation="relu"),
            keras.layers.MaxPooling2D((1, 2)),
            keras.layers.Flatten(),
            kr.layers.TanhClassifier(3),
        ]
    )
    robust = kr.RobustModel(model)
    robust.compile("sgd", kr.losses.DeepDefense(num_steps=2))
    assert np.isfinite(robust.fit(X, Y, verbose=0).history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.slow
def test_robustness_grows():
    # Fine-tuning by Deep Defense increases rho without loss of accuracy, unlike the cross-entropy.
    labels = RNG.integers(0, 3, 300)
    x = np.clip(0.5 + 0.12 * WEIGHTS.T[labels] + 0.04 * RNG.normal(size=(300, 6)), 0, 1)
    x = x.reshape(-1, 2, 3, 1).astype("float32")
    trained = smooth_model(width=20)
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained.compile(keras.optimizers.Adam(0.01), cross)
    trained.fit(x, labels, epochs=10, verbose=0)
    rho, accuracy = {}, {}
    for weight in (0.0, 15.0):
        model = smooth_model(width=20)
        model.set_weights(trained.get_weights())
        loss = kr.losses.DeepDefense(weight=weight, c=5.0, num_steps=2)
        robust = kr.RobustModel(model)
        robust.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        robust.fit(x, labels, batch_size=50, epochs=20, verbose=0)
        rho[weight] = rho_of(model, loss, x, labels).mean()
        accuracy[weight] = (ops.convert_to_numpy(model(x)).argmax(1) == labels).mean()

    assert rho[15.0] > 1.2 * rho[0.0]
    assert accuracy[15.0] >= accuracy[0.0] - 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "`weight`.*Received: weight=-1.0"),
        ({"weight": float("nan")}, "`weight`.*Received: weight=nan"),
        ({"c": -1.0}, "`c`"),
        ({"d": "x"}, "`d`.*Received: d='x'"),
        ({"num_steps": 0}, "`num_steps`"),
        ({"overshoot": -0.1}, "`overshoot`"),
        ({"norm": "l1"}, "`norm`.*Received: norm='l1'"),
        ({"layers": "hidden"}, "`layers` must be a list.*Received: layers='hidden'"),
        ({"layers": []}, "`layers` must be a list"),
        ({"mean": [np.nan]}, "`mean` must be finite"),
        ({"num_candidates": 1}, "`num_candidates` must be at least 2"),
        ({"gradient_offset": -1e-6}, "`gradient_offset`"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.losses.DeepDefense(**arguments)


@pytest.mark.parametrize(
    ("arguments", "x", "y", "head", "message"),
    [
        ({}, X, Y, "softmax", "`from_logits=True` was given, but the model ends in a softmax"),
        ({"from_logits": False}, X, Y, None, "`from_logits=False` was given"),
        ({}, X, Y + 3, None, "Labels in argument `y` must be from 0 to 2"),
        ({}, X, Y + 0.5, None, "Argument `y` must hold integer labels"),
        ({}, X * np.nan, Y, None, "Argument `x` must be finite"),
        ({"mean": np.zeros((3, 2, 1))}, X, Y, None, "`mean` must be a number or broadcast to"),
        ({"mean": np.zeros((12, 2, 3, 1))}, X, Y, None, r"Received: mean of shape \(12, 2, 3, 1\)"),
    ],
)
def test_bad_data_are_an_error_before_training(arguments, x, y, head, message):
    model = keras.Sequential([keras.Input((2, 3, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, activation=head))
    robust = kr.RobustModel(model)
    robust.compile("sgd", kr.losses.DeepDefense(num_steps=1, **arguments))
    with pytest.raises(ValueError, match=message):
        robust.fit(x, y, batch_size=12, verbose=0)


def test_the_mean_may_have_the_shape_of_an_image_or_of_a_part_of_it():
    for mean in (np.zeros((2, 3, 1)), np.zeros((1, 2, 3, 1)), np.zeros(1), np.zeros((2, 1, 1))):
        robust = kr.RobustModel(linear_model())
        robust.compile("sgd", kr.losses.DeepDefense(num_steps=1, mean=mean), run_eagerly=True)
        assert robust.fit(X, Y, batch_size=12, verbose=0).history["loss"][0] > 0


def test_needs_a_robust_model():
    model = linear_model()
    model.compile("sgd", kr.losses.DeepDefense())
    with pytest.raises(ValueError, match="wrap the model"):
        model.fit(X, Y, verbose=0)
    with step_scope(Step(model, X, training=False)):
        kr.losses.DeepDefense()(Y, model(X))
