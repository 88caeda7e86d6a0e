"""Errors of reconstructions: against closed forms where there are some, refused where there is no density."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import density_ladder, linear_hierarchy, tiny_ladder
from torch import Tensor

import halikit as hk
from halikit.analysis.quantity import Quantity
from halikit.analysis.reconstruction import (
    distances,
    draws,
    embedded_distance,
    fit_observation_scale,
    js_bound,
    reconstruction_error,
)


class Opaque(hk.DensityKernel):
    """A kernel whose closed form nobody knows."""

    def __init__(self, kernel: hk.LinearGaussianKernel) -> None:
        super().__init__(kernel.source, kernel.target)
        self.kernel = kernel

    def forward(self, given: Tensor) -> torch.distributions.Distribution:
        return self.kernel(given)


def opaque(hierarchy: hk.Hierarchy) -> hk.Hierarchy:
    return hk.Hierarchy([hk.Link(Opaque(link.up), Opaque(link.down)) for link in hierarchy])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_linear_gaussian_errors_are_exact(level: int) -> None:
    hierarchy = linear_hierarchy(3)
    x = torch.randn(5, 3, dtype=torch.float64)
    error = reconstruction_error(hierarchy, x, level)
    assert error.kind == "exact"
    view = hierarchy[:level]
    values = x.expand(20_000, 5, 3)
    drawn = -view.decoder.log_prob(values, view.encoder.sample(values))
    assert ((error.values - drawn.mean(0)).abs() < 5 * drawn.std(0) / 20_000**0.5).all()


def test_estimates_are_unbiased_and_bounds_lie_above_and_come_down() -> None:
    hierarchy = linear_hierarchy(3)
    x = torch.randn(200, 3, dtype=torch.float64)
    hidden = opaque(hierarchy)
    for level in (1, 2, 3):
        exact = reconstruction_error(hierarchy, x, level).values
        found = [reconstruction_error(hidden, x, level, num_samples=64, num_between=n) for n in (2, 64)]
        gaps = [Quantity.mean(error.values - exact, error.kind) for error in found]
        assert [error.kind for error in found] == ["estimate" if level == 1 else "upper bound"] * 2
        if level == 1:
            assert abs(gaps[0].value) < 5 * gaps[0].standard_error
            continue
        assert gaps[0].value > gaps[1].value > -5 * gaps[1].standard_error
        assert gaps[1].value < 0.5 * gaps[0].value
        assert 1 < found[1].effective_sample_size <= 64


def test_encoders_without_densities_propose_nothing_and_still_bound() -> None:
    hierarchy = linear_hierarchy(2)
    hidden = opaque(hierarchy)
    silent = hk.Hierarchy(
        [
            hk.Link(hk.DeterministicKernel(link.up.source, link.up.target, torch.nn.Linear(3 - i, 2).double()), down)
            for i, (link, down) in enumerate(zip(hierarchy, (Opaque(link.down) for link in hidden), strict=True))
        ]
    )
    error = reconstruction_error(silent, torch.randn(4, 3, dtype=torch.float64), 2)
    assert error.kind == "upper bound"
    assert error.values.isfinite().all()


def test_without_a_density_there_is_no_error_in_nats() -> None:
    hierarchy = tiny_ladder(2, (1, 4, 4)).eval()
    x = torch.rand(20, 1, 4, 4) * 2 - 1
    with pytest.raises(hk.NoDensityError, match="give a scale, or fit one on held-out data"):
        reconstruction_error(hierarchy, x, 1)
    scale = fit_observation_scale(hierarchy, x, generator=torch.Generator().manual_seed(0))
    fitted, *others = (
        float(reconstruction_error(hierarchy, x, 1, num_samples=64, scale=s).values.mean())
        for s in (scale, 0.8 * scale, 1.25 * scale)
    )
    assert fitted < min(others)
    assert reconstruction_error(hierarchy, x, 2, scale=scale).kind == "upper bound"
    with pytest.raises(ValueError, match="leave it out"):
        reconstruction_error(density_ladder(1, (4,)), torch.randn(3, 4), scale=0.3)


def test_the_embedded_distance_is_eq_8() -> None:
    hierarchy = tiny_ladder(2, (1, 4, 4))
    discriminator = hk.build_discriminator(hierarchy, width=8)
    u, v = torch.rand(2, 6, 1, 4, 4)
    found = embedded_distance(hierarchy, discriminator, u, v)
    assert hierarchy.training
    assert discriminator.stages[0].training
    hierarchy.eval(), discriminator.eval()
    by_hand = [discriminator.features(hierarchy.encode(image)) for image in (u, v)]
    torch.testing.assert_close(found, (by_hand[0] - by_hand[1]).square().sum(1).sqrt())
    assert embedded_distance(hierarchy, discriminator, u, u).max() == 0


@pytest.mark.parametrize("games", ["joint", "pairwise"])
def test_distances_of_every_level(games: str) -> None:
    hierarchy = tiny_ladder(3, (1, 4, 4)).eval()
    discriminator = hk.build_discriminator(hierarchy, width=8, games=games)
    x = torch.rand(6, 1, 4, 4)
    found = distances(hierarchy, discriminator, x)
    for level in (1, 2, 3):
        rebuilt = hierarchy.reconstruct(x, level)
        torch.testing.assert_close(found.embedded[level - 1], embedded_distance(hierarchy, discriminator, x, rebuilt))
        torch.testing.assert_close(found.euclidean[level - 1], (x - rebuilt).flatten(1).square().mean(1).sqrt())


def test_the_free_bound_on_the_divergence() -> None:
    hierarchy = tiny_ladder(2, (4,))
    discriminator = hk.build_discriminator(hierarchy, width=8)
    x = torch.randn(500, 4) + 3
    with torch.no_grad():
        discriminator.head[-1].weight.zero_()
        discriminator.head[-1].bias.zero_()
    # One that sees no difference proves none.
    (bound,) = js_bound(hierarchy, discriminator, x)
    assert bound.kind == "lower bound"
    assert bound.value == pytest.approx(0, abs=1e-6)
    trainer = hk.Trainer(hk.Model(hierarchy, discriminator), x)
    for _ in range(100):
        trainer.step(x[:64])
    (bound,) = js_bound(hierarchy, discriminator, x)
    assert 0 < bound.value <= math.log(2)
    pairs = hk.build_discriminator(hierarchy, width=8, games="pairwise")
    assert len(js_bound(hierarchy, pairs, x)) == 2


def test_draws_differ_in_what_a_level_leaves_free() -> None:
    hierarchy = density_ladder(2, (4,))
    x = torch.randn(3, 4)
    drawn = draws(hierarchy, x, 2, 50)
    assert drawn.shape == (50, 3, 4)
    assert (drawn.std(0) > 0).all()
    certain = draws(tiny_ladder(1, (4,)).eval(), x, 1, 3)
    torch.testing.assert_close(certain[0], certain[2])


def test_the_root_mean_square_has_its_closed_form() -> None:
    """Over images of unequal errors: not the mean of their roots."""
    squares = torch.tensor([1.0, 9.0, 4.0, 2.0])
    found = Quantity.root_mean_square(squares, "estimate", "nats")
    assert found.value == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(float(squares.std()) / 2 / (2 * 2.0))
    assert (found.kind, found.unit, found.count) == ("estimate", "nats", 4)
    assert Quantity.root_mean_square(squares[:1], "exact").standard_error is None
    zero = Quantity.root_mean_square(torch.zeros(3), "estimate")
    assert (zero.value, zero.standard_error) == (0, 0)


def test_the_standard_error_of_a_root_mean_square_is_that_of_repetitions() -> None:
    squares = torch.distributions.Exponential(torch.tensor(1.0)).sample((2000, 400))
    repeated = squares.mean(1).sqrt()
    found = Quantity.root_mean_square(squares[0], "estimate")
    assert found.standard_error == pytest.approx(float(repeated.std()), rel=0.15)


def test_differences_of_root_mean_squares_are_paired() -> None:
    a = torch.distributions.Exponential(torch.tensor(1.0)).sample((2000, 400))
    b = 0.8 * a + 0.1 * torch.rand(2000, 400)
    differences = a.mean(1).sqrt() - b.mean(1).sqrt()
    found = Quantity.root_mean_square_difference(a[0], b[0], "estimate")
    assert found.value == pytest.approx(float(differences[0]), abs=1e-6)
    assert found.standard_error == pytest.approx(float(differences.std()), rel=0.2)
    alone = Quantity.root_mean_square(a[0], "estimate").standard_error
    assert found.standard_error < 0.3 * alone
    same = Quantity.root_mean_square_difference(a[0], a[0], "estimate")
    assert (same.value, same.standard_error) == (0, 0)


def test_quantities_say_what_they_are() -> None:
    assert str(Quantity.mean(torch.tensor([1.0, 3.0]), "estimate", "nats")) == "2 ± 1 nats (estimate, n = 2)"
    assert str(Quantity(0.25, "exact")) == "0.25 (exact)"
    assert Quantity.mean(torch.tensor([1.0]), "exact").standard_error is None
