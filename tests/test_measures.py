"""``halikit evaluate MEASURE``: how measures become commands, and what their options and JSON are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Shell
from typer.main import get_command
from typer.testing import CliRunner

import halikit as hk
from halikit.cli import app
from halikit.config import Config, override
from halikit.measures import MEASURES, measure
from halikit.runs.run import Run

COMMON = {"--data", "--class", "--attribute", "--weights", "--device", "--seed", "--out", "--json", "--help"}
TABLE = {"--level", "--fewest", "--format"}
OWN = {
    "labels": {"--number", "--test", "--classifier"},
    "recovery": {"--number"},
    "errors": {"--views"},
    "reconstruction": {"--number", "--test", "--scale", "--proposal", "--draws"},
    "likelihood": {"--number", "--test", "--scale", "--proposal", "--draws"},
    "health": {"--number", "--test"},
    "samples": {"--number", "--test", "--features", "--noiseless"},
    "classes": {"--number", "--neighbours"},
    "svm": TABLE,
    "attributes": TABLE | {"--vgg", "--width", "--epochs"},
}
KEYS = {
    "labels": "kept reference class_shares sample_distance held_out_distance num_held_out num_samples classifier "
    "recovery recovery_from_x",
    "recovery": "num_samples recovery recovery_from_x",
    "reconstruction": "number euclidean embedded nats nats_refused observation_scale js_lower_bounds",
    "likelihood": "number observation_scale mean values kind num_draws effective_sample_size effective_sample_sizes "
    "proposal change settled",
    "samples": "number noiseless features precision recall density coverage",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = {"levels": 2, "data_shape": (1, 8, 8), "model.hidden": 16, "model.depth": 1, "discriminator.width": 16}
    config = override(Config(), {**model, "steps": 3, "batch_size": 16, "device": "cpu"})
    out = tmp_path_factory.mktemp("measures") / "run"
    hk.Trainer(hk.build(config), "digits", out=out, on_notice=lambda _: None).fit()
    return out


def test_every_measure_is_a_command() -> None:
    assert list(get_command(app).commands["evaluate"].commands) == list(MEASURES) == list(OWN)


@pytest.mark.parametrize("name", MEASURES)
def test_help_shows_the_options_of_one_measure(name: str) -> None:
    printed = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["evaluate", name, "--help"]).stdout
    assert set(re.findall(r"--[a-z]+", printed.partition("Options")[2])) == OWN[name] | COMMON
    assert f"Example: halikit evaluate {name} runs/" in printed


@pytest.mark.parametrize("arguments", [["runs/digits"], ["digits", "--metric", "svm"], ["label", "digits"]])
def test_without_a_measure_the_measures_are_named(halikit: Shell, arguments: list[str]) -> None:
    message = halikit("evaluate", *arguments, code=2)
    assert f"{arguments[0]!r} is not a measure" in message
    assert ", ".join(MEASURES) in message
    assert len(message.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    "arguments", [["evaluate", "--help"], *(["evaluate", name, "--help"] for name in ("labels", "svm", "attributes"))]
)
def test_help_imports_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    assert not heavy(tmp_path, f"sys.argv = ['halikit', *{arguments!r}]\nmain()")


def test_completion_imports_no_torch(tmp_path: Path) -> None:
    words = {"_HALIKIT_COMPLETE": "complete_bash", "COMP_WORDS": "halikit evaluate sv", "COMP_CWORD": "2"}
    code = f"import os\nos.environ.update({words!r})\nsys.argv = ['halikit']\napp(prog_name='halikit')"
    assert not heavy(tmp_path, code, expected="svm")


def heavy(folder: Path, code: str, expected: str = "halikit evaluate") -> str:
    """The heavy packages that are imported once some code has run to its exit."""
    program = f"""
import sys
from halikit.cli import app, main
try:
    {code.replace(chr(10), chr(10) + "    ")}
finally:
    print(*sorted({{"torch", "pyro", "numpy", "sklearn"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert expected in done.stdout, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("name", KEYS)
def test_values_as_json(halikit: Shell, run: Path, name: str) -> None:
    options = ["--scale", 0.3, "--draws", 64] if name == "likelihood" else []
    values = json.loads(halikit("evaluate", name, run, "-n", 50, "--seed", 3, "--json", *options))
    assert list(values) == ["run", "weights", "seed", *KEYS[name].split()]
    assert (values["run"], values["weights"], values["seed"]) == (str(run), "averaged", 3)


def test_a_measure_is_a_function_of_python(run: Path) -> None:
    result = measure("reconstruction")(Run(run), number=100)
    h, x = Run(run).hierarchy, Run(run).batch(Run(run).data.held_out.evenly(100))
    for level, error in enumerate(result.values["euclidean"], 1):
        with torch.no_grad():
            rms = float((x - h.reconstruct(x, level)).square().mean().sqrt())
        assert error["value"] == pytest.approx(rms, rel=1e-5)
        assert (error["kind"], error["unit"], error["count"]) == ("estimate", "per element", 100)
    assert result.lines[1] == "root mean square error of x̂, over all elements and data"


def test_numbers_in_nats_come_with_their_draws(halikit: Shell, run: Path) -> None:
    options = ["-n", 20, "--scale", "fit", "--draws", 128]
    first, second = json.loads(halikit("evaluate", "reconstruction", run, *options, "--json"))["nats"]
    assert (first["kind"], first["num_samples"], first["num_between"], first["proposal"]) == ("estimate", 16, 0, None)
    assert (second["kind"], second["num_samples"], second["num_between"]) == ("upper bound", 2, 128)
    assert 1 <= second["effective_sample_size"] <= 128
    assert second["proposal"] == "mixture"
    printed = halikit("evaluate", "reconstruction", run, *options, "--proposal", "decoder")
    assert "16 draws of z_1" in printed
    assert "2 draws of z_2 × 128 draws by the decoder, effective sample size" in printed
    # An untrained model is far from settled at 128 draws: that is said.
    assert ("not settled" in printed) == (
        not json.loads(halikit("evaluate", "reconstruction", run, *options, "--proposal", "decoder", "--json"))["nats"][
            1
        ]["settled"]
    )


def test_the_likelihood_of_each_datum(halikit: Shell, run: Path) -> None:
    options = ["-n", 20, "--scale", 0.5, "--draws", 128]
    values = json.loads(halikit("evaluate", "likelihood", run, *options, "--json"))
    assert len(values["values"]) == len(values["effective_sample_sizes"]) == values["number"] == 20
    assert values["mean"]["value"] == pytest.approx(sum(values["values"]) / 20, rel=1e-5)
    assert (values["kind"], values["num_draws"], values["proposal"]) == ("lower bound", 128, "mixture")
    printed = halikit("evaluate", "likelihood", run, *options)
    assert f"{values['mean']['value']:.4g} ±" in printed
    assert "(lower bound, n = 20)  128 draws by the mixture, effective sample size" in printed
    assert "--scale fit, or --scale NUMBER" in halikit("evaluate", "likelihood", run, code=2)
    assert "positive number or fit" in halikit("evaluate", "likelihood", run, "--scale", "-1", code=2)


def test_lines_go_into_a_file(halikit: Shell, run: Path, tmp_path: Path) -> None:
    finding = run / "figures" / "evaluate-recovery.json"
    finding.unlink(missing_ok=True)
    printed = halikit("evaluate", "recovery", run, "-n", 50, "--out", tmp_path / "recovery.txt")
    assert (tmp_path / "recovery.txt").read_text("utf-8") == printed
    assert not finding.exists()
    assert halikit("evaluate", "recovery", run, "-n", 50) == printed
    assert json.loads(finding.read_text("utf-8"))["lines"] == printed.splitlines()
    assert "there is no directory" in halikit("evaluate", "recovery", run, "--out", tmp_path / "no" / "r", code=2)


def test_the_test_part_is_measured_where_asked(halikit: Shell, run: Path) -> None:
    counts = [
        json.loads(halikit("evaluate", "labels", run, "-n", 20, "--json", *options))["num_held_out"]
        for options in ([], ["--test"])
    ]
    data = Run(run).data
    assert counts == [len(data.held_out), len(data.test)]
