"""Callbacks: what they see, how they stop a training, early stopping, and the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Shell
from test_processes import launch, succeed
from test_resume import config, cut_at, fingerprint, trainer

import halikit as hk
from halikit.errors import InputError
from halikit.runs.checkpoints import CheckpointError
from halikit.runs.record import Record
from halikit.training.callbacks import Training
from halikit.training.evaluation import Evaluation


class Witness(hk.Callback):
    """Notes everything that it is told, and stops the training at a step or a record."""

    def __init__(self, stop_at_step: int | None = None, stop_at_record: int | None = None) -> None:
        self.stop_at_step, self.stop_at_record = stop_at_step, stop_at_record
        self.seen: list[tuple[Any, ...]] = []

    def on_setup(self, training: Training) -> None:
        self.seen.append(("setup", training.steps))

    def on_step(self, training: Training, losses: Mapping[str, torch.Tensor]) -> None:
        assert losses["d_loss"].isfinite()
        if training.steps == self.stop_at_step:
            training.stop("seen enough")

    def on_record(self, training: Training, record: Record) -> None:
        self.seen.append(("record", record.step, record.evaluated))
        if record.step == self.stop_at_record:
            training.stop("seen enough")

    def on_pictures(self, training: Training, pictures: Mapping[str, Any]) -> None:
        self.seen.append(("pictures", training.steps, *pictures))

    def on_checkpoint(self, training: Training, path: Path) -> None:
        self.seen.append(("checkpoint", path.name))

    def on_end(self, training: Training) -> None:
        self.seen.append(("end", training.steps))


def test_callbacks_see_a_training_in_its_order(tmp_path: Path) -> None:
    witness = Witness()
    trainer(config(1, record__log_every=10), tmp_path, callbacks=[witness]).fit()
    assert witness.seen == [
        ("setup", 0),
        *(("checkpoint", f"step-{step:07d}") for step in (0, 4, 8)),
        ("pictures", 10, "samples", "reconstructions"),
        ("record", 10, True),
        *(("checkpoint", f"step-{step:07d}") for step in (12, 16)),
        ("pictures", 20, "samples", "reconstructions"),
        ("record", 20, True),
        ("checkpoint", "step-0000020"),
        ("end", 20),
    ]


def test_callbacks_change_no_training(tmp_path: Path) -> None:
    for name, callbacks in (("without", []), ("with", [Witness()])):
        trainer(config(1, training__steps=10), tmp_path / name, callbacks=callbacks).fit()
    assert fingerprint(tmp_path / "with") == fingerprint(tmp_path / "without")


@pytest.mark.parametrize(("where", "last"), [("step", 7), ("record", 9)])
def test_a_callback_stops_the_training_which_saves(where: str, last: int, tmp_path: Path) -> None:
    """What was saved is the model of that step, and the run goes on from there to the same end."""
    witness = Witness(**{f"stop_at_{where}": last})
    run = trainer(config(1, training__steps=12), tmp_path / "cut", callbacks=[witness])
    run.fit()
    assert (run.steps, run.stopped) == (last, "seen enough")
    assert witness.seen[-1] == ("end", last)
    saved, kept = hk.load(tmp_path / "cut"), hk.load(tmp_path / "cut", checkpoint="newest")
    x = torch.rand(4, 1, 8, 8)
    for model in (saved, kept):
        torch.testing.assert_close(model.hierarchy.reconstruct(x), run.averaged.reconstruct(x), rtol=0, atol=0)
    trainer(config(1, training__steps=12), tmp_path / "cut", resume=True).fit()
    trainer(config(1, training__steps=12), tmp_path / "whole").fit()
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_one_rank_stops_all(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        run = trainer(config(1, training__steps=100), None, callbacks=[Witness(stop_at_record=3)], on_notice=print)
        run.fit()
        assert 3 <= run.steps < 100

    succeed(launch(train, tmp_path))


def with_errors(monkeypatch: pytest.MonkeyPatch, errors: Mapping[int, float]) -> None:
    """Let evaluations find these numbers at steps, for errors and recovery alike, instead of measuring."""

    def found(self: Evaluation, step: int, *, is_last: bool) -> tuple[dict[str, float], dict[str, Any]]:
        return {}, dict.fromkeys(("errors", "recovery"), (errors[step],))

    monkeypatch.setattr(Evaluation, "__call__", found)


EVERY = {"record__evaluate_every": 2, "record__checkpoint_every": 2, "record__keep_checkpoints": 1}
FALLING_THEN_RISING = dict(zip(range(2, 22, 2), [9.0, 5, 3, 4, 6, 7, 8, 9, 10, 11], strict=True))


def test_early_stopping_waits_for_its_patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_errors(monkeypatch, FALLING_THEN_RISING)
    run = trainer(config(1, **EVERY), tmp_path, callbacks=[hk.EarlyStopping("error", patience=3)])
    run.fit()
    assert run.steps == 12
    assert run.stopped == "error has not improved on 3 in 3 evaluations"
    # What is small enough is no improvement; and recovery is to rise.
    for stopping, last in (
        (hk.EarlyStopping(patience=2, least=2.5), 8),
        (hk.EarlyStopping("recovery_z1", patience=3), 8),
    ):
        run = trainer(config(1, **EVERY), None, callbacks=[stopping])
        run.fit()
        assert run.steps == last


def test_early_stopping_is_a_setting_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_errors(monkeypatch, FALLING_THEN_RISING)
    settings = config(1, record__stop_after=3, record__stop_metric="error_z1", **EVERY)
    cut_at(trainer(settings, tmp_path), 10)
    run = trainer(settings, tmp_path, resume=True)
    run.fit()
    assert run.steps == 12


class Averages(hk.Callback):
    """Keeps the averaged weights of each checkpoint."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_checkpoint(self, training: Training, path: Path) -> None:
        self.at[training.steps] = {name: t.clone() for name, t in training.averaged.state_dict().items()}


@pytest.mark.parametrize(("metric", "best"), [("auto", 6), ("recovery", 20)])
def test_the_best_checkpoint_is_kept_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metric: str, best: int
) -> None:
    with_errors(monkeypatch, FALLING_THEN_RISING)
    averages = Averages()
    run = trainer(config(1, record__best_by=metric, **EVERY), tmp_path, callbacks=[averages])
    run.fit()
    assert run.run.checkpoints().steps() == sorted({best, 20})
    loaded = hk.load(tmp_path, checkpoint="best").hierarchy
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, averages.at[best][name], rtol=0, atol=0)
    raw = hk.load(tmp_path, checkpoint=best, weights="raw").hierarchy.state_dict()
    assert any(not torch.equal(raw[name], tensor) for name, tensor in averages.at[best].items())


def test_scores_of_another_metric_are_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a change of the metric the best is chosen among the checkpoints that the new one has scored."""
    with_errors(monkeypatch, FALLING_THEN_RISING)
    trainer(config(1, **EVERY, training__steps=8), tmp_path).fit()
    trainer(config(1, **EVERY, record__best_by="d_loss"), tmp_path, resume=True, on_notice=lambda _: None).fit()
    assert hk.load(tmp_path, checkpoint="best").config.record.best_by == "d_loss"


def test_kernels_of_your_own_are_loaded_from_a_checkpoint(tmp_path: Path) -> None:
    model = hk.build(config(1))
    own = hk.Model(model.hierarchy, model.discriminator)
    hk.Trainer(own, "digits", settings=config(1), out=tmp_path).fit(10)
    with pytest.raises(InputError, match="pass build="):
        hk.load(tmp_path, checkpoint="best")
    loaded = hk.load(tmp_path, checkpoint="newest", build=lambda: hk.build(config(1)))
    x = torch.rand(4, 1, 8, 8)
    expected = hk.load(tmp_path, build=lambda: hk.build(config(1))).hierarchy.reconstruct(x)
    torch.testing.assert_close(loaded.hierarchy.reconstruct(x), expected, rtol=0, atol=0)


def test_what_cannot_be_the_best_is_refused(tmp_path: Path, halikit: Shell) -> None:
    with pytest.raises(InputError, match=r"record.best_by = 'fid' is not measured in this training; it measures auto"):
        trainer(config(1, record__best_by="fid"), None)
    with pytest.raises(InputError, match=r"EarlyStopping\(metric\) = 'error_z2' is not measured"):
        trainer(config(1), None, callbacks=[hk.EarlyStopping("error_z2")])
    with pytest.raises(InputError, match=r"stop_metric = 'error' has no effect here: record.stop_after is not set"):
        config(1, record__stop_metric="error")
    cut_at(trainer(config(1), tmp_path), 3)
    with pytest.raises(CheckpointError, match="was evaluated, so none is the best"):
        hk.load(tmp_path, checkpoint="best")
    with pytest.raises(InputError, match="checkpoint is 'best', 'newest' or the step"):
        hk.load(tmp_path, checkpoint="first")


def test_the_command_says_that_it_stopped(halikit: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_errors(monkeypatch, FALLING_THEN_RISING)
    options = ["--levels", 1, "--steps", 20, "--batch-size", 8, "--out", tmp_path / "run"]
    said = halikit("train", *options, *(f"--set={name}" for name in ("stop_after=2", "evaluate_every=2")))
    assert "stopped at step 10: auto has not improved on 3 in 2 evaluations" in said
