"""Augmentation: a pure function of (seed, epoch, index), and one that does what it says."""

from __future__ import annotations

import pytest
import torch

from halikit import Trainer, data
from halikit.config import Config, override
from halikit.data.augmentation import Augmentation, philox
from halikit.model import build

IMAGES = torch.rand(40, 3, 12, 10, generator=torch.Generator().manual_seed(0))
BOTH = Augmentation(flip=True, shift=3)


@pytest.mark.parametrize(
    ("seed", "epoch", "index", "words"),
    [
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88 - 2**64, "d16cfe09 94fdcceb 5001e420 24126ea1"),
        (-1, -1, -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_gives_the_words_its_authors_published(seed, epoch, index, words):
    assert [f"{word:08x}" for word in philox(torch.tensor([index]), seed, epoch)[0].tolist()] == words.split()


def test_an_image_changes_alike_in_any_batch():
    index = torch.arange(40)
    whole = BOTH(IMAGES, index, seed=3, epoch=5)
    for size in (1, 7, 40):
        order = data.order(40, 0, size)
        parts = [BOTH(IMAGES[i], i, seed=3, epoch=5) for i in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((4, 5), (3, 6)):
        assert not torch.equal(BOTH(IMAGES, index, seed=seed, epoch=epoch), whole)


def test_no_generator_is_read_or_moved():
    state = torch.get_rng_state()
    BOTH(IMAGES, torch.arange(40), seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_flips_half_and_shifts_evenly():
    column = torch.arange(10.0).expand(4000, 1, 12, 10)
    flipped = Augmentation(flip=True)(column, torch.arange(4000), seed=0, epoch=0)
    mirrored = flipped[:, 0, 0, 0] == 9
    assert torch.equal(flipped[mirrored], column[mirrored].flip(3))
    assert torch.equal(flipped[~mirrored], column[~mirrored])
    assert 1870 < mirrored.sum() < 2130
    shifted = Augmentation(shift=2)(column, torch.arange(4000), seed=0, epoch=0)
    counts = (shifted[:, 0, 0, 5] - 5).long().add(2).bincount(minlength=5)
    assert counts.sum() == 4000
    assert counts.min() > 690  # 800 ± 4.3 standard deviations


def test_a_shift_reflects_at_the_edges():
    image = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    seen = {
        tuple(Augmentation(shift=2)(image, torch.tensor([i]), seed=0, epoch=0)[0, 0, 0].tolist()) for i in range(200)
    }
    assert seen == {(2, 1, 0, 1, 2), (1, 0, 1, 2, 3), (0, 1, 2, 3, 4), (1, 2, 3, 4, 3), (2, 3, 4, 3, 2)}


def test_a_turn_is_a_turn_about_the_centre():
    y, x = torch.meshgrid(torch.arange(15.0) - 7, torch.arange(15.0) - 7, indexing="ij")
    blob = torch.exp(-((x - 3) ** 2 + y**2) / 2).expand(500, 1, 15, 15)
    turned = Augmentation(rotate=30)(blob, torch.arange(500), seed=0, epoch=0)
    mass = turned.sum((1, 2, 3))
    angles = torch.atan2((turned[:, 0] * y).sum((1, 2)) / mass, (turned[:, 0] * x).sum((1, 2)) / mass).rad2deg()
    assert angles.min() < -28 < 28 < angles.max()
    assert angles.abs().max() < 31
    assert angles.mean().abs() < 3.5  # 4.5 standard errors of a uniform draw from ±30

    # A non-square image turns without shear: a blob stays round.
    wide = torch.exp(-(x**2 + y**2) / 2)[4:11].expand(50, 1, 7, 15)
    turned = Augmentation(rotate=90)(wide, torch.arange(50), seed=0, epoch=0)
    torch.testing.assert_close(turned[:, 0, :, 4:11], wide[:, 0, :, 4:11], atol=0.1, rtol=0)


def test_a_zoom_scales_about_the_centre():
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    disc = ((x**2 + y**2) < 64).float().expand(500, 1, 33, 33)
    area = Augmentation(zoom=0.25)(disc, torch.arange(500), seed=0, epoch=0).sum((1, 2, 3))
    scale = (area / disc[0].sum()).sqrt()
    assert 0.735 < scale.min() < 0.77
    assert 1.23 < scale.max() < 1.265


def test_a_warp_bends_smoothly_and_differently_from_image_to_image():
    # The brightness of a pixel tells where it came from.
    columns = torch.arange(17.0).expand(300, 1, 17, 17) / 8 - 1
    moves = 8 * (Augmentation(warp=1.5)(columns, torch.arange(300), seed=0, epoch=0) - columns)[:, 0, 2:-2, 4:-4]
    # Between the points of the grid, cubic interpolation goes a little beyond what they move by.
    assert 1.4 < moves.max() < 2.3
    assert -2.3 < moves.min() < -1.4
    assert moves.mean().abs() < 0.03
    assert moves.diff(dim=1).abs().max() < 1.2
    assert moves.std(0).min() > 0.3
    still = Augmentation(warp=1e-4)(columns, torch.arange(300), seed=0, epoch=0)
    torch.testing.assert_close(still, columns, atol=1e-3, rtol=0)


def test_turned_images_change_alike_in_any_batch_and_stay_in_range():
    index = torch.arange(40)
    change = Augmentation(flip=True, shift=2, rotate=20, zoom=0.2, warp=2)
    whole = change(IMAGES, index, seed=3, epoch=5)
    torch.testing.assert_close(
        torch.cat([change(IMAGES[i], i, seed=3, epoch=5) for i in index.split(7)]), whole, atol=1e-6, rtol=0
    )
    assert whole.min() >= IMAGES.min()
    assert whole.max() <= IMAGES.max()


def test_nothing_asked_for_changes_nothing():
    assert Augmentation()(IMAGES, torch.arange(40), seed=0, epoch=0) is IMAGES


def test_what_cannot_be_changed_is_refused():
    with pytest.raises(data.DataError, match="larger than that; these are 8×8"):
        Augmentation(shift=8).check((1, 8, 8))
    with pytest.raises(data.DataError, match="not for data of shape"):
        Augmentation(flip=True).check((3,))


def trained(**changes) -> dict[str, torch.Tensor]:
    settings = {"training.steps": 4, "training.batch_size": 50, "model.data_shape": (1, 8, 8), "model.levels": 1}
    settings |= {"model.hidden": 8, "discriminator.width": 8, "record.evaluate_every": 100}
    config = override(Config(), settings | changes)
    torch.manual_seed(0)
    return Trainer(build(config), "digits").fit().hierarchy.state_dict()


def test_the_trainer_augments_as_the_config_says():
    plain, flipped, again = trained(), trained(**{"data.flip": True}), trained(**{"data.flip": True})
    assert all(torch.equal(flipped[name], again[name]) for name in flipped)
    assert any(not torch.equal(flipped[name], plain[name]) for name in flipped)
