"""What a training says of its cost before it starts: a rehearsal, which changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Shell
from test_resume import fingerprint
from test_speed_options import assert_same, batch, small

import halikit as hk
from halikit.errors import InputError
from halikit.hardware.processes import Processes
from halikit.training.budget import steps_within
from halikit.training.plan import Plan

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


def slowed(step: Callable[..., object], seconds: float) -> Callable[..., object]:
    def slow(*given: object, **beside: object) -> object:
        time.sleep(seconds)
        return step(*given, **beside)

    return slow


def test_a_time_gives_a_number_of_steps() -> None:
    """Steps that sleep for 10 ms: within 2 s there are at most 200, and at least 20 on a busy machine."""
    trainer = hk.Trainer(small(steps=5, **RECORDS), "digits", on_notice=lambda _: None)
    trainer.method.add_gradients = slowed(trainer.method.add_gradients, 0.01)
    steps = trainer.steps_within(2 / 60)
    assert 20 <= steps <= 200
    assert trainer.steps == 0
    with pytest.raises(InputError, match=r"0\.06 s are too few for the measurement, a step of"):
        trainer.steps_within(0.001)


def test_evaluations_and_the_measurement_are_part_of_the_time() -> None:
    """Without a clock: steps of 0.1 s and evaluations of 1 s, ten steps apart."""
    costs = Plan(seconds_per_step=0.1, seconds=0.0, preparation=0.0, evaluation=1.0, memory=0)
    steps = costs.steps_within(60.0, evaluate_every=10)
    assert steps * 0.1 + -(-steps // 10) * 1.0 <= 60 < (steps + 10) * 0.1 + (-(-steps // 10) + 1) * 1.0
    asked = []

    def rehearsed(steps: int, seconds: float) -> Plan:
        asked.append((steps, seconds))
        time.sleep(0.2)
        return Plan(seconds_per_step=0.01, seconds=0.0, preparation=0.0, evaluation=0.0, memory=0)

    found = steps_within(1.0, 10, Processes("cpu", 60), rehearsed)
    assert [seconds for _, seconds in asked] == [0.02, 0.02]
    assert found <= 60 < asked[1][0] <= 80


def test_a_time_is_a_number_of_steps_in_the_run_which_can_be_repeated(halikit: Shell, tmp_path: Path) -> None:
    options = ["--levels", 1, "--set", "model.hidden=8", "--set", "discriminator.width=8", "--batch-size", 8]
    said = halikit("train", *options, "--minutes", 0.02, "--out", tmp_path / "timed")
    (line,) = [line for line in said.splitlines() if line.startswith("minutes")]
    number = int(line.split(": ")[1].split()[0].replace(",", ""))
    config = hk.load(tmp_path / "timed").config
    assert config.training.steps == number
    assert f"{number:,} steps of 8" in said
    halikit("train", "--config", tmp_path / "timed" / "config.toml", "--out", tmp_path / "again")
    assert fingerprint(tmp_path / "timed") == fingerprint(tmp_path / "again")


@pytest.mark.parametrize("other", [("--steps", 5), ("--epochs", 1), ("--dry-run",)])
def test_a_time_excludes_what_it_contradicts(halikit: Shell, other: tuple[object, ...]) -> None:
    said = halikit("train", "--minutes", 1, *other, code=2)
    assert "give one of them" in said or "leave one of them out" in said
