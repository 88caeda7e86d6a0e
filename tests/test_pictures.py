"""Pictures as functions of arrays, and scores by a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import halikit as hk
from halikit import data, plotting
from halikit.analysis.labels import LabelClassifier, label_scores


def test_pixels_cover_the_range() -> None:
    ramp = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(5, 1, 1, 1).expand(5, 1, 48, 48)
    pixels = plotting.as_pixels(ramp)
    assert pixels.shape == (5, 48, 48, 3)
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_grid_puts_images_row_by_row() -> None:
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 3, 50, 50)
    picture = plotting.grid(images, 3)
    assert picture.shape == (2 * 52 + 2, 3 * 52 + 2, 3)
    tiles = [picture[10 + 52 * row, 10 + 52 * column, 0] for row in range(2) for column in range(3)]
    assert tiles == [0, 51, 102, 153, 204, 255]


def test_alternating_columns_pair_inputs_with_reconstructions() -> None:
    dark, bright = torch.full((4, 1, 50, 50), -1.0), torch.full((4, 1, 50, 50), 1.0)
    picture = plotting.alternating_columns(dark, bright, 4)
    assert [picture[10, 10 + 52 * column, 0] for column in range(4)] == [0, 255, 0, 255]


def test_a_single_evaluation_is_seen() -> None:
    nan = float("nan")
    one, two = (
        plotting.curves({"z1": ([1, 2, 3], ys)}, title="", x_label="", y_label="").axes[0].lines[0]
        for ys in ([nan, nan, 0.5], [nan, 0.6, 0.5])
    )
    assert one.get_marker() == "o"
    assert two.get_marker() == ""


def test_vectors_are_no_pictures() -> None:
    with pytest.raises(ValueError, match="images"):
        plotting.grid(torch.zeros(3, 5))


def test_png_files_are_whole(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    plotting.save_png(tmp_path / "p.png", picture)
    with Image.open(tmp_path / "p.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("classifier", ["neighbours", "network"])
def test_label_scores_of_a_perfect_and_of_a_blind_model(classifier: LabelClassifier) -> None:
    digits = data.load("digits")
    x = hk.Space("x", (1, 8, 8))
    z1, z2 = hk.Space("z1", (64,)), hk.Space("z2", (64,))

    class Zero(nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(given)

    hierarchy = hk.Hierarchy(
        [
            hk.Link(hk.DeterministicKernel(x, z1, nn.Flatten()), hk.DeterministicKernel(z1, x, nn.Identity())),
            hk.Link(hk.DeterministicKernel(z1, z2, Zero()), hk.DeterministicKernel(z2, z1, nn.Identity())),
        ]
    ).eval()
    scores = label_scores(hierarchy, digits, num_samples=200, classifier=classifier)
    assert scores.kept[0] == scores.reference > 0.9
    assert scores.classifier == classifier
    assert scores.kept[1] < 0.2
    assert scores.num_held_out == 297
    assert sum(scores.class_shares) == pytest.approx(1)
    # Standard normal noise is much farther from the digits than digits are.
    assert scores.sample_distance > 2 * scores.held_out_distance
