"""Inpainting by a search for latents: exact where all is linear and Gaussian, and careful with everything else."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import pytest
import torch
from conftest import tiny_ladder
from torch import Tensor, nn

import halikit as hk
from halikit.analysis.inpainting import centre_mask, inpaint_by_search
from halikit.analysis.latent_search import explain

SCALE = 0.3
SHAPE = (1, 6, 6)
MISSING = torch.tensor([False, True, False, False, True])


class Linear(NamedTuple):
    """x = b + W z1 + SCALE · noise, with z1 = A z2 + S · noise and z2 standard normal; S is diagonal."""

    w: Tensor
    b: Tensor
    a: Tensor
    s: Tensor

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the missing elements of b + W z1, given the known ones of x."""
        latent = self.w @ (self.a @ self.a.T + self.s.square().diag()) @ self.w.T
        known = latent[~MISSING][:, ~MISSING] + SCALE**2 * torch.eye(int((~MISSING).sum()), dtype=latent.dtype)
        across = latent[MISSING][:, ~MISSING]
        gain = across @ known.inverse()
        mean = self.b[MISSING] + (x - self.b)[:, ~MISSING] @ gain.T
        return mean, (latent[MISSING][:, MISSING] - gain @ across.T).diagonal().sqrt()


class WithNoise(nn.Module):
    """A z + S ε, as the network of an implicit kernel."""

    noise = ((3,),)

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
        return given @ self.linear.a.T + noise[0] * self.linear.s


def linear_model(middle: Literal["gaussian", "implicit", "gauged"] = "gaussian") -> tuple[Linear, hk.Hierarchy]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    linear = Linear(normal(5, 3), normal(5), normal(3, 2), normal(3).abs() + 0.5)
    x, z1, z2 = hk.Space("x", (5,)), hk.Space("z1", (3,)), hk.Space("z2", (2,))
    down: hk.Kernel = hk.LinearGaussianKernel(z2, z1, linear.a, covariance=linear.s.square().diag())
    if middle != "gaussian":
        down = hk.ImplicitKernel(z2, z1, WithNoise(linear))
    if middle == "gauged":
        down = hk.gauged(down, "standardised")
    links = [
        hk.Link(
            hk.LinearGaussianKernel(x, z1, normal(3, 5)),
            hk.LinearGaussianKernel(z1, x, linear.w, linear.b, SCALE**2 * torch.eye(5, dtype=torch.float64)),
        ),
        hk.Link(hk.LinearGaussianKernel(z1, z2, normal(2, 3)), down),
    ]
    return linear, hk.Hierarchy(links).double().eval()


def data(n: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("middle", ["gaussian", "implicit", "gauged"])
def test_the_most_probable_latents_give_the_conditional_mean(middle: Literal["gaussian", "implicit", "gauged"]) -> None:
    linear, hierarchy = linear_model(middle)
    x = data(20)
    if middle == "gauged":
        # Running statistics at their start: the gauge divides by the root of 1 + its small constant.
        linear = linear._replace(a=linear.a / math.sqrt(1 + 1e-5), s=linear.s / math.sqrt(1 + 1e-5))
    found = inpaint_by_search(hierarchy, x, MISSING, draws=0, steps=1000, scale=SCALE)
    assert list(found.steps) == ["mode"]
    torch.testing.assert_close(found.completed[:, MISSING], linear.posterior(x)[0], atol=2e-3, rtol=0)


def test_draws_have_the_mean_and_the_variance_of_the_posterior() -> None:
    linear, hierarchy = linear_model()
    n, x = 4000, data(1)
    many = x.expand(n, 5).clone()
    generator = torch.Generator().manual_seed(2)
    draws = explain(hierarchy, many, (~MISSING).expand(n, 5), steps=400, scale=SCALE, generator=generator)[:, MISSING]
    mean, deviation = linear.posterior(x)
    # Four standard errors of the mean, and of the standard deviation.
    assert ((draws.mean(0) - mean[0]).abs() < 4 * deviation / n**0.5).all()
    assert ((draws.std(0) / deviation - 1).abs() < 4 / (2 * n) ** 0.5).all()


def test_the_mean_is_that_of_as_many_draws() -> None:
    _, hierarchy = linear_model()
    x = data(3)

    def filled(draws: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return inpaint_by_search(hierarchy, x, MISSING, draws=draws, generator=generator).steps

    assert torch.equal(filled(1)["draw"], filled(1)["mean"])
    assert torch.equal(filled(1)["draw"], filled(4)["draw"])
    assert not torch.allclose(filled(4)["draw"], filled(4)["mean"], atol=1e-3)


@pytest.mark.parametrize("draws", [0, 2])
def test_known_pixels_stay_and_missing_ones_are_not_looked_at(draws: int) -> None:
    hierarchy = tiny_ladder(2, SHAPE).eval()
    x, mask = torch.rand(3, *SHAPE) * 2 - 1, centre_mask(SHAPE)

    def filled(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return inpaint_by_search(
            hierarchy, images, mask, fill=0.25, draws=draws, steps=3, generator=generator
        ).completed

    assert torch.equal(filled(x)[..., ~mask], x[..., ~mask])
    assert torch.equal(filled(x), filled(torch.where(mask, torch.nan, x)))
    assert not torch.equal(filled(x), filled(-x))


def test_an_image_does_not_depend_on_others_and_the_model_does_not_change() -> None:
    hierarchy = tiny_ladder(2, SHAPE).train()
    before = {name: value.clone() for name, value in hierarchy.state_dict().items()}
    x, mask = torch.rand(4, *SHAPE) * 2 - 1, centre_mask(SHAPE)
    together = inpaint_by_search(hierarchy, x, mask, draws=0, steps=5).completed
    alone = inpaint_by_search(hierarchy, x[2:3], mask, draws=0, steps=5).completed
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=0)
    assert hierarchy.training
    assert all(torch.equal(value, before[name]) for name, value in hierarchy.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in hierarchy.parameters())


def test_a_search_lowers_the_error_on_known_pixels() -> None:
    hierarchy = tiny_ladder(2, SHAPE).eval()
    x, mask = hierarchy.sample(10).detach(), centre_mask(SHAPE)
    known = (~mask).expand_as(x)

    def error(steps: int) -> float:
        found = explain(hierarchy, x, known, draw=False, steps=steps, scale=0.05)
        return float((found - x)[known].square().mean())

    assert error(100) < 0.5 * error(1)


def test_a_discrete_top_stays_as_the_encoder_gives_it() -> None:
    x, z = hk.Space("x", (4,)), hk.Space("z1", (3,), "bits")
    link = hk.Link(hk.BernoulliKernel(x, z, nn.Linear(4, 3)), hk.DeterministicKernel(z, x, nn.Linear(3, 4)))
    hierarchy = hk.Hierarchy([link]).eval()
    given, mask = torch.randn(5, 4), torch.tensor([True, False, False, False])
    found = inpaint_by_search(hierarchy, given, mask, draws=0).completed
    with torch.no_grad():
        expected = hierarchy.reconstruct(torch.where(mask, 0, given))
    torch.testing.assert_close(found[:, 0], expected[:, 0])


def test_a_prior_without_known_moments_is_taken_from_its_draws() -> None:
    linear, plain = linear_model()
    prior = hk.priors.Flow(plain.spaces[-1]).double()
    hierarchy = hk.Hierarchy(plain, prior).eval()
    found = inpaint_by_search(hierarchy, data(5), MISSING, draws=0, steps=400, scale=SCALE).completed
    # A new flow is nearly the standard normal distribution; its moments are from 1,000 draws.
    torch.testing.assert_close(found[:, MISSING], linear.posterior(data(5))[0], atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": -1}, "draws is 0 or more"), ({"steps": 0}, "steps 1 or more"), ({"mask": MISSING.double()}, "bool")],
    ids=str,
)
def test_bad_input_is_refused(options: dict[str, object], message: str) -> None:
    _, hierarchy = linear_model()
    with pytest.raises(ValueError, match=message):
        inpaint_by_search(hierarchy, data(2), **({"mask": MISSING} | options))


def test_progress_is_reported() -> None:
    _, hierarchy = linear_model()
    seen: list[tuple[int, int]] = []
    inpaint_by_search(hierarchy, data(150), MISSING, draws=2, steps=1, on_progress=lambda *now: seen.append(now))
    assert seen == [(0, 300), (100, 300), (200, 300), (250, 300), (300, 300)]
