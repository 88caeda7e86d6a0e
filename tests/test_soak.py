"""Proofs that take minutes: real trainings, judged by what they learn."""

from __future__ import annotations

import pytest
import torch

import halikit as hk
from halikit import data
from halikit.algorithm import add_both_gradients, add_discriminator_gradients, add_generator_gradients, play
from halikit.analysis.labels import LabelScores, label_scores
from halikit.config import Config, override
from halikit.presets import families

pytestmark = pytest.mark.soak


def trained(config: Config) -> LabelScores:
    digits = data.load("digits")
    config = override(config, {"model.data_shape": digits.shape})
    torch.manual_seed(config.training.seed)
    trainer = hk.Trainer(hk.build(config), digits)
    trainer.fit()
    return label_scores(trainer.averaged, digits)


@pytest.mark.parametrize("seed", [0, 1])
def test_three_levels_learn_the_digits(seed: int) -> None:
    """What docs/results/digits.md measured, less three standard errors of a share of 297."""
    scores = trained(override(families.dense(3), {"seed": seed}))
    assert [kept > least for kept, least in zip(scores.kept, (0.84, 0.79, 0.73), strict=True)] == [True] * 3
    assert min(scores.class_shares) > 0.03
    assert scores.sample_distance < scores.held_out_distance


@pytest.mark.parametrize(
    ("levels", "least"),
    [(5, (0.87, 0.84, 0.81, 0.78, 0.68)), (8, (0.86, 0.83, 0.81, 0.79, 0.77, 0.76, 0.74, 0.72))],
)
def test_many_levels_learn_the_digits_at_once(levels: int, least: tuple[float, ...]) -> None:
    """What docs/results/digits.md measured, less three standard errors."""
    scores = trained(families.dense(levels))
    assert [kept > bound for kept, bound in zip(scores.kept, least, strict=True)] == [True] * levels
    assert min(scores.class_shares) > 0.03


@pytest.mark.parametrize("change", [{"sleep_weights": 0.0}, {"skips": False}], ids=["sleep phase", "linear skips"])
def test_what_couples_many_levels(change: dict[str, object]) -> None:
    """Without either, the top of five levels keeps less."""
    with_both = trained(families.dense(5)).kept[-1]
    assert trained(override(families.dense(5), change)).kept[-1] < with_both


def test_without_gauge_upper_levels_starve() -> None:
    """What the gauge and its cap are for: without them the labels are lost on their way up a stack of five levels."""
    scores = trained(override(families.dense(5), {"gauge": None, "max_scale": None}))
    assert scores.kept[4] < 0.4


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (1, 28, 28), (3, 128, 128)])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_single_pass_is_exact_at_real_sizes(shape: tuple[int, int, int], levels: int) -> None:
    gradients = []
    for single_pass in (True, False):
        torch.manual_seed(0)
        hierarchy = hk.ladder(levels, shape, hidden=8).double()
        discriminator = hk.build_discriminator(hierarchy, width=32).double()
        x = torch.rand(4, *shape, dtype=torch.float64) * 2 - 1
        step = play(hierarchy, discriminator, x)
        if single_pass:
            add_both_gradients(step)
        else:
            add_discriminator_gradients(step, discriminator)
            add_generator_gradients(step, hierarchy)
        parts = (hierarchy, discriminator)
        gradients.append([torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in parts])
    for one, two in zip(*gradients, strict=True):
        assert (one - two).norm() / two.norm() < 1e-10
