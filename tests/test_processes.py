"""Two real processes that train one model, over gloo."""

from __future__ import annotations

import copy
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
from conftest import without_machine_code
from test_resume import config, steps_of, trainer
from torch import Tensor, nn

import halikit as hk
from halikit import data
from halikit.algorithm import add_both_gradients, add_discriminator_gradients, add_generator_gradients, play
from halikit.cli import main
from halikit.config import Config
from halikit.data import Augmentation
from halikit.errors import InputError, ResourceError
from halikit.hardware.hardware import Hardware, HardwareSettings
from halikit.hardware.processes import Processes
from halikit.runs.run import Run
from halikit.semi.labelled import choose_labelled
from halikit.supervision import classify
from halikit.training.extra_losses import StepContext
from halikit.training.labels import Labelled
from halikit.training.methods import make_method
from halikit.training.sleep import resolve_sleep_weights


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
    "three levels": config(3),
    "rounds and a penalty": config(2, game__discriminator_steps=2, game__gradient_penalty=0.1),
    "two passes, pairs": config(2, game__objective="least_squares", discriminator__games="pairwise"),
    "micro-batches": config(2, hardware__accumulate=2, game__objective="least_squares"),
    "given classes": config(2, model__conditional="labels", model__context_size=10, hardware__accumulate=2),
    "one graph": config(2, hardware__compile="default", hardware__accumulate=2),
    "an autoencoder": config(
        2, training__method="elbo", model__observation_scale=0.5, model__gauge=None, model__max_scale=None
    ),
}


FEW = {"model__classes": 10, "labels__number": 20, "labels__consistency_weight": 0.5, "data__flip": True}
LABELS = {
    "labels": config(2, **FEW),
    "labels in rounds": config(2, game__discriminator_steps=2, **FEW),
    "labels that spread": config(2, labels__propagation_neighbours=3, **FEW),
    "labels that spread over latents": config(2, labels__propagate_every=5, **FEW),
    "labels alone": config(2, training__method="supervised", **FEW),
}


# Torch's own compiler is full of them.
@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")
@pytest.mark.parametrize("settings", (GAMES | LABELS).values(), ids=(GAMES | LABELS).keys())
def test_ranks_stay_equal(settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_machine_code(monkeypatch)

    def train(rank: int) -> None:
        torch.manual_seed(rank)  # each draws weights of its own, and the first one's are taken
        run = hk.Trainer(hk.build(settings), "digits", out=tmp_path / "run")
        run.fit(12)
        torch.save(everything(run), tmp_path / f"{rank}.pt")

    succeed(launch(train, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
    assert steps_of(tmp_path / "run")[-1] == 12
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [3, 6, 9, 10, 12]


def in_evaluation(settings: Config, rows: slice, world: int, monkeypatch: pytest.MonkeyPatch) -> hk.Model:
    """A model without batch statistics, whose noise belongs to the place in the batch of all processes."""

    def noise(n: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(n * world, *shape, generator=generator)[rows]

    def sample(self: hk.GaussianKernel, given: Tensor, *, generator: object = None) -> Tensor:
        moments = self.moments(given)
        return moments.mean + moments.scale * noise(len(given), self.target.shape)

    def sample_class(self: hk.CategoricalKernel, given: Tensor, *, generator: object = None) -> Tensor:
        return (self.logits(given) + noise(len(given), self.target.shape)).softmax(1)

    def unlabelled(self: Labelled, number: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(number * self.world)[self.rank :: self.world]
        return index, self.part.batch(index)

    monkeypatch.setattr(hk.GaussianKernel, "sample", sample)
    monkeypatch.setattr(hk.CategoricalKernel, "sample", sample_class)
    monkeypatch.setattr(Labelled, "unlabelled", unlabelled)
    torch.manual_seed(0)
    model = hk.build(settings)
    for part in model.parts.values():
        part.eval()
    model.hierarchy.prior.sample = lambda n, generator=None: noise(n, model.hierarchy.spaces[-1].shape)
    return model


def on_cpu() -> Hardware:
    return Hardware(HardwareSettings(device="cpu", timeout=60))


def check_against_the_double_batch(
    gradients: Callable[[Hardware, slice], list[Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two processes come to is what one does; ``gradients`` is told its rows of a batch."""

    def half(rank: int) -> None:
        torch.save(gradients(on_cpu(), slice(rank, None, 2)), tmp_path / f"{rank}.pt")

    succeed(launch(half, tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    whole = gradients(on_cpu(), slice(None))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == len(whole)
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("single_pass", [True, False])
def test_gradients_are_those_of_one_process_with_the_double_batch(
    tmp_path: Path, single_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8)

    def gradients(hardware: Hardware, rows: slice) -> list[Tensor]:
        model = in_evaluation(config(2), rows, hardware.processes.world, monkeypatch)
        step = play(model.hierarchy, model.discriminator, x[rows])
        if single_pass:
            add_both_gradients(step)
        else:
            add_discriminator_gradients(step, model.discriminator)
            add_generator_gradients(step, model.hierarchy)
        parameters = [p for part in model.parts.values() for p in part.parameters()]
        hardware.processes.average_gradients(parameters)
        return [p.grad for p in parameters if p.grad is not None]

    check_against_the_double_batch(gradients, tmp_path, monkeypatch)


@pytest.mark.parametrize("settings", LABELS.values(), ids=LABELS.keys())
def test_gradients_of_labels_are_those_of_one_process_with_the_double_batch(
    tmp_path: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = data.load("digits")
    x = digits.train.batch(torch.arange(16))

    def gradients(hardware: Hardware, rows: slice) -> list[Tensor]:
        model = in_evaluation(settings, rows, hardware.processes.world, monkeypatch)
        teacher = copy.deepcopy(model.hierarchy).requires_grad_(False)
        teacher.links[-1].up.network[-1].weight *= 1e4
        assert (classify(teacher, x).softmax(1).amax(1) > 0.99).all()  # so that consistency has a say
        flips = settings.data.augmentation()
        resolved = resolve_sleep_weights(settings, model.hierarchy, print)
        method = make_method(model, resolved, digits, flips, teacher, hardware, [])
        losses = torch.stack(list(method.add_gradients(x[rows], None, 3, 20).values()))
        parameters = [p for part in model.parts.values() for p in part.parameters()]
        hardware.processes.average_gradients(parameters)
        hardware.processes.average([losses])
        return [*(p.grad for p in parameters if p.grad is not None), losses]

    check_against_the_double_batch(gradients, tmp_path, monkeypatch)


TINY = {"model__family": "dense", "model__widths": (5, 4)}


class FromLatent(nn.Module):
    """The error of a linear map from z1 to x, for the encoder: a loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 64)

    def forward(self, step: StepContext) -> Tensor:
        states = step.encoder_states
        return (self.map(states["z1"]) - states["x"].flatten(1)).square().mean()


def test_gradients_of_a_loss_with_parameters_are_those_of_one_process_with_the_double_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, settings = torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8), config(2, **TINY)

    def gradients(hardware: Hardware, rows: slice) -> list[Tensor]:
        model = in_evaluation(settings, rows, hardware.processes.world, monkeypatch)
        extra = hk.ExtraLoss(FromLatent(), "encoder", name="from_latent")
        method = make_method(model, settings, None, Augmentation(), model.hierarchy, hardware, [extra])
        losses = torch.stack(list(method.add_gradients(x[rows], None, 0, 20).values()))
        parameters = [p for part in (*model.parts.values(), extra.module) for p in part.parameters()]
        hardware.processes.average_gradients(parameters)
        hardware.processes.average([losses])
        assert all(p.grad is not None for p in extra.module.parameters())
        return [*(p.grad for p in parameters if p.grad is not None), losses]

    check_against_the_double_batch(gradients, tmp_path, monkeypatch)


def test_ranks_stay_equal_with_a_loss_that_has_parameters(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        torch.manual_seed(rank)
        loss = FromLatent()
        extra = hk.ExtraLoss(loss, "encoder", name="from_latent")
        run = hk.Trainer(hk.build(config(2, **TINY)), "digits", extra_losses=[extra], out=tmp_path / "run")
        run.fit(6)
        torch.save(everything(run) | loss.state_dict(), tmp_path / f"{rank}.pt")

    succeed(launch(train, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
    assert "from_latent" in Run(tmp_path / "run").metrics()


def test_labels_are_divided(tmp_path: Path) -> None:
    """Two processes see every label once an epoch, and together what one sees at each step."""
    part = data.load("digits").train
    index = choose_labelled(part.labels, 50, 10, 0)
    shares = [Labelled(part, index, 10, Augmentation(), 7, rank, 2) for rank in (0, 1)]
    images = torch.cat([share.batch(step)[0] for step in range(5, 10) for share in shares])
    assert sorted(map(bytes, images.numpy())) == sorted(map(bytes, part.batch(index).numpy()))
    whole = Labelled(part, index, 10, Augmentation(), 7).batch(5)
    for rank, share in enumerate(shares):
        for a, b in zip(share.batch(5), whole, strict=True):
            assert torch.equal(a, b[rank::2])


def test_too_few_labels_for_the_processes_are_refused() -> None:
    settings = config(2, training__method="supervised", training__batch_size=50, **FEW)
    model, hardware = hk.build(settings), on_cpu()
    some = (model, settings, data.load("digits"), Augmentation(), model.hierarchy, hardware, [])
    hardware.processes.world = 10
    assert make_method(*some)
    hardware.processes.world = 11
    with pytest.raises(InputError, match=r"labels.number = 20 is too few for 11 processes: each needs two"):
        make_method(*some)


def test_a_batch_for_consistency_that_cannot_be_divided_is_refused() -> None:
    settings = config(2, training__method="supervised", labels__consistency_batch_size=7, **FEW)
    model, hardware = hk.build(settings), on_cpu()
    hardware.processes.world = 2
    with pytest.raises(InputError, match=r"labels.consistency_batch_size=7 is for all 2 processes together"):
        make_method(model, settings, data.load("digits"), Augmentation(), model.hierarchy, hardware, [])


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


def test_batch_statistics_of_all_processes_are_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(2, hardware__sync_batch_norm=True, model__family="conv")
    with pytest.raises(InputError, match="sync_batch_norm is for GPUs; this training is on cpu"):
        hk.Trainer(hk.build(settings), "digits")
    h, x = hk.build(config(2, model__family="conv")).hierarchy.eval(), torch.rand(4, 1, 8, 8)
    before, names = h.reconstruct(x, level=2), list(h.state_dict())
    # The modules change as on a GPU; they stay where they are.
    hardware = on_cpu()
    hardware.settings = settings.hardware
    hardware.device = torch.device("cuda")
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    hardware.prepare([h])
    h.eval()
    norms = [module for module in h.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {type(module) for module in norms} == {nn.SyncBatchNorm}
    # Three gauges, of z1 in both directions and of z2, among them.
    assert sum(not module.affine for module in norms) == 3
    assert list(h.state_dict()) == names
    torch.testing.assert_close(h.reconstruct(x, level=2), before, rtol=0, atol=0)


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
LONG += [
    f"--set={name}"
    for name in ("hidden=8", "width=8", "checkpoint_every=20", "timeout=30", "compile=none", "precision=32")
]
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
            processes.maximum(torch.zeros(()))

    assert launch(meet, tmp_path)[0].wait(30) == 0


def test_torchrun_and_a_signal_to_the_launcher(tmp_path: Path) -> None:
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 -m halikit"
    first = subprocess.Popen(
        [*torchrun.split(), *LONG],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: 20 in steps_of(tmp_path / "run"), 240)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert "SIGTERM at step" in said
    last = steps_of(tmp_path / "run")[-1]
    children = launch(shell(*MORE, str(last + 5)), tmp_path)
    succeed(children)
    assert f"resumes  at step {last}" in children[0].said
