"""Adds a certificate to a report: its lower bound beside the upper bound of the attacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_robust.evaluation.certificate import Certificate
from keras_robust.evaluation.certify import fingerprint_of_votes
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail
from keras_robust.evaluation.progress import differing
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.report.check_result import CheckResult
from keras_robust.report.data import BOUNDS, CERTIFICATE
from keras_robust.report.report import Report
from keras_robust.report.row import CERTIFIED, CLEAN, Row

_NUM_POINTS = 31
# Allows for rounding: norms of perturbations are computed in float32.
_ROUNDING = 1 + 1e-5


def check_certificate(
    certificate: Any, classifier: Classifier, x: np.ndarray | LazyImages, labels: np.ndarray
) -> None:
    """Raises a `ValueError` unless the certificate belongs to this classifier and these images."""
    smoothed = classifier.model
    if not isinstance(certificate, Certificate):
        raise ValueError(
            "Argument `certificate` must be what `kr.evaluation.certify` returns. "
            f"Received: certificate={certificate!r}"
        )
    if not isinstance(smoothed, SmoothedClassifier):
        raise ValueError(
            "Argument `certificate` requires a smoothed classifier: pass "
            "`kr.evaluation.SmoothedClassifier(model, stddev)` as `model`. "
            f"Received: model={smoothed!r}"
        )
    facts = fingerprint_of_votes(
        Classifier.of(smoothed.model), x, labels.astype(int), stddev=smoothed.stddev
    )
    # A certificate made by another version or backend is still valid.
    names = facts.keys() - {"keras_robust version", "backend"}
    mine, theirs = ({n: f.get(n, "") for n in names} for f in (facts, certificate.facts))
    if different := differing(mine, theirs):
        raise ValueError(
            "Argument `certificate` must be made with the same base model, the same noise and the "
            f"same images. Received: a certificate with other {', '.join(different)}"
        )


def add_certificate(
    report: Report, certificate: Certificate, radii: Mapping[str, float], num_values: int
) -> None:
    """Adds a certificate's row, curves and note to a report, and a check if it has checks.

    The two curves are functions of the L2 radius. The upper curve is the share of examples that no
    attack of the report has fooled with a perturbation of at most this norm. The lower curve is the
    certified accuracy.

    Args:
        report: the report.
        certificate: the certificate.
        radii: mapping of norms to the radii of the worst case. The row counts the examples that are
            certified within all of them. An L-infinity ball of radius r is contained in the L2 ball
            of radius `r sqrt(num_values)`, and an L1 ball of radius r in the L2 ball of radius r.
        num_values: int. Number of values in an image.
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
    """Returns the smallest L2 norm that fooled each example, or infinity if none did.

    It is 0 for examples that are misclassified without an attack.
    """
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
    sentence = f"Attacks fooled {count} of {total} examples within their certified radius."
    if not passed:
        sentence += (
            f" Chance explains only {certificate.alpha:.2%} of the examples. The votes are not "
            "independent, or the model's prediction for an image does not depend on this image "
            "alone."
        )
    return CheckResult(
        "no attack succeeds within a certified radius",
        passed,
        sentence,
        {"fooled": float(count), "certified": float(total)},
    )
