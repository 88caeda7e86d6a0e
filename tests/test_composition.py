"""Composition (Eq. 1), adjoints (Eq. 2) and the estimates of a composite's density, over every kernel class."""

import copy
import math

import pytest
import torch
from conftest import CATALOGUE, Network, UniformKernel, cases, gaussian, linear_gaussian, link_back
from hypothesis import given
from hypothesis import strategies as st

import halikit as hk
from halikit.kernels import Gaussian, LinearGaussian, LogProbEstimate, NoDensityError, compose

positions = pytest.mark.parametrize("position", [0, 1, 2])


def chain(case, position):
    """Three kernels in order of application, the case's at ``position``, the others Gaussian."""
    spaces = [hk.Space("s0", (3,)), hk.Space("s1", (2, 3)), hk.Space("s2", (5,)), hk.Space("s3", (2,))]
    spaces[position + 1] = hk.Space(f"s{position + 1}", case.shape)
    kernels = [gaussian(a, b).eval() for a, b in zip(spaces, spaces[1:], strict=False)]
    kernels[position] = case.kernel(spaces[position], spaces[position + 1])
    return kernels


def same(left, right):
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def drawn(kernel, given, seed=5):
    torch.manual_seed(seed)
    return kernel.sample(given)


# --- Eq. 1 -----------------------------------------------------------------------------------------------------------


@cases()
@positions
def test_composition_is_associative(case, position):
    a, b, c = chain(case, position)
    left, right = (c @ b) @ a, c @ (b @ a)
    assert same(left.factors, right.factors)
    assert same(left.factors, (*a.factors, *b.factors, *c.factors))
    x = torch.randn(6, 3)
    assert torch.equal(drawn(left, x), drawn(right, x))
    first, second = (k.sample(x, generator=torch.Generator().manual_seed(7)) for k in (left, right))
    assert torch.equal(first, second)
    assert first.shape == (6, *c.target.shape)


def bracketings(size):
    """Every way to bracket a chain, as nested pairs of indices."""
    if size == 1:
        return st.just(None)
    return st.integers(1, size - 1).flatmap(
        lambda split: st.tuples(st.just(split), bracketings(split), bracketings(size - split))
    )


def bracketed(kernels, bracketing):
    if bracketing is None:
        return kernels[0]
    split, inner, outer = bracketing
    return bracketed(kernels[split:], outer) @ bracketed(kernels[:split], inner)


@given(st.data())
def test_any_bracketing_of_any_chain_is_the_same_kernel(data):
    chosen = data.draw(st.lists(st.sampled_from(CATALOGUE), min_size=2, max_size=6))
    spaces = [hk.Space("s0", (3,)), *(hk.Space(f"s{i}", case.shape) for i, case in enumerate(chosen, 1))]
    kernels = [case.kernel(a, b) for case, a, b in zip(chosen, spaces, spaces[1:], strict=False)]
    one, other = (bracketed(kernels, data.draw(bracketings(len(kernels)))) for _ in range(2))
    assert same(one.factors, other.factors)
    assert type(one) is type(other)
    assert str(one) == str(other)
    x = torch.randn(4, 3)
    assert torch.equal(drawn(one, x), drawn(other, x))


@cases()
@positions
def test_a_composite_samples_as_its_factors_do_in_turn(case, position):
    a, b, c = chain(case, position)
    x = torch.randn(6, 3)
    sample = drawn(hk.Composite(a, b, c), x)
    torch.manual_seed(5)
    state = x
    for factor in (*a.factors, *b.factors, *c.factors):
        state = factor.sample(state)
    assert torch.equal(sample, state)


@cases(reparametrised=True)
@positions
def test_composites_pass_gradients_through_every_factor(case, position):
    kernel = hk.Composite(*chain(case, position))
    sample = kernel.sample(torch.randn(8, 3))
    (sample * torch.randn_like(sample)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kernel.parameters())


def test_a_mean_follows_the_factors_means():
    a, b, c = chain(CATALOGUE[0], 0)
    x = torch.randn(4, 3)
    assert torch.equal((c @ b @ a).mean(x), c.mean(b.mean(a.mean(x))))


@cases(name="gaussian_diagonal_vector")
def test_composites_have_length_items_slices_and_an_order(case):
    a, b, c = chain(case, 0)
    composite = c @ b @ a
    assert isinstance(composite, hk.Composite)
    assert len(composite) == 3
    assert same(tuple(composite), (a, b, c))
    assert composite[0] is a
    assert composite[-1] is c
    assert same(composite[1:].factors, (b, c))
    assert composite[:1] is a
    assert (composite.source, composite.target) == (a.source, c.target)
    assert compose(a) is a
    assert same(compose(c, b, a).factors, (a, b, c))


def test_composites_share_their_factors_parameters():
    a, b, c = chain(CATALOGUE[0], 0)
    composite = c @ b @ a
    own = [id(p) for k in (a, b, c) for p in k.parameters()]
    assert [id(p) for p in composite.parameters()] == own


# --- what does not fit ------------------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize("other", [hk.Space("elsewhere", (7,)), None], ids=["name and shape", "shape"])
def test_spaces_that_do_not_fit_raise_at_composition_and_are_named(case, other):
    kernel = case.kernel()
    start = other or hk.Space("w", (*case.shape, 2))
    outer = gaussian(start, hk.Space("u", (2,)))
    with pytest.raises(ValueError, match="cannot compose") as refused:
        outer @ kernel
    assert str(kernel.target) in str(refused.value)
    assert str(start) in str(refused.value)
    inner = gaussian(hk.Space("u", (2,)), hk.Space("v", (3, 1)))
    with pytest.raises(ValueError, match="cannot compose") as refused:
        kernel @ inner
    assert "v (3×1)" in str(refused.value)
    assert "v (3)" in str(refused.value)


def test_a_name_alone_is_enough_to_differ():
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("z2", (2,))
    inner, outer = gaussian(x, z1), gaussian(z2, x)
    with pytest.raises(ValueError, match=r"z1 \(2\).*z2 \(2\)"):
        outer @ inner


def test_kernels_compose_with_kernels_only():
    kernel = CATALOGUE[0].kernel()
    with pytest.raises(TypeError):
        kernel @ 3
    with pytest.raises(TypeError):
        torch.nn.Identity() @ kernel
    with pytest.raises(ValueError, match="two kernels"):
        hk.Composite(kernel)
    with pytest.raises(ValueError, match="nothing"):
        compose()


# --- printing ---------------------------------------------------------------------------------------------------------


def test_composites_print_the_formula():
    x, z1, z2, z3 = (hk.Space(name, (2,)) for name in ("x", "z1", "z2", "z3"))
    up = [gaussian(x, z1), gaussian(z1, z2), gaussian(z2, z3)]
    assert str(up[2] @ up[1] @ up[0]) == "T_{z3|z2} ∘ T_{z2|z1} ∘ T_{z1|x}"
    assert str(up[0]) == "T_{z1|x}"
    assert "T_{z2|z1} ∘ T_{z1|x}: x (2) → z2 (2)" in repr(up[1] @ up[0])
    linear = [linear_gaussian(x, z1), linear_gaussian(z1, z2)]
    assert str(linear[1] @ linear[0]) == "T_{z2|z1} ∘ T_{z1|x}"


# --- Eq. 2 -----------------------------------------------------------------------------------------------------------


@cases()
def test_a_kernel_in_no_link_has_no_adjoint(case):
    kernel = case.kernel()
    with pytest.raises(RuntimeError, match="no adjoint"):
        _ = kernel.adjoint


@cases()
def test_the_adjoint_of_the_adjoint_is_the_kernel(case):
    kernel = case.kernel()
    link_back(kernel)
    assert kernel.adjoint.adjoint is kernel
    assert (kernel.adjoint.source, kernel.adjoint.target) == (kernel.target, kernel.source)
    assert kernel.adjoint is kernel.adjoint


@cases()
@positions
def test_the_adjoint_of_a_composition_composes_the_adjoints(case, position):
    a, b, c = chain(case, position)
    for kernel in (a, b, c):
        link_back(kernel)
    assert same((b @ a).adjoint.factors, (a.adjoint @ b.adjoint).factors)
    composite = c @ b @ a
    assert same(composite.adjoint.factors, (a.adjoint @ b.adjoint @ c.adjoint).factors)
    assert composite.adjoint.adjoint is composite
    assert str(composite.adjoint) == str(a.adjoint @ b.adjoint @ c.adjoint)


def test_the_adjoint_of_linear_gaussians_keeps_their_closed_form():
    spaces = [hk.Space(f"s{i}", (2,)) for i in range(4)]
    up = [linear_gaussian(a, b) for a, b in zip(spaces, spaces[1:], strict=False)]
    down = [linear_gaussian(b, a) for a, b in zip(spaces, spaces[1:], strict=False)]
    for a, b in zip(up, down, strict=True):
        hk.Link(a, b)
    composite = up[2] @ up[1] @ up[0]
    assert isinstance(composite.adjoint, LinearGaussian)
    assert same(composite.adjoint.factors, tuple(down[::-1]))
    assert composite.adjoint.adjoint is composite


@cases()
def test_the_adjoint_is_no_submodule(case):
    kernel = case.kernel()
    modules, state = len(list(kernel.modules())), list(kernel.state_dict())
    link_back(kernel)
    _ = kernel.adjoint
    assert len(list(kernel.modules())) == modules
    assert list(kernel.state_dict()) == state
    link = hk.Link(kernel, kernel.adjoint)
    parameters = list(link.parameters())
    assert len(parameters) == len(list(kernel.parameters())) + len(list(kernel.adjoint.parameters()))


@cases()
def test_a_kernel_belongs_to_one_link(case):
    kernel = case.kernel()
    link_back(kernel)
    # A composition is in as many links as its factors are: it is they that belong to one each.
    kernel = kernel.factors[0]
    partner = kernel.adjoint
    with pytest.raises(ValueError, match="one link"):
        hk.Link(kernel, gaussian(kernel.target, kernel.source))
    with pytest.raises(ValueError, match="one link"):
        hk.Link(gaussian(kernel.target, kernel.source), kernel)
    assert kernel.adjoint is partner


def test_a_refused_link_leaves_its_kernels_free():
    x, z = hk.Space("x", (3,)), hk.Space("z1", (2,))
    taken, free = gaussian(x, z), gaussian(z, x)
    hk.Link(taken, gaussian(z, x))
    with pytest.raises(ValueError, match="one link"):
        hk.Link(taken, free)
    fresh = gaussian(x, z)
    hk.Link(fresh, free)
    assert free.adjoint is fresh


@cases()
def test_adjoints_survive_a_deep_copy(case):
    kernel = case.kernel()
    link_back(kernel)
    link = copy.deepcopy(hk.Link(kernel, kernel.adjoint))
    assert link.up.adjoint is link.down
    assert link.down.adjoint is link.up
    assert link.up is not kernel
    assert kernel.adjoint.adjoint is kernel


# --- estimates of the density -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """``a`` and ``b`` linear-Gaussian, their closed form, and the same as a composite, which must estimate."""
    torch.manual_seed(3)
    u, v, w = hk.Space("u", (2,)), hk.Space("v", (2,)), hk.Space("w", (3,))
    a, b = linear_gaussian(u, v, torch.float64), linear_gaussian(v, w, torch.float64)
    given = torch.randn(1, 2, dtype=torch.float64)
    with torch.no_grad():
        value = (b @ a).sample(given)
    return a, b, b @ a, hk.Composite(a, b), given, value


def exact_proposal(a, b, given):
    """``p(v | w, u = given)``: Bayes' rule at one given."""
    with torch.no_grad():
        return b.posterior(Gaussian(a.mean(given)[0], a.covariance))


@torch.no_grad()
def test_an_estimate_is_a_lower_bound_on_average_and_tightens(linear):
    """Of 4,000 estimates each: below the exact value, nearer to it the more samples, by 3 standard errors or more."""
    *_, exact, composite, given, value = linear
    truth = exact.log_prob(value, given).item()
    means, errors = [], []
    for num_samples in (1, 4, 16):
        estimates = composite.estimate_log_prob(
            value.expand(4000, 3), given.expand(4000, 2), num_samples=num_samples
        ).value
        means.append(estimates.mean().item())
        errors.append(estimates.std().item() / math.sqrt(4000))
    assert means[-1] + 3 * errors[-1] < truth
    for (low, low_error), (high, high_error) in zip(
        zip(means, errors, strict=True), zip(means[1:], errors[1:], strict=False), strict=False
    ):
        assert low + 3 * math.hypot(low_error, high_error) < high
    assert truth - means[-1] < 0.1


@torch.no_grad()
def test_the_estimated_density_itself_is_unbiased(linear):
    """``E exp(estimate)`` is the exact density, within 5 standard errors of 4,000; with a rough proposal too."""
    a, b, exact, composite, given, value = linear
    proposal = linear_gaussian(b.target, b.source, torch.float64)
    for options in (
        {},
        {"proposal": exact_proposal(a, b, given + 0.5)},
        {"proposal": proposal, "num_samples": 60},
        {"proposal": proposal, "mixed": True},
        {"proposal": proposal, "mixed": True, "num_samples": 5},
    ):
        estimate = composite.estimate_log_prob(
            value.expand(4000, 3), given.expand(4000, 2), **{"num_samples": 8, **options}
        )
        ratio = (estimate.value - exact.log_prob(value, given)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(4000)


@torch.no_grad()
def test_the_exact_proposal_gives_the_exact_value(linear):
    a, b, exact, composite, given, value = linear
    estimate = composite.estimate_log_prob(value, given, num_samples=5, proposal=exact_proposal(a, b, given))
    torch.testing.assert_close(estimate.value, exact.log_prob(value, given))
    torch.testing.assert_close(estimate.effective_sample_size, torch.full((1,), 5.0, dtype=torch.float64))


@torch.no_grad()
def test_a_good_proposal_tightens_the_bound(linear):
    a, b, exact, composite, given, value = linear
    values, givens = value.expand(2000, 3), given.expand(2000, 2)
    blind = composite.estimate_log_prob(values, givens, num_samples=4)
    guided = composite.estimate_log_prob(values, givens, num_samples=4, proposal=exact_proposal(a, b, given + 0.1))
    truth = exact.log_prob(value, given)
    assert 0 <= (truth - guided.value.mean()) < 0.5 * (truth - blind.value.mean())
    assert guided.effective_sample_size.mean() > blind.effective_sample_size.mean()


@cases(density=True)
@torch.no_grad()
def test_an_estimate_is_a_named_record_for_every_outermost_density(case):
    a, b, c = chain(case, 2)
    x = torch.randn(2, 3, 3)
    composite = hk.Composite(a, b, c)
    value = composite.sample(x)
    estimate = composite.estimate_log_prob(value, x, num_samples=7)
    assert isinstance(estimate, LogProbEstimate)
    assert estimate.value.shape == estimate.effective_sample_size.shape == (2, 3)
    assert estimate.num_samples == 7
    assert (estimate.effective_sample_size >= 1 - 1e-4).all()
    assert (estimate.effective_sample_size <= 7 + 1e-4).all()
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (composite.estimate_log_prob(value, x, generator=g).value for g in generators)
    assert torch.equal(first, second)


def test_the_adjoint_serves_as_a_proposal():
    a, b, c = chain(CATALOGUE[0], 0)
    for kernel in (a, b, c):
        link_back(kernel)
    composite = c @ b @ a
    x = torch.randn(4, 3)
    estimate = composite.estimate_log_prob(composite.sample(x), x, num_samples=3, proposal=composite.adjoint)
    assert estimate.value.isfinite().all()
    (estimate.value.sum()).backward()
    assert all(p.grad is not None for p in composite.parameters())


class Recorded(hk.DensityKernel):
    """A kernel that keeps its last draws."""

    def __init__(self, kernel):
        super().__init__(kernel.source, kernel.target)
        self.kernel = kernel

    def forward(self, given):
        return self.kernel(given)

    def sample(self, given, *, generator=None):
        self.draws = self.kernel.sample(given, generator=generator)
        return self.draws


@torch.no_grad()
def test_weights_are_those_of_the_mixture_of_whole_paths():
    """Two states between, half of the paths from each side: every weight by hand."""
    u, v1, v2, w = (hk.Space(name, (2,)) for name in ("u", "v1", "v2", "w"))
    forth = [Recorded(linear_gaussian(*ends, torch.float64)) for ends in ((u, v1), (v1, v2))]
    last = linear_gaussian(v2, w, torch.float64)
    back = [Recorded(linear_gaussian(*ends, torch.float64)) for ends in ((w, v2), (v2, v1))]
    value, given = torch.randn(2, 3, 2, dtype=torch.float64)
    composite = hk.Composite(*forth, last)
    found = composite.log_weights(value, given, num_samples=6, proposal=hk.Composite(*back), mixed=True)
    assert found.shape == (6, 3)
    # The paths of the proposal come first.
    high = torch.cat([back[0].draws.reshape(3, 3, 2), forth[1].draws.reshape(3, 3, 2)])
    low = torch.cat([back[1].draws.reshape(3, 3, 2), forth[0].draws.reshape(3, 3, 2)])
    values, givens = value.expand(6, 3, 2), given.expand(6, 3, 2)
    r_back = (back[0].log_prob(high, values) + back[1].log_prob(low, high)).exp()
    r_forth = (forth[0].log_prob(low, givens) + forth[1].log_prob(high, low)).exp()
    expected = last.log_prob(values, high).exp() * r_forth / (0.5 * r_back + 0.5 * r_forth)
    torch.testing.assert_close(found.exp(), expected)
    assert (found <= last.log_prob(values, high) + math.log(2) + 1e-9).all()


def test_one_sample_has_an_effective_size_of_one(linear):
    *_, composite, given, value = linear
    assert composite.estimate_log_prob(value, given, num_samples=1).effective_sample_size.item() == pytest.approx(1)


def test_an_estimate_needs_the_densities_it_averages():
    u, v, w = (hk.Space(name, (2,)) for name in "uvw")
    known, unknown = gaussian(v, w), UniformKernel(u, v)
    x = torch.randn(4, 2)
    assert (known @ unknown).estimate_log_prob(x, x).value.isfinite().all()
    with pytest.raises(NoDensityError, match=r"T_\{v\|u\}"):
        (known @ unknown).estimate_log_prob(x, x, proposal=gaussian(w, v))
    blind = hk.DeterministicKernel(v, w, Network(v, 2)) @ gaussian(u, v)
    with pytest.raises(NoDensityError, match=r"T_\{w\|v\}"):
        blind.estimate_log_prob(x, x)


def test_estimates_refuse_wrong_numbers_and_proposals():
    a, b, c = chain(CATALOGUE[0], 0)
    composite, x = c @ b @ a, torch.randn(4, 3)
    value = composite.sample(x)
    with pytest.raises(ValueError, match="num_samples"):
        composite.estimate_log_prob(value, x, num_samples=0)
    with pytest.raises(ValueError, match="a mixture needs a proposal"):
        composite.estimate_log_prob(value, x, mixed=True)
    with pytest.raises(ValueError, match=r"does not lead from s3"):
        composite.estimate_log_prob(value, x, proposal=gaussian(c.target, b.source))
    with pytest.raises(ValueError, match=r"does not lead from s3"):
        composite.estimate_log_prob(value, x, proposal=gaussian(b.target, b.source))
