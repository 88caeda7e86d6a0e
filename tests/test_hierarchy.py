"""Hierarchies: links, views, both ways through the stack, for any number of levels, vectors and images."""

import copy

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, cases, gaussian, gradients, linear_hierarchy, link_back, moved, tiny_ladder

import halikit as hk
from halikit.algorithm import add_both_gradients, add_generator_gradients, play

levels_1_to_6 = pytest.mark.parametrize("levels", range(1, 7))
# Data shape and options of the ladder.
stacks = pytest.mark.parametrize(
    ("shape", "options"),
    [((9,), {}), ((1, 8, 8), {}), ((2, 16, 16), {"family": "conv"}), ((1, 16, 24), {"family": "conv"})],
    ids=["vector", "small image", "image", "oblong image"],
)


def names(levels):
    return ["x", *(f"z{level}" for level in range(1, levels + 1))]


# --- links ------------------------------------------------------------------------------------------------------------


@cases()
def test_a_link_pairs_a_kernel_with_its_adjoint(case):
    kernel = case.kernel()
    if len(kernel.factors) > 1:
        link_back(kernel)
    back = kernel.adjoint if kernel._adjoint else gaussian(kernel.target, kernel.source)
    link = hk.Link(kernel, back)
    assert link.up.adjoint is link.down
    assert link.down.adjoint is link.up
    swapped = link.adjoint
    assert swapped.up is link.down
    assert swapped.down is link.up
    assert swapped.adjoint.up is link.up
    assert str(link) == f"{kernel} ⇄ {link.down}"


def test_a_link_refuses_a_kernel_that_leads_elsewhere_and_names_the_spaces():
    x, z, y = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("y", (2,))
    with pytest.raises(ValueError, match=r"no way back.*x \(3\).*z1 \(2\).*y \(2\)"):
        hk.Link(gaussian(x, z), gaussian(y, x))


# --- both ways --------------------------------------------------------------------------------------------------------


@stacks
@levels_1_to_6
@torch.no_grad()
def test_encode_then_decode_keep_shapes_and_order(levels, shape, options):
    h = tiny_ladder(levels, shape, **options).eval()
    shapes = {space.name: (4, *space.shape) for space in h.spaces}
    assert shapes["x"] == (4, *shape)
    x = torch.randn(4, *shape)
    states = h.encode(x)
    assert list(states) == names(levels)
    assert {name: state.shape for name, state in states.items()} == shapes
    assert states["x"] is x
    for level in range(1, levels + 1):
        decoded = h.decode(states[f"z{level}"], level=level)
        assert list(decoded) == names(level)[::-1]
        assert {name: state.shape for name, state in decoded.items()} == {name: shapes[name] for name in decoded}
        reconstruction = h.reconstruct(x, level=level)
        assert torch.equal(reconstruction, decoded["x"])
    assert torch.equal(h.reconstruct(x), reconstruction)
    assert torch.equal(h.decode(states[f"z{levels}"])["x"], reconstruction)


@stacks
@levels_1_to_6
@torch.no_grad()
def test_samples_have_every_state_from_the_data_up(levels, shape, options):
    h = tiny_ladder(levels, shape, **options).eval()
    states = h.sample_states(5)
    assert list(states) == names(levels)
    assert all(states[space.name].shape == (5, *space.shape) for space in h.spaces)
    torch.manual_seed(1)
    states = h.sample_states(5)
    torch.manual_seed(1)
    assert torch.equal(h.sample(5), states["x"])


@stacks
@torch.no_grad()
def test_means_by_default_and_draws_on_request(shape, options):
    h = tiny_ladder(3, shape, **options).eval()
    x = torch.randn(4, *shape)
    for follow in (lambda **o: h.encode(x, **o)["z3"], lambda **o: h.reconstruct(x, **o)):
        assert torch.equal(follow(), follow())
        assert not torch.equal(follow(sample=True), follow(sample=True))
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        first, second = (follow(sample=True, generator=g) for g in generators)
        assert torch.equal(first, second)
    z3 = h.encode(x)["z3"]
    assert not torch.equal(h.decode(z3, sample=True)["z2"], h.decode(z3, sample=True)["z2"])
    assert torch.equal(h.encode(x)["z1"], h.links[0].up.mean(x))
    first, second = (h.sample(3, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("level", [0, -1, 4])
def test_levels_that_do_not_exist_are_refused(level):
    h = tiny_ladder(3, (9,)).eval()
    with pytest.raises(ValueError, match=f"between 1 and 3, got {level}"):
        h.decode(torch.zeros(2, 3), level=level)
    with pytest.raises(ValueError, match=f"between 1 and 3, got {level}"):
        h.reconstruct(torch.zeros(2, 9), level=level)


# --- the algebra ------------------------------------------------------------------------------------------------------


@levels_1_to_6
def test_encoder_and_decoder_are_adjoint_views(levels):
    h = tiny_ladder(levels, (9,))
    assert h.encoder.factors == tuple(link.up for link in h)
    assert h.decoder.factors == tuple(link.down for link in reversed(list(h)))
    assert h.encoder.adjoint.factors == h.decoder.factors
    assert h.decoder.adjoint.factors == h.encoder.factors
    assert (h.encoder.source, h.encoder.target) == (h.spaces[0], h.spaces[-1])
    owned = {id(p) for p in h.parameters()}
    assert {id(p) for k in (h.encoder, h.decoder) for p in k.parameters()} == owned


def test_a_hierarchy_prints_both_formulas():
    assert str(tiny_ladder(3, (9,))) == (
        "encoder T_{z3|z2} ∘ T_{z2|z1} ∘ T_{z1|x}\ndecoder T_{x|z1} ∘ T_{z1|z2} ∘ T_{z2|z3}"
    )


@torch.no_grad()
def test_the_encoder_draws_what_encode_draws():
    h = tiny_ladder(3, (9,)).eval()
    x = torch.randn(4, 9)
    torch.manual_seed(1)
    z = h.encoder.sample(x)
    torch.manual_seed(1)
    assert torch.equal(h.encode(x, sample=True)["z3"], z)
    torch.manual_seed(1)
    back = h.decoder.sample(z)
    torch.manual_seed(1)
    assert torch.equal(h.decode(z, sample=True)["x"], back)


# --- ownership and views ----------------------------------------------------------------------------------------------


@stacks
@levels_1_to_6
def test_nothing_is_registered_twice(levels, shape, options):
    h = tiny_ladder(levels, shape, **options)
    _ = h.encoder.adjoint, h.decoder.adjoint
    for link in h:
        _ = link.up.adjoint
    named = [name for name, _ in h.named_parameters(remove_duplicate=False)]
    assert len(named) == len(list(h.parameters()))
    kernels = sum(sum(1 for _ in k.parameters()) for link in h for k in (link.up, link.down))
    assert len(named) == kernels
    assert len({t.data_ptr() for t in h.state_dict().values()}) == len(h.state_dict())


@levels_1_to_6
def test_a_slice_is_a_view_of_the_first_levels(levels):
    h = tiny_ladder(levels, (9,))
    for level in range(1, levels + 1):
        view = h[:level]
        assert len(view) == level
        assert view.spaces == h.spaces[: level + 1]
        own, all_of_them = view.state_dict(keep_vars=True), h.state_dict(keep_vars=True)
        expected = [key for key in all_of_them if int(key.split(".")[1]) < level]
        assert list(own) == expected
        assert all(own[key] is all_of_them[key] for key in own)
        assert all(a is b for a, b in zip(view, h, strict=False))
    assert h[:levels] is h
    assert h[:] is h
    assert h[: levels + 5] is h


def test_a_slice_has_a_standard_normal_prior_on_its_top():
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("z2", (2,))
    prior = dist.Normal(torch.full((2,), 50.0), 1.0).to_event(1)
    links = [hk.Link(gaussian(a, b), gaussian(b, a)) for a, b in ((x, z1), (z1, z2))]
    h = hk.Hierarchy(links, prior)
    assert (h.sample_states(100)["z2"] > 40).all()
    assert h[:1].sample_states(100)["z1"].abs().max() < 10
    assert (h.sample_states(100)["z2"] > 40).all()
    assert h[:1].prior().event_shape == (2,)
    assert h.double()[:1].sample(4).dtype == torch.float64


@torch.no_grad()
def test_the_standard_prior_is_standard():
    z = tiny_ladder(2, (9,)).prior.sample(20_000)
    assert z.mean(0).abs().max() < 5 / 20_000**0.5
    assert (z.var(0) - 1).abs().max() < 0.05


def test_training_through_a_view_trains_the_hierarchy():
    h = tiny_ladder(3, (9,))
    before = copy.deepcopy(h.state_dict())
    view = h[:2]
    optimiser = torch.optim.SGD(view.parameters(), lr=0.1)
    (view.sample(8).square().sum() + view.encode(torch.randn(8, 9))["z2"].pow(3).sum()).backward()
    optimiser.step()
    changed = {key.split(".")[1] for key, value in h.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"0", "1"}


def test_views_keep_mode_and_number_type():
    h = tiny_ladder(2, (9,)).double().eval()
    assert not h[:1].training
    assert h[:1].sample(3).dtype == torch.float64
    assert h.train()[:1].training
    assert h[:1].sample(3).dtype == torch.float64


@pytest.mark.parametrize("stop", [0, -3])
def test_a_slice_keeps_one_level_at_least(stop):
    with pytest.raises(IndexError, match="leaves no level"):
        tiny_ladder(3, (9,))[:stop]


@pytest.mark.parametrize("index", [0, slice(1, None), slice(None, None, 2)], ids=str)
def test_a_hierarchy_is_sliced_from_the_data_up_only(index):
    with pytest.raises(TypeError, match=r"h\[:l\]"):
        tiny_ladder(3, (9,))[index]


def test_a_deep_copy_keeps_adjoints_and_shares_nothing():
    h = tiny_ladder(3, (9,))
    twin = copy.deepcopy(h)
    for link, original in zip(twin, h, strict=True):
        assert link.up.adjoint is link.down
        assert link.down.adjoint is link.up
        assert link.up is not original.up
    assert twin.encoder.adjoint.factors == twin.decoder.factors
    assert not {id(p) for p in h.parameters()} & {id(p) for p in twin.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(h.parameters(), twin.parameters(), strict=True))


def test_state_dicts_load_into_the_same_shape_of_stack():
    h, other = tiny_ladder(3, (9,)).eval(), tiny_ladder(3, (9,)).eval()
    other.load_state_dict(h.state_dict())
    x = torch.randn(4, 9)
    assert torch.equal(h.reconstruct(x), other.reconstruct(x))


# --- gradients --------------------------------------------------------------------------------------------------------


@stacks
@levels_1_to_6
def test_every_parameter_gets_a_gradient_from_the_generators_loss(levels, shape, options):
    h = moved(tiny_ladder(levels, shape, **options))
    d = hk.build_discriminator(h, width=16)
    add_generator_gradients(play(h, d, torch.randn(8, *shape)), h)
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients(h))
    assert all(g is None for g in gradients(d))


@cases(reparametrised=True)
def test_every_kernel_class_gets_gradients_inside_a_hierarchy(case):
    """At the bottom's way down and in the middle, up and down."""
    x, middle, top = hk.Space("x", (3,)), hk.Space("z1", case.shape), hk.Space("z2", (2,))
    h = hk.Hierarchy(
        [hk.Link(case.kernel(x, middle), gaussian(middle, x)), hk.Link(gaussian(middle, top), case.kernel(top, middle))]
    ).train()
    add_generator_gradients(play(h, hk.build_discriminator(h, width=16), torch.randn(8, 3)), h)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(h))


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_stacks_that_do_not_fit_are_refused():
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("z2", (2,))

    def link(a, b):
        return hk.Link(gaussian(a, b), gaussian(b, a))

    with pytest.raises(ValueError, match="at least one link"):
        hk.Hierarchy([])
    with pytest.raises(ValueError, match=r"do not fit.*z1 \(2\).*z2 \(2\)"):
        hk.Hierarchy([link(x, z1), link(z2, x)])
    with pytest.raises(ValueError, match="different names"):
        hk.Hierarchy([link(x, z1), link(z1, x)])
    with pytest.raises(ValueError, match="prior must be over"):
        hk.Hierarchy([link(x, z1)], prior=dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pytest.raises(ValueError, match="prior must be over"):
        hk.Hierarchy([link(x, z1)], prior=dist.Normal(0.0, 1.0).expand([2]))


def test_a_hierarchy_of_users_kernels_in_odd_shapes():
    """A scalar between a matrix and a vector, one kernel without a density."""
    x, z1, z2 = hk.Space("x", (2, 3)), hk.Space("z1", ()), hk.Space("z2", (2,))
    h = hk.Hierarchy(
        [
            hk.Link(gaussian(x, z1), hk.DeterministicKernel(z1, x, Network(z1, 6))),
            hk.Link(gaussian(z1, z2), gaussian(z2, z1)),
        ]
    )
    shapes = {name: state.shape for name, state in h.sample_states(4).items()}
    assert shapes == {"x": (4, 2, 3), "z1": (4,), "z2": (4, 2)}
    d = hk.build_discriminator(h, width=16)
    step = play(h, d, torch.randn(4, 2, 3))
    add_both_gradients(step)
    assert step.discriminator_loss.isfinite()
    assert all(g is not None for g in gradients(h) + gradients(d.stages) + gradients(d.head))


def test_a_linear_hierarchy_agrees_with_its_closed_form():
    """Means through the levels are the closed form's, as everything is affine."""
    h = linear_hierarchy(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    closed = h.links[2].up @ h.links[1].up @ h.links[0].up
    torch.testing.assert_close(h.encode(x)["z3"], closed.mean(x))
    torch.testing.assert_close(h.encoder.mean(x), closed.mean(x))
