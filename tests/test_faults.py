"""Faults that really happen: processes killed, disks full, memory short. The table in docs/recovery.md is theirs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sklearn.datasets  # so that no child has to  # noqa: F401
import torch.utils.tensorboard.writer  # noqa: F401
from children import Child, fill_disk, fork, limit_memory, tmpfs, until
from children import _no_child_survives as _no_child_survives
from makers import plant
from test_resume import config, fingerprint, steps_of, trainer

import halikit as hk
from halikit import data
from halikit.cli import main
from halikit.config import Config
from halikit.data import listing

QUICK = config(1, record__checkpoint_every=2, record__evaluate_every=3, training__steps=6, record__keep_checkpoints=1)
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
    every = 5
    settings = config(
        2,
        training__steps=(6 * kills + 10) * every,
        record__checkpoint_every=every,
        record__evaluate_every=50,
        record__log_every=10,
    )
    began = time.monotonic()
    trainer(settings, tmp_path / "whole").fit()
    undisturbed = time.monotonic() - began
    pause = undisturbed * every / settings.training.steps
    run, chance = tmp_path / "run", random.Random(0)
    hits, reached = dict.fromkeys(("starting", "training", "writing a checkpoint"), 0), -1
    for _ in range(kills):
        child = fork(lambda: quietly(run, settings))
        # Counted in checkpoints, so that a slow machine is hit in the same places as a fast one.
        awaited = reached + every * chance.randrange(5)
        until(lambda awaited=awaited: max(steps_of(run), default=-1) >= awaited)
        time.sleep(chance.uniform(0, 2 * pause))
        child.send(signal.SIGKILL)
        assert child.wait() == 128 + signal.SIGKILL, child.said
        now, is_writing = max(steps_of(run), default=-1), any((run / "checkpoints").glob(".*"))
        assert now >= reached, "it started afresh"
        hits["writing a checkpoint" if is_writing else "training" if now > reached else "starting"] += 1
        reached = now
    last = fork(lambda: quietly(run, settings))
    assert last.wait() == 0, last.said
    assert 0 < reached < settings.training.steps
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    seconds = {"undisturbed_seconds": round(undisturbed), "seconds": round(time.monotonic() - began - undisturbed)}
    print(json.dumps({"killed": hits, "steps": settings.training.steps, "reached": reached} | seconds))


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


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 200) as disk:
        child = halikit("train", *TINY, "--out", str(disk / "run"), cwd=tmp_path)
        assert child.wait() == 4, child.said
        (line,) = [line for line in child.said.splitlines() if line.startswith("halikit:")]
        assert re.search(r"has 0 MiB free, but the run needs \d+ MiB: 0\.\d MiB for each checkpoint; lower", line)
        assert not list((disk / "run").rglob("*.*"))


def test_a_disk_that_fills_up_while_training_leaves_what_is_whole(tmp_path: Path) -> None:
    options = [*TINY, "--steps", "400", "--out", str(tmp_path / "disk" / "run")]
    with tmpfs(tmp_path / "disk", 2000) as disk:
        child = halikit("train", *options, cwd=tmp_path)
        until(lambda: 40 in steps_of(disk / "run"))
        fill_disk(disk / "filler")
        assert child.wait() == 4, child.said
        assert "no space left to write" in child.said.splitlines()[-1]
        (disk / "filler").unlink()
        child = halikit("train", *options, "--resume", cwd=tmp_path)
        assert child.wait() == 0, child.said
        assert "damaged" not in child.said
        halikit("train", *options, "--out", str(tmp_path / "whole"), cwd=tmp_path).wait()
        assert fingerprint(disk / "run") == fingerprint(tmp_path / "whole")


def test_a_read_only_disk_is_refused_before_training(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 2000) as disk:
        (disk / "run").mkdir()
        assert os.system(f"mount -o remount,ro {disk}") == 0
        for out in ("run", "other"):
            child = halikit("train", *TINY, "--out", str(disk / out), cwd=tmp_path)
            assert child.wait() == 2, child.said
            assert "Read-only file system" in child.said.splitlines()[-1]
            assert "step " not in child.said


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    first = halikit("train", *TINY, "--steps", "100000", "--set", "compile=none", cwd=tmp_path)
    until(lambda: steps_of(tmp_path / "run"))
    for option, message in (([], "already holds a run"), (["--resume"], "another training is writing to run")):
        second = halikit("train", *TINY, *option, cwd=tmp_path)
        assert second.wait() == 2, second.said
        assert message in second.said.splitlines()[-1]
    first.send(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    # The lock went with the process.
    assert halikit("train", *TINY, "--resume", "--steps", "100", cwd=tmp_path).wait() == 0


@pytest.mark.parametrize("what", ["metrics.csv", "samples", "checkpoints", ""])
def test_files_removed_while_training_are_missed_by_nobody(tmp_path: Path, what: str) -> None:
    child = halikit("train", *TINY, "--steps", "200", cwd=tmp_path)
    run = tmp_path / "run"
    # Not in the middle of a checkpoint: the first one has gone once that of step 60 is complete.
    until(lambda: min(steps_of(run), default=0) > 0)
    (run / what).unlink() if what == "metrics.csv" else shutil.rmtree(run / what, ignore_errors=True)
    assert child.wait() == 0, child.said
    assert 200 in steps_of(run)
    assert (run / "metrics.csv").read_text().startswith("step,seconds")
    assert hk.load(run)


def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    options = [*TINY, "--steps", "50", "--batch-size", "1500", "--set=hidden=10000", "--set=model.depth=1"]
    child = halikit("train", *options, cwd=tmp_path, before=lambda: limit_memory(160))
    assert child.wait() == 4, child.said
    assert "out of memory on cpu with batches of 1500" in child.said
    assert "Try training.batch_size=750" in child.said
    assert max(steps_of(tmp_path / "run")) == 0


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("{} >&- 2>&- <&-", {}),
        ("{} 2>&1 | cat", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("{} | head -1", {}),
    ],
    ids=["closed", "C locale", "reader gone"],
)
def test_odd_streams_and_locales(tmp_path: Path, shell: str, environment: dict[str, str]) -> None:
    command = " ".join([sys.executable, "-m", "halikit", "train", *TINY, "--steps", "60"])
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + shell.format(command)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 60 in steps_of(tmp_path / "run")


def test_a_thread_that_decodes_images_and_fails_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(300)])
    decoded: list[int] = []
    decode = listing.decode

    def failing(*arguments: object) -> object:
        decoded.append(1)
        if len(decoded) == 100:
            raise MemoryError("in a thread")
        return decode(*arguments)

    monkeypatch.setattr(listing, "decode", failing)
    with pytest.raises(MemoryError, match="in a thread"):
        data.load(f"folder:{tmp_path}")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_no_setting_leads_out_of_the_directory_of_runs(tmp_path: Path) -> None:
    """A config of a stranger may say anything; where a run is written is said by its user, or lies in runs/."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "config.toml").write_text('preset = "../../escaped"\n')
    child = halikit("train", "--config", "config.toml", "--steps", "2", cwd=tmp_path / "work")
    assert child.wait() == 2, child.said
    assert "preset = '../../escaped': string should match pattern" in child.said
    for spec in ("../../escaped", str(tmp_path / "escaped")):
        (tmp_path / "work" / "config.toml").write_text(f'[data]\nspec = "{spec}"\n')
        child = halikit("train", "--config", "config.toml", "--resume", cwd=tmp_path / "work")
        assert child.wait() == 2, child.said
        assert "runs/escaped-l3" in child.said
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
