"""What inspect counts, over every kernel class and for networks of one's own."""

from __future__ import annotations

import pytest
import torch
from conftest import CATALOGUE, KernelCase, Network
from torch import nn

import halikit as hk
from halikit.analysis.summary import summarise


def model_of(case: KernelCase) -> hk.Model:
    x, z = hk.Space("x", (3,)), hk.Space("z1", case.shape)
    hierarchy = hk.Hierarchy([hk.Link(case.make(x, z), hk.DeterministicKernel(z, x, Network(z, 3)))])
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=8))


@pytest.mark.parametrize("case", CATALOGUE, ids=str)
def test_every_parameter_is_counted_once(case: KernelCase) -> None:
    model = model_of(case)
    summary = summarise(model)
    for link, up, down in zip(model.hierarchy, summary.encoder, summary.decoder, strict=True):
        assert up.parameters == sum(p.numel() for p in link.up.parameters())
        assert down.parameters == sum(p.numel() for p in link.down.parameters())
    assert sum(part.parameters for part in summary.discriminator) == sum(
        p.numel() for p in model.discriminator.parameters()
    )
    assert model.hierarchy.training


def test_networks_of_ones_own_have_a_row_per_layer() -> None:
    x, z = hk.Space("x", (1, 8, 8)), hk.Space("z1", (5,))
    up = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    down = nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (1, 4, 4)), nn.ConvTranspose2d(1, 1, 2, 2))
    hierarchy = hk.Hierarchy([hk.Link(hk.GaussianKernel(x, z, up), hk.DeterministicKernel(z, x, down))])
    summary = summarise(hk.Model(hierarchy, hk.build_discriminator(hierarchy)))
    rows = {
        row.operation: (row.kernel, row.strides, row.maps, row.output, row.parameters, row.multiply_adds)
        for part in (*summary.encoder, *summary.decoder)
        for row in part.rows
        if row.maps != 16
    }
    assert rows == {
        "Convolution": ("3×3", "2×2", 4, (4, 4, 4), 40, 9 * 4 * 16),
        "ReLU": ("", "", None, (4, 4, 4), 0, 0),
        "Dense": ("", "", 10, (10,), 650, 640),
        "Gaussian layer": ("", "", None, (5,), 0, 0),
        "ConvTranspose2d": ("", "", None, (1, 8, 8), 5, 64),
    }


def test_a_discriminator_of_ones_own_is_one_part() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)
            self.weight = nn.Parameter(torch.ones(4, 1))

        def forward(self, states: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.layer(torch.cat([states["x"], states["z1"]], 1)) @ self.weight

    hierarchy = hk.ladder(1, (3,), widths=(2,), hidden=4, depth=1)
    (part,) = summarise(hk.Model(hierarchy, Own())).discriminator
    assert part.name == "reads x, z1"
    assert [(row.operation, row.parameters, row.multiply_adds) for row in part.rows] == [
        ("Dense", 24, 20),
        ("other", 4, 4),
    ]


def test_what_is_computed_outside_of_modules_is_the_kernels_own() -> None:
    class Matrix(hk.Kernel):
        def __init__(self, source: hk.Space, target: hk.Space) -> None:
            super().__init__(source, target)
            self.weight = nn.Parameter(torch.eye(target.size, source.size))

        def sample(self, given: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
            return given @ self.weight.T

    x, z = hk.Space("x", (3,)), hk.Space("z1", (2,))
    hierarchy = hk.Hierarchy([hk.Link(Matrix(x, z), Matrix(z, x))])
    (part,) = summarise(hk.Model(hierarchy, hk.build_discriminator(hierarchy))).encoder
    (row,) = part.rows
    assert (row.operation, row.parameters, row.multiply_adds) == ("Matrix layer", 6, 6)
