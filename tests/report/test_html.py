"""The HTML page of a report has all figures, and needs no other files."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from keras_robust.metrics.geometry import FeatureGeometry
from keras_robust.report.check_result import CheckResult
from keras_robust.report.data import Samples
from keras_robust.report.report import Report
from keras_robust.report.row import Row

pytestmark = pytest.mark.slow_on_jax

MALICIOUS = "<script>document.title = 'evil'</script> & \"$x^$\" 'quotes'"
CHECKS = [
    CheckResult("more steps", True, "With 10 and 20 steps it is 31% & 30%.", {"20 steps": 0.3}),
    CheckResult("large epsilon", None, "The attack has no epsilon."),
    CheckResult("zero <b>gradients</b>", False, "They are zero for 84%.", {"share": 0.84}),
]


def attacked_row(name, num_correct, radii, size):
    correct = np.arange(100) < num_correct
    attacked = np.arange(100) < 90
    norms = {"linf": np.linspace(0, size, 100), "l2": np.linspace(0, 10 * size, 100)}
    counts = {"num_gradients": np.full(100, 20), "num_evaluations": np.full(100, 2.5)}
    return Row(name, correct, f"PGD({name})", radii, attacked, {**norms, **counts})


@pytest.fixture
def report():
    """Returns a report with all sections."""
    images = np.random.default_rng(0).random((8, 8, 8, 1)).astype("float32")
    samples = Samples(images, np.clip(images + 0.1, 0, 1), np.arange(8), np.arange(8) + 1)
    report = Report(num_examples=100, batch_size=32, seed=3, worst_case_only=False)
    report.add(Row("clean", np.arange(100) < 90))
    report.add(attacked_row(MALICIOUS, 40, {"linf": 8 / 255}, 8 / 255), samples)
    report.add(attacked_row("DeepFool", 0, {}, 0.5), samples)
    report.add(Row("worst case", np.arange(100) < 40, radii={"linf": 8 / 255}))
    report.checks = list(CHECKS)
    report.curves = {
        "epsilon": {MALICIOUS: {0.0: 0.9, 0.1: 0.2}, "FGSM": {0.0: 0.9, 0.2: 0.1}},
        "steps": {"PGD": {1: 0.5, 20: 0.25}},
    }
    points = np.random.default_rng(0).random((20, 2))
    classes = np.arange(20) % 3
    report.geometry = FeatureGeometry(
        points, points + 1, classes, classes, (classes + 1) % 3, "pca", np.array([0.5, 0.2])
    )
    report.labels, report.class_names = np.arange(100) // 50, ["b & c", MALICIOUS, *"2345678"]
    report.notes = {"command": "keras-robust evaluate 'a & b.keras'"}
    return report


class Tables(html.parser.HTMLParser):
    """Parses the cells of the tables in a page, by id."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.images, self.tags = {}, [], set()
        self.rows = self.cell = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "br" and self.cell is not None:
            self.cell += "; "
        elif tag == "img":
            self.images.append(attributes)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def assert_tables_are_right(page):
    tables = Tables(page).tables
    assert list(tables) == [
        "accuracy",
        "accuracy-by-class",
        "checks",
        "accuracy-over-epsilon",
        "accuracy-over-steps",
        "facts",
    ]
    names = [row[0] for row in tables["accuracy"][1:]]
    assert names == ["clean", MALICIOUS, "DeepFool", "worst case"]
    cells = [dict(zip(tables["accuracy"][0], row, strict=True)) for row in tables["accuracy"]]
    assert [row["accuracy"] for row in cells[1:]] == ["90.0%", "40.0%", "0.0%", "40.0%"]
    assert [row["radius"] for row in cells[1:]] == [
        "",
        "L-inf 0.03137",
        "no limit",
        "L-inf 0.03137",
    ]
    # 90 examples are attacked, and those from 40 (from 0) are fooled. Norms grow with the index.
    size = np.linspace(0, 8 / 255, 100)
    assert cells[2]["fooled"] == "50 of 90"
    assert cells[2]["L-inf, median (largest)"] == f"{size[64:66].mean():.3g} ({size[89]:.3g})"
    assert cells[3]["fooled"] == "90 of 90"
    assert cells[3]["L2, median (largest)"] == f"{5 * 44.5 / 99:.3g} ({5 * 89 / 99:.3g})"
    assert cells[2]["gradients + evaluations"] == "20.0 + 2.5"
    # The Wilson interval of 0 out of n ends at z^2 / (n + z^2).
    assert cells[3]["95% interval"] == "0.0% to 3.7%"

    # Each class has 50 examples. 50 and 40 are correct, and 40 and 0 in the worst case.
    assert tables["accuracy-by-class"][:4] == [
        ["class", "examples", "clean", "worst case", "95% interval", ""],
        ["b & c", "50", "100.0%", "80.0%", "67.0% to 88.8%", ""],
        [MALICIOUS, "50", "80.0%", "0.0%", "0.0% to 7.1%", ""],
        ["2", "0", "no examples", "", "", ""],
    ]
    assert len(tables["accuracy-by-class"]) == 10
    bars = re.findall(r'class="bar"><div style="[^"]*?(\d+\.\d)%[^"]*?(\d+\.\d)%', page)
    assert bars == [("80.0", "100.0"), ("0.0", "80.0"), *[("0.0", "0.0")] * 7]

    # The failed check comes first.
    assert tables["checks"][1:] == [
        ["zero <b>gradients</b>", "FAILED", "They are zero for 84%.", "share: 0.84"],
        ["more steps", "passed", "With 10 and 20 steps it is 31% & 30%.", "20 steps: 0.3"],
        ["large epsilon", "not run", "The attack has no epsilon.", ""],
    ]
    assert tables["accuracy-over-epsilon"] == [
        ["epsilon", MALICIOUS, "FGSM"],
        ["0", "90.0%", "90.0%"],
        ["0.1", "20.0%", ""],
        ["0.2", "", "10.0%"],
    ]
    facts = {row[0]: row[1] for row in tables["facts"]}
    assert facts["command"] == "keras-robust evaluate 'a & b.keras'"
    assert facts["attack: DeepFool"] == "PGD(DeepFool)"
    assert {"keras", "keras_robust", "numpy", "python", "device", "date", "seed"} <= set(facts)


def text_of(page):
    """Returns the page's text without its style."""
    body = page[page.index("<body>") :]
    return " ".join(re.sub("<[^>]*>", " ", body).split())


def test_the_page_needs_no_other_files(report, tmp_path):
    report.save(tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert_tables_are_right(page)
    parsed = Tables(page)
    assert not parsed.tags & {"script", "link", "iframe", "object", "a", "b"}
    assert "http" not in page
    assert "url(" not in page
    files = ["accuracy", "curves_epsilon", "curves_steps", "samples", "geometry"]
    assert len(parsed.images) == len(files)
    for image, name in zip(parsed.images, files, strict=True):
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert data == (tmp_path / "a" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(image["alt"]) > 10
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == report.to_dict()


def test_a_failed_check_comes_first(report, tmp_path, capsys):
    report.save(tmp_path)
    text = text_of((tmp_path / "report.html").read_text())
    assert text.startswith("Robustness report 1 of 3 CHECKS FAILED")
    assert text.index("They are zero for 84%.") < text.index("Upper bound")
    summary = report.summary()
    assert capsys.readouterr().out.strip() == summary
    assert summary.startswith("1 of 3 CHECKS FAILED")
    assert summary.splitlines()[1].endswith("They are zero for 84%.")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [check["passed"] for check in saved["checks"]] == [True, None, False]


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        (None, "were not run"),
        ([], "0 checks passed"),
        (CHECKS[:1], "1 checks passed, none failed."),
        (CHECKS[:2], "1 checks passed, none failed. 1 could not be run."),
    ],
)
def test_the_verdict(report, tmp_path, checks, expected):
    report.checks = checks
    report.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in (text_of(page), report.summary(), report.to_dict()["verdict"]):
        assert expected in text
        assert "FAILED" not in text
    assert "verdict failed" not in page


def test_figures_that_are_not_finite_are_valid_json(report, tmp_path):
    report.checks = [
        CheckResult("a", np.bool_(False), "b", {"c": float("nan"), "d": np.float32(1)})
    ]
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["checks"][0] == {
        "name": "a",
        "passed": False,
        "sentence": "b",
        "figures": {"c": None, "d": 1.0},
    }
    assert report.failed_checks == report.checks


def test_the_statement_on_attacks_without_a_radius(report):
    assert "within L-inf 0.03137: 40.0%" in report.statement
    assert "Attacks without a radius are left out: DeepFool." in report.statement
    report.rows = [report.row(name) for name in ("clean", "DeepFool")]
    assert "not finished" in report.statement
    report.add(Row("worst case", np.zeros(100, bool)))
    assert "No attack had a radius" in report.statement
    assert "Upper bound" not in report.statement


PROBE = """<script>addEventListener('load', () => {
  const style = getComputedStyle(document.querySelector('.verdict'));
  document.body.dataset.seen = JSON.stringify({
    title: document.title,
    width: [document.documentElement.scrollWidth, innerWidth],
    images: [...document.images].map(i => i.complete && i.naturalWidth > 0),
    verdict: [document.querySelector('.verdict').getBoundingClientRect().bottom, style.color,
              style.backgroundColor, style.borderTopWidth],
  });
});</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_the_page(report, tmp_path, width):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"needs a browser: one of {', '.join(names)} (Debian's package chromium)")
    report.save(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1000", probed.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert_tables_are_right(shown.replace(PROBE, ""))
    seen = json.loads(html.unescape(re.search('data-seen="([^"]*)"', shown)[1]))
    assert seen["title"] == "Robustness report"
    assert seen["width"][0] <= seen["width"][1]
    assert seen["images"] == [True] * 5
    bottom, color, background, border = seen["verdict"]
    assert bottom < 1000  # Visible without scrolling.
    assert (color, background, border) == ("rgb(26, 26, 26)", "rgb(253, 234, 234)", "5px")
