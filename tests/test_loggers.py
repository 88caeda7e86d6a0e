"""Loggers: any object with Lightning's methods gets what metrics.csv has, and the pictures that it can take."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Shell
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from test_events import curves
from test_processes import launch, succeed
from test_resume import config, trainer

import halikit as hk
from halikit.errors import DivergedError, InputError
from halikit.runs.run import Run


class Recorder:
    """The least that a logger has, and optionally the rest."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, Mapping[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, metrics))


class FullRecorder(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.params: list[Mapping[str, Any]] = []
        self.images: list[tuple[str, int, np.ndarray]] = []
        self.statuses: list[str] = []

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.params.append(params)

    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        self.images += [(key, step, image) for image in images]

    def finalize(self, status: str) -> None:
        self.statuses.append(status)


def test_loggers_get_the_metrics_the_settings_and_the_pictures(tmp_path: Path) -> None:
    least, full = Recorder(), FullRecorder()
    trainer(config(2), tmp_path, loggers=[least, full]).fit()
    table = Run(tmp_path).metrics()
    assert [step for step, _ in full.metrics] == table["step"]
    assert least.metrics == full.metrics
    for number, (_, metrics) in enumerate(full.metrics):
        for name, value in metrics.items():
            assert value == pytest.approx(table[name][number], rel=1e-5)
    assert "error_z2" in full.metrics[-1][1]
    assert "error_z2" not in full.metrics[0][1]
    (params,) = full.params
    assert params["training.steps"] == 20
    assert params["model.levels"] == 2
    assert [(name, step) for name, step, _ in full.images] == [
        *(("samples", 10), ("reconstructions", 10), ("samples", 20), ("reconstructions", 20))
    ]
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for *_, image in full.images)
    assert full.statuses == ["success"]
    assert not (tmp_path / "tensorboard").exists()


def test_loggers_of_fabric_work_as_they_are(tmp_path: Path) -> None:
    """Without a run directory, too: loggers know by themselves where they write."""
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "events")]
    trainer(config(1), None, loggers=loggers).fit()
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    events = curves(tmp_path / "events" / "version_0")
    assert {int(point.step): point.value for point in events.Scalars("d_loss")} == pytest.approx(
        {step: float(row["d_loss"]) for step, row in rows.items()}, rel=1e-5
    )
    assert [picture.step for picture in events.Images("reconstructions")] == [10, 20]


def test_a_run_that_ends_with_an_error_has_failed() -> None:
    logger = FullRecorder()
    run = trainer(config(1), None, loggers=[logger])
    run.model.hierarchy.links[0].up.network[-1].bias.data.fill_(float("nan"))
    with pytest.raises(DivergedError):
        run.fit()
    assert logger.statuses == ["failed"]


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(InputError, match=r"a logger has a method log_metrics\(metrics, step\); 7 has none"):
        trainer(config(1), None, loggers=[7])


def test_numbers_arrive_on_rank_0_alone(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        logger = FullRecorder()
        trainer(config(1, training__steps=4), None, loggers=[logger], on_notice=lambda _: None).fit()
        assert len(logger.metrics) == (2 if rank == 0 else 0)
        assert len(logger.images) == len(logger.params) * 2 == (2 if rank == 0 else 0)

    succeed(launch(train, tmp_path))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for trackio with the functions that are used of it; gives the calls."""
    calls: list[tuple[Any, ...]] = []
    module = ModuleType("trackio")
    module.__spec__ = SimpleNamespace(name="trackio")
    module.Image = lambda pixels: ("image", pixels.shape)
    module.init = lambda *, project, name, config: calls.append(("init", project, name, config["training.steps"]))
    module.log = lambda metrics, step: calls.append(("log", step, metrics))
    module.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return calls


def test_trackio_gets_numbers_and_pictures(tracker: list[tuple[Any, ...]], halikit: Shell, tmp_path: Path) -> None:
    options = ["--levels", 1, "--steps", 4, "--batch-size", 8, "--set", "log_every=2", "--set", "model.hidden=8"]
    halikit("train", *options, "--logger", "csv,trackio", "--out", tmp_path / "mine")
    assert tracker[0] == ("init", "halikit", "mine", 4)
    assert tracker[-1] == ("finish",)
    logged = [(step, *metrics) for _, step, metrics in tracker[1:-1]]
    assert [step for step, *_ in logged] == [2, 4, 4, 4]
    assert {name for _, *names in logged for name in names} > {"d_loss", "error_z1", "samples", "reconstructions"}
    assert hk.load(tmp_path / "mine").config.record.loggers == ("csv", "trackio")
    assert not (tmp_path / "mine" / "tensorboard").exists()


def test_a_missing_tracker_is_named_before_training(
    monkeypatch: pytest.MonkeyPatch, halikit: Shell, tmp_path: Path
) -> None:
    monkeypatch.setattr("halikit.runs.loggers.find_spec", lambda name: None)
    said = halikit("train", "--levels", 1, "--logger", "wandb", "--out", tmp_path / "run", code=2)
    assert "wandb is not installed; the extra brings it: pip install 'halikit[wandb]'" in said
    assert not (tmp_path / "run").exists()
    assert "record.loggers = 'excel'" in halikit("train", "--logger", "csv,excel", code=2)
