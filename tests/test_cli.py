"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import _no_child_survives as _no_child_survives
from children import command as halikit
from PIL import Image

QUICK = ["--steps", "12", "--batch-size", "16", "--set", "evaluate_every=6", "--set", "hidden=16", "--set", "width=16"]


def started(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a new Python; every command is started so once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "halikit", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    here = tmp_path_factory.mktemp("shell")
    return here, started("train", "--levels", "3", *QUICK, "--out", "run", cwd=here).stdout


def test_training_says_what_it_does(trained: tuple[Path, str]) -> None:
    here, output = trained
    assert "T_{z3|z2} ∘ T_{z2|z1} ∘ T_{z1|x}" in output
    assert "1,500 to train on, 297 held out" in output
    assert "one backward pass for both players" in output
    assert "recovery of z3 from samples" in output
    assert output.splitlines()[-1] == "run"
    assert sorted(p.name for p in (here / "run").iterdir()) == [
        "checkpoints",
        "config.toml",
        "figures",
        "metrics.csv",
        "model.safetensors",
        "report.html",
        "samples",
        "tensorboard",
    ]


def test_a_run_can_be_repeated_from_its_config(trained: tuple[Path, str]) -> None:
    here, _ = trained
    halikit("train", "--config", "run/config.toml", "--out", "again", cwd=here)
    first, again = ((here / run / "model.safetensors").read_bytes() for run in ("run", "again"))
    assert first == again


def test_sample(trained: tuple[Path, str]) -> None:
    here, _ = trained
    said = json.loads(started("sample", "run", "-n", "9", "--json", cwd=here).stdout)
    assert said["samples"] == 9
    assert size_of(here / said["path"]) == (152, 152)
    halikit("sample", "run", "-n", "9", "--out", "other.png", cwd=here)
    assert (here / "other.png").read_bytes() == (here / said["path"]).read_bytes()


def test_reconstruct(trained: tuple[Path, str]) -> None:
    here, _ = trained
    output = started("reconstruct", "run", cwd=here).stdout.splitlines()
    assert [line.split(":")[0] for line in output[:3]] == ["level 1", "level 2", "level 3"]
    assert size_of(here / output[-1])[1] == 4 * 52
    said = json.loads(halikit("reconstruct", "run", "--level", "2", "--json", cwd=here).stdout)
    assert said["shown"] == 2
    assert [f"{error:.4f}" in line for error, line in zip(said["rms_error"], output, strict=False)] == [True] * 3


def test_evaluate(trained: tuple[Path, str]) -> None:
    said = json.loads(started("evaluate", "labels", "run", "-n", "50", "--json", cwd=trained[0]).stdout)
    assert len(said["kept"]) == 3
    assert 0.95 < said["reference"] < 0.97
    assert sum(said["class_shares"]) == pytest.approx(1)


@pytest.mark.parametrize("what", ["run", "digits"])
def test_inspect(trained: tuple[Path, str], what: str) -> None:
    here, _ = trained
    said = json.loads(halikit("inspect", what, "--json", cwd=here).stdout)
    assert list(said["spaces"]) == ["x", "z1", "z2", "z3"]
    assert [part["name"] for part in said["encoder"]] == ["T_{z1|x}", "T_{z2|z1}", "T_{z3|z2}"]
    assert "concatenates z2" in [part["name"] for part in said["discriminator"]]
    assert all(part["multiply_adds"] > 0 for part in said["encoder"] + said["decoder"])
    assert "multiply-adds to encode" in halikit("inspect", what, cwd=here).stdout


def test_a_name_is_a_shipped_model_and_with_a_prefix_a_preset(tmp_path: Path) -> None:
    # The shipped model has half of the widths of the preset.
    parameters = [
        json.loads(halikit("inspect", what, "--json", cwd=tmp_path).stdout)["totals"]["encoder"]["parameters"]
        for what in ("digits", "preset:digits")
    ]
    assert parameters[0] < parameters[1]
    assert "there is no preset 'nope'" in halikit("inspect", "preset:nope", cwd=tmp_path, check=False).stderr


def test_a_shipped_model_stands_where_a_run_does(tmp_path: Path) -> None:
    assert halikit("sample", "digits", cwd=tmp_path).stdout.endswith("digits/figures/samples.png\n")
    assert halikit("report", "digits", cwd=tmp_path).stdout == "digits/report.html\n"
    page = (tmp_path / "digits" / "report.html").read_text()
    assert "halikit sample digits" in page
    assert "batch_size" in page
    halikit("push", "digits", "me/digits", "--to", "folder", cwd=tmp_path)
    halikit("pull", "folder", "--out", "back", cwd=tmp_path)
    halikit("report", "back", cwd=tmp_path)
    spaces = [json.loads(halikit("inspect", what, "--json", cwd=tmp_path).stdout) for what in ("digits", "back")]
    assert spaces[0]["totals"] == spaces[1]["totals"]


def test_inspect_prints_table_4_without_data(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in started("inspect", "imagenet128", cwd=tmp_path).stdout.splitlines()]
    assert "Convolution 3×3 2×2 64 BN 0.0 Leaky ReLU 0.02 64×64×64 18,560 75,497,472" in lines
    assert "Convolution 4×4 valid 512 WN 0.2 Leaky ReLU 0.02 512×1×1 4,195,328 4,194,304" in lines
    assert "networks Table 4" in lines


def test_presets_print_where_settings_come_from(tmp_path: Path) -> None:
    printed = halikit("presets", "celeba128", cwd=tmp_path).stdout
    assert "steps = 200121  # ours: 123 epochs" in printed
    assert "encoder_noise = 0.2  # paper, section 4" in printed


def test_presets_print_as_toml_that_train_reads(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(started("presets", "digits", cwd=tmp_path).stdout)
    dry = halikit("train", "--config", "mine.toml", "--dry-run", cwd=tmp_path).stdout
    assert 'preset = "digits"' in dry
    assert "data_shape = [1, 8, 8]" in dry
    assert not (tmp_path / "runs").exists()


def test_benchmark_compares_ways_to_step_with_what_the_machine_can_do(tmp_path: Path) -> None:
    options = ["--rounds", "3", "--set", "batch_size=16", "--set", "compile=none", "--json"]
    said = json.loads(started("benchmark", *options, cwd=tmp_path).stdout)
    book, plain, careful, *_, two_passes, simple, own = said["timings"]
    assert own["name"] == "halikit"
    assert book["ratio"] == 1
    assert all(timing["images_per_second"] == pytest.approx(16 / timing["seconds"]) for timing in said["timings"])
    # As counted by hand from the networks: of what runs C times forward, a gradient costs two times as much.
    assert own["flop"] < careful["flop"] < book["flop"]
    assert plain["flop"] < book["flop"]
    assert own["flop"] == simple["flop"] < two_passes["flop"]
    (machine,) = (machine for machine in said["machine"] if machine["threads"] == own["threads"])
    assert own["rate_fraction"] == pytest.approx(own["flop"] / own["seconds"] / machine["flop_per_second"])
    assert said["seconds_for_arithmetic"] == pytest.approx(own["flop"] / machine["flop_per_second"])
    assert said["seconds_for_bytes"] == pytest.approx(said["bytes"] / machine["bytes_per_second"])
    assert all(2**20 < size < 2**31 for size in said["peak_memory"].values())
    assert 0.3 < sum(share["share"] for share in said["profile"]) <= 1


def test_runs_get_names_of_their_own(tmp_path: Path) -> None:
    last = [halikit("train", "--levels", "1", *QUICK, cwd=tmp_path).stdout.splitlines()[-1] for _ in range(2)]
    assert last == ["runs/digits-l1", "runs/digits-l1-2"]


def test_a_baseline_has_the_settings_of_what_it_is_compared_with(tmp_path: Path) -> None:
    options = ["--levels", "2", "--steps", "2", "--batch-size", "8", "--baseline", "vae"]
    halikit("train", *options, cwd=tmp_path)
    with (tmp_path / "runs" / "vae_digits-l2" / "config.toml").open("rb") as file:
        config = tomllib.load(file)
    assert (config["model"]["levels"], config["training"]["method"], config["training"]["steps"]) == (1, "elbo", 2)
    assert "all 2 steps are played" in halikit("train", *options, "--resume", cwd=tmp_path).stdout


def test_a_family_can_be_chosen(tmp_path: Path) -> None:
    halikit("train", "--levels", "2", *QUICK, "--set", "model.family=mixed", "--out", "run", cwd=tmp_path)
    with (tmp_path / "run" / "config.toml").open("rb") as file:
        config = tomllib.load(file)
    assert config["model"]["family"] == "mixed"
    assert config["labels"] == "none"


def test_epochs_instead_of_steps(tmp_path: Path) -> None:
    said = halikit("train", "--epochs", "2", "--batch-size", "100", "--dry-run", "--json", cwd=tmp_path).stdout
    assert json.loads(said)["training"]["steps"] == 30


def test_the_family_and_its_settings_follow_from_the_data(tmp_path: Path) -> None:
    np.save(tmp_path / "faces.npy", np.random.default_rng(0).integers(0, 256, (100, 24, 24, 3), np.uint8))

    def settings(*options: str) -> dict[str, Any]:
        said = halikit("train", "--levels", "2", *options, "--dry-run", "--json", cwd=tmp_path).stdout
        return json.loads(said)

    images = settings("--data", "array:faces.npy")
    assert images["model"]["family"] == "conv"
    assert images["optimiser"]["discriminator_learning_rate"] is None
    # As digits have it; --set wins over what follows from the data.
    vectors = settings("--data", "array:faces.npy", "--set", "model.family=dense", "--set", "batch_size=20")
    digits = settings()
    for told in (vectors, digits):
        assert told["model"]["family"] == told["discriminator"]["family"] == "dense"
        assert told["optimiser"]["discriminator_learning_rate"] > told["optimiser"]["learning_rate"]
    assert vectors["training"]["batch_size"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--levels", "0"], "levels"),
        (["train", "--baseline", "gan"], "--baseline is one of ali, vae, hvae, got 'gan'"),
        (["train", "--preset", "digitz"], "did you mean 'digits'"),
        (["train", "--preset", "digits", "--levels", "4"], "has 3 levels"),
        (["train", "--preset", "celeba128", "--levels", "3"], "has 2 levels"),
        (["train", "--preset", "cifar10", "--data", "digits"], "model.data_shape is [3, 32, 32]"),
        (["train", "--preset", "cifar10", "--set", "hidden=8"], "hidden = 8 has no effect here"),
        (["train", "--preset", "digits", "--config", "x.toml"], "give one of them"),
        (["train", "--set", "bath_size=3"], "did you mean 'training.batch_size'"),
        (["train", "--set", "batch_size"], "key=value"),
        (["train", "--data", "mnist:nowhere"], "nowhere"),
        (["train", "--data", "mnits:x"], "mnist"),
        (["train", "--batch-size", "5000"], "fewer than a batch"),
        (["train", "--device", "tpu"], "hardware.device"),
        (["train", "--set", "widths=[3]"], "3 levels need 3 positive widths"),
        (["train", "--set", "max_scale=2.0"], "bounded below 1"),
        (["train", "--frobnicate"], "frobnicate"),
        (["train", "--steps", "5", "--epochs", "1"], "give one of them"),
        (["train", "--preset", "digits", "--set", "levels=2"], "has 3 levels"),
        (["train", "--set", "grow_every=50"], "'training.grow_every' any more: since 0.2.0 all levels train at once"),
        (["train", "--set", "dropout=1.0"], "discriminator.dropout"),
        (["sample", "run", "--device", "foo"], "a device is auto, cpu"),
        (["sample", "nowhere"], "there is no model at nowhere"),
        (["inspect", "nowhere"], "there is no model at nowhere"),
    ],
)
def test_wrong_usage_is_told_in_a_line_or_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = halikit(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_new_python_tells_it_the_same_way(tmp_path: Path) -> None:
    arguments = ["train", "--set", "bath_size=3"]
    shell, fork = (run(*arguments, cwd=tmp_path, check=False) for run in (started, halikit))
    assert shell.returncode == 2
    assert (shell.returncode, shell.stdout, shell.stderr) == (fork.returncode, fork.stdout, fork.stderr)


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    done = halikit("--debug", "sample", "nowhere", cwd=tmp_path, check=False)
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "pack", "--help"]])
def test_help_imports_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = f"""
import sys
from halikit.cli import main
sys.argv = ["halikit", *{arguments!r}]
try:
    main()
finally:
    heavy = {{"torch", "pyro", "numpy", "sklearn"}} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "halikit" in done.stdout


def test_quiet_training_prints_results_alone(tmp_path: Path) -> None:
    done = halikit("train", "--levels", "1", *QUICK, "--out", "run", "--quiet", cwd=tmp_path)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["level 1", "run"]
    (notice,) = done.stderr.splitlines()
    assert notice.startswith("halikit: the encoder does not recover z1")


def test_the_model_that_ships(tmp_path: Path) -> None:
    (picture,) = halikit("sample", "digits", "-n", "4", cwd=tmp_path).stdout.splitlines()
    assert (tmp_path / picture).is_file()
    # What was written beside does not stand in its way.
    said = halikit("evaluate", "labels", "digits", "-n", "100", "--json", cwd=tmp_path).stdout
    assert json.loads(said)["kept"][0] > 0.85
