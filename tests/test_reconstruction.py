"""Errors of reconstructions: against closed forms where there are some, refused where there is no density."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, Opaque, density_ladder, gaussian, linear_hierarchy, opaque, tiny_ladder
from torch import Tensor

import halikit as hk
from halikit.analysis import importance, reconstruction
from halikit.analysis.likelihood import log_likelihood
from halikit.analysis.quantity import Quantity
from halikit.analysis.reconstruction import (
    distances,
    draws,
    embedded_distance,
    fit_observation_scale,
    js_bound,
    reconstruction_error,
)
from halikit.errors import InputError
from halikit.kernels import Gaussian


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
        draws = 64 if level == 1 else 16
        found = [reconstruction_error(hidden, x, level, num_samples=draws, num_between=n) for n in (2, 64)]
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


@pytest.mark.parametrize("level", [2, 3])
def test_the_mixture_is_at_least_as_good_as_each_half(level: int) -> None:
    """At 64 draws for each of 400 data, within 0.1 nats; the encoder alone is far off at level 3, both are at 2."""
    hierarchy = linear_hierarchy(3)
    x = hierarchy.sample(400).detach()
    exact, hidden = reconstruction_error(hierarchy, x, level).values, opaque(hierarchy)

    def gap(proposal: str) -> float:
        found = reconstruction_error(hidden, x, level, num_samples=4, num_between=64, proposal=proposal)
        assert found.draws.proposal == proposal
        return float((found.values - exact).mean())

    mixture, encoder, decoder = (gap(proposal) for proposal in ("mixture", "encoder", "decoder"))
    assert -0.1 < mixture < min(encoder, decoder) + 0.1
    assert mixture < 0.5 * max(encoder, decoder)


def test_draws_are_doubled_until_the_mean_settles() -> None:
    hidden = opaque(linear_hierarchy(2))
    x, done = hidden.sample(100).detach(), []
    found = reconstruction_error(hidden, x, 2, on_progress=lambda *state: done.append(state))
    assert found.num_samples == 2
    assert found.num_between in (128, 256, 512, 1024, 2048)
    assert found.draws.settled
    assert abs(found.draws.change) < 0.5
    assert "not settled" not in str(found)
    assert done[-1] == (200 * 4096, 200 * 4096)
    # The same seed gives the same draws: what was not enough for half a nat is not enough for less.
    torch.manual_seed(1)
    coarse = reconstruction_error(hidden, x, 2, tolerance=100)
    torch.manual_seed(1)
    fine = reconstruction_error(hidden, x, 2, tolerance=1e-6, most=256)
    assert (coarse.num_between, fine.num_between) == (128, 256)
    assert coarse.draws.settled
    assert fine.draws.settled is False
    assert fine.draws.change == pytest.approx(coarse.mean.value - fine.mean.value)
    assert f"not settled: the last doubling moved the mean by {fine.draws.change:.2g} nats" in str(fine)
    fixed = reconstruction_error(hidden, x, 2, num_between=32)
    assert (fixed.num_between, fixed.draws.settled, fixed.draws.change) == (32, None, None)


def test_a_number_says_what_it_is_made_of() -> None:
    hierarchy, x = linear_hierarchy(2), torch.randn(10, 3, dtype=torch.float64)
    first, second = (reconstruction_error(opaque(hierarchy), x, level, most=128) for level in (1, 2))
    exact = reconstruction_error(hierarchy, x, 2)
    assert str(first).endswith("16 draws of z_1")
    assert str(second).startswith(f"{second.mean}  2 draws of z_2 × 128 draws by the mixture, effective sample size ")
    assert str(exact).endswith("exact for each datum")
    values = second.as_dict()
    assert values["value"] == second.mean.value
    assert (values["num_samples"], values["num_between"], values["proposal"]) == (2, 128, "mixture")
    assert 1 <= values["effective_sample_size"] == second.effective_sample_size <= 128
    assert list(first.as_dict()) == list(values) == list(exact.as_dict())
    assert (first.as_dict()["num_samples"], first.as_dict()["effective_sample_size"]) == (16, 16)


def test_a_kernel_of_ones_own_may_propose() -> None:
    """The exact posterior of z_1 given x and z_2 is not to be had from x alone; that given x is, and is a good one."""
    hierarchy = linear_hierarchy(2)
    x = hierarchy.sample(50).detach()
    down = hierarchy.links[0].down
    posterior = down.posterior(hierarchy.links[1].down.marginal(Gaussian(*standard_normal())))
    exact = reconstruction_error(hierarchy, x, 2).values
    found = reconstruction_error(opaque(hierarchy), x, 2, num_samples=16, num_between=256, proposal=posterior)
    assert found.draws.proposal == str(posterior)
    assert 0 < float((found.values - exact).mean()) < 2
    with pytest.raises(InputError, match="mixture, encoder, decoder or a kernel, got 'adjoint'"):
        reconstruction_error(opaque(hierarchy), x, 2, proposal="adjoint")
    with pytest.raises(ValueError, match="does not lead from x"):
        reconstruction_error(opaque(hierarchy), x, 2, proposal=down)


def standard_normal() -> tuple[Tensor, Tensor]:
    return torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)


def test_a_kernel_between_without_a_density_leaves_the_draws_to_the_decoder() -> None:
    """``z_1 = f(z_2)`` exactly: the decoder's own draws give ``−log p(x|f(z_2))``, whatever their number."""
    hierarchy = density_ladder(1, (4,))
    z1, z2 = hierarchy.spaces[-1], hk.Space("z2", (2,))
    function = hk.DeterministicKernel(z2, z1, Network(z2, z1.size))
    own = hk.Hierarchy([*hierarchy, hk.Link(gaussian(z1, z2, scale=1e-4), function)]).eval()
    x = torch.randn(10, 4)
    found = reconstruction_error(own, x, 2)
    assert (found.draws.proposal, found.draws.settled) == ("decoder", True)
    assert found.effective_sample_size == pytest.approx(found.num_between)
    with torch.no_grad():
        z = own.encode(x)
        # z_1 is drawn, so that z_2 spreads; the mean over 1,000 draws of both.
        many = own.encode(x.expand(1000, 10, 4).reshape(-1, 4), sample=True)["z2"]
        expected = -own.links[0].down.log_prob(x.repeat(1000, 1), function.sample(many)).reshape(1000, 10).mean(0)
    assert z["z2"].shape == (10, 2)
    several = reconstruction_error(own, x, 2, num_samples=1000, num_between=2)
    torch.testing.assert_close(several.values, expected, rtol=0.05, atol=0.1)


class Shifted(hk.DensityKernel):
    """``N(W v + c, 1)``, where the context ``c`` has one number for each datum."""

    takes_context = True

    def __init__(self, source: hk.Space, target: hk.Space) -> None:
        super().__init__(source, target)
        self.linear = torch.nn.Linear(source.size, target.size)

    def forward(self, given: Tensor, context: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.linear(given) + context, 1.0).to_event(1)


def test_each_datum_keeps_its_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context moves x and the latents alike here: each datum has the error it has alone, in pieces too."""
    spaces = [hk.Space(name, (2,)) for name in ("x", "z1", "z2")]
    h = hk.Hierarchy([hk.Link(Shifted(a, b), Shifted(b, a)) for a, b in zip(spaces, spaces[1:], strict=False)])
    x, context = torch.randn(6, 2), torch.tensor([0.0, 5, 0, -5, 0, 9])[:, None]
    options = {"num_samples": 100, "num_between": 32}
    for level in (1, 2):
        alone = torch.cat(
            [
                reconstruction_error(h, x[i : i + 1], level, context=context[i : i + 1], **options).values
                for i in range(6)
            ]
        )
        for chunk in (16_384, 400):
            monkeypatch.setattr(importance, "CHUNK", chunk)
            monkeypatch.setattr(reconstruction, "CHUNK", chunk)
            together = reconstruction_error(h, x, level, context=context, **options).values
            torch.testing.assert_close(together, alone, rtol=0.1, atol=0.5)
    assert alone.std() > 3
    together = log_likelihood(h, x, context=context, num_samples=1024).values
    alone = torch.cat(
        [
            log_likelihood(h.conditioned(c[None]), each[None], num_samples=1024).values
            for each, c in zip(x, context, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=0.1, atol=0.5)


def test_a_measurement_of_nothing_is_refused() -> None:
    hierarchy, x = opaque(linear_hierarchy(2)), torch.zeros(4, 3, dtype=torch.float64)
    for measure in (reconstruction_error, log_likelihood):
        with pytest.raises(InputError, match="no data to measure on"):
            measure(hierarchy, x[:0])
        for name in ("num_samples", "most"):
            with pytest.raises(InputError, match=f"{name} is at least 1, got 0"):
                measure(hierarchy, x, **{name: 0})
    with pytest.raises(InputError, match="num_between is at least 1, got -1"):
        reconstruction_error(hierarchy, x, num_between=-1)
    for level in (0, 3):
        with pytest.raises(ValueError, match=f"level must be between 1 and 2, got {level}"):
            reconstruction_error(hierarchy, x, level)
