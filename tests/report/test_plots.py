"""Plots show all of their curves."""

import keras_robust as kr
from keras_robust.report import feature_plots, plots


def test_all_of_many_curves_are_drawn(monkeypatch, tmp_path):
    figures = []
    for module in (plots, feature_plots):
        make = module._figure
        monkeypatch.setattr(
            module, "_figure", lambda *size, make=make: figures.append(make(*size)) or figures[-1]
        )
    curves = {f"model {n}": {0.0: 0.9, 0.1: n / 20} for n in range(12)}
    kr.evaluation.plot_curves(curves, tmp_path / "curves.png")
    errors = {f"model {n}": {"first": 0.1, "second": n / 20} for n in range(12)}
    kr.evaluation.plot_perturbation_error(errors, tmp_path / "errors.png")
    for figure in figures:
        (axes,) = figure.axes
        assert [line.get_label() for line in axes.lines] == list(curves)
