"""Inpainting, traversals, innovation, interpolation, neighbours: what each does to arrays, for any L."""

from __future__ import annotations

import pytest
import torch
from conftest import linear_hierarchy, tiny_ladder
from torch import Tensor, nn

import halikit as hk
from halikit.analysis.directions import along, mean_direction
from halikit.analysis.innovation import influence_on_data, innovate, scaling
from halikit.analysis.inpainting import Inpainting, centre_mask, inpaint, inpainting_errors, mean_image, rectangle_mask
from halikit.analysis.interpolation import interpolate
from halikit.analysis.neighbours import nearest_neighbours
from halikit.analysis.sampling import sample
from halikit.analysis.traversal import altered, base_latents, influence, traverse
from halikit.data import Split
from halikit.errors import InputError

SHAPE = (1, 6, 6)


@pytest.fixture(params=[("dense", 1), ("dense", 3), ("conv", 2)], ids=str)
def hierarchy(request: pytest.FixtureRequest) -> hk.Hierarchy:
    family, levels = request.param
    return tiny_ladder(levels, (1, 8, 8) if family == "conv" else SHAPE, family=family).eval()


def images(hierarchy: hk.Hierarchy, n: int) -> Tensor:
    return torch.rand(n, *hierarchy.spaces[0].shape) * 2 - 1


class Scaled(nn.Module):
    """Keeps the first elements of a vector, each times a number of its own."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, given: Tensor) -> Tensor:
        return given.flatten(1)[:, : len(self.factors)] * self.factors


def scaled_stack(up: list[float], down: list[float]) -> hk.Hierarchy:
    """Two levels over vectors: z1 is x, z2 = up · z1, and back by down."""
    spaces = [hk.Space(name, (len(up),)) for name in ("x", "z1", "z2")]
    ones = [1.0] * len(up)
    links = [
        hk.Link(hk.DeterministicKernel(a, b, Scaled(ups)), hk.DeterministicKernel(b, a, Scaled(downs)))
        for a, b, ups, downs in zip(spaces, spaces[1:], (ones, up), (ones, down), strict=False)
    ]
    return hk.Hierarchy(links).eval()


def test_known_pixels_are_kept_bit_for_bit(hierarchy: hk.Hierarchy) -> None:
    x = images(hierarchy, 5)
    mask = centre_mask(tuple(x.shape[1:]), 0.5)
    found = inpaint(hierarchy, x, mask, fill=0.25)
    levels = len(hierarchy)
    assert list(found.steps) == [f"z{level}" for level in range(levels, 0, -1)]
    current = torch.where(mask, torch.tensor(0.25), x)
    assert torch.equal(found.masked, current)
    for level, step in zip(range(levels, 0, -1), found.steps.values(), strict=True):
        assert torch.equal(step[..., ~mask], x[..., ~mask])
        with torch.no_grad():
            current = torch.where(mask, hierarchy.reconstruct(current, level), x)
        assert torch.equal(step, current)
    assert torch.equal(found.completed, found.steps["z1"])


def test_what_is_missing_is_not_looked_at(hierarchy: hk.Hierarchy) -> None:
    x = images(hierarchy, 3)
    mask = rectangle_mask(tuple(x.shape[1:]), 0, 1, 2, 3)
    other = torch.where(mask, torch.nan, x)
    assert torch.equal(inpaint(hierarchy, x, mask).completed, inpaint(hierarchy, other, mask).completed)


def test_masks() -> None:
    assert centre_mask((3, 8, 8)).nonzero().aminmax() == (torch.tensor(2), torch.tensor(5))
    assert rectangle_mask((1, 4, 5), 1, 2, 3, 1).nonzero().tolist() == [[1, 2], [2, 2], [3, 2]]
    for bad in ((0, 0, 9, 1), (-1, 0, 2, 2), (0, 0, 0, 2)):
        with pytest.raises(ValueError, match="does not lie within 8×8"):
            rectangle_mask((1, 8, 8), *bad)
    with pytest.raises(ValueError, match="share"):
        centre_mask((1, 8, 8), 0.0)
    with pytest.raises(ValueError, match="a mask is bool"):
        inpaint(tiny_ladder(1, SHAPE).eval(), torch.zeros(2, *SHAPE), torch.ones(6, 7, dtype=torch.bool))


def test_inpainting_errors_are_of_the_missing_pixels_alone() -> None:
    x = torch.zeros(4, 1, 2, 2)
    mask = torch.tensor([[True, False], [False, False]])
    hierarchy = tiny_ladder(1, (1, 2, 2)).eval()
    found = inpaint(hierarchy, x, mask, fill=0.5)
    errors = inpainting_errors(x, mask, found)
    assert errors.baseline.value == pytest.approx(0.5)
    assert errors.steps["z1"].value == pytest.approx(float(found.completed[0, 0, 0, 0].abs()))
    assert errors.interval[0] <= errors.difference.value <= errors.interval[1]


def test_inpainting_errors_are_over_all_missing_elements_of_all_images() -> None:
    """The root of the mean of squares; the interval of the difference is that of the paired delta method."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, 4, 4, generator=generator)
    mask = centre_mask((1, 4, 4))
    scale = torch.rand(50, 1, 1, 1, generator=generator)
    given, filled = (torch.where(mask, x + size * scale, x) for size in (1.0, 0.7))
    found = inpainting_errors(x, mask, Inpainting(given, {"z1": filled}))
    rms = float(scale.double().square().mean().sqrt())
    assert found.baseline.value == pytest.approx(rms)
    assert found.steps["z1"].value == pytest.approx(0.7 * rms)
    assert found.difference.value == pytest.approx(-0.3 * rms)
    # The two errors of an image are proportional, so the standard error of the difference is 0.3 times one of theirs.
    assert found.difference.standard_error == pytest.approx(0.3 * found.baseline.standard_error, rel=1e-4)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * found.difference.standard_error)


def test_inpainting_errors_weigh_masks_by_their_size() -> None:
    x = torch.zeros(2, 1, 1, 4)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])[:, None, None]
    errors = torch.tensor([3.0, 1.0])[:, None, None, None]
    found = inpainting_errors(x, mask, Inpainting(torch.where(mask, errors, x), {"z1": x}))
    assert found.baseline.value == pytest.approx(((9 + 3) / 4) ** 0.5)
    assert found.steps["z1"].value == 0


def test_the_mean_image_is_read_in_batches() -> None:
    images = torch.rand(2100, 1, 2, 2)
    torch.testing.assert_close(mean_image(Split(images)), images.mean(0))


def test_traversals_change_one_entry(hierarchy: hk.Hierarchy) -> None:
    for level in range(1, len(hierarchy) + 1):
        z = base_latents(hierarchy, 2, level)
        assert z.shape[1:] == hierarchy.spaces[level].shape
        found = traverse(hierarchy, z, level, [0, 2], [-3, 1, 3])
        assert found.shape == (2, 2, 3, *hierarchy.spaces[0].shape)
        with torch.no_grad():
            expected = hierarchy.decode(altered(z, 2, 3.0), level)["x"]
            torch.testing.assert_close(found[:, 0, 1], hierarchy.decode(z, level)["x"])
        torch.testing.assert_close(found[:, 1, 2], expected)


def test_entries_are_multiplied_or_set() -> None:
    z = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert altered(z, 1, 2.0)[0, :, 0, 0].tolist() == [0, 8, 8]
    assert altered(z, 1, 2.0, "set")[0, :, 0, 1].tolist() == [1, 2, 9]
    assert z[0, 1, 0, 0] == 4
    with pytest.raises(ValueError, match="entries 0 to 2"):
        altered(z, 3, 1.0)
    with pytest.raises(ValueError, match="'multiply' or 'set'"):
        altered(z, 0, 1.0, "add")


def test_the_entry_that_changes_most_is_found() -> None:
    hierarchy = scaled_stack([1.0, 1.0, 1.0], [0.1, 5.0, 0.5])
    z = torch.ones(4, 3)
    assert influence(hierarchy, z, 2, how="set").argsort(descending=True).tolist() == [1, 2, 0]
    # Values −3 … 3 change an entry that is 1 by −4 … 2: mean square 5, over three elements.
    assert influence(hierarchy, z, 2)[1] == pytest.approx(5 * (5 / 3) ** 0.5)
    assert influence_on_data(hierarchy, torch.ones(4, 3), 2).argmax() == 1


def test_innovation_is_section_6_3(hierarchy: hk.Hierarchy) -> None:
    x = images(hierarchy, 3)
    with torch.no_grad():
        states = list(hierarchy.encode(x).values())
        for level in range(1, len(hierarchy) + 1):
            found = innovate(hierarchy, x, level, scaling(1, -2.0))
            down = hierarchy.links[level - 1].down
            eta = down.mean(states[level]) - down.mean(altered(states[level], 1, -2.0))
            below = states[level - 1] - eta
            expected = hierarchy.decode(below, level - 1)["x"] if level > 1 else below
            torch.testing.assert_close(found.innovation, eta)
            torch.testing.assert_close(found.x, expected)
            unchanged = innovate(hierarchy, x, level, scaling(1, 1.0)).x
            torch.testing.assert_close(unchanged, hierarchy.reconstruct(x, level - 1) if level > 1 else x)


def test_innovation_keeps_what_the_upper_level_does_not_know() -> None:
    """z2 keeps no more of x than its first element; an edit of it leaves the second as it was."""
    hierarchy = scaled_stack([1.0, 0.0], [1.0, 0.0])
    x = torch.tensor([[2.0, 7.0]])
    assert innovate(hierarchy, x, 2, scaling(0, 3.0)).x.tolist() == [[6.0, 7.0]]
    with pytest.raises(ValueError, match="between 1 and 2"):
        innovate(hierarchy, x, 3, scaling(0, 1.0))


def test_directions_are_differences_of_class_means() -> None:
    hierarchy = scaled_stack([2.0, 1.0], [0.5, 1.0])
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    first, last = torch.tensor([True, True, False]), torch.tensor([False, False, True])
    direction = mean_direction(hierarchy, Split(x), 2, first, last)
    assert direction.tolist() == [4.0, -5.0]
    # The level decodes a step along the direction to the difference of the data's means.
    edited = innovate(hierarchy, x[2:], 2, along(direction, 1.0)).x
    torch.testing.assert_close(edited, x[:2].mean(0, keepdim=True))
    with pytest.raises(InputError, match="has no data"):
        mean_direction(hierarchy, Split(x), 1, first, torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_interpolation_goes_from_one_to_the_other(hierarchy: hk.Hierarchy, path: str) -> None:
    start, end = images(hierarchy, 2), images(hierarchy, 2)
    for level in range(1, len(hierarchy) + 1):
        found = interpolate(hierarchy, start, end, level, [0, 0.5, 1], path=path)
        with torch.no_grad():
            torch.testing.assert_close(found[:, 0], hierarchy.reconstruct(start, level), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found[:, 2], hierarchy.reconstruct(end, level), rtol=1e-3, atol=1e-4)
        assert found.isfinite().all()


def test_great_circles() -> None:
    hierarchy = scaled_stack([1.0, 1.0], [1.0, 1.0])
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    middle = interpolate(hierarchy, east, north, 2, [0.5], path="spherical")[0, 0]
    torch.testing.assert_close(middle, torch.tensor([2.0, 2.0]) / 2**0.5)
    parallel = interpolate(hierarchy, east, 2 * east, 2, [0.5], path="spherical")[0, 0]
    torch.testing.assert_close(parallel, torch.tensor([1.5, 0.0]))
    with pytest.raises(ValueError, match="one shape"):
        interpolate(hierarchy, east, torch.zeros(2, 2), 1, [0.5])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_neighbours_of_a_set_that_comes_in_batches(level: int) -> None:
    hierarchy = tiny_ladder(2, SHAPE).eval()
    x = torch.rand(1203, *SHAPE)
    queries = x[[700, 3]]
    found = nearest_neighbours(hierarchy, queries, Split(x), level, 5)
    assert found.rows[:, 0].tolist() == [700, 3]
    name = hierarchy.spaces[level].name
    with torch.no_grad():
        features = hierarchy.encode(x)[name].flatten(1)
        distances = torch.cdist(hierarchy.encode(queries)[name].flatten(1), features)
    assert torch.equal(found.rows, distances.topk(5, largest=False).indices)
    with pytest.raises(ValueError, match="3 data to search"):
        nearest_neighbours(hierarchy, queries, Split(x[:3]), 1, 4)


@pytest.mark.parametrize("truncation", [None, 10.0])
def test_noiseless_samples_lack_the_noise_of_the_lowest_kernel_alone(truncation: float | None) -> None:
    torch.manual_seed(0)
    hierarchy = linear_hierarchy(3).eval()
    generator = torch.Generator().manual_seed(0)
    drawn = [
        sample(hierarchy, 20_000, truncation=truncation, noiseless=noiseless, generator=generator)
        for noiseless in (False, True)
    ]
    expected = hierarchy.links[0].down.covariance
    torch.testing.assert_close(drawn[0].T.cov() - drawn[1].T.cov(), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn[0].mean(0), drawn[1].mean(0), atol=0.08, rtol=0)


def test_truncation_cuts_the_prior_off() -> None:
    hierarchy = scaled_stack([1.0, 1.0], [1.0, 1.0])
    torch.manual_seed(0)
    drawn = sample(hierarchy, 5000, truncation=0.7)
    assert 0.69 < drawn.abs().max() <= 0.7
    # The variance of a standard normal cut off at ±a is 1 − 2aφ(a)/(2Φ(a) − 1).
    assert drawn.var() == pytest.approx(0.1527, abs=0.005)
    assert sample(hierarchy, 3).shape == (3, 2)
    with pytest.raises(ValueError, match="positive number"):
        sample(hierarchy, 3, truncation=0.0)
    own = hk.Hierarchy(
        hierarchy.links, prior=torch.distributions.Independent(torch.distributions.Laplace(*torch.ones(2, 2)), 1)
    )
    with pytest.raises(ValueError, match="standard normal"):
        sample(own, 3, truncation=1.0)
