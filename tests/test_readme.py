"""The code of the README and of docs/losses.md runs as it stands, on fewer images and epochs."""

import pathlib
import re

import keras
import pytest

import keras_robust as kr

ROOT = pathlib.Path(__file__).parent.parent
README, LOSSES = (ROOT / name for name in ("README.md", "docs/losses.md"))
BLOCKS, OF_LOSSES = (
    re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    for path in (README, LOSSES)
)
load = kr.datasets.load


def test_there_is_an_example_of_each_kind():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(
    "code", BLOCKS + OF_LOSSES,
    ids=["layer", "head", "loss", "callback", "attacks", "sums", "radius", "pairs", "keras"],
)  # fmt: skip
def test_example(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    count = 600 if "WNLLHead" in code else 64
    monkeypatch.setattr(kr.datasets, "load", lambda *args: load(*args).take(count))
    fit = keras.Model.fit

    def short_fit(self, *args, **kwargs):
        return fit(self, *args, **{**kwargs, "epochs": 1})

    monkeypatch.setattr(keras.Model, "fit", short_fit)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "path", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_page_of_results_is_the_one_that_the_recorded_runs_give(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    assert report.PAGE.read_text() == report.page()
