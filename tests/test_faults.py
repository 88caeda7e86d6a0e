"""Faults that really happen: processes killed, disks full, memory short. The table in docs/reliability.md is theirs."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child, fork, until
from test_resume import config, fingerprint, steps_of, trainer

import halikit as hk
from halikit.cli import main
from halikit.config import Config

QUICK = config(1, training__checkpoint_every=2, training__evaluate_every=3, training__steps=6, training__keep=1)
SYSTEM_CALLS = ("fsync", "mkdir", "open", "rename", "replace", "rmdir", "unlink", "write")


def quietly(run: Path, settings: Config) -> None:
    """Train, or go on if there is anything to go on with."""
    resume = bool(steps_of(run))
    trainer(settings, run, resume=resume, on_notice=print).fit()


def killed_at(call: int) -> list[str]:
    """From now on, die at this call of the system among those that change files; a write is cut in half."""
    seen: list[str] = []

    def watched(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            seen.append(name)
            if len(seen) == call:
                if name == "write":
                    function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    for name in SYSTEM_CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    return seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    trainer(QUICK, path).fit()
    return fingerprint(path)


def number_of_calls(tmp_path: Path) -> int:
    def count() -> None:
        seen = killed_at(0)
        quietly(tmp_path / "counted", QUICK)
        print(len(seen))

    child = fork(count)
    assert child.wait() == 0, child.said
    return int(child.said.split()[-1])


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.soak)])
def test_sigkill_at_every_call_of_the_system_while_files_are_written(
    tmp_path: Path, undisturbed: dict[str, object], stride: int
) -> None:
    calls = number_of_calls(tmp_path)
    assert calls > 100
    for call in range(1, calls + 1, stride):
        run = tmp_path / str(call)
        assert fork(lambda call=call, run=run: (killed_at(call), quietly(run, QUICK))).wait() == 128 + signal.SIGKILL
        before = max(steps_of(run), default=None)
        child = fork(lambda run=run: quietly(run, QUICK))
        assert child.wait() == 0, child.said
        assert "damaged" not in child.said, call
        assert fingerprint(run) == undisturbed, call
        assert before is None or before >= 0
        assert not [path for path in run.rglob(".*") if path.exists()], "a killed process leaves nothing behind"
        shutil.rmtree(run)


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_random_sigkills(tmp_path: Path, kills: int) -> None:
    """However often a run is killed, it goes on where it was, and ends as if nothing had been."""
    settings = config(
        2,
        training__steps=10 * kills,
        training__checkpoint_every=5,
        training__evaluate_every=50,
        training__log_every=10,
        training__grow_every=None,
    )
    trainer(settings, tmp_path / "whole").fit()
    run, chance = tmp_path / "run", random.Random(0)
    reached = 0
    for _ in range(kills):
        child = fork(lambda: quietly(run, settings))
        until(lambda: steps_of(run))
        time.sleep(chance.uniform(0.01, 0.15))
        child.send(signal.SIGKILL)
        # One that was finished before the shot has nothing left to do: the next ones are then killed for nothing.
        assert child.wait() in (0, 128 + signal.SIGKILL), child.said
        assert max(steps_of(run)) >= reached, "it started afresh"
        reached = max(steps_of(run))
    killed_while_training = reached < settings.training.steps
    assert fork(lambda: quietly(run, settings)).wait() == 0
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    assert killed_while_training or kills < 10


TINY = [
    *("--levels", "1", "--batch-size", "16", "--out", "run"),
    *(f"--set={name}" for name in ("hidden=8", "width=8", "evaluate_every=50", "log_every=7", "checkpoint_every=20")),
]


def halikit(*arguments: str, cwd: Path, before: Callable[[], object] = lambda: None) -> Child:
    """The command line, in a process of its own."""

    def run() -> None:
        before()
        sys.argv = ["halikit", *arguments]
        main()

    return fork(run, cwd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_step_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    child = halikit("train", *TINY, "--steps", "150", cwd=tmp_path)
    until(lambda: 20 in steps_of(tmp_path / "run"))
    child.send(number)
    assert child.wait() == 128 + number, child.said
    (step,) = re.findall(rf"{number.name} at step (\d+); saved up to step \1 in run", child.said)
    assert int(step) in steps_of(tmp_path / "run")
    assert "Traceback" not in child.said
    assert len(hk.load(tmp_path / "run").hierarchy) == 1
    advice = re.findall(r"go on with: halikit (.*)", child.said)[0].split()
    child = halikit(*advice, cwd=tmp_path)
    assert child.wait() == 0, child.said
    whole = tmp_path / "whole"
    assert halikit("train", *TINY, "--steps", "150", "--out", str(whole), cwd=tmp_path).wait() == 0
    assert fingerprint(tmp_path / "run") == fingerprint(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_leaves_at_once(tmp_path: Path, number: signal.Signals) -> None:
    def hang() -> None:
        replace = os.replace

        def replaced(source: str, target: Path) -> None:
            if Path(target).name == "latest" and 2 in steps_of(tmp_path / "run"):
                Path("hanging").touch()
                time.sleep(60)
            replace(source, target)

        os.replace = replaced

    child = fork(lambda: (hang(), quietly(tmp_path / "run", QUICK)), tmp_path)
    until((tmp_path / "hanging").exists)
    child.send(number)
    time.sleep(0.3)
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    child.send(number)
    assert child.wait(5) == 128 + number


def test_a_signal_without_a_run_means_what_it_did(tmp_path: Path) -> None:
    def train() -> None:
        hk.Trainer(hk.build(config(1)), "digits", on_record=lambda _: Path("on").touch()).fit(100_000)

    child = fork(train, tmp_path)
    until((tmp_path / "on").exists)
    child.send(signal.SIGTERM)
    assert child.wait(5) == 128 + signal.SIGTERM
