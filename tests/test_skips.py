"""Linear skips: what they are at the start, which ladders have them, and what else may be done with them."""

from __future__ import annotations

import tomllib
from itertools import product as cartesian

import pytest
import torch
from conftest import Network, configured, tiny_ladder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import halikit as hk
from halikit.config import Config
from halikit.discriminator import InputNoise
from halikit.model import resolved
from halikit.networks.blocks import LayerOptions, LinearSkip, dense, initialise, linear_skips

DIGITS = (1, 8, 8)
sizes = st.integers(1, 12)


def settings(levels: int = 3, shape: tuple[int, ...] = DIGITS, **changes: object) -> Config:
    small = {"model.levels": levels, "data_shape": shape, "widths": (5, 4, 3)[:levels], "hidden": 8, "model.depth": 1}
    small |= {"discriminator.width": 8, "steps": 2, "batch_size": 12, "evaluate_every": 2}
    return configured(**small | changes)


def vectors(lower: int, upper: int) -> tuple[hk.Space, hk.Space]:
    return hk.Space("z1", (lower,)), hk.Space("z2", (upper,))


def skips_of(h: hk.Hierarchy) -> list[tuple[bool, bool]]:
    return [tuple(isinstance(kernel.network, LinearSkip) for kernel in (link.up, link.down)) for link in h]


# --- at the start -----------------------------------------------------------------------------------------------------


@given(sizes, sizes)
def test_up_is_orthogonal_and_down_its_transpose(lower, upper):
    up, down = linear_skips(nn.Linear(lower, upper), nn.Linear(upper, lower), *vectors(lower, upper))
    assert up.weight.shape == (upper, lower)
    assert torch.equal(down.weight, up.weight.T)
    product = up.weight @ up.weight.T if upper <= lower else up.weight.T @ up.weight
    torch.testing.assert_close(product, torch.eye(min(lower, upper)), atol=1e-5, rtol=0)
    assert up.weight.data_ptr() != down.weight.data_ptr()
    assert all(skip.weight.requires_grad for skip in (up, down))


@given(sizes, sizes, st.integers(1, 2), st.booleans())
def test_means_are_the_linear_map_alone(source, target, outputs, deep):
    """Whether the network gives means alone, or raw scales behind them, which start at zero."""
    network = nn.Linear(source, outputs * target)
    if deep:
        network = nn.Sequential(dense(source, 7, LayerOptions("batch")), nn.Linear(7, outputs * target))
    weight = torch.randn(target, source)
    skip, x = LinearSkip(network, weight), torch.randn(6, source)
    found = skip(x)
    assert found.shape == (6, outputs * target)
    torch.testing.assert_close(found[:, :target], x @ weight.T)
    assert not found[:, target:].any()


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_that_has_learned_is_added(outputs):
    skip = LinearSkip(Network(hk.Space("v", (3,)), 2 * outputs), torch.randn(2, 3))
    with torch.no_grad():
        skip.network.layers[-1].weight.normal_()
        skip.network.layers[-1].bias.normal_()
    x = torch.randn(6, 3)
    expected = skip.network(x)
    torch.testing.assert_close(skip(x)[:, :2], expected[:, :2] + x @ skip.weight.T)
    torch.testing.assert_close(skip(x)[:, 2:], expected[:, 2:])


def test_the_network_learns_although_it_starts_at_zero():
    skip = LinearSkip(Network(hk.Space("v", (3,)), 4), torch.randn(2, 3))
    skip(torch.randn(6, 3)).square().sum().backward()
    assert skip.weight.grad.any()
    assert skip.network.layers[-1].weight.grad.any()


@pytest.mark.parametrize("norm", [None, "batch", "weight"])
def test_the_last_layer_starts_at_zero_however_it_is_normalised(norm):
    network = nn.Sequential(nn.Linear(3, 8), dense(8, 4, LayerOptions(norm, slope=None)))
    skip, x = LinearSkip(network, torch.randn(2, 3)), torch.randn(6, 3)
    torch.testing.assert_close(skip(x)[:, :2], x @ skip.weight.T)
    skip(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in skip.parameters())
    torch.optim.SGD(skip.parameters(), 0.1).step()
    assert skip(x).isfinite().all()


def test_maps_and_scalars_are_flattened():
    """Of maps the means come first along the channels, as kernels split them."""
    network = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1))
    weight = torch.randn(3 * 16, 2 * 16)
    x, y = hk.Space("v", (2, 4, 4)), hk.Space("w", (3, 4, 4))
    kernel = hk.GaussianKernel(x, y, LinearSkip(network, weight))
    given = torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(kernel.mean(given).flatten(1), given.flatten(1) @ weight.T)
    torch.testing.assert_close(kernel.scale(given), torch.ones(5, 3, 4, 4))


def test_a_scalar_is_a_vector_of_one():
    v, w = hk.Space("v", ()), hk.Space("w", (2,))
    up, down = linear_skips(Network(v, 4), Network(w, 2), v, w)
    link = hk.Link(hk.GaussianKernel(v, w, up), hk.GaussianKernel(w, v, down))
    given = torch.randn(5)
    torch.testing.assert_close(link.down.mean(link.up.mean(given)), given)


def test_a_network_without_a_last_layer_is_refused():
    with pytest.raises(ValueError, match="last linear layer or convolution at zero: it has none"):
        LinearSkip(nn.Tanh(), torch.eye(3))


@pytest.mark.parametrize("scale", ["diagonal", 0.3], ids=["two outputs", "one output"])
@pytest.mark.parametrize(("lower", "upper"), [(5, 3), (4, 4), (3, 5)])
@torch.no_grad()
def test_a_level_passes_on_what_it_is_given_and_the_way_back_undoes_it(scale, lower, upper):
    """Encoded and decoded along the means: the projection onto the rows of the map, all of it where nothing is lost."""
    below, above = vectors(lower, upper)
    outputs = 2 if scale == "diagonal" else 1
    networks = linear_skips(Network(below, outputs * upper), Network(above, outputs * lower), below, above)
    link = hk.Link(
        hk.GaussianKernel(below, above, networks[0], scale=scale),
        hk.GaussianKernel(above, below, networks[1], scale=scale),
    )
    z = torch.randn(7, lower)
    weight = networks[0].weight
    torch.testing.assert_close(link.up.mean(z), z @ weight.T)
    back = link.down.mean(link.up.mean(z))
    torch.testing.assert_close(back, z @ weight.T @ weight)
    if upper >= lower:
        torch.testing.assert_close(back, z)
    once_more = link.down.mean(link.up.mean(back))
    torch.testing.assert_close(once_more, back)


@torch.no_grad()
def test_a_ladder_starts_as_a_chain_of_projections():
    h = hk.ladder(4, (12,), widths=[9, 7, 7, 4], hidden=8, gauge=None).eval()
    z1 = torch.randn(6, 9)
    states = {"z1": z1}
    for link in list(h)[1:]:
        states[link.up.target.name] = link.up.mean(states[link.up.source.name])
    product = h.links[3].up.network.weight @ h.links[2].up.network.weight @ h.links[1].up.network.weight
    torch.testing.assert_close(states["z4"], z1 @ product.T)
    torch.testing.assert_close(h.decode(states["z4"], 4)["z1"], z1 @ product.T @ product)


MAPS = {
    "sequence": ((3, 14), (4, 7)),
    "image": ((3, 8, 6), (5, 4, 3)),
    "more maps than patches have elements": ((2, 8, 8), (9, 4, 4)),
    "odd image": ((3, 7, 6), (5, 4, 3)),
    "volume": ((2, 4, 6, 4), (5, 2, 3, 2)),
    "odd volume": ((2, 5, 4, 3), (5, 3, 2, 2)),
}


@pytest.mark.parametrize(("lower", "upper"), MAPS.values(), ids=MAPS)
@torch.no_grad()
def test_between_maps_the_mean_is_an_orthogonal_map_of_each_patch(lower, upper):
    """Each position above is the same orthogonal map of the 2×2 pixels below it, which are zero beyond the border."""
    h = maps_with_skips(lower, upper)
    link = h.links[1]
    weight = link.up.network.weight
    channels, outputs, axes = lower[0], upper[0], len(lower) - 1
    assert weight.shape == (outputs, channels * 2**axes)
    product = weight @ weight.T if outputs <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)
    z = torch.randn(4, *lower)
    padded = torch.zeros(4, channels, *(2 * side for side in upper[1:]))
    padded[(..., *(slice(side) for side in lower[1:]))] = z
    found = link.up.mean(z)
    assert found.shape == (4, *upper)
    for position in cartesian(*map(range, upper[1:])):
        patch = padded[(..., *(slice(2 * i, 2 * i + 2) for i in position))].flatten(1)
        torch.testing.assert_close(found[(..., *position)], patch @ weight.T)


@pytest.mark.parametrize(("lower", "upper"), MAPS.values(), ids=MAPS)
@torch.no_grad()
def test_between_maps_the_way_back_is_the_transpose(lower, upper):
    """⟨up(z), w⟩ = ⟨z, down(w)⟩ for all z and w, to rounding; where nothing is lost, down undoes up."""
    link = maps_with_skips(lower, upper).links[1]
    z, w = torch.randn(6, *lower), torch.randn(6, *upper)
    above, below = link.up.mean(z), link.down.mean(w)
    torch.testing.assert_close((above * w).flatten(1).sum(1), (z * below).flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    if upper[0] >= lower[0] * 2 ** (len(lower) - 1):
        torch.testing.assert_close(link.down.mean(above), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(link.up.scale(z), torch.ones(6, *upper))
    torch.testing.assert_close(link.down.scale(w), torch.ones(6, *lower))


def maps_with_skips(lower: tuple[int, ...], upper: tuple[int, ...]) -> hk.Hierarchy:
    """A hierarchy whose second link has the linear skips between these maps, without a gauge."""
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(lower)]
    x, z1, z2 = hk.Space("x", (2,)), hk.Space("z1", lower), hk.Space("z2", upper)
    to_x, to_z1 = nn.Linear(z1.size, 4), nn.Linear(2, 2 * z1.size)
    down = nn.Sequential(nn.Upsample(size=lower[1:]), convolution(upper[0], 2 * lower[0], 3, padding=1))
    ways = linear_skips(convolution(lower[0], 2 * upper[0], 3, stride=2, padding=1), down, z1, z2)
    return hk.Hierarchy(
        [
            hk.Link(hk.GaussianKernel(x, z1, to_z1), hk.GaussianKernel(z1, x, nn.Sequential(nn.Flatten(), to_x))),
            hk.Link(hk.GaussianKernel(z1, z2, ways[0]), hk.GaussianKernel(z2, z1, ways[1])),
        ]
    )


@torch.no_grad()
def test_noise_on_latents_is_for_the_networks_in_training_alone():
    """The skip has no noise, so at the start the means are the same; then they differ in training mode alone."""
    h = tiny_ladder(3, (1, 32, 32), family="conv", latent_noise=0.5, gauge=None)
    assert not any(isinstance(m, InputNoise) for m in h.links[0].up.modules())
    assert not any(isinstance(m, InputNoise) for link in h for m in link.down.modules())
    for link in list(h)[1:]:
        z = torch.randn(8, *link.up.source.shape)
        h.train()
        assert torch.equal(link.up.mean(z), link.up.mean(z))
        initialise(link.up.network.network, 0.1)
        assert not torch.equal(link.up.mean(z), link.up.mean(z))
        h.eval()
        assert torch.equal(link.up.mean(z), link.up.mean(z))


# --- which ladders have them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dense", "mixed", "conv"])
@pytest.mark.parametrize("has", [True, False])
def test_kernels_between_latents_have_them(family, has):
    """By default; vectors, maps, and a vector above maps."""
    assert skips_of(tiny_ladder(3, (1, 16, 16), family=family))[1:] == [(True, True)] * 2
    h = tiny_ladder(3, (1, 32, 32), family=family, skips=has)
    assert [space.is_maps for space in h.spaces[1:]] == [family == "conv"] * 2 + [False]
    assert skips_of(h) == [(False, False), (has, has), (has, has)]
    x = torch.randn(4, 1, 32, 32)
    assert h.reconstruct(x).shape == h.sample(4).shape == x.shape
    if has:
        for link in list(h)[1:]:
            assert torch.equal(link.down.network.weight, link.up.network.weight.T)


def test_one_level_has_none():
    assert skips_of(tiny_ladder(1, (6,))) == [(False, False)]


def test_skips_do_not_change_what_else_a_ladder_is():
    """The same networks, but for the last layer at zero, and one matrix more for each kernel."""
    with_skips, without = (tiny_ladder(3, (6,), skips=skips) for skips in (True, False))
    names = [
        {name.replace(".network.network", ".network") for name, _ in h.named_parameters()}
        for h in (with_skips, without)
    ]
    assert names[0] - names[1] == {f"links.{level}.{way}.network.weight" for level in (1, 2) for way in ("up", "down")}
    assert names[1] < names[0]
    assert with_skips.spaces == without.spaces


# --- what else may be done with them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({}, True),
        ({"skips": False}, False),
        ({"skips": True}, True),
        ({"model.family": "mixed"}, True),
        ({"model.family": "conv"}, True),
        ({"model.family": "conv", "skips": False}, False),
    ],
)
def test_the_setting_is_resolved_saved_and_loaded(changes, written, tmp_path):
    config = resolved(settings(**changes))
    assert config.model.skips is written
    model = hk.build(config)
    assert skips_of(model.hierarchy)[1:] == [(written, written)] * 2
    trainer = hk.Trainer(model, "digits", out=tmp_path / "run", on_notice=lambda _: None)
    trainer.fit()
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["model"]["skips"] is written
    loaded = hk.load(tmp_path / "run", weights="raw")
    assert loaded.config.model.skips is written
    assert skips_of(loaded.hierarchy) == skips_of(model.hierarchy)
    x = torch.randn(5, *DIGITS)
    torch.testing.assert_close(loaded.hierarchy.encode(x), model.hierarchy.eval().encode(x), rtol=0, atol=0)
    again = hk.load(tmp_path / "run").hierarchy
    torch.testing.assert_close(again.encode(x), trainer.averaged.encode(x), rtol=0, atol=0)


def test_the_command_line_writes_it_resolved(halikit, tmp_path):
    def skips(*options: str) -> object:
        return tomllib.loads(halikit("train", "--dry-run", *options))["model"].get("skips")

    assert skips("--levels", "3") is True
    assert skips("--levels", "3", "--set", "skips=false") is False
    assert skips("--levels", "2", "--set", "model.family=conv") is True
    assert skips("--levels", "2", "--set", "model.family=conv", "--set", "skips=false") is False


def test_shapes_alone_can_be_built():
    with torch.device("meta"):
        planned = hk.build(settings())
    there = hk.build(settings())
    shapes, expected = ({k: v.shape for k, v in m.hierarchy.state_dict().items()} for m in (planned, there))
    assert shapes == expected
    assert all(p.is_meta for p in planned.hierarchy.parameters())
    assert skips_of(planned.hierarchy) == [(False, False), (True, True), (True, True)]


def test_an_initial_scale_leaves_the_map_alone():
    h = tiny_ladder(2, (6,))
    skip = h.links[1].up.network
    before = skip.weight.detach().clone()
    initialise(h, 0.01)
    assert torch.equal(skip.weight, before)
    torch.manual_seed(0)
    plain = hk.build(settings())
    torch.manual_seed(0)
    scaled = hk.build(settings(**{"model.initial_scale": 0.01}))
    for one, other in zip(list(plain.hierarchy)[1:], list(scaled.hierarchy)[1:], strict=True):
        for way in ("up", "down"):
            a, b = (getattr(link, way).network for link in (one, other))
            assert torch.equal(a.weight, b.weight)
            last = [m for m in b.modules() if isinstance(m, nn.Linear)][-1]
            assert 0 < last.weight.abs().max() < 0.1


@pytest.mark.parametrize("scale", ["diagonal", 0.3], ids=["two outputs", "one output"])
def test_a_users_kernels_with_skips_play_a_step(scale):
    x, z1, z2 = hk.Space("x", (6,)), hk.Space("z1", (4,)), hk.Space("z2", (3,))
    outputs = 2 if scale == "diagonal" else 1
    links = []
    for lower, upper in ((x, z1), (z1, z2)):
        up, down = linear_skips(
            Network(lower, outputs * upper.size), Network(upper, outputs * lower.size), lower, upper
        )
        links.append(
            hk.Link(
                hk.GaussianKernel(lower, upper, up, scale=scale), hk.GaussianKernel(upper, lower, down, scale=scale)
            )
        )
    h = hk.Hierarchy(links)
    before = [link.up.network.weight.detach().clone() for link in h]
    trainer = hk.Trainer(hk.Model(h, hk.build_discriminator(h, width=8)), settings=configured(steps=2))
    outcome = trainer.step(torch.randn(8, 6))
    assert all(value.isfinite() for value in outcome.values())
    for link, start in zip(h, before, strict=True):
        assert not torch.equal(link.up.network.weight, start)
        assert not torch.equal(link.down.network.weight, start.T)


def test_a_level_with_skips_trains_in_half_precision_as_well():
    h = tiny_ladder(2, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        z = h.encode(torch.randn(8, 6), sample=True)["z2"]
        z.square().sum().backward()
    assert h.links[1].up.network.weight.grad.isfinite().all()
    assert h.links[1].up.network.weight.grad.any()
