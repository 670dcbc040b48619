"""Radii and bounds per value, and masks, agree with closed forms on a linear model."""

import keras
import numpy as np
import pytest

import keras_robust as kr

A = kr.attacks
SHAPE = (4, 4, 3)
EPSILON = np.array([0.05, 0.0, 0.2])
LOW, HIGH = np.array([0.0, -1.0, 0.0]), np.array([1.0, 2.0, np.inf])
MASK = np.zeros((4, 4, 1))
MASK[1:3, :3] = 1

ATTACKS = {
    "fgsm": lambda e, **k: A.FGSM(e, **k),
    "ifgsm": lambda e, **k: A.IFGSM(e, num_steps=5, **k),
    "pgd": lambda e, **k: A.PGD(e, num_steps=5, **k),
    "pgd, l2": lambda e, **k: A.PGD(e, num_steps=50, norm="l2", **k),
    "mim, l2": lambda e, **k: A.MIM(e, num_steps=50, norm="l2", **k),
    "multi-targeted": lambda e, **k: A.MultiTargeted(e, num_steps=5, **k),
    "apgd": lambda e, **k: A.APGD(e, num_steps=50, **k),
    "apgd, l2": lambda e, **k: A.APGD(e, num_steps=50, norm="l2", **k),
    "fab": lambda e, **k: A.FAB(e, num_steps=5, **k),
    "fab, l2": lambda e, **k: A.FAB(e, num_steps=5, norm="l2", **k),
    "pgd, l1": lambda e, **k: A.PGD(e, num_steps=50, norm="l1", **k),
    "apgd, l1": lambda e, **k: A.APGD(e, num_steps=50, norm="l1", **k),
    "fab, l1": lambda e, **k: A.FAB(e, num_steps=5, norm="l1", **k),
    "square, l1": lambda e, **k: A.Square(e, num_queries=50, norm="l1", **k),
    "square": lambda e, **k: A.Square(e, num_queries=50, **k),
    "square, l2": lambda e, **k: A.Square(e, num_queries=50, norm="l2", **k),
}
MINIMAL = {
    "deepfool": lambda **k: A.DeepFool(**k),
    "carlini-wagner": lambda **k: A.CarliniWagnerL2(num_steps=200, binary_search_steps=5, **k),
    "fab": lambda **k: A.FAB(norm="l2", num_steps=10, **k),
}


def linear_model(rng, num_classes=2):
    """Returns a model `x W` whose logits tie on grey images, and `w_1 - w_0`."""
    model = keras.Sequential([
        keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(num_classes, use_bias=False)
    ])  # fmt: skip
    weights = rng.normal(size=(48, num_classes)).astype("float32")
    weights -= weights.mean(axis=0)
    model.set_weights([weights])
    return model, (weights[:, 1] - weights[:, 0]).reshape(SHAPE)


def images(rng, count=8):
    return rng.uniform(0.3, 0.7, (count, *SHAPE)).astype("float32")


def scaled_norm(attack, delta, epsilon):
    """Returns `||delta / epsilon||` of each example, over the values with a positive radius."""
    free = np.broadcast_to(epsilon > 0, SHAPE)
    share = np.abs(delta[:, free]) / np.broadcast_to(epsilon, SHAPE)[free]
    return np.linalg.norm(share, order(attack), axis=1)


def order(attack):
    """Returns the order of the norm from the attack's name."""
    return {"l1": 1, "l2": 2}.get(attack[-2:], np.inf)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("has_mask", [False, True])
def test_every_attack_stays_in_its_ball_and_mask(name, has_mask):
    rng = np.random.default_rng()
    model, _ = linear_model(rng, num_classes=4)
    x = images(rng)
    y = model.predict(x, verbose=0).argmax(axis=1)
    attack = ATTACKS[name](5 * EPSILON, bounds=(LOW, HIGH))
    result = attack.run(model, x, y, mask=MASK if has_mask else None)
    delta = result.x_adv - x
    assert (delta[..., 1] == 0).all()  # Its radius is 0.
    if has_mask:
        assert (delta[:, MASK[..., 0] == 0] == 0).all()
    assert (scaled_norm(name, delta, 5 * EPSILON) <= 1 + 1e-5).all()
    assert (result.x_adv >= LOW).all()
    assert (result.x_adv <= HIGH).all()
    answers = model.predict(result.x_adv, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(answers != y, result.success)


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "apgd", "pgd, l2", "apgd, l2", "mim, l2", "pgd, l1", "apgd, l1"]
)
@pytest.mark.parametrize("has_mask", [False, True])
def test_attacks_on_a_linear_model_are_optimal(name, has_mask):
    rng = np.random.default_rng()
    model, w = linear_model(rng)
    x = images(rng)
    margins = (x * w).sum(axis=(1, 2, 3))
    y = (margins > 0).astype(int)
    mask = MASK if has_mask else np.ones(SHAPE)
    # The largest change of the margin is the dual norm of the slopes in units of the radii.
    slopes = np.abs(w) * np.broadcast_to(EPSILON, SHAPE) * mask
    dual = {np.inf: 1, 2: 2, 1: np.inf}[order(name)]
    largest_change = np.linalg.norm(slopes.ravel(), dual)
    for share, fools in ((1.1, True), (0.99, False)):
        for i in range(len(x)):
            scale = share * abs(margins[i]) / largest_change
            attack = ATTACKS[name](EPSILON * scale, bounds=None)
            result = attack.run(model, x[i : i + 1], y[i : i + 1], mask=mask)
            assert result.success[0] == fools


@pytest.mark.parametrize("name", MINIMAL)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None], ids=["bounded", "unbounded"])
def test_minimum_norm_attacks_find_the_nearest_image_in_a_mask(name, bounds):
    rng = np.random.default_rng()
    model, w = linear_model(rng)
    x = images(rng).astype("float64")
    # Images near the boundary, so that the bounds do not matter.
    goal = rng.uniform(0.02, 0.1, len(x)) * rng.choice([-1, 1], len(x))
    x += ((goal - margins_of(model, x)) / (w**2).sum())[:, None, None, None] * w
    x, w = x.astype("float32"), w * MASK
    margins = margins_of(model, x)
    y = (margins > 0).astype(int)
    result = MINIMAL[name](bounds=bounds).run(model, x, y, mask=MASK)
    expected = np.abs(margins) / np.sqrt((w**2).sum())
    assert result.success.all()
    assert ((result.x_adv != x) <= (MASK != 0)).all()
    np.testing.assert_allclose(result.norms["l2"], expected, rtol=0.1, atol=2e-4)


def margins_of(model, x):
    logits = model.predict(x, verbose=0).astype("float64")
    return logits[:, 1] - logits[:, 0]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", ["pgd", "pgd, l2", "apgd, l2", "fab", "pgd, l1", "apgd, l1"])
def test_an_array_of_equal_radii_is_the_same_as_one_radius(name):
    rng = np.random.default_rng()
    model, _ = linear_model(rng, num_classes=4)
    x = images(rng)
    y = model.predict(x, verbose=0).argmax(axis=1)
    epsilon = 0.125
    one = ATTACKS[name](epsilon).run(model, x, y, seed=0)
    many = ATTACKS[name](np.full(SHAPE, epsilon)).run(model, x, y, seed=0)
    np.testing.assert_array_equal(one.success, many.success)
    np.testing.assert_allclose(one.x_adv, many.x_adv, atol=1e-5)


def test_each_example_may_have_its_own_mask():
    rng = np.random.default_rng()
    model, _ = linear_model(rng)
    x = images(rng)
    y = model.predict(x, verbose=0).argmax(axis=1)
    mask = rng.integers(0, 2, x.shape)
    result = A.PGD(0.5).run(model, x, y, mask=mask)
    assert result.success.any()
    assert (result.x_adv[mask == 0] == x[mask == 0]).all()
    x_adv = np.asarray(A.PGD(0.5)(model, x, y, mask=mask))
    assert (x_adv[mask == 0] == x[mask == 0]).all()


def test_perturb_with_a_mask():
    rng = np.random.default_rng()
    model, w = linear_model(rng)
    x = images(rng)
    y = (margins_of(model, x) > 0).astype(int)
    x_adv = keras.ops.convert_to_numpy(A.FGSM(0.1, bounds=None).perturb(model, x, y, 0, MASK))
    sign = np.where(y == 1, -1, 1)[:, None, None, None]
    np.testing.assert_allclose(x_adv, x + 0.1 * sign * np.sign(w) * MASK, atol=1e-6)


def test_a_step_size_for_each_value():
    rng = np.random.default_rng()
    model, w = linear_model(rng)
    x = images(rng, 1)
    y = (margins_of(model, x) > 0).astype(int)
    steps = np.array([0.01, 0.02, 0.03])
    attack = A.PGD(1.0, steps, num_steps=1, random_start=False, bounds=None)
    x_adv = keras.ops.convert_to_numpy(attack.perturb(model, x, y, 0))
    sign = 1 if y[0] == 0 else -1
    np.testing.assert_allclose(x_adv - x, sign * steps * np.sign(w)[None], atol=1e-6)


def test_new_radii_need_no_compilation():
    """Other radii of the same shape need no new compilation."""
    attack = A.PGD(EPSILON)
    other = attack.replace(epsilon=2 * EPSILON)
    assert attack.key == other.key
    assert attack.key != attack.replace(bounds=(LOW, HIGH)).key


def test_arrays_in_config_and_repr():
    attack = A.PGD(EPSILON, bounds=(LOW, None))
    again = A.PGD.from_config(attack.get_config())
    np.testing.assert_array_equal(again.epsilon, EPSILON)
    np.testing.assert_array_equal(again.bounds[0], LOW)
    assert again.bounds[1] == np.inf
    assert "array of shape (3,), 0 to 0.2" in repr(attack)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: A.PGD(np.array([0.1, -0.1])), "`epsilon`. Expected a finite number at least 0"),
        (lambda: A.PGD(np.array([0.1, np.nan])), "`epsilon`"),
        (lambda: A.PGD(np.array([])), "`epsilon`. Expected a number, or an array of numbers"),
        (lambda: A.PGD(["a"]), "`epsilon`. Expected a number, or an array of numbers"),
        (lambda: A.PGD(0.1, bounds=(HIGH, LOW)), "`bounds`"),
        (lambda: A.PGD(0.1, bounds=(np.nan, 1.0)), "`bounds`"),
        (lambda: A.PGD(0.1, bounds=(np.zeros(2), np.ones(3))), "`bounds`"),
    ],
)
def test_bad_arrays_of_radii_and_bounds(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("attack", "mask", "text"),
    [
        (A.PGD(np.full(5, 0.1)), None, "array as `epsilon` must broadcast to one example"),
        (A.PGD(np.full((2, 1, 1, 1), 0.1)), None, "array as `epsilon` must broadcast"),
        (A.PGD(0.1, np.full(5, 0.1)), None, "array as `step_size` must broadcast"),
        (A.PGD(0.1, bounds=(np.zeros(5), 1.0)), None, "array as `bounds` must broadcast"),
        (A.PGD(0.1, bounds=(LOW + 0.5, HIGH)), None, "`x` must lie inside the attack's `bounds`"),
        (A.PGD(0.1), np.full(SHAPE, 0.5), "`mask` must hold 0"),
        (A.PGD(0.1), np.ones((5, 5, 3)), "`mask` must have a shape that broadcasts"),
    ],
)
def test_arrays_and_masks_must_fit_the_images(attack, mask, text):
    rng = np.random.default_rng()
    model, _ = linear_model(rng)
    x = images(rng)
    y = model.predict(x, verbose=0).argmax(axis=1)
    with pytest.raises(ValueError, match=text):
        attack.run(model, x, y, mask=mask)


@pytest.mark.slow_on_jax
def test_an_evaluation_with_a_mask(tmp_path):
    rng = np.random.default_rng()
    model, w = linear_model(rng)
    x = images(rng, 40)
    margins = margins_of(model, x)
    y = (margins > 0).astype(int)
    largest_change = (np.abs(w) * MASK).sum()
    epsilon = float(np.median(np.abs(margins)) / largest_change)
    attacks = {"PGD": A.PGD(epsilon, bounds=None)}
    settings = {"mask": MASK, "batch_size": 16, "output": tmp_path, "verbose": 0}
    report = kr.evaluate(model, x, y, attacks, **settings)
    expected = np.abs(margins) > epsilon * largest_change
    # One margin may equal the median.
    assert abs(report.row("PGD").correct.sum() - expected.sum()) <= 1
    assert [result.name for result in report.checks if result.passed is False] == []
    note = f"attacks change no more than {MASK.mean():.2%} of an image's values"
    assert report.to_dict()["notes"]["mask"] == note
    assert f"Mask: {note}." in report.summary()
    with pytest.raises(ValueError, match="mask"):
        kr.evaluate(model, x, y, attacks, **{**settings, "mask": None}, resume=True)
    share = kr.evaluation.robust_accuracy(
        model, x, y, attack=attacks["PGD"], mask=MASK, batch_size=16
    )
    assert share == report.accuracy("PGD")
