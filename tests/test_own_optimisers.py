"""Optimisers and schedules of the user's own: what they move, how they are resumed, and that NaN moves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from test_guard import poison
from test_plan import RECORDS
from test_resume import config, cut_at, fingerprint, trainer
from test_speed_options import assert_same, batch, small
from torch import nn
from torch.optim import SGD, Adadelta, Adafactor, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import halikit as hk
from halikit.errors import InputError


def sgd(name: str, module: nn.Module) -> Optimizer:
    return SGD(module.parameters(), lr={"hierarchy": 0.01, "discriminator": 0.02}[name], momentum=0.9)


def warmed(name: str, optimiser: Optimizer) -> LRScheduler:
    first, then = LinearLR(optimiser, 0.1, total_iters=5), CosineAnnealingLR(optimiser, 15)
    return SequentialLR(optimiser, [first, then], milestones=[5])


def of(kind: Callable[..., Optimizer], **options: object) -> Callable[[str, nn.Module], Optimizer]:
    return lambda name, module: kind(module.parameters(), **options)


CASES = {
    "momentum, warmed up": {"optimisers": sgd, "schedulers": warmed},
    "AdamW, one cycle": {
        "optimisers": of(AdamW, lr=1e-3, weight_decay=0.1),
        "schedulers": lambda name, optimiser: OneCycleLR(optimiser, 1e-3, total_steps=20),
    },
    "Adafactor": {"optimisers": of(Adafactor, lr=1e-3)},
    "the built-in Adam under milestones": {
        "schedulers": lambda name, optimiser: MultiStepLR(optimiser, milestones=[5, 5, 15], gamma=0.5)
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_a_resumed_run_is_the_undisturbed_one(own: dict[str, Callable[..., object]], tmp_path: Path) -> None:
    settings = config(1)
    trainer(settings, tmp_path / "whole", **own).fit()
    cut_at(trainer(settings, tmp_path / "cut", **own), 10)
    trainer(settings, tmp_path / "cut", resume=True, **own).fit()
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_a_factory_that_makes_the_built_in_adam_changes_nothing() -> None:
    """Fused Adam with the settings' rate: the host reads the flag, and the weights are the same to the last bit."""
    ends = []
    for own in ({}, {"optimisers": of(Adam, lr=3e-4, betas=(0.5, 0.999), fused=True)}):
        run = hk.Trainer(small(steps=5), "digits", on_notice=lambda _: None, **own)
        run.fit()
        ends.append(run)
    assert_same(*ends)


def test_rates_are_those_of_the_schedule() -> None:
    seen: list[float] = []
    made: list[Optimizer] = []

    def schedule(name: str, optimiser: Optimizer) -> LRScheduler:
        made.append(optimiser)
        optimiser.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        return LinearLR(optimiser, 1.0, 0.0, total_iters=4)

    run = hk.Trainer(
        small(steps=4, final_rate_share=0.1), on_notice=lambda _: None, optimisers=sgd, schedulers=schedule
    )
    for _ in range(4):
        run.step(batch())
    assert len(made) == 2
    assert seen[::2] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert seen[1::2] == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_a_rehearsal_changes_no_optimiser_of_your_own() -> None:
    ends = []
    for rehearses in (False, True):
        run = hk.Trainer(
            small(steps=1000, **RECORDS), "digits", on_notice=lambda _: None, optimisers=sgd, schedulers=warmed
        )
        run.step(batch())
        if rehearses:
            assert run.plan() is not None
        for _ in range(2):
            run.step(batch())
        ends.append(run)
    assert_same(*ends)


@pytest.mark.parametrize("kind", [SGD, Adadelta], ids=["without the flag", "without a fused form"])
def test_a_step_that_is_not_finite_changes_nothing(kind: type[Optimizer], tmp_path: Path) -> None:
    run = hk.Trainer(hk.build(config(1)), out=tmp_path, optimisers=of(kind, lr=0.01))
    batches = [torch.rand(16, 1, 8, 8) * 2 - 1 for _ in range(3)]
    run.step(batches[0])
    poison(run, "gradient", lambda: run.steps == 1)
    before = [p.clone() for part in run.model.parts.values() for p in part.parameters()]
    run.step(batches[1])
    after = [p.clone() for part in run.model.parts.values() for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    run.step(batches[2])
    moved = [p for part in run.model.parts.values() for p in part.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(after, moved, strict=True))


def test_another_optimiser_than_before_is_refused(tmp_path: Path) -> None:
    trainer(config(1, training__steps=4), tmp_path, optimisers=sgd).fit()
    with pytest.raises(
        InputError, match=r"whose optimiser for hierarchy was SGD, and here it is the built-in optimiser"
    ):
        trainer(config(1), tmp_path, resume=True)
    with pytest.raises(InputError, match=r"was SGD, and here it is AdamW; give the trainer the same optimisers"):
        trainer(config(1), tmp_path, resume=True, optimisers=of(AdamW))
    with pytest.raises(InputError, match=r"whose scheduler for hierarchy was the built-in scheduler, and here"):
        trainer(config(1), tmp_path, resume=True, optimisers=sgd, schedulers=warmed)


def test_what_is_no_optimiser_or_schedule_is_refused() -> None:
    def first_alone(name: str, module: nn.Module) -> Optimizer:
        return SGD([next(module.parameters())], lr=0.1)

    build = partial(hk.build, config(1))
    with pytest.raises(InputError, match=r"optimisers\('hierarchy', module\) leaves out links"):
        hk.Trainer(build(), optimisers=first_alone)
    with pytest.raises(InputError, match=r"must return a torch.optim.Optimizer, got list"):
        hk.Trainer(build(), optimisers=lambda name, module: list(module.parameters()))
    with pytest.raises(InputError, match=r"that counts steps, got ReduceLROnPlateau"):
        hk.Trainer(build(), schedulers=lambda name, optimiser: ReduceLROnPlateau(optimiser))


def test_states_are_packed_exactly() -> None:
    from halikit.utils.packing import packed, unpacked

    state = {
        "rates": [0.1, float("inf"), -0.0],
        "milestones": Counter({5: 2, 15: 1}),
        "betas": (0.9, 0.999),
        2: {"inner": None, "is_warm": True},
        "size": torch.tensor(3.5, dtype=torch.float64),
    }
    again = unpacked(packed(state, "me"))
    assert str(again) == str(state)
    assert type(again["milestones"]) is Counter
    with pytest.raises(InputError, match="me keeps a function in its state"):
        packed({"step": test_states_are_packed_exactly}, "me")
