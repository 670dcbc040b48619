"""The Parseval constraint agrees with NumPy."""

import copy

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(8, 10)).astype("float32")
CONVOLUTION = RNG.normal(size=(3, 3, 2, 10)).astype("float32")


def rows(kernel):
    """Returns W, with a row for each output unit."""
    return kernel.reshape(-1, kernel.shape[-1]).T.astype("float64")


def apply(constraint, kernel, times=1):
    for _ in range(times):
        kernel = constraint(keras.ops.convert_to_tensor(kernel))
    return keras.ops.convert_to_numpy(kernel)


def changed_rows(before, after):
    return np.flatnonzero((rows(before) != rows(after)).any(axis=1))


def step(w, beta):
    return (1 + beta) * w - beta * w @ w.T @ w


@pytest.mark.parametrize("kernel", [DENSE, CONVOLUTION], ids=["dense", "convolution"])
@pytest.mark.parametrize(("rate", "count"), [(0.3, 3), (0.55, 6), (0.01, 1), (1.0, 10)])
def test_a_step_changes_a_share_of_the_rows(kernel, rate, count):
    found = apply(kr.constraints.ParsevalTightness(0.1, rate), kernel)
    assert found.shape == kernel.shape
    chosen = changed_rows(kernel, found)
    assert len(chosen) == count
    expected = rows(kernel)
    expected[chosen] = step(expected[chosen], 0.1)
    np.testing.assert_allclose(rows(found), expected, rtol=1e-4, atol=1e-4)


def test_orthonormal_rows_do_not_change():
    kernel = np.linalg.qr(RNG.normal(size=(12, 5)))[0].astype("float32")
    for rate in (0.4, 1.0):
        found = apply(kr.constraints.ParsevalTightness(0.1, rate), kernel)
        np.testing.assert_allclose(found, kernel, atol=1e-6)


@pytest.mark.parametrize("kernel", [DENSE, CONVOLUTION], ids=["dense", "convolution"])
def test_singular_values_converge_to_one(kernel):
    constraint = kr.constraints.ParsevalTightness(0.1, sample_rate=1.0)
    values = [np.linalg.svd(rows(k), compute_uv=False) for k in (kernel / 3, kernel)]
    expected = values[0]
    for _ in range(3):
        expected = (1 + 0.1) * expected - 0.1 * expected**3
    found = np.linalg.svd(rows(apply(constraint, kernel / 3, times=3)), compute_uv=False)
    np.testing.assert_allclose(found, np.sort(expected)[::-1], rtol=1e-4)
    found = np.linalg.svd(rows(apply(constraint, kernel / 3, times=80)), compute_uv=False)
    np.testing.assert_allclose(found, 1, atol=1e-3)


@pytest.mark.slow_on_jax
def test_all_rows_and_pairs_of_rows_are_equally_likely():
    constraint = kr.constraints.ParsevalTightness(0.1, 0.3)
    pairs = np.zeros((10, 10))
    trials = 800
    rng = np.random.default_rng(1)
    for _ in range(trials):
        kernel = rng.normal(size=(2, 10)).astype("float32")
        chosen = changed_rows(kernel, apply(constraint, kernel))
        pairs[np.ix_(chosen, chosen)] += 1
    assert np.trace(pairs) == 3 * trials
    # Hypergeometric: each row is in 3 of 10 draws, each pair in 3 * 2 / (10 * 9). The tolerance is
    # 4.5 standard deviations.
    for counts, share in ((np.diag(pairs), 0.3), (pairs[np.triu_indices(10, 1)], 1 / 15)):
        deviation = np.sqrt(trials * share * (1 - share))
        assert abs(counts - trials * share).max() < 4.5 * deviation
        assert np.ptp(counts) > deviation


def test_the_choice_of_rows_is_a_function_of_all_bits_of_the_weights():
    constraint = kr.constraints.ParsevalTightness(0.1, 0.3)
    sets = set()
    for number in range(30):
        kernel = DENSE.copy()
        kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(9)) if number else kernel[0, 0]
        kernel[3, number % 10] *= np.float32(1 + 2**-22 * number)
        first, again = (apply(constraint, kernel) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        sets.add(tuple(changed_rows(kernel, first)))
    assert len(sets) > 20


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    ("kind", "policy"), [("convolution", "float32"), ("dense", "mixed_float16")]
)
def test_in_fit(kind, policy):
    x, y = RNG.random((32, 6, 6, 1), "float32"), RNG.integers(0, 3, 32)

    def train(constraint, epochs=1):
        keras.utils.set_random_seed(1)
        layer = (
            keras.layers.Dense(10, kernel_constraint=constraint, dtype=policy)
            if kind == "dense"
            else keras.layers.Conv2D(10, 3, kernel_constraint=constraint, dtype=policy)
        )
        model = keras.Sequential(
            [keras.Input((6, 6, 1)), layer, keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05), loss)
        model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return keras.ops.convert_to_numpy(layer.kernel)

    plain = train(None)
    constraint = kr.constraints.ParsevalTightness(0.2, 0.3)
    constrained = train(constraint)
    # The choice of rows depends on the last bits of the weights, which may differ in `plain`.
    differences = rows(constrained) - rows(plain)
    chosen = np.flatnonzero(abs(differences).max(axis=1) > 1e-3)
    assert len(chosen) == 3
    expected = step(rows(plain)[chosen], 0.2)
    np.testing.assert_allclose(rows(constrained)[chosen], expected, rtol=1e-3, atol=1e-3)
    kernel = train(constraint, epochs=4)
    assert np.isfinite(kernel).all()
    np.testing.assert_array_equal(train(constraint, epochs=4), kernel)


def test_singular_values_converge_to_one_in_training():
    x, y = RNG.random((64, 20), "float32"), RNG.integers(0, 3, 64)
    layer = keras.layers.Dense(8, kernel_constraint=kr.constraints.ParsevalTightness(0.1))
    model = keras.Sequential([keras.Input((20,)), layer, keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = np.linalg.svd(layer.kernel.numpy(), compute_uv=False)
    model.fit(x, y, batch_size=1, epochs=20, verbose=0)
    after = np.linalg.svd(keras.ops.convert_to_numpy(layer.kernel), compute_uv=False)
    assert abs(before - 1).max() > 0.3
    assert abs(after - 1).max() < 0.15


def test_saving_and_copying(tmp_path):
    layer = keras.layers.Dense(5, kernel_constraint=kr.constraints.ParsevalTightness(0.1, 0.5))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(tmp_path / "model.keras")
    for again in (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ):
        constraint = again.layers[0].kernel_constraint
        assert (constraint.beta, constraint.sample_rate) == (0.1, 0.5)
    assert copy.deepcopy(constraint).get_config() == {"beta": 0.1, "sample_rate": 0.5}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_precisions(dtype):
    kernel = keras.ops.cast(DENSE, dtype)
    found = kr.constraints.ParsevalTightness(0.1, 0.3)(kernel)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    kernel, found = (keras.ops.convert_to_numpy(k).astype("float64") for k in (kernel, found))
    chosen = changed_rows(kernel, found)
    assert len(chosen) == 3
    expected = step(rows(kernel)[chosen], 0.1)
    np.testing.assert_allclose(rows(found)[chosen], expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.constraints.ParsevalTightness(-0.1), "`beta`.*Received: beta=-0.1"),
        (lambda: kr.constraints.ParsevalTightness(float("nan")), "`beta`.*nan"),
        (lambda: kr.constraints.ParsevalTightness(0.1, 0.0), "`sample_rate`.*greater than 0"),
        (lambda: kr.constraints.ParsevalTightness(0.1, 1.1), "`sample_rate`.*at most 1"),
        (lambda: kr.constraints.ParsevalTightness(0.1)(np.zeros(3)), r"shape \(3,\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
