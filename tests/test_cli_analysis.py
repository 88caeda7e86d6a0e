"""Commands that use a trained model: what they print, write, and tell in the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Shell, size_of
from PIL import Image

from halikit.cli import common
from halikit.runs.report import write_report
from halikit.runs.run import Result, Run

QUICK = ["--steps", "20", "--batch-size", "16", "--set", "evaluate_every=5", "--set", "model.hidden=16"]
QUICK += ["--set", "discriminator.width=16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "halikit", "train", "--levels", "3", *QUICK, "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


class Page(HTMLParser):
    """Tags, images and text of a page; a tag that is left open is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_training_writes_a_report(trained: Path) -> None:
    page = Page((trained / "report.html").read_text("utf-8"))
    assert "halikit train --levels 3" in page.text
    assert "variance_preserving" in page.text
    # Nothing outside the file: six curves and two grids, all within it.
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/") for source in page.sources)


def test_reconstructions_with_several_draws(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("reconstruct", run, "--draws", 3, "-n", 5, "--json"))
    assert said["standard_deviation_of_draws"][0] == 0
    assert said["standard_deviation_of_draws"][2] > 0
    assert size_of(said["path"])[1] == (1 + 3 * 3) * 52


def test_samples_are_truncated(halikit: Shell, run: Path) -> None:
    wide, narrow = (halikit("sample", run, *options).strip() for options in ([], ["--truncation", 0.1]))
    assert wide == narrow == str(run / "figures" / "samples.png")
    halikit("sample", run, "--noiseless", "--truncation", 0.1)
    assert "--truncation 0.1" in Page((run / "report.html").read_text("utf-8")).text
    assert "positive number" in halikit("sample", run, "--truncation", 0, code=2)


@pytest.mark.parametrize(
    "options", [["--centre", 0.25], ["--rectangle", 0, 0, 2, 2], ["--mask", "mask.png"]], ids=lambda o: o[0]
)
def test_inpainting(halikit: Shell, run: Path, options: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    mask = np.zeros((16, 16), np.uint8)
    mask[:4, :4] = 255
    Image.fromarray(mask).save("mask.png")
    said = json.loads(halikit("inpaint", run, *options, "--json"))
    assert (said["images"], said["missing"]) == (297, 4)
    assert list(said["error"]) == ["z3", "z2", "z1"]
    low, high = said["interval_95"]
    assert low < said["difference"]["value"] < high
    assert said["difference"]["value"] == pytest.approx(said["error"]["z1"]["value"] - said["mean_fill"]["value"])
    assert size_of(said["path"])[1] == 5 * 52


def test_traversals(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("traverse", run, "--number", 2, "-n", 3, "--json"))
    assert said["level"] == 3
    assert said["entries"] == sorted(range(10), key=lambda entry: -said["influence"][entry])[:2]
    assert size_of(said["path"])[1] == 6 * 52 + 22
    said = json.loads(halikit("traverse", run, "--level", 1, "--entries", "7,1", "--values", "-1,1", "--json"))
    assert said["entries"] == [7, 1]


def test_innovation(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("innovate", run, "--level", 2, "--json"))
    assert len(said["entries"]) == 3
    assert Path(said["path"]).name == "innovation-z2.png"
    lines = halikit("innovate", run, "--towards", 3, "--away", 8).splitlines()
    assert lines[0] == "mean of 153 training images of 3 less that of 146 of 8"
    assert Path(lines[-1]).name == "innovation-z3-3.png"


def test_interpolation_and_neighbours(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("interpolate", run, "--pairs", 2, "--steps", 5, "--json"))
    assert said["positions"] == [0, 0.25, 0.5, 0.75, 1]
    assert size_of(said["path"])[1] == 2 * 3 * 52 + 22
    said = json.loads(halikit("neighbours", run, "-n", 2, "-k", 3, "--json"))
    assert np.shape(said["rows"]) == (4, 2, 3)
    assert said["same_label"][0] > 0.8


def test_errors_of_reconstructions(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("evaluate", "reconstruction", run, "--json"))
    assert said["nats"] is None
    assert "give a scale" in said["nats_refused"]
    assert [error["kind"] for error in said["euclidean"] + said["embedded"]] == ["estimate"] * 6
    assert said["js_lower_bounds"][0]["kind"] == "lower bound"
    said = json.loads(halikit("evaluate", "reconstruction", run, "--scale", "fit", "--json"))
    assert said["number"] == 149
    assert [error["kind"] for error in said["nats"]] == ["estimate", "upper bound", "upper bound"]
    assert "positive number or fit" in halikit("evaluate", "reconstruction", run, "--scale", "-1", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "--level", 4], "levels 1 to 3"),
        (["traverse", "--level", 4], "levels 1 to 3"),
        (["traverse", "--entries", "0,99"], "indices from 0 to 9"),
        (["traverse", "--values", "a"], "numbers between commas"),
        (["innovate", "--towards", "z"], "there are 0, 1, 2"),
        (["interpolate", "--pairs", 200], "need 400 held-out images"),
        (["neighbours", "-k", 2000], "1500 data to search"),
        (["inpaint", "--centre", 2], "at most 1"),
        (["inpaint", "--rectangle", 0, 0, 9, 1], "does not lie within 8×8"),
        (["inpaint", "--mask", "no.png"], "cannot read the mask"),
        (["sample", "--out", "no/where.png"], "there is no directory"),
        (["reconstruct", "--out", "x.npy"], "halikit sample alone writes numbers"),
        (["encode", "--out", "x.npy"], "halikit sample alone writes numbers"),
    ],
)
def test_what_cannot_be_done_is_told(halikit: Shell, trained: Path, arguments: list[object], message: str) -> None:
    complaint = halikit(arguments[0], trained, *arguments[1:], code=2)
    assert message in complaint
    assert len(complaint.strip().splitlines()) <= 3


def test_findings_land_in_the_report(halikit: Shell, run: Path, tmp_path: Path) -> None:
    before = len(Page((run / "report.html").read_text("utf-8")).sources)
    halikit("inpaint", run)
    halikit("inpaint", run, "--centre", 0.25)
    page = Page((run / "report.html").read_text("utf-8"))
    assert len(page.sources) == before + 1
    assert "--centre 0.25" in page.text
    assert "95% interval" in page.text
    # What is written elsewhere stays out of it.
    halikit("interpolate", run, "--out", tmp_path / "elsewhere.png")
    assert len(Page((run / "report.html").read_text("utf-8")).sources) == before + 1


def test_a_report_of_everything(halikit: Shell, run: Path) -> None:
    said = json.loads(halikit("report", run, "--all", "--json"))
    page = Page(Path(said["path"]).read_text("utf-8"))
    for command in said["made"]:
        assert f"$ halikit {command}" in page.text
    pictured = [command for command in said["made"] if not command.startswith("evaluate") or "health" in command]
    assert len(page.sources) == 8 + len(pictured)
    assert "there is no run at" in halikit("report", run / "samples", code=2)


def test_the_snippet_of_the_documentation_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "analysis.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    monkeypatch.chdir(run)
    names["edit"](".")
    assert size_of("edit.png")[1] == 8 * 52 + 22


def test_reports_are_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    common.keep(Run(run), Result("evil", evil, {}, [evil]), evil)
    page = Page((run / "report.html").read_text("utf-8"))
    assert page.text.count(evil) == 3
    assert "<script" not in (run / "report.html").read_text("utf-8")
    (run / "figures" / "evil.json").write_text("{")
    with pytest.raises(ValueError, match=r"evil\.json is damaged"):
        write_report(Run(run))


def test_a_browser_shows_the_report(halikit: Shell, run: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium here")
    halikit("inpaint", run)
    report = run / "report.html"
    probe = tmp_path / "probe.html"
    script = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        broken: [...document.images].filter(image => !image.naturalWidth).length,
        images: document.images.length,
        width: document.documentElement.scrollWidth, window: innerWidth}) })</script></body>"""
    probe.write_text(report.read_text("utf-8").replace("</body>", script), "utf-8")
    base = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/b",
    ]
    shown = subprocess.run(
        [*base, "--window-size=390,844", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    seen = json.loads(shown.partition("<title>")[2].partition("</title>")[0])
    assert seen["broken"] == 0
    assert seen["images"] == 8
    # Nothing sticks out to the side on a phone.
    assert seen["width"] <= seen["window"]
