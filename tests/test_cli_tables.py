"""``halikit evaluate`` over several runs: errors of the classes, linear SVMs, attributes kept."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import halikit as hk
from halikit.cli import app
from halikit.config import Config, override
from halikit.errors import InputError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs of two levels with classes on top, on digits."""
    here = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = {"levels": 2, "data_shape": (1, 8, 8), "widths": (6, 4), "model.hidden": 16, "classes": 10}
        training = {"steps": 4, "batch_size": 32, "labels.number": 20, "seed": seed, "device": "cpu"}
        config = override(Config(), {**model, "discriminator.width": 16, **training})
        hk.Trainer(hk.build(config), "digits", out=here / f"run{seed}").fit()
    return [str(here / f"run{seed}") for seed in (0, 1)]


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_errors_are_counted_and_summed_up(runs: list[str]) -> None:
    found = json.loads(said("errors", *runs, "--json"))
    assert [run["number"] for run in found["runs"]] == [297, 297]
    errors = [run["errors"] for run in found["runs"]]
    assert errors == [sum(run["errors_by_class"]) for run in found["runs"]]
    (summary,) = found["summary"]
    assert (summary["method"], summary["labels"], summary["runs"]) == ("adversarial", 20, 2)
    assert summary["mean"] == pytest.approx(sum(errors) / 2)
    assert summary["std"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert f"{errors[0]:,} errors of 297 test images" in said("errors", *runs)
    with pytest.raises(InputError, match="this run augments none"):
        said("errors", *runs, "--views", "2")


def test_svms_of_two_runs_stand_beside_pixels_and_random_weights(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    printed = said("svm", *runs, "--level", "1+2", "--format", "csv", "--out", str(out))
    assert printed == out.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0])[2:] == ["run0 z1+z2", "run1 z1+z2", "pixels", "random weights z1+z2"]
    assert [row["attribute"] for row in rows] == [*"0123456789", "mean", "std", "best"]
    assert float(rows[10]["pixels"]) > 0.9
    assert sum(int(rows[12][name]) for name in list(rows[0])[2:]) >= 10


def test_attributes_kept_are_judged_by_one_classifier(runs: list[str], tmp_path: Path) -> None:
    vgg = tmp_path / "vgg.safetensors"
    options = ["--vgg", str(vgg), "--width", "2", "--epochs", "1", "--json"]
    first = json.loads(said("attributes", runs[0], *options))
    written = vgg.stat().st_mtime_ns
    both = json.loads(said("attributes", *runs, *options))
    assert vgg.stat().st_mtime_ns == written
    assert both["models"] == ["data", "run0 z1", "run0 z2", "run1 z1", "run1 z2"]
    assert [row[:3] for row in both["scores"]] == first["scores"]
    assert both["best"][0] is None
    samples = json.loads(said("samples", runs[0], "--features", str(vgg), "--json", "--number", "60"))
    assert samples["features"] == str(vgg)
    assert samples["fid"]["value"] > 0


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("svm", ["--level", "one"], r"--level takes levels such as 2 or 1\+2, got one"),
        ("svm", ["--level", "7"], r"levels go from 0 \(pixels\) to"),
        ("attributes", ["--level", "1+2"], r"a reconstruction is from one level: --level 1, not z1\+z2"),
        ("attributes", ["--data", "array:missing.npy"], "missing.npy"),
    ],
)
def test_what_cannot_be_compared(runs: list[str], measure: str, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        said(measure, runs[0], *options)


def test_runs_of_one_name_have_a_column_each(runs: list[str], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "run0")
    found = json.loads(said("svm", runs[0], str(copy), "--level", "1", "--json"))
    assert found["models"] == [f"{runs[0]} z1", f"{copy} z1", "pixels", "random weights z1+z2"]
    assert found["runs"] == [runs[0], str(copy)]
    assert found["scores"][0][0] == found["scores"][0][1]


def test_all_runs_of_a_table_are_for_the_same_data(runs: list[str], tmp_path: Path) -> None:
    model = {"levels": 1, "data_shape": (1, 4, 4), "model.hidden": 4, "discriminator.width": 4}
    config = override(Config(), {**model, "steps": 1, "batch_size": 16})
    images = torch.rand(200, 1, 4, 4) * 2 - 1
    hk.Trainer(hk.build(config), images, out=tmp_path / "other", on_notice=lambda _: None).fit()
    with pytest.raises(InputError, match=r"but the model of .*other is for \(1, 4, 4\)"):
        said("svm", runs[0], str(tmp_path / "other"))
