"""The version stands in one place, and every document that names it agrees."""

import pathlib
import re

import keras_robust as kr

ROOT = pathlib.Path(__file__).parent.parent


def test_documents_name_the_version():
    readme, citation = ((ROOT / name).read_text() for name in ("README.md", "CITATION.cff"))
    named = re.findall(r"keras_robust (\d+\.\d+\.\d+)|version = \{(.+)\}", readme)
    assert [first or second for first, second in named] == [kr.__version__] * 2
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [kr.__version__]


def test_changelog_has_a_section_for_the_version_and_for_what_comes():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", kr.__version__]
    assert len(set(headings)) == len(headings)
