"""TensorBoard events: the curves of metrics.csv, without what a return to an earlier step took back."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import halikit as hk
from halikit.config import Config, override
from halikit.runs.run import Run

QUICK = {"model.levels": 1, "model.data_shape": (1, 8, 8), "model.hidden": 8, "discriminator.width": 8}
QUICK |= {"training.batch_size": 16, "record.log_every": 2, "record.checkpoint_every": 4, "training.ema_decay": 0.5}


def curves(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def trained(run: Path, steps: int, resume: bool | int = False) -> None:
    torch.manual_seed(0)
    config = override(Config(), QUICK | {"training.steps": steps, "record.evaluate_every": 4})
    hk.Trainer(hk.build(config), "digits", out=run, resume=resume, on_notice=lambda _: None).fit()


def test_events_are_the_metrics(tmp_path: Path) -> None:
    trained(tmp_path, 8)
    events, metrics = curves(tmp_path / "tensorboard"), Run(tmp_path).metrics()
    assert [point.step for point in events.Scalars("d_loss")] == [2, 4, 6, 8]
    assert [point.value for point in events.Scalars("d_loss")] == pytest.approx(metrics["d_loss"], rel=1e-5)
    assert [point.step for point in events.Scalars("error_z1")] == [4, 8]
    assert [picture.step for picture in events.Images("samples")] == [4, 8]
    assert set(events.Tags()["images"]) == {"samples", "reconstructions"}


def test_what_was_taken_back_is_gone(tmp_path: Path) -> None:
    trained(tmp_path, 8)
    trained(tmp_path, 10, resume=4)
    assert [point.step for point in curves(tmp_path / "tensorboard").Scalars("d_loss")] == [2, 4, 6, 8, 10]


def test_training_goes_on_where_events_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    trained(tmp_path, 8)
    assert Run(tmp_path).metrics()["step"] == [2, 4, 6, 8]


@pytest.mark.parametrize("broken", ["torch.utils.tensorboard.writer", "tensorboard"])
def test_training_goes_on_where_tensorboard_is_broken_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setitem(sys.modules, broken, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(tmp_path, 8)
    assert Run(tmp_path).metrics()["step"] == [2, 4, 6, 8]
    assert not (tmp_path / "tensorboard").exists()
    assert ["no TensorBoard events" in str(warning.message) for warning in said] == [True] * (broken != "tensorboard")
