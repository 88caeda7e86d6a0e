"""What a training says of its cost before it starts: a rehearsal, which changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Shell
from test_speed_options import assert_same, batch, small

import halikit as hk

RECORDS = {"log_every": 500, "evaluate_every": 500, "checkpoint_every": 500}
OPTIONS = {
    "the game": {},
    "a penalty now and then": {"gradient_penalty": 0.1, "penalty_every": 4},
    "players in turns": {"discriminator_steps": 2, "weight_norm": False, "spectral_norm": True},
    "noise that falls": {"final_input_noise": 0.0},
    "few labels": {"labels.number": 50, "labels.consistency_weight": 1.0, "model.classes": 10},
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_a_rehearsal_changes_nothing(changes: dict[str, object]) -> None:
    played = []
    for rehearses in (False, True):
        trainer = hk.Trainer(small(steps=1000, **RECORDS, **changes), "digits", on_notice=lambda _: None)
        if rehearses:
            before = torch.get_rng_state()
            plan = trainer.plan()
            assert plan is not None
            assert torch.equal(torch.get_rng_state(), before)
            assert 0 < plan.seconds_per_step < plan.seconds
            assert plan.memory > 2**20
        assert trainer.steps == 0
        for _ in range(3):
            trainer.step(batch(), torch.arange(12) % 10)
        if rehearses:
            assert trainer.plan() is not None
        trainer.step(batch(), torch.arange(12) % 10)
        played.append(trainer)
    assert_same(*played)


def test_few_steps_are_not_worth_a_rehearsal() -> None:
    trainer = hk.Trainer(small(steps=70), "digits")
    assert trainer.plan() is None
    assert trainer.plan(90) is not None


def test_a_plan_needs_data() -> None:
    with pytest.raises(hk.errors.InputError, match="no data"):
        hk.Trainer(small(steps=1000)).plan()


def test_the_cost_is_the_mean_over_the_kinds_of_steps() -> None:
    """A kernel that works for long with a penalty alone: one step of ten has one."""
    trainer = hk.Trainer(small(steps=1000, gradient_penalty=0.1, penalty_every=10, **RECORDS), "digits")
    seen = []
    step = trainer.method.add_gradients

    def counted(x: torch.Tensor, labels: object, number: int, total: int, **beside: object) -> object:
        seen.append(number)
        return step(x, labels, number, total, **beside)

    trainer.method.add_gradients = counted
    plan = trainer.plan()
    assert plan is not None
    assert sorted(set(seen)) == [0, 1]
    assert plan.seconds >= 1000 * plan.seconds_per_step


def test_the_command_says_what_it_chose_and_what_it_will_cost(halikit: Shell, tmp_path: Path) -> None:
    said = halikit("train", "--steps", 200, "--levels", 1, "--batch-size", 4, "--out", tmp_path / "run")
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
    assert lines["hardware"] == (
        "cpu, threads 1; float32 (this CPU has no units for bfloat16); eager steps (compiling pays from 3,000 steps on)"
    )
    assert "ms a step: about" in lines["costs"]
    assert hk.load(tmp_path / "run").config.hardware.precision == "32"
