"""The ladder: any number of levels on data of any shape."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import tiny_ladder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import halikit as hk
from halikit.networks.shapes import describe, ladder_spaces

data_shapes = st.one_of(
    st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 3), st.integers(4, 70), st.integers(4, 70))
)


@given(st.integers(1, 9), data_shapes)
def test_spaces_are_named_in_order_and_start_at_the_data(levels, shape):
    spaces = ladder_spaces(levels, shape)
    assert [space.name for space in spaces] == ["x", *(f"z{level}" for level in range(1, levels + 1))]
    assert spaces[0].shape == shape
    assert not spaces[-1].is_image


@given(st.integers(1, 9), st.tuples(st.integers(1, 3), st.integers(4, 130), st.integers(4, 130)))
def test_maps_come_before_vectors_and_halve_the_image(levels, shape):
    """From a quarter of the image, or its half where there is no quarter; halves are rounded up."""
    spaces = ladder_spaces(levels, shape, family="conv")
    images = [space.is_image for space in spaces]
    assert images == sorted(images, reverse=True)
    assert images[1] == (levels > 1 and min(shape[1:]) >= 7 and 7 not in shape[1:])
    for lower, upper in zip(spaces, spaces[1:], strict=False):
        if upper.is_image:
            divisors = (2, 4) if lower.name == "x" else (2,)
            assert any(upper.shape[1:] == tuple(-(-side // by) for side in lower.shape[1:]) for by in divisors)
            assert min(upper.shape[1:]) >= 4


@given(
    st.integers(1, 8),
    st.one_of(
        st.tuples(st.integers(1, 4), st.integers(8, 300)),
        st.tuples(st.integers(1, 4), st.integers(8, 130), st.integers(8, 130)),
        st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40), st.integers(8, 40)),
    ),
)
def test_the_number_of_elements_falls_from_level_to_level(levels, shape):
    x, *sizes = (space.size for space in ladder_spaces(levels, shape, family="conv"))
    assert all(lower >= upper for lower, upper in pairwise(sizes))
    if sizes[0] >= 256:
        assert all(lower > upper for lower, upper in pairwise(sizes))
    # Rounding up at the border of a small image adds up to two thirds to each side's quarter.
    assert sizes[0] <= 2 * x
    assert min(2, x) <= sizes[-1] <= 256


@given(st.integers(1, 9), data_shapes)
def test_dense_latents_never_grow_upwards(levels, shape):
    sizes = [space.size for space in ladder_spaces(levels, shape, family="dense")[1:]]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=25)
@given(
    st.integers(1, 4),
    st.one_of(st.tuples(st.integers(1, 20)), st.tuples(st.integers(1, 3), st.integers(4, 26), st.integers(4, 26))),
    st.sampled_from(["dense", "conv", "mixed"]),
)
@torch.no_grad()
def test_any_ladder_runs_both_ways(levels, shape, family):
    family = family if len(shape) == 3 else "dense"
    h = tiny_ladder(levels, shape, family=family).eval()
    x = torch.randn(2, *shape)
    states = h.encode(x)
    assert all(states[space.name].shape == (2, *space.shape) for space in h.spaces)
    assert h.reconstruct(x).shape == h.sample(2).shape == x.shape


@pytest.mark.parametrize("family", ["dense", "conv", "mixed"])
def test_widths_are_taken(family):
    h = hk.ladder(3, (1, 16, 16), family=family, widths=[5, 4, 3], hidden=4)
    assert [space.shape[0] for space in h.spaces[1:]] == [5, 4, 3]


def test_small_images_and_vectors_are_dense_and_large_images_convolutional():
    assert not ladder_spaces(3, (1, 8, 8))[1].is_image
    assert not ladder_spaces(3, (50,))[1].is_image
    assert ladder_spaces(3, (3, 32, 32))[1].is_image


@pytest.mark.parametrize(
    ("levels", "shape", "maps"),
    [
        (2, (1, 28, 28), [(7, 7)]),
        (3, (1, 28, 28), [(7, 7)]),
        (3, (3, 32, 32), [(8, 8), (4, 4)]),
        (2, (1, 8, 8), [(4, 4)]),
        (3, (1, 12, 12), [(6, 6)]),
        (5, (3, 64, 64), [(16, 16), (8, 8), (4, 4)]),
        (4, (3, 33, 33), [(9, 9), (5, 5)]),
        (4, (3, 45, 45), [(12, 12), (6, 6)]),
        (4, (3, 50, 38), [(13, 10), (7, 5)]),
        (4, (3, 100, 75), [(25, 19), (13, 10), (7, 5)]),
    ],
)
def test_maps_start_at_a_quarter_or_a_half_of_small_images(levels, shape, maps):
    latents = ladder_spaces(levels, shape, family="conv")[1:]
    assert [space.shape[1:] for space in latents if space.is_image] == maps


@pytest.mark.parametrize("levels", [1, 2])
def test_generators_end_in_convolutions_at_full_resolution_and_nothing_else_does(levels):
    """Two of them: after the last upsampling, and on the way out. A shuffle of patches would leave a checkerboard."""
    h = hk.ladder(levels, (3, 32, 32), hidden=4, depth=1).eval()
    discriminator = hk.build_discriminator(h, width=32).eval()

    def largest(part, run):
        sides = []
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, args, out: sides.append(max(args[0].shape[-1], out.shape[-1])))
        with torch.no_grad():
            result = run()
        return result, sides

    encoder = nn.ModuleList(link.up for link in h)
    states, sides = largest(encoder, lambda: h.encode(torch.zeros(2, 3, 32, 32)))
    assert max(sides) == 16
    _, sides = largest(h.links[0].down, lambda: h.links[0].down.mean(states["z1"]))
    assert sides.count(32) == 2
    _, sides = largest(discriminator, lambda: discriminator(states))
    assert max(sides) == 16
    assert not any(isinstance(m, nn.PixelShuffle) for m in h.links[0].down.modules())


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 33, 33), (3, 50, 38), (3, 45, 45), (3, 100, 75)])
@pytest.mark.parametrize("levels", [1, 3])
def test_odd_sides_have_networks_of_a_sensible_size(levels, shape):
    """About as large as those of the next even image: within a factor of 2."""
    even = (shape[0], *(16 * -(-side // 16) for side in shape[1:]))
    with torch.device("meta"):
        odd, larger = (hk.ladder(levels, each, family="conv") for each in (shape, even))
    numbers = [sum(p.numel() for p in h.parameters()) for h in (odd, larger)]
    assert numbers[0] < 2 * numbers[1]
    assert numbers[0] < 15e6


def test_odd_images_are_convolved_as_they_are():
    h = hk.ladder(2, (1, 21, 27), family="conv", hidden=4).eval()
    assert not any(isinstance(module, nn.PixelUnshuffle) for module in h.modules())
    assert h.sample(2).shape == (2, 1, 21, 27)


def test_images_end_in_tanh_and_vectors_do_not():
    image = hk.ladder(1, (1, 4, 4), hidden=8).eval()
    assert isinstance(image.links[0].down, hk.DeterministicKernel)
    with torch.no_grad():
        z = 100 * torch.randn(64, *image.spaces[1].shape)
        assert image.decode(z)["x"].abs().max() <= 1
        vector = hk.ladder(1, (16,), hidden=8).eval()
        assert vector.decode(100 * torch.randn(64, *vector.spaces[1].shape))["x"].abs().max() > 1


def test_the_mixed_family_comes_to_vectors_by_convolutions_and_goes_back_without():
    h = hk.ladder(2, (1, 28, 28), family="mixed", widths=[12, 5], hidden=32)
    kernels = [kernel for link in h for kernel in (link.up, link.down)]
    has_maps = [any(isinstance(m, torch.nn.Conv2d) for m in kernel.modules()) for kernel in kernels]
    assert has_maps == [True, False, False, False]
    assert [m.out_channels for m in h.links[0].up.modules() if isinstance(m, torch.nn.Conv2d)] == [2, 4, 8]
    assert "reached by strided convolutions" in describe(h.spaces, "mixed")


@pytest.mark.parametrize("levels", [1, 3])
def test_the_gauge_is_on_every_latent_and_on_nothing_else(levels):
    h = tiny_ladder(levels, (1, 8, 8), observation_scale=0.3)
    for level, link in enumerate(h):
        assert (link.up.gauge, link.up.max_scale) == ("variance_preserving", 0.5)
        assert link.down.gauge == ("variance_preserving" if level else None)
    assert h.links[0].down.scale(torch.randn(4, *h.spaces[1].shape)).unique().item() == pytest.approx(0.3)
    off = tiny_ladder(levels, (1, 8, 8), gauge=None, max_scale=None)
    assert all(link.up.gauge is None and link.up.max_scale is None for link in off)


def test_a_level_keeps_its_gauge_when_it_is_the_top():
    h = tiny_ladder(3, (9,))
    assert h[:2].links[1].up.gauge == "variance_preserving"


def test_no_network_is_used_twice():
    h = tiny_ladder(4, (1, 16, 16), family="conv")
    networks = [k.network for link in h for k in (link.up, link.down)]
    assert len({id(m) for network in networks for m in network.modules()}) == sum(
        len(list(network.modules())) for network in networks
    )


@torch.no_grad()
def test_variance_preserving_ladders_start_with_unit_variance():
    """In training mode every latent of a fresh ladder has variance one within a fifth, up and down, at any depth."""
    h = hk.ladder(5, (20,), hidden=16)
    for states in (h.encode(torch.randn(2000, 20), sample=True), h.sample_states(2000)):
        for level in range(1, 6):
            assert abs(states[f"z{level}"].var().item() - 1) < 0.2


def test_deeper_networks_have_more_layers():
    def count(depth):
        h = hk.ladder(2, (1, 16, 16), family="conv", hidden=4, depth=depth)
        return sum(isinstance(m, nn.Conv2d) for m in h.modules())

    assert count(1) < count(2) < count(3)


@pytest.mark.parametrize(
    ("levels", "shape", "options", "match"),
    [
        (0, (5,), {}, "at least one level"),
        (2, (), {}, "vectors .* images"),
        (2, (3, 3, 3, 3, 3), {}, "vectors .* images"),
        (2, (5,), {"family": "conv"}, "convolutions need channels"),
        (2, (5,), {"family": "mixed"}, "convolutions need channels"),
        (2, (5,), {"family": "recurrent"}, "'dense', 'conv' or 'mixed'"),
        (2, (5,), {"widths": [3]}, "2 positive widths"),
        (2, (5,), {"widths": [3, 0]}, "2 positive widths"),
        (2, (5,), {"depth": 0}, "positive depth"),
        (2, (5,), {"hidden": 0}, "positive depth and width"),
        (2, (3, 32, 32), {"units": 0}, "positive depth and width"),
        (2, (5,), {"size": "base"}, "sizes are tiny, small, base, large, for the conv family; got 'base' .* for dense"),
        (2, (5,), {"units": 8}, "units=8 for dense"),
        (2, (3, 32, 32), {"size": "huge"}, "sizes are tiny, small, base, large, .* got 'huge'"),
        (2, (5,), {"max_scale": None}, "bounded below 1"),
    ],
)
def test_arguments_out_of_range_are_refused(levels, shape, options, match):
    with pytest.raises(ValueError, match=match):
        hk.ladder(levels, shape, **options)


def test_default_widths_are_sensible():
    for shape in ((64,), (1, 8, 8), (1, 28, 28), (3, 64, 64)):
        spaces = ladder_spaces(3, shape)
        sizes = [space.size for space in spaces[1:]]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] >= 2
        assert sizes[-1] < math.prod(shape)


@pytest.mark.parametrize(
    ("levels", "shape", "expected"),
    [
        (3, (1, 8, 8), "every latent is a vector"),
        (2, (3, 32, 32), "a vector on top"),
        (5, (3, 30, 45), "z3, z4, z5 are vectors, because 4×6 maps are not halved further"),
        (5, (1, 28, 28), "z2, z3, z4, z5 are vectors, because 7×7 maps"),
    ],
)
def test_falling_back_to_vectors_is_said(levels, shape, expected):
    assert expected in describe(ladder_spaces(levels, shape))


def test_maps_can_be_fewer_but_not_more_than_fit():
    assert [space.rank for space in ladder_spaces(3, (3, 32, 32), maps=1)] == [3, 3, 1, 1]
    with pytest.raises(ValueError, match="0 to 2 latents with maps"):
        ladder_spaces(3, (3, 32, 32), maps=3)


@pytest.mark.parametrize("shape", [(3, 64, 32), (1, 24, 12), (3, 96, 64), (3, 64, 48), (3, 128, 64), (3, 32, 64)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_images_need_not_be_square(shape, levels):
    hierarchy = tiny_ladder(levels, shape).eval()
    x = torch.zeros(2, *shape)
    states = hierarchy.encode(x)
    assert hierarchy.decode(states[f"z{levels}"])["x"].shape == x.shape
    assert hk.build_discriminator(hierarchy, width=8)(states).shape == (2,)
