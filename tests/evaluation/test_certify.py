"""Certificates by randomized smoothing are valid, and reports compare them with attacks."""

import json
import math

import keras
import numpy as np
import pytest
from data_sets import pairs
from keras import ops
from scipy import stats

import keras_robust as kr
from keras_robust.evaluation.bounds import _no_contradiction
from keras_robust.evaluation.certificate import certified_radii
from keras_robust.evaluation.certify import Noise
from keras_robust.model.classifier import Classifier
from keras_robust.model.smoothed import grid_step
from keras_robust.report import plots

STDDEV = 0.25


def linear(dimensions=8):
    """Returns a linear binary classifier, images, classes and distances to the boundary."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=dimensions).astype("float32")
    model = keras.Sequential([keras.Input((dimensions,)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([np.stack([-w, w], 1)])
    x = rng.uniform(-0.5, 0.5, (10, dimensions)).astype("float32")
    score = x @ w
    return model, x, (score > 0).astype(int), abs(score) / np.linalg.norm(w)


def threshold(boundary=0.0):
    """Returns a NumPy function that predicts on which side of the boundary the only value is."""

    def function(x):
        side = (x.reshape(len(x)) > boundary).astype("float32")
        return np.stack([1 - side, side], axis=1)

    return function


def certify(*args, **options):
    return kr.evaluation.certify(*args, **{"stddev": STDDEV, "verbose": 0} | options)


def test_radii_of_a_linear_classifier_approach_the_distance_from_below():
    model, x, y, distances = linear()
    for num_samples, share in ((1_000, 0.6), (50_000, 0.95)):
        found = certify(model, x, y, num_samples=num_samples, batch_size=2_000)
        assert (found.radii < distances).all()
        far = distances > STDDEV
        assert far.sum() >= 2
        # Far from the boundary all votes agree, so the radius is that of a unanimous vote.
        unanimous_radius = STDDEV * stats.norm.ppf(0.001 ** (1 / num_samples))
        assert (found.radii[far] > share * np.minimum(distances[far], unanimous_radius)).all()
        assert (found.classes[~found.abstained] == y[~found.abstained]).all()


@pytest.mark.parametrize("count", [501, 700, 999, 1000])
def test_radii_agree_with_the_clopper_pearson_bound(count):
    (radius,) = certified_radii(np.array([count]), 1000, 0.001, 2.0)
    p = stats.norm.cdf(radius / 2.0)
    # By definition of p, the probability of at least `count` votes is alpha.
    if count == 501:
        assert radius == 0
        assert stats.binom.sf(count - 1, 1000, 0.5) > 0.001
    else:
        assert stats.binom.sf(count - 1, 1000, p) == pytest.approx(0.001, rel=1e-6)


def test_simulated_failures_of_the_bound_agree_with_theory():
    """Certifies 1,000 copies of an image, 1 standard deviation from the boundary: p = Phi(1)."""
    x, y = np.full((1_000, 1), STDDEV, "float32"), np.ones(1_000, int)
    options = {"num_samples": 50, "num_selection": 1, "alpha": 0.1, "batch_size": 51}
    found = certify(kr.BlackBox(threshold()), x, y, **options)
    assert len(np.unique(found.counts)) > 5
    # The bound fails for the counts for which it is greater than Phi(1).
    counts, p = np.arange(51), stats.norm.cdf(1)
    too_high = stats.binom.sf(counts - 1, 50, p) < 0.1
    # The factor p: a single copy selects the right class with probability Phi(1) = 84%.
    expected = stats.binom.pmf(counts, 50, p)[too_high].sum() * p
    assert 0.03 < expected < 0.1
    share = ((found.radii > STDDEV) & (found.selected == 1)).mean()
    assert abs(share - expected) < 4 * math.sqrt(expected / 1_000)
    assert not (found.classes == 0).any()


def reveals(a):
    """Returns a function that detects `x = a + noise` in float32, by `(x - a) + a == x`."""
    a = np.float32(a)

    def function(x):
        x = x.astype("float32").reshape(len(x))
        same = ((x - a).astype("float32") + a).astype("float32") == x
        return np.stack([~same, same], axis=1).astype("float32")

    return function


def test_rounding_reveals_no_image():
    """With noise added in float32, the last bits would reveal the image (Voracek and Hein)."""
    a, stddev = 210 / 255, 0.5
    function = reveals(a)
    noise = np.random.default_rng(0).normal(0, stddev, 20_000).astype("float32")
    votes = [function(np.float32(image) + noise).argmax(axis=1).mean() for image in (a, 0.0)]
    assert votes[0] == 1  # The certificate would be a radius of 3.6 * stddev,
    assert votes[1] < 0.48  # but the class changes at a distance of 1.65 * stddev.

    x = np.array([[a], [0.0]], "float32")
    found = certify(kr.BlackBox(function), x, np.ones(2, int), stddev=stddev, num_samples=20_000)
    assert found.radii[0] > a
    assert found.classes[1] == found.classes[0]


@pytest.mark.parametrize("stddev", [0.25, 0.3, 70.0])
def test_noise_is_normal_on_a_grid_without_clipping(stddev):
    step = grid_step(stddev)
    assert math.log2(step) == round(math.log2(step))
    assert stddev / 512 < step <= stddev / 256
    image = np.array([0.1, 1.0], "float32") * np.float32(stddev)
    values = Noise(image, stddev, 0).draw(5_000)
    assert values.dtype == "float32"
    np.testing.assert_array_equal(values / step, np.rint(values / step))
    assert values.min() < -2 * stddev
    assert values.max() > 3 * stddev
    for column, center in zip(values.T.astype("float64"), image, strict=True):
        assert stats.kstest(column, "norm", (center, stddev)).pvalue > 1e-3
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.06


def test_votes_do_not_depend_on_batch_size_or_kind_of_data():
    model, x, y, _ = linear()
    expected = certify(model, x, y, num_samples=300)
    one_hot = np.eye(2)[y]
    for data, batch_size in (((x, one_hot), 7), ((pairs(x, y).batch(3),), 1000)):
        found = certify(model, *data, num_samples=300, batch_size=batch_size)
        np.testing.assert_array_equal(found.counts, expected.counts)
    assert (certify(model, x, y, num_samples=300, seed=1).counts != expected.counts).any()
    box = kr.BlackBox(lambda images: ops.convert_to_numpy(model(images)))
    found = certify(box, x, y, num_samples=300, batch_size=40)
    np.testing.assert_array_equal(found.counts, expected.counts)
    # The checks query 8 images, and each of 10 images is classified once, without repeats.
    assert box.num_queries == 8 + 10 + 10 * 400


class Interrupted:
    """A classifier of arrays that is interrupted after `num_calls` calls."""

    def __init__(self, num_calls):
        self.left = num_calls

    def __call__(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return threshold()(x)

    def __repr__(self):
        return "Interrupted()"


def test_an_interrupted_certification_continues(tmp_path):
    x = np.linspace(-0.4, 0.4, 6, dtype="float32").reshape(6, 1)
    y = (x[:, 0] > 0).astype(int)
    options = {"num_samples": 200, "batch_size": 100, "output": tmp_path}
    uninterrupted = certify(kr.BlackBox(threshold()), x, y, **options | {"output": None})
    (tmp_path / "certificate.json").write_text("an earlier one")
    with pytest.raises(KeyboardInterrupt):
        certify(kr.BlackBox(Interrupted(2 + 3 * 3 + 1)), x, y, **options)
    assert not (tmp_path / "certificate.json").exists()
    again = Interrupted(2 + 3 * 3)
    found = certify(kr.BlackBox(again), x, y, resume=True, **options)
    assert again.left == 0
    np.testing.assert_array_equal(found.counts, uninterrupted.counts)
    for changed in ({"num_samples": 201}, {"stddev": 0.3}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"run with other {next(iter(changed))}\\. "):
            certify(kr.BlackBox(Interrupted(2)), x, y, resume=True, **options | changed)
    with pytest.raises(ValueError, match="run with other images, predictions"):
        certify(kr.BlackBox(Interrupted(2)), -x, y, resume=True, **options)
    # `alpha` does not change the votes.
    wider = certify(kr.BlackBox(Interrupted(2)), x, y, resume=True, alpha=0.1, **options)
    assert (wider.radii[~found.abstained] > found.radii[~found.abstained]).all()


@pytest.fixture
def certificate():
    model, x, y, _ = linear()
    return certify(model, x, 1 - y * (np.arange(10) < 5), num_samples=500)


def test_certified_accuracy_is_the_share_correct_with_a_larger_radius(certificate):
    correct = certificate.classes == certificate.labels
    assert 0 < correct.sum() < (~certificate.abstained).sum()
    for radius in (0.0, 0.1, float(certificate.radii.max())):
        expected = np.mean(
            [c and r > radius for c, r in zip(correct, certificate.radii, strict=True)]
        )
        assert certificate.certified_accuracy(radius) == expected
    curve = certificate.curve()
    assert list(curve) == sorted(curve)
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert curve[0.0] == certificate.certified_accuracy(0.0)
    assert list(certificate.curve([0.2, 0.1])) == [0.1, 0.2]
    assert f"10 examples, {certificate.abstained.sum()} abstentions" in repr(certificate)
    for radius in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="Invalid value for argument `radius`"):
            certificate.certified_accuracy(radius)


def test_a_certificate_is_saved_and_loaded(certificate, tmp_path):
    certificate.save(tmp_path / "new")
    loaded = kr.evaluation.Certificate.load(tmp_path / "new")
    assert loaded.to_dict() == certificate.to_dict()
    np.testing.assert_array_equal(loaded.radii, certificate.radii)
    path = tmp_path / "new" / "certificate.json"
    saved = json.loads(path.read_text())
    assert saved["num_examples"] == 10
    for text, message in (
        (json.dumps(saved | {"schema": 99}), "reads schemas up to 1: update keras_robust"),
        (path.read_text()[:50], "cannot be read"),
        (json.dumps({"schema": 1}), "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            kr.evaluation.Certificate.load(tmp_path / "new")
    with pytest.raises(ValueError, match=r"a folder that holds certificate\.json"):
        kr.evaluation.Certificate.load(tmp_path)


class Joint(keras.layers.Layer):
    depends_on_batch = True

    def call(self, inputs):
        return inputs


MODEL, X, Y, _ = linear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stddev": None}, "`stddev` must be given"),
        ({"stddev": 0.0}, "`stddev`"),
        ({"stddev": float("nan")}, "`stddev`"),
        ({"stddev": 1e-6}, "`stddev` is too small"),
        ({"num_samples": 0}, "`num_samples`"),
        ({"num_selection": 0}, "`num_selection`"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"alpha": 1.0}, "`alpha`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"resume": True}, "`resume` needs"),
        ({"y": None}, "`y` must be given"),
        ({"y": Y + 1}, "`y` must be from 0 to 1"),
        ({"x": (100 * X).astype(int)}, "`x` must be floating"),
        ({"x": np.where(X > 0.4, np.nan, X)}, "`x` must be finite"),
        ({"model": keras.Sequential([keras.Input((8,)), MODEL, Joint()])}, "independent votes"),
        ({"model": kr.evaluation.SmoothedClassifier(MODEL, 0.1)}, "its attribute `model`"),
    ],
    ids=str,
)
def test_bad_input_is_an_error_before_any_work(changes, message, monkeypatch):
    monkeypatch.setattr(Noise, "draw", None)
    with pytest.raises(ValueError, match=message):
        certify(**{"model": MODEL, "x": X, "y": Y, "num_samples": 100} | changes)


def test_an_output_that_is_not_finite_is_an_error():
    def function(x):
        return np.where(x.reshape(len(x), 1) > 0.9, np.nan, np.float32([[0, 1]]))

    with pytest.raises(ValueError, match="must return finite outputs"):
        certify(kr.BlackBox(function), np.zeros((1, 1), "float32"), [1], stddev=1.0)


# The following tests attack the smoothed classifier.


def attack(epsilon, **options):
    given = {"num_steps": 10, "num_samples": 8, "bounds": (-2.0, 2.0), "norm": "l2"}
    given["objective"] = kr.evaluation.noisy_logits
    return kr.attacks.PGD(epsilon, **given | options)


def test_outputs_agree_with_shares_of_noisy_copies():
    model, x, y, distances = linear()
    smoothed = kr.evaluation.SmoothedClassifier(model, STDDEV, num_votes=1_000)
    outputs = Classifier(smoothed).predict(x, seed=0)
    expected = stats.norm.cdf(distances / STDDEV)
    np.testing.assert_allclose((1 + outputs[np.arange(10), y]) / 2, expected, atol=0.06)
    np.testing.assert_allclose(outputs.sum(axis=1), 0, atol=1e-6)
    assert (Classifier(smoothed).predict(x, seed=1) != outputs).any()


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_no_attack_succeeds_within_a_certified_radius():
    model, x, y, distances = linear()
    smoothed = kr.evaluation.SmoothedClassifier(model, STDDEV, seed=0)
    found = certify(model, x, y, num_samples=20_000, batch_size=2_000)
    chosen = np.argsort(distances)[[4, 8]]
    for number in chosen:
        one = slice(number, number + 1)
        within = attack(float(found.radii[number]))
        for seed in range(2):
            assert not within.run(smoothed, x[one], y[one], seed=seed).success.any()
        # Classifies the strongest perturbation with many more votes, even if the attack failed.
        x_adv = ops.convert_to_numpy(within.perturb(smoothed, x[one], y[one], 0))
        assert np.linalg.norm(x_adv - x[one]) > 0.99 * found.radii[number]
        recertified = certify(model, x_adv, y[one], num_samples=50_000, batch_size=10_000)
        assert recertified.votes == y[one]
        # The attack is not too weak: it succeeds beyond the boundary.
        beyond = attack(float(distances[number]) + STDDEV).run(smoothed, x[one], y[one], seed=0)
        assert beyond.success.all()


def test_an_attack_by_gradients_needs_noisy_logits():
    smoothed = kr.evaluation.SmoothedClassifier(MODEL, STDDEV)
    with pytest.raises(ValueError, match=r"objective=keras_robust\.evaluation\.noisy_logits"):
        attack(0.1, objective=None)(smoothed, X, Y)
    with pytest.raises(ValueError, match="is for attacks on a"):
        attack(0.1)(MODEL, X, Y)
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        kr.evaluation.SmoothedClassifier(kr.BlackBox(threshold()), STDDEV)
    with pytest.raises(ValueError, match="`num_votes`"):
        kr.evaluation.SmoothedClassifier(MODEL, STDDEV, num_votes=0)


def test_noisy_logits_are_those_before_a_softmax():
    base = keras.Sequential([*MODEL.layers, keras.layers.Softmax()])
    smoothed = kr.evaluation.SmoothedClassifier(base, STDDEV, seed=3)
    x = np.zeros((2_000, 8), "float32")
    logits = kr.evaluation.noisy_logits(smoothed, ops.convert_to_tensor(x), None)
    logits = ops.convert_to_numpy(logits)
    length = np.linalg.norm(MODEL.get_weights()[0][:, 1])
    assert logits[:, 1].std() == pytest.approx(STDDEV * length, rel=0.1)
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1], rtol=1e-5)


def test_a_smoothed_classifier_is_saved_and_loaded(tmp_path):
    smoothed = kr.evaluation.SmoothedClassifier(MODEL, STDDEV, num_votes=20, seed=3)
    outputs = ops.convert_to_numpy(smoothed(X))
    smoothed.save(tmp_path / "smoothed.keras")
    loaded = keras.models.load_model(tmp_path / "smoothed.keras")
    assert (loaded.stddev, loaded.num_votes, loaded.seed) == (STDDEV, 20, 3)
    np.testing.assert_array_equal(loaded.model.get_weights()[0], MODEL.get_weights()[0])
    assert ops.convert_to_numpy(loaded(X)).shape == outputs.shape


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Returns a report with a certificate, the certificate, and their folder."""
    folder = tmp_path_factory.mktemp("certified")
    model, x, y, _ = linear()
    found = certify(model, x, y, num_samples=2_000, batch_size=2_000, output=folder)
    smoothed = kr.evaluation.SmoothedClassifier(model, STDDEV, seed=0)
    attacks = {"near": attack(0.2), "far": attack(0.4), "box": attack(0.1, norm="linf")}
    report = kr.evaluate(
        smoothed, x, y, attacks, certificate=found, output=folder, checks=False, verbose=0
    )
    return report, found, folder


@pytest.mark.slow_on_jax
def test_a_report_shows_attack_and_certificate_side_by_side(evaluated, capsys):
    report, found, folder = evaluated
    assert [row.name for row in report.rows][-2:] == ["certified", "worst case"]
    # The L-infinity ball of 0.1 is inside the L2 ball of 0.28, and so inside that of 0.4.
    assert report.accuracy("certified") == found.certified_accuracy(0.4)
    assert report.row("certified").radii == {"l2": 0.4, "linf": 0.1}
    assert report.accuracy("certified") <= report.accuracy("worst case") < report.accuracy("clean")
    share = f"{report.accuracy('certified'):.1%}"
    assert f"Certified lower bound: {share}." in report.summary()
    assert share in capsys.readouterr().out
    assert report.notes["certificate"] == repr(found)

    curves = report.curves["L2 radius"]
    upper, lower = curves["attacks: at most"], curves["certificate: at least"]
    assert list(upper) == list(lower)
    assert all(upper[radius] >= lower[radius] for radius in upper)
    assert upper[0.0] == report.accuracy("clean")
    assert upper[0.4] <= report.accuracy("far") < report.accuracy("near")
    assert upper[0.2] <= report.accuracy("near")
    assert lower == found.curve(list(lower))

    assert (folder / "curves_L2_radius.png").stat().st_size > 5_000
    page = (folder / "report.html").read_text()
    for text in ("Accuracy over L2 radius", "attacks: at most", "certificate: at least", share):
        assert text in page
    loaded = kr.evaluation.Report.load(folder)
    assert loaded.to_dict() == report.to_dict()
    assert loaded.summary() == report.summary()
    assert kr.evaluation.Certificate.load(folder).to_dict() == found.to_dict()


@pytest.mark.slow_on_jax
def test_a_contradiction_fails_a_check(evaluated):
    _, found, _ = evaluated
    assert _no_contradiction(found, np.full(10, np.inf)).passed
    outcome = _no_contradiction(found, found.radii / 2)
    assert outcome.passed is False
    assert outcome.figures == {"fooled": outcome.figures["certified"], "certified": 9.0}


def test_both_curves_and_the_area_between_are_drawn(monkeypatch, tmp_path):
    figures, make = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: figures.append(make(*size)) or figures[-1])
    curves = {"upper": {0.0: 0.9, 0.5: 0.6, 1.0: 0.5}, "lower": {0.0: 0.8, 0.5: 0.4, 1.0: 0.0}}
    plots.plot_bounds(curves, tmp_path / "bounds.png", xlabel="L2 radius")
    (axes,) = figures[0].axes
    assert [line.get_label() for line in axes.lines] == ["upper", "lower"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [90, 60, 50])
    (area,) = axes.collections
    (path,) = area.get_paths()
    # Between 0 and 0.5, the upper bound is that at 0 and the lower bound is that at 0.5.
    assert path.contains_points([(0.25, 85), (0.25, 45), (0.75, 55), (0.75, 5)]).all()
    assert not path.contains_points([(0.25, 95), (0.25, 35), (0.75, 65), (0.75, -1)]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": MODEL}, r"SmoothedClassifier\(model, stddev\)` as `model`"),
        (
            {"model": kr.evaluation.SmoothedClassifier(MODEL, 0.3)},
            "a certificate with other stddev",
        ),
        ({"model": kr.evaluation.SmoothedClassifier(linear(8)[0], 0.3)}, "other stddev"),
        ({"x": X / 2}, "other images"),
        ({"y": 1 - Y}, "other labels"),
        ({"certificate": {0.0: 1.0}}, "must be what `kr.evaluation.certify` returns"),
        ({"shard": (1, 2), "output": "never"}, "`certificate` needs the results of all shares"),
    ],
    ids=str,
)
def test_a_certificate_of_another_model_or_data_is_an_error(changes, message):
    given = {
        "model": kr.evaluation.SmoothedClassifier(MODEL, STDDEV),
        "x": X,
        "y": Y,
        "attacks": kr.attacks.Square(0.1, num_queries=1, bounds=(-1.0, 1.0)),
        "certificate": certify(MODEL, X, Y, num_samples=10),
        "verbose": 0,
    }
    with pytest.raises(ValueError, match=message):
        kr.evaluate(**given | changes)
