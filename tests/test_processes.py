"""Two real processes that train one model, over gloo."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lightning_fabric.strategies.ddp  # so that no child has to  # noqa: F401
import pytest
import torch
from children import Child, fork, until
from children import _no_child_survives as _no_child_survives
from test_resume import config, steps_of, trainer
from torch import Tensor, nn

import halikit as hk
from halikit.algorithm import Joints, Judges, play
from halikit.cli import main
from halikit.config import Config
from halikit.data import Augmentation
from halikit.errors import ResourceError
from halikit.training.processes import Processes


def launch(run: Callable[[int], object], cwd: Path, world: int = 2) -> list[Child]:
    """What torchrun does: one process a rank, told of the others by the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def ranked(rank: int) -> Callable[[], object]:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}

        def run_ranked() -> object:
            os.environ |= {name: str(value) for name, value in names.items()}
            return run(rank)

        return run_ranked

    return [fork(ranked(rank), cwd) for rank in range(world)]


def succeed(children: list[Child]) -> None:
    codes = [child.wait() for child in children]
    assert codes == [0] * len(children), "\n".join(child.said for child in children)


def everything(run: hk.Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in (run.model.parts | {"averaged": run.averaged}).items()
        for key, value in module.state_dict().items()
    }


GAMES = {
    "growing, with an idle adapter": config(3, training__grow_every=4),
    "rounds and a penalty": config(2, training__d_steps=2, training__gradient_penalty=0.1),
    "two passes, pairs": config(2, training__objective="least_squares", discriminator__form="pairwise"),
    "an autoencoder": config(
        2, training__method="elbo", model__observation_scale=0.5, model__gauge=None, model__max_scale=None
    ),
}


@pytest.mark.parametrize("settings", GAMES.values(), ids=GAMES.keys())
def test_ranks_stay_equal(settings: Config, tmp_path: Path) -> None:
    def train(rank: int) -> None:
        run = trainer(settings, tmp_path / "run")
        run.fit(12)
        torch.save(everything(run), tmp_path / f"{rank}.pt")

    succeed(launch(train, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
    assert steps_of(tmp_path / "run")[-1] == 12
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [3, 6, 9, 10, 12]


@pytest.mark.parametrize("single_pass", [True, False])
def test_gradients_are_those_of_one_process_with_the_double_batch(
    tmp_path: Path, single_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8)

    def gradients(rows: slice, wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        """Of one step, with noise that belongs to the place in the whole batch."""

        def noise(given: Tensor, shape: tuple[int, ...]) -> Tensor:
            generator = torch.Generator().manual_seed(sum(shape))
            return torch.randn(8, *shape, generator=generator)[rows]

        def sample(self: hk.GaussianKernel, given: Tensor, *, generator: object = None) -> Tensor:
            moments = self.moments(given)
            return moments.mean + moments.scale * noise(given, self.target.shape)

        monkeypatch.setattr(hk.GaussianKernel, "sample", sample)
        torch.manual_seed(0)
        model = hk.build(config(2))
        model.hierarchy.eval()
        model.discriminator.eval()
        model.hierarchy.prior.sample = lambda n, generator=None: noise(x, model.hierarchy.spaces[-1].shape)
        draw, judge = wrap(Joints(model.hierarchy)), wrap(Judges(model.discriminator))
        play(model.hierarchy, model.discriminator, x[rows], single_pass=single_pass, draw=draw, judge=judge)
        return [p.grad for part in model.parts.values() for p in part.parameters() if p.grad is not None]

    def half(rank: int) -> None:
        processes = Processes("cpu", 60)
        found = gradients(slice(rank, None, 2), lambda m: processes.wrap(m, has_idle_parameters=isinstance(m, Judges)))
        torch.save(found, tmp_path / f"{rank}.pt")

    succeed(launch(half, tmp_path))
    whole = gradients(slice(None), lambda module: module)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == len(whole)
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@dataclass(frozen=True)
class Recorder(Augmentation):
    """Changes nothing and remembers which images went by."""

    seen: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        self.seen.extend(index.tolist())
        return x


def test_every_index_is_seen_once_an_epoch(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        recorder = Recorder(flip=True)
        torch.manual_seed(0)
        run = hk.Trainer(hk.build(config(1, training__batch_size=150)), "digits", augmentation=recorder)
        run.fit(10)
        torch.save(recorder.seen, tmp_path / f"{rank}.pt")

    succeed(launch(train, tmp_path))
    seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(each) for each in seen] == [750, 750]
    assert sorted(seen[0] + seen[1]) == list(range(1500))


def test_two_one_two(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def train(steps: int) -> Callable[[int], None]:
        return lambda rank: trainer(config(2), run, resume=bool(steps_of(run)), on_notice=print).fit(steps)

    succeed(launch(train(8), tmp_path))
    alone = fork(lambda: train(4)(0), tmp_path)
    assert alone.wait() == 0, alone.said
    assert "processes: 2 → 1" in alone.said
    both = launch(train(8), tmp_path)
    succeed(both)
    assert "processes: 1 → 2" in both[0].said
    assert "processes" not in both[1].said
    assert steps_of(run)[-1] == 20
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))


def shell(*arguments: str) -> Callable[[int], None]:
    def run(rank: int) -> None:
        sys.argv = ["halikit", *arguments]
        main()

    return run


LONG = ["train", "--levels", "1", "--batch-size", "16", "--out", "run", "--steps", "100000"]
LONG += [f"--set={name}" for name in ("hidden=8", "width=8", "checkpoint_every=20", "timeout=30")]
MORE = ["train", "--resume", "--out", "run", "--steps"]


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_rank_ends_all_and_saves(tmp_path: Path, told: int) -> None:
    children = launch(shell(*LONG), tmp_path)
    until(lambda: 20 in steps_of(tmp_path / "run"))
    children[told].send(signal.SIGTERM)
    assert [child.wait() for child in children] == [143, 143]
    (step,) = re.findall(r"SIGTERM at step (\d+); saved up to step \1 in run", children[0].said)
    assert int(step) in steps_of(tmp_path / "run")
    succeed(launch(shell(*MORE, str(int(step) + 5)), tmp_path))


def test_when_one_rank_is_killed_the_other_leaves_and_a_fresh_launch_resumes(tmp_path: Path) -> None:
    children = launch(shell(*LONG), tmp_path)
    until(lambda: 20 in steps_of(tmp_path / "run"))
    children[1].send(signal.SIGKILL)
    began = time.monotonic()
    assert children[0].wait() == 4, children[0].said
    assert time.monotonic() - began < 30
    assert "process 0 of 2 has lost another one" in children[0].said
    last = steps_of(tmp_path / "run")[-1]
    children = launch(shell(*MORE, str(last + 5)), tmp_path)
    succeed(children)
    assert f"resumes  at step {last}" in children[0].said
    assert not children[1].said


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    for child in launch(shell(*LONG, "--batch-size", "17"), tmp_path):
        assert child.wait() == 2
        assert "must be a multiple of 2" in child.said


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    def run() -> None:
        os.environ["WORLD_SIZE"] = "2"
        sys.modules["lightning_fabric"] = None
        shell(*LONG)(0)

    child = fork(run, tmp_path)
    assert child.wait() == 2, child.said
    assert "training in 2 processes needs lightning-fabric, which cannot be imported" in child.said


def test_a_silent_process_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def meet(rank: int) -> None:
        processes = Processes("cpu", 2)
        if rank:
            time.sleep(60)
        with pytest.raises(ResourceError, match="lost another one"), processes.explained_silence():
            processes.any(torch.zeros(()))

    assert launch(meet, tmp_path)[0].wait(30) == 0


def test_torchrun_and_a_signal_to_the_launcher(tmp_path: Path) -> None:
    def torchrun(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 -m halikit".split(),
                *arguments,
            ],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = torchrun(*LONG)
    until(lambda: 20 in steps_of(tmp_path / "run"), 240)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert "SIGTERM at step" in said
    last = steps_of(tmp_path / "run")[-1]
    second = torchrun(*MORE, str(last + 5))
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert f"resumes  at step {last}" in said
