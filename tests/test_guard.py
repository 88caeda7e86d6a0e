"""Numbers that are not finite, and games that go nowhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import _no_child_survives as _no_child_survives
from test_faults import halikit
from test_resume import config, trainer
from torch.optim.optimizer import register_optimizer_step_post_hook

import halikit as hk
from halikit.errors import DivergedError
from halikit.objectives import Losses


def everything(run: hk.Trainer) -> list[torch.Tensor]:
    """All that a step moves: weights, running statistics and the state of the optimisers, as a checkpoint has them."""
    run.save()
    moved = run.run.checkpoints().at(run.steps).tensors()
    names = [name for name in moved if name.startswith(("hierarchy.", "discriminator.", "optimiser."))]
    assert {name.split(".")[2] for name in names if name.startswith("optimiser.")} == {"step", "exp_avg", "exp_avg_sq"}
    return [moved[name] for name in names if moved[name].is_floating_point()]


def poison(run: hk.Trainer, what: str, when: Callable[[], bool]) -> None:
    """Let loss or gradient be NaN or Inf while ``when`` holds."""
    if what == "gradient":
        bias = run.model.hierarchy.links[0].up.network[-1].bias
        bias.register_hook(lambda g: torch.full_like(g, torch.inf) if when() else g)
        return
    objective = run.method.objective

    def poisoned(s_q: torch.Tensor, s_p: torch.Tensor) -> Losses:
        losses = objective(s_q, s_p)
        return Losses(losses.discriminator + (torch.nan if when() else 0.0), losses.generator)

    run.method.objective = poisoned
    run.method.single_pass = False


@pytest.mark.parametrize("what", ["data", "loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(what: str, tmp_path: Path) -> None:
    run = hk.Trainer(hk.build(config(2)), out=tmp_path / "run")
    batches = [torch.rand(16, 1, 8, 8) * 2 - 1 for _ in range(4)]
    run.step(batches[0])
    poison(run, "loss" if what == "data" else what, lambda: what != "data" and run.steps == 1)
    if what == "data":
        batches[1][3, 0, 2, 2] = torch.nan
    before = everything(run)
    run.step(batches[1])
    for a, b in zip(before, everything(run), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    losses = run.step(batches[2])
    assert torch.stack(list(losses.values())).isfinite().all()
    assert run.steps == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))
    assert torch.cat([t.flatten() for t in run.averaged.state_dict().values()]).isfinite().all()


def test_skipped_steps_are_counted(tmp_path: Path) -> None:
    run = trainer(config(1), tmp_path / "run")
    poison(run, "gradient", lambda: run.steps in (4, 5, 11))
    run.fit()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["skipped"] for row in rows] == ["0", "2", "2", "2", "3", "3", "3", "3"]
    assert all(float(row["d_loss"]) > 0 for row in rows)


def but_recovery(said: list[str]) -> list[str]:
    """Without what the end of so short a training says of levels that have not coupled."""
    return [notice for notice in said if not notice.startswith("the encoder does not recover")]


def test_the_guard_changes_no_training(tmp_path: Path) -> None:
    """Weights after a run with a skipped step in it, killed and resumed, are those without the kill."""
    ends = []
    for name, parts in (("whole", [20]), ("parts", [9, 11])):
        resume = False
        for part in parts:
            run = trainer(config(2), tmp_path / name, resume=resume, on_notice=lambda _: None)
            poison(run, "gradient", lambda run=run: run.steps == 6)
            run.fit(part)
            resume = True
        ends.append(torch.cat([t.double().flatten() for t in run.model.hierarchy.state_dict().values()]))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_after_many_in_a_row_training_goes_back_once_at_half_the_rate(tmp_path: Path) -> None:
    settings = config(2, record__max_skipped_steps=3, training__steps=30)
    said: list[str] = []
    run = trainer(settings, tmp_path / "run", on_notice=said.append)
    rates: list[float] = []

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])

    poison(run, "gradient", lambda: run.steps >= 13 and rates[-1] == 3e-4)
    handle = register_optimizer_step_post_hook(look)
    run.fit()
    handle.remove()
    assert run.steps == 30
    (notice,) = but_recovery(said)
    assert "not finite in 5 steps in a row before step 18; going back to step 12" in notice
    # Both players have this rate.
    assert rates == [3e-4] * 36 + [1.5e-4] * 36
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [3, 6, 9, 10, 12, 15, 18, 20, 21, 24, 27, 30]


def test_no_checkpoint_is_written_while_steps_are_skipped(tmp_path: Path) -> None:
    run = trainer(config(2, record__keep_checkpoints=9), tmp_path / "run")
    poison(run, "gradient", lambda: run.steps in (6, 7))
    run.fit()
    assert [path.name[-2:] for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))] == [
        *("00", "04", "12", "16", "20")
    ]


def test_the_second_time_is_the_end_with_exit_3_and_a_dump(tmp_path: Path) -> None:
    options = ["--levels", "1", "--batch-size", "16", "--steps", "60", "--out", "run"]
    options += [
        f"--set={name}" for name in ("hidden=8", "width=8", "log_every=5", "max_skipped_steps=5", "evaluate_every=10")
    ]

    def before() -> None:
        fit = hk.Trainer.fit

        def poisoned(self: hk.Trainer, steps: int | None = None) -> hk.Model:
            poison(self, "gradient", lambda: self.steps >= 20)
            return fit(self, steps)

        hk.Trainer.fit = poisoned

    child = halikit("train", *options, "--set=checkpoint_every=10", cwd=tmp_path, before=before)
    assert child.wait() == 3, child.said
    assert "going back to step 20, with half the learning rates" in child.said
    *_, last, advice = child.said.splitlines()
    assert "not finite in 5 steps in a row before step 25; try a lower learning rate" in last
    assert advice == "what is known is in run/diverged.json: halikit inspect run"
    child = halikit("inspect", "run", cwd=tmp_path)
    assert child.wait() == 0
    assert "gradients not finite: hierarchy.links.0.up.network.3.bias" in child.said
    assert "step: 25" in child.said
    child = halikit("inspect", "run", "--json", cwd=tmp_path)
    assert child.wait() == 0
    assert json.loads(child.said)["diverged"]["checkpoints"] == [0, 10, 20]
    (tmp_path / "run" / "model.safetensors").unlink()
    child = halikit("inspect", "run", cwd=tmp_path)
    assert child.wait() == 0
    assert "diverged" in child.said
    child = halikit("train", "--resume", "--out", "run", cwd=tmp_path)
    assert child.wait() == 0, child.said
    assert not (tmp_path / "run" / "diverged.json").exists()


def test_without_a_run_there_is_nothing_to_go_back_to() -> None:
    run = hk.Trainer(hk.build(config(1)), "digits")
    with torch.no_grad():
        run.model.hierarchy.links[0].up.network[-1].bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite in 10 steps in a row before step 10"):
        run.fit()


def test_a_discriminator_that_has_won_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    settings = config(
        1,
        training__steps=900,
        optimiser__learning_rate=1e-8,
        optimiser__discriminator_learning_rate=0.01,
        record__log_every=50,
        record__evaluate_every=900,
        discriminator__width=32,
        discriminator__input_noise=0.0,
        discriminator__dropout=0.0,
    )
    hk.Trainer(hk.build(settings), "digits", on_notice=said.append).fit()
    (notice,) = but_recovery(said)
    assert "the discriminator has known the two joints apart for 500 steps" in notice
    assert "try more discriminator.input_noise" in notice


def test_collapsed_samples_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    run = hk.Trainer(hk.build(config(2, record__evaluate_every=4)), "digits", on_notice=said.append)
    # Wide at first, like everything through a saturated tanh.
    factor = lambda: 1000.0 if run.steps < 8 else 0.001  # noqa: E731
    run.averaged.links[0].down.network[0].register_forward_hook(lambda module, given, out: factor() * out)
    run.fit()
    (notice,) = but_recovery(said)
    assert "samples have collapsed: at step 12" in notice


def test_a_good_game_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    hk.Trainer(hk.build(config(2, record__evaluate_every=5)), "digits", on_notice=said.append).fit()
    assert not but_recovery(said)
