"""The README's code runs as it stands, on fewer images and epochs."""

import pathlib
import re

import keras
import pytest

import keras_robust as kr

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
load = kr.datasets.load


def test_there_is_an_example_of_each_kind():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("code", BLOCKS, ids=["layer", "head", "loss", "callback", "attacks"])
def test_example(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    count = 600 if "WNLLHead" in code else 64
    monkeypatch.setattr(kr.datasets, "load", lambda *args: load(*args).take(count))
    fit = keras.Model.fit

    def short_fit(self, *args, **kwargs):
        return fit(self, *args, **{**kwargs, "epochs": 1})

    monkeypatch.setattr(keras.Model, "fit", short_fit)
    exec(compile(code, "README.md", "exec"), {})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (pathlib.Path(__file__).parent.parent / target).exists(), target
