"""The paper's statements over random hierarchies, and the terms themselves against other ways to get them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, Shell, linear_hierarchy, size_of, tiny_ladder

import halikit as hk
from halikit.analysis.finite import FiniteJoints, finite_joints
from halikit.analysis.propositions import (
    Case,
    examine,
    finite_terms,
    gaussian_terms,
    random_linear_gaussian,
    tight_constant,
    verdicts,
)
from halikit.analysis.quantity import Quantity
from halikit.analysis.reconstruction import reconstruction_error
from halikit.kernels import Gaussian

F64 = torch.float64


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return examine(200, 3)


def test_no_statement_is_violated_over_200_hierarchies_of_each_kind(cases: tuple[Case, ...]) -> None:
    assert {kind: sum(case.kind == kind for case in cases) for kind in ("gaussian", "bounded gaussian", "finite")} == {
        "gaussian": 200,
        "bounded gaussian": 200,
        "finite": 200,
    }
    found = {verdict.name: verdict for verdict in verdicts(cases)}
    assert [verdict.violations for verdict in found.values()] == [0] * 9
    assert found["identity"].checked == sum(len(case.terms) for case in cases)
    assert found["identity"].tightest < 1e-10
    # K is finite for every case that was made so, and for few others.
    bounded = sum(len(case.terms) for case in cases if case.kind != "gaussian")
    assert bounded <= found["Proposition 1, Eq. 6"].checked < 1.1 * bounded


def test_a_violation_would_be_seen(cases: tuple[Case, ...]) -> None:
    case = cases[1]
    term = case.terms[0]
    low = replace(term, error=Quantity(term.entropy.value - 1e-3, "exact", "nats"))
    broken = {verdict.name: verdict.violations for verdict in verdicts([replace(case, terms=(low,))])}
    assert broken["identity"] == broken["Proposition 2, Eq. 7"] == 1
    far = replace(term, js_joint=Quantity(0.0, "exact", "nats"))
    broken = {verdict.name: verdict.violations for verdict in verdicts([replace(case, terms=(far,))])}
    assert broken["Proposition 1, Eq. 6"] == broken["Lemma 1, Eq. 11, D_JS"] == 1


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_error_is_that_of_eq_5(level: int) -> None:
    hierarchy = linear_hierarchy(3)
    data = Gaussian(torch.randn(3, dtype=F64), torch.diag(torch.rand(3, dtype=F64) + 0.5))
    term = gaussian_terms(hierarchy, data)[level - 1]
    x = data.mean + torch.randn(20_000, 3, dtype=F64) @ data.covariance.sqrt()
    error = reconstruction_error(hierarchy, x, level)
    assert error.kind == term.error.kind == "exact"
    assert abs(error.mean.value - term.error.value) < 5 * error.mean.standard_error


def test_terms_of_two_independent_gaussians() -> None:
    """x and z independent under both joints: everything is a sum over one-dimensional Gaussians."""
    x, z = hk.Space("x", (1,)), hk.Space("z1", (1,))
    zero, one = torch.zeros(1, 1, dtype=F64), torch.eye(1, dtype=F64)
    sx, sz = 0.5, 0.8
    link = hk.Link(
        hk.LinearGaussianKernel(x, z, zero, covariance=sz**2 * one), hk.LinearGaussianKernel(z, x, zero, covariance=one)
    )
    (term,) = gaussian_terms(hk.Hierarchy([link]), Gaussian(zero[0], sx**2 * one))
    kl_z, kl_x = ((s**2 - 1) / 2 - math.log(s) for s in (sz, sx))
    assert term.kl_latent.value == pytest.approx(kl_z)
    assert term.kl_pair.value == pytest.approx(kl_x + kl_z)
    assert term.entropy.value == pytest.approx(0.5 * math.log(2 * math.pi * math.e * sx**2))
    assert term.error.value == pytest.approx(0.5 * (math.log(2 * math.pi) + sx**2))
    assert term.constant == pytest.approx(tight_constant(1 / (sx * sz)))
    # By quadrature on a grid.
    u = torch.linspace(-9, 9, 1501, dtype=F64)
    grid = torch.stack(torch.meshgrid(u, u, indexing="ij"))
    log_p = -0.5 * grid.square().sum(0) - math.log(2 * math.pi)
    scales = torch.tensor([sx, sz], dtype=F64).view(2, 1, 1)
    log_q = -0.5 * (grid / scales).square().sum(0) - math.log(2 * math.pi * sx * sz)
    p, q = log_p.exp(), log_q.exp()
    cell = float(u[1] - u[0]) ** 2
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * cell * float((p * (log_p - log_middle) + q * (log_q - log_middle)).sum())
    assert term.js_pair.kind == "estimate"
    assert abs(term.js_pair.value - js) < max(5 * term.js_pair.standard_error, 1e-5)
    assert term.chi2_pair.value == pytest.approx(cell * float((q * q / p).sum()) - 1, rel=1e-6)


def test_the_constant_is_the_least_and_grows() -> None:
    bounds = [1.0, 1.0001, 1.01, 1.5, 3.0, 10.0, 1e3, 1e6]
    constants = [tight_constant(bound) for bound in bounds]
    assert constants == sorted(constants)
    assert constants[0] == 4
    assert math.isinf(tight_constant(math.inf))
    # Two points, one of them with almost no mass under p, come arbitrarily near.
    small = 1e-7
    q, p = torch.tensor([10 * small, 1 - 10 * small], dtype=F64), torch.tensor([small, 1 - small], dtype=F64)
    pair = FiniteJoints(q.unsqueeze(1), p.unsqueeze(1))
    (term,) = finite_terms(pair)
    assert term.constant == pytest.approx(tight_constant(10.0))
    assert term.kl_pair.value / term.js_pair.value == pytest.approx(term.constant, rel=1e-4)


@pytest.mark.parametrize("one_hot", [False, True])
def test_categorical_hierarchies_have_tables(one_hot: bool) -> None:
    counts = (4, 3, 2)
    spaces = [hk.Space(name, (k,) if one_hot else ()) for name, k in zip(("x", "z1", "z2"), counts, strict=True)]

    def kernel(source: int, target: int) -> hk.CategoricalKernel:
        return hk.CategoricalKernel(spaces[source], spaces[target], Network(spaces[source], counts[target]))

    links = [hk.Link(kernel(0, 1), kernel(1, 0)), hk.Link(kernel(1, 2), kernel(2, 1))]
    logits = torch.tensor([0.3, -0.4])
    prior = dist.OneHotCategorical(logits=logits) if one_hot else dist.Categorical(logits=logits)
    hierarchy = hk.Hierarchy(links, prior)
    data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    joints = finite_joints(hierarchy, data)
    assert joints.q.shape == joints.p.shape == counts
    torch.testing.assert_close(joints.q.sum((1, 2)), data.double())
    torch.testing.assert_close(joints.p.sum((0, 1)), logits.double().softmax(0))
    states = {"x": torch.tensor(2), "z1": torch.tensor(0), "z2": torch.tensor(1)}
    if one_hot:
        states = {name: torch.eye(k)[state] for (name, state), k in zip(states.items(), counts, strict=True)}
    with torch.no_grad():
        x, z1, z2 = (state.unsqueeze(0) for state in states.values())
        log_q = math.log(0.3) + links[0].up.log_prob(z1, x) + links[1].up.log_prob(z2, z1)
        log_p = hierarchy.prior().log_prob(z2) + links[1].down.log_prob(z1, z2) + links[0].down.log_prob(x, z1)
    assert float(joints.q[2, 0, 1].log()) == pytest.approx(float(log_q), rel=1e-5)
    assert float(joints.p[2, 0, 1].log()) == pytest.approx(float(log_p), rel=1e-5)
    assert all(verdict.violations == 0 for verdict in verdicts([Case("finite", finite_terms(joints))]))


def test_other_kernels_have_no_closed_form() -> None:
    with pytest.raises(TypeError, match="linear-Gaussian"):
        gaussian_terms(tiny_ladder(1, (3,)), Gaussian(torch.zeros(3), torch.eye(3)))
    with pytest.raises(TypeError, match="categorical"):
        finite_joints(tiny_ladder(1, (3,)), torch.ones(3) / 3)


def test_six_levels() -> None:
    terms = gaussian_terms(*random_linear_gaussian([2] * 7, torch.Generator().manual_seed(0)))
    assert [term.level for term in terms] == [1, 2, 3, 4, 5, 6]
    assert all(verdict.violations == 0 for verdict in verdicts([Case("gaussian", terms)]))


def test_the_command_prints_both_sides(halikit: Shell, tmp_path: Path) -> None:
    said = halikit("propositions", "-n", 3, "--show", 1, "--out", tmp_path / "p.png").splitlines()
    assert said[0] == "gaussian hierarchy 1, nats"
    assert said[1].split() == ["level", "E[L]", "H(x|z)", "KL", "pair", "KL", "z", "K", "D_JS", "K", "D_JS", "E[L]-H"]
    assert sum("0 violated" in line for line in said) == 9
    assert size_of(tmp_path / "p.png")[0] == 2600
    said = json.loads(halikit("propositions", "-n", 3, "--levels", 2, "--json"))
    assert said["hierarchies"] == 9
    assert said["cases"][0]["terms"][0]["js_joint"]["kind"] == "estimate"
