"""Sequences (C, T) and volumes (C, D, H, W): networks, arrays, pictures, every command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Shell, size_of
from torch import nn

import halikit as hk
from halikit import data, plotting
from halikit.analysis.inpainting import centre_mask
from halikit.analysis.summary import summarise
from halikit.config import override
from halikit.errors import InputError
from halikit.explore import Explorer
from halikit.networks.blocks import from_patches, initialise, to_patches
from halikit.networks.shapes import ladder_spaces
from halikit.presets.families import conv
from halikit.training.sleep import sleep_weights

SHAPES: dict[str, tuple[int, ...]] = {
    "sequence": (2, 32),
    "odd sequence": (1, 27),
    "volume": (1, 8, 8, 8),
    "oblong volume": (2, 8, 6, 4),
    "odd image": (1, 33, 21),
    "oblong image": (3, 26, 50),
}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("family", ["dense", "conv", "mixed"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_game_on_any_shape_trains_all_weights(shape: tuple[int, ...], family: str) -> None:
    h = hk.ladder(2, shape, family=family, hidden=16)
    d = hk.build_discriminator(h, width=16, family="dense" if family == "dense" else "conv")
    trainer = hk.Trainer(
        hk.Model(h, d), torch.randn(40, *shape).clamp(-1, 1), settings=override(hk.Config(), {"batch_size": 16})
    )
    trainer.step(torch.randn(16, *shape))
    still = [name for name, p in [*h.named_parameters(), *d.named_parameters()] if p.grad is None]
    assert not still
    assert trainer.averaged.sample(3).shape == (3, *shape)
    kinds = {type(m) for part in (h, d) for m in part.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    assert all(issubclass(kind, CONVOLUTIONS[len(shape) - 1]) for kind in kinds)
    assert bool(kinds) == (family != "dense")


def test_the_family_is_chosen_by_the_number_of_positions() -> None:
    ranks = {shape: ladder_spaces(2, shape)[1].rank for shape in [(3, 256), (1, 272), (1, 6, 6, 7), (1, 8, 8, 8)]}
    assert ranks == {(3, 256): 1, (1, 272): 2, (1, 6, 6, 7): 1, (1, 8, 8, 8): 4}


def test_maps_of_sequences_and_volumes_shrink_on_every_axis() -> None:
    assert [space.shape[1:] for space in ladder_spaces(4, (1, 256), family="conv")[1:]] == [(64,), (32,), (16,), ()]
    assert [space.shape[1:] for space in ladder_spaces(3, (1, 32, 32, 64))[1:]] == [(8, 8, 16), (4, 4, 8), ()]
    with pytest.raises(ValueError, match=r"the nearest sizes that have 2: 29×29×29"):
        ladder_spaces(3, (1, 11, 11, 11), family="conv", maps=2)


def test_other_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences"):
        hk.ladder(1, (1, 2, 2, 2, 2))


def test_channels_stop_growing() -> None:
    """A sequence of 4,096 is halved ten times: channels that double each time would be 4,096, not eight times 8."""
    h = hk.ladder(2, (1, 4096), maps=0, hidden=8)
    assert max(m.out_channels for m in h.modules() if isinstance(m, nn.Conv1d)) == 64


def test_only_images_end_in_tanh() -> None:
    for shape in [(1, 8), (1, 4, 4, 4), (1, 4, 4)]:
        h = hk.ladder(1, shape).eval()
        bounded = bool((h.decode(100 * torch.randn(200, h.spaces[1].size), 1)["x"].abs() <= 1).all())
        assert bounded == (len(shape) == 3)


def test_patches_are_those_of_torch_and_come_back() -> None:
    x = torch.randn(2, 3, 4, 6)
    flat = nn.PixelUnshuffle(2)(x)
    # A volume whose planes are all the same has the patches of one plane, twice.
    volume = to_patches(3)(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    for half in volume.unflatten(1, (3, 2, 4)).unbind(2):
        assert torch.equal(half, flat.unflatten(1, (3, 4)).unsqueeze(3).expand(-1, -1, -1, 2, -1, -1))
    # An image whose columns are all the same has the patches of a sequence, twice.
    sequence = x[..., 0]
    columns = nn.PixelUnshuffle(2)(sequence.unsqueeze(3).expand(-1, -1, -1, 2))
    assert torch.equal(columns[..., 0].unflatten(1, (3, 2, 2))[:, :, :, 1].flatten(1, 2), to_patches(1)(sequence))
    for shape in [(2, 3, 8), (2, 3, 4, 6), (2, 3, 4, 6, 2)]:
        z, axes = torch.randn(shape), len(shape) - 2
        patches = to_patches(axes)(z)
        assert patches.shape[1:] == (3 * 2**axes, *(side // 2 for side in shape[2:]))
        assert torch.equal(from_patches(axes)(patches), z)


@pytest.mark.parametrize("shape", [(3, 20), (3, 4, 5, 2)])
def test_a_gauge_normalises_each_channel(shape: tuple[int, ...]) -> None:
    """Mean 0 and standard deviation 1 of each channel over batch and positions, to 1e-4."""
    source, target = hk.Space("v", shape), hk.Space("w", shape)
    network = nn.Sequential(CONVOLUTIONS[len(shape) - 1](3, 3, 3, padding=1))
    kernel = hk.GaussianKernel(source, target, network, scale=0.1, gauge="standardised")
    mean = kernel.mean(7 + 5 * torch.randn(64, *shape)).transpose(0, 1).flatten(1)
    assert torch.allclose(mean.mean(1), torch.zeros(3), atol=1e-4)
    assert torch.allclose(mean.std(1, correction=0), torch.ones(3), atol=1e-4)


def test_initial_scale_and_summary_know_all_convolutions() -> None:
    for shape, kernel in [((1, 32), "3"), ((1, 8, 8, 8), "3×3×3")]:
        h = hk.ladder(2, shape, family="conv", hidden=4)
        initialise(h, 3.0)
        scales = [m.weight.std() for m in h.modules() if isinstance(m, nn.Conv1d | nn.Conv3d) and m.in_channels > 1]
        assert min(scales) > 2
        rows = summarise(hk.Model(h)).decoder[0].rows
        assert {row.kernel for row in rows if row.operation == "Convolution"} == {kernel}
        assert "BN" in {row.norm for row in rows}


def test_no_sleep_phase_where_z1_is_maps() -> None:
    assert sleep_weights(hk.ladder(2, (1, 64), family="conv"))[0] == (0.0, 1.0)
    assert sleep_weights(hk.ladder(2, (1, 64)))[0] == (1.0, 1.0)


def waves(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Waves along the last axis, one or two periods by turns."""
    t = np.linspace(0, 1, shape[-1])
    phases = np.random.default_rng(0).random((n, *[1] * len(shape)))
    periods = (np.arange(n) % 2 + 1).reshape(n, *[1] * len(shape))
    return np.broadcast_to(np.sin(2 * np.pi * (periods * t + phases)), (n, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "stored", "read"),
    [
        ("sequence", (9,), (1, 9)),
        ("sequence", (5, 9), (5, 9)),
        ("volume", (3, 4, 5), (1, 3, 4, 5)),
        ("volume", (2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_arrays_are_read_by_kind(tmp_path: Path, kind: str, stored: tuple[int, ...], read: tuple[int, ...]) -> None:
    x = 1000 * np.random.default_rng(0).normal(size=(20, *stored))
    np.save(tmp_path / "a.npy", x)
    ds = data.load(str(tmp_path / "a.npy"), kind=kind)
    assert ds.shape == read
    assert ds.train.images.dtype == torch.float32
    assert np.allclose(ds.train.images.numpy().reshape(18, *stored), x[:18], rtol=1e-6)


def test_bytes_and_declared_ranges_are_scaled(tmp_path: Path) -> None:
    x = np.arange(240, dtype=np.uint8).reshape(20, 12)
    np.savez(tmp_path / "bytes.npz", x=x)
    np.savez(tmp_path / "range.npz", x=x.astype(float), range=[0, 240])
    as_bytes, declared = (
        data.load(str(tmp_path / f"{name}.npz"), kind="sequence").train.batch(torch.arange(18))
        for name in ("bytes", "range")
    )
    assert torch.allclose(as_bytes, torch.from_numpy(x[:18, None] / 127.5 - 1).float(), atol=1e-6)
    assert torch.allclose(declared, torch.from_numpy(x[:18, None] / 120 - 1).float(), atol=1e-6)


def test_what_is_for_images_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(20, (64,)))
    spec = str(tmp_path / "a.npy")
    with pytest.raises(data.DataError, match=r"a pack holds images, but these are sequences of shape \(1, 64\)"):
        data.pack(spec, tmp_path / "a.pack", kind="sequence")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    with pytest.raises(data.DataError, match="augmentation is for images"):
        data.Augmentation(flip=True).check((1, 64))
    with pytest.raises(data.DataError, match="kind='video'"):
        data.load(spec, kind="video")


def test_a_curve_goes_from_its_first_value_to_its_last() -> None:
    """One curve rises through its tile, the other falls; the zero line is in the middle."""
    ramp = torch.linspace(-2, 2, 50)
    rising, falling = plotting.as_pixels(torch.stack([ramp, -ramp]).unsqueeze(1))
    assert rising.shape == (64, 96, 3)
    dark = [(tile[..., 0] < 120).nonzero() for tile in (rising, falling)]
    for (rows, columns), sign in zip(dark, (-1, 1), strict=True):
        assert np.corrcoef(rows, columns)[0, 1] * sign > 0.99
        assert (columns.min(), columns.max()) == (0, 95)
    assert np.ptp(rising[31:33].astype(int), axis=-1).max() > 50  # coloured where the curve is


def test_curves_of_one_picture_share_their_scale() -> None:
    """A row of small waves is flat beside a row of large ones, and fills its tile alone."""
    small = torch.from_numpy(waves(2, (1, 32)))
    heights = []
    for rows in ({"a": small}, {"a": small, "b": 10 * small}):
        picture = plotting.labelled_rows(rows)[:66, -98:]
        # The curve is blue, and paper, frame and zero line are grey.
        heights.append(np.ptp((np.ptp(picture.astype(int), axis=-1) > 60).nonzero()[0]))
    assert heights[0] > 50
    assert heights[1] < 12


def test_values_that_are_not_finite_are_left_out() -> None:
    nothing, gap = torch.full((1, 1, 30), math.nan), torch.zeros(1, 1, 30)
    gap[..., 10:20] = math.inf
    blank = plotting.as_pixels(nothing)
    assert (blank[..., 0] == blank[..., 2]).all()
    (drawn,) = plotting.as_pixels(gap, (-1, 1))
    coloured = np.ptp(drawn.astype(int), axis=-1).max(0) > 60
    assert coloured[:25].all()
    assert not coloured[34:60].any()
    assert coloured[70:].all()
    assert plotting.limits_of(gap) == (-1, 1)


def test_a_volume_shows_its_middle_slice() -> None:
    volume = torch.zeros(2, 1, 5, 48, 50)
    volume[0, 0, 2] = torch.linspace(-1, 1, 50)
    assert np.array_equal(plotting.as_pixels(volume), plotting.as_pixels(volume[:, :, 2]))
    # Beyond [−1, 1], black and white are the lowest and highest values, but for a hundredth at each end.
    far = 100 * torch.arange(10.0).reshape(10, 1, 1, 1, 1).expand(10, 1, 3, 48, 48)
    assert plotting.as_pixels(far)[:, 0, 0, 0].tolist() == [round(255 * i / 9) for i in range(10)]


def test_a_contact_sheet_leaves_missing_examples_blank(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=waves(20, (16,)), y=np.array([0] * 15 + [1] * 5))
    sheet = plotting.contact_sheet(data.load(str(tmp_path / "a.npz"), kind="sequence"))
    last = sheet[-60:, -90:].astype(int)
    assert np.ptp(last, axis=-1).max() == 0


def test_the_middle_is_missing_on_every_axis() -> None:
    assert centre_mask((3, 8)).tolist() == [False] * 2 + [True] * 4 + [False] * 2
    mask = centre_mask((1, 4, 6, 8))
    assert mask.shape == (4, 6, 8)
    assert mask[1:3, 1:4, 2:6].all()
    assert mask.sum() == 2 * 3 * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on sequences, one on volumes and one on vectors, after four steps."""
    here = tmp_path_factory.mktemp("runs")
    shapes = {"sequence": (2, 32), "volume": (8, 8, 8), "vector": (5,)}
    for kind, shape in shapes.items():
        np.savez(here / f"{kind}.npz", x=waves(60, shape), labels=np.arange(60) % 2)
        changes = {"spec": f"array:{here / kind}.npz", "hidden": 4, "discriminator.width": 16, "max_scale": 0.5}
        changes |= {"data.kind": None if kind == "vector" else kind, "steps": 4, "batch_size": 16}
        family = "dense" if kind == "vector" else "conv"
        loaded = data.load(changes["spec"], kind=changes["data.kind"])
        config = override(conv(2), changes | {"model.family": family, "data_shape": loaded.shape})
        hk.Trainer(hk.build(config), loaded, out=here / "runs" / kind).fit()
    return {kind: here / "runs" / kind for kind in shapes}


COMMANDS = [
    ("reconstruct", []),
    ("reconstruct", ["--level", 1, "--draws", 2]),
    ("sample", ["-n", 4]),
    ("inpaint", ["-n", 2, "--draws", 2, "--steps", 3]),
    ("interpolate", ["--pairs", 1, "--steps", 3]),
    ("neighbours", ["-n", 2, "-k", 2]),
    ("traverse", ["--number", 2, "-n", 1]),
    ("innovate", ["--level", 1, "--entries", 0, "-n", 1]),
    ("innovate", ["--towards", 1, "-n", 1]),
]


@pytest.mark.filterwarnings("ignore:samples have collapsed")
@pytest.mark.parametrize("kind", ["sequence", "volume"])
def test_every_command_with_pictures(halikit: Shell, runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    for number, (command, options) in enumerate(COMMANDS):
        out = tmp_path / f"{number}.png"
        halikit(command, runs[kind], *options, "--out", out)
        width, height = size_of(out)
        assert min(width, height) > 40, command
    names = {path.name for path in (runs[kind] / "samples").iterdir()}
    assert names == {"samples-0000004.png", "reconstructions-0000004.png"}
    halikit("report", runs[kind])


@pytest.mark.parametrize("kind", ["sequence", "volume", "vector"])
def test_samples_are_written_as_numbers(halikit: Shell, runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    out = tmp_path / "x.npy"
    assert str(out) in halikit("sample", runs[kind], "-n", 7, "--out", out)
    x = np.load(out)
    assert x.dtype == np.float32
    assert x.shape == (7, *hk.load(runs[kind]).hierarchy.spaces[0].shape)
    halikit("sample", runs[kind], "-n", 7, "--out", tmp_path / "again.npy")
    assert np.array_equal(np.load(tmp_path / "again.npy"), x)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npy", "x.npy"]


def test_images_are_written_as_numbers_too(halikit: Shell, tmp_path: Path) -> None:
    halikit("sample", "digits", "-n", 3, "--out", tmp_path / "x.npy", "--json")
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (3, 1, 8, 8)
    assert np.abs(x).max() <= 1


def test_what_has_no_picture_or_mask_is_refused(halikit: Shell, runs: dict[str, Path]) -> None:
    for command in ("sample", "traverse", "reconstruct", "inpaint"):
        assert "--out FILE.npy" in halikit(command, runs["vector"], code=2)
    assert "are for images" in halikit("inpaint", runs["volume"], "--rectangle", 0, 0, 2, 2, code=2)
    assert "classifier is trained on" in halikit("evaluate", "attributes", runs["sequence"], code=2)
    assert "a pack holds images" in halikit(
        "data", "pack", runs["sequence"].parent.parent / "sequence.npz", "x.pack", "--kind", "sequence", code=2
    )


@pytest.mark.parametrize("kind", ["sequence", "volume"])
def test_the_page_shows_pictures_and_paints_on_images_alone(runs: dict[str, Path], kind: str) -> None:
    model = hk.load(runs[kind])
    loaded = data.load(model.config.data.spec, kind=kind)
    explorer = Explorer(model.hierarchy, kind, data=loaded)
    subject = explorer.pick(0)
    assert subject["view"]["picture"].startswith("data:image/png")
    assert all("picture" in level["view"] for level in subject["levels"])
    assert explorer.about()["size"] is None
    with pytest.raises(InputError, match="masks are painted on images"):
        explorer.inpaint(subject["id"], "1" * 32)
