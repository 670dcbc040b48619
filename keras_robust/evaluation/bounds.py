"""A certificate beside attacks: what is proved, what is known to fall, and what lies between."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_robust.evaluation.certificate import Certificate
from keras_robust.evaluation.certify import facts_of
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail
from keras_robust.evaluation.progress import differing
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import Images
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.report.check_result import CheckResult
from keras_robust.report.data import BOUNDS, CERTIFICATE
from keras_robust.report.report import Report
from keras_robust.report.row import CERTIFIED, CLEAN, Row

_NUM_POINTS = 31
# Norms of perturbations are computed in float32.
_ROUNDING = 1 + 1e-5


def check_certificate(
    certificate: Any, classifier: Classifier, x: np.ndarray | Images, labels: np.ndarray
) -> None:
    """Raises a `ValueError` for what is no certificate of this classifier on these images."""
    smoothed = classifier.model
    if not isinstance(certificate, Certificate):
        raise ValueError(
            "Argument `certificate` must be what `kr.evaluation.certify` returns. "
            f"Received: certificate={certificate!r}"
        )
    if not isinstance(smoothed, SmoothedClassifier):
        raise ValueError(
            "Argument `certificate` is about a smoothed classifier: pass "
            "`kr.evaluation.SmoothedClassifier(model, stddev)` as `model`. "
            f"Received: model={smoothed!r}"
        )
    facts = facts_of(Classifier.of(smoothed.model), x, labels.astype(int), stddev=smoothed.stddev)
    # The same votes count, whatever they were computed with.
    names = facts.keys() - {"keras_robust version", "backend"}
    mine, theirs = ({n: f.get(n, "") for n in names} for f in (facts, certificate.facts))
    if different := differing(mine, theirs):
        raise ValueError(
            "Argument `certificate` must be made of the model that is smoothed, by the same noise "
            f"and on the same images. Received: one of other {', '.join(different)}"
        )


def add_certificate(
    report: Report, certificate: Certificate, radii: Mapping[str, float], num_values: int
) -> None:
    """Adds a row, two curves, a note, and, where there are checks, one more.

    The curves are over the L2 radius. The upper one is the share of examples that no attack of the
    report has fooled by a perturbation of at most that norm. The lower one is certified.

    Args:
        radii: mapping of norms to radii: those of the worst case. The row says how many examples
            are certified within all of them. The ball of a radius r in L-infinity lies in that of
            `r sqrt(num_values)` in L2, that of r in L1 in that of r.
        num_values: int. How many values an image has.
    """
    found = _smallest_found(report)
    if radii:
        radius = max(r * (num_values**0.5 if n == "linf" else 1.0) for n, r in radii.items())
        report.add(Row(CERTIFIED, certificate.certified(radius), radii=dict(radii)))
    given = [row.radii["l2"] for row in report.rows if "l2" in row.radii]
    points = np.linspace(0, max([*given, float(certificate.radii.max())]) or 1.0, _NUM_POINTS)
    xs = sorted({*points.tolist(), *given})
    report.curves[BOUNDS] = {
        "attacks: at most": {r: float((found > r * _ROUNDING).mean()) for r in xs},
        "certificate: at least": certificate.curve(xs),
    }
    report.notes[CERTIFICATE] = repr(certificate)
    if report.checks is not None:
        report.checks.append(_no_contradiction(certificate, found))


def _smallest_found(report: Report) -> np.ndarray:
    """The L2 norm of the smallest perturbation that fools each example; infinity if none does."""
    found = np.where(report.row(CLEAN).correct, np.inf, 0.0)
    for row in report.rows:
        if row.attacked is not None and "l2" in row.measures:
            fooled = row.attacked & ~row.correct
            found[fooled] = np.minimum(found, row.measures["l2"])[fooled]
    return found


def _no_contradiction(certificate: Certificate, found: np.ndarray) -> CheckResult:
    certified = certificate.certified(0.0)
    count, total = int((certified & (found < certificate.radii)).sum()), int(certified.sum())
    passed = bool(binomial_tail(count, total, certificate.alpha) >= SIGNIFICANCE)
    sentence = f"Attacks have fooled {count} of {total} examples within their certified radius."
    if not passed:
        sentence += (
            f" Chance explains {certificate.alpha:.2%} of them: the votes are not independent, or "
            "the model's answer to an image depends on more than the image."
        )
    return CheckResult(
        "no attack succeeds within a certified radius",
        passed,
        sentence,
        {"fooled": float(count), "certified": float(total)},
    )
