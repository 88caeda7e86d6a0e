"""Differentiable augmentation of what a discriminator sees."""

import pytest
import torch

import halikit as hk
from halikit.algorithm import add_gradients, play
from halikit.networks.augmentation import DifferentiableAugmentation


def images(n: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


@pytest.mark.parametrize("kind", ["colour", "shift", "cutout"])
def test_each_image_is_changed_in_training_alone(kind):
    change, x = DifferentiableAugmentation([kind]), images()
    assert torch.equal(change.eval()(x), x)
    changed = change.train()(x)
    assert changed.shape == x.shape
    assert (changed != x).flatten(1).any(1).float().mean() > 0.8
    differences = (changed - x)[1:] - (changed - x)[:1]
    assert differences.flatten(1).abs().amax(1).min() > 0, "each image has a change of its own"


def test_colour_keeps_the_order_of_pixels_in_a_grey_image():
    x = images()[:, :1].expand(-1, 3, -1, -1)
    changed = DifferentiableAugmentation(["colour"]).train()(x)
    order = x[:, 0].flatten(1).argsort(1)
    assert (changed[:, 0].flatten(1).gather(1, order).diff(dim=1) >= -1e-5).all()


def test_a_shift_moves_an_image_by_at_most_an_eighth_and_leaves_zeros():
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, 8, 8] = 1
    found = DifferentiableAugmentation(["shift"]).train()(x)
    assert torch.equal(found.flatten(1).sum(1), torch.ones(200))
    _, _, rows, columns = found.nonzero(as_tuple=True)
    assert set((rows - 8).tolist()) == set((columns - 8).tolist()) == {-2, -1, 0, 1, 2}
    edge = DifferentiableAugmentation(["shift"]).train()(torch.ones(200, 1, 16, 16))
    assert set(edge.flatten(1).mean(1).mul(256).round().int().tolist()) <= {
        a * b for a in (14, 15, 16) for b in (14, 15, 16)
    }


def test_a_cutout_hides_a_square_with_half_of_the_sides():
    found = DifferentiableAugmentation(["cutout"]).train()(torch.ones(500, 1, 16, 16))
    hidden = (found == 0).flatten(1).sum(1)
    assert hidden.max() <= 8 * 8
    assert hidden.float().mean() > 30, "but for what lies beyond the edges"


def test_the_generators_gradient_passes_through_it_in_one_pass_as_in_two():
    torch.manual_seed(0)
    h = hk.ladder(2, (3, 16, 16), family="conv", hidden=4)
    d = hk.build_discriminator(h, family="conv", width=16, augment=["colour", "shift", "cutout"])
    gradients = []
    for single_pass in (True, False):
        for module in (h, d):
            module.zero_grad()
        torch.manual_seed(1)
        add_gradients(play(h, d, images(8)[:, :, :16, :16], single_pass=single_pass), h, d)
        gradients.append([p.grad.clone() for module in (h, d) for p in module.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert gradients[0][0].abs().sum() > 0


def test_unknown_kinds_and_data_other_than_images_are_refused():
    with pytest.raises(ValueError, match="colour, shift, cutout; got 'rotate'"):
        DifferentiableAugmentation(["rotate"])
    with pytest.raises(ValueError, match="augment changes images"):
        hk.build_discriminator(hk.ladder(2, (8,)), augment=["shift"])
