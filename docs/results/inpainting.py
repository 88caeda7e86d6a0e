"""Inpainting judged by more than pixels: `python inpainting.py RUN`.

The central half of height and width of 500 held-out images is missing. Of every way to fill it: the error over the
missing pixels, d_c (Eq. 8), and, where there are classes, the share of labels that 3 nearest neighbours among 10,000
training images still find.
"""

from __future__ import annotations

import sys

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import halikit as hk
from halikit import data
from halikit.analysis.inpainting import centre_mask, inpaint, inpainting_errors
from halikit.analysis.reconstruction import embedded_distance


@torch.no_grad()
def again(hierarchy: hk.Hierarchy, x: Tensor, mask: Tensor, fill: Tensor, *, rounds: int, sample: bool) -> Tensor:
    """The procedure of section 6.1 with several rounds a level, or along drawn states."""
    current = torch.where(mask, fill, x)
    for level in range(len(hierarchy), 0, -1):
        for _ in range(rounds):
            current = torch.where(mask, hierarchy.reconstruct(current, level, sample=sample), x)
    return current


def main(run: str) -> None:
    """Print a line per way."""
    torch.manual_seed(0)
    model = hk.load(run)
    assert model.config is not None
    assert model.discriminator is not None
    hierarchy = model.hierarchy
    loaded = data.load(model.config.data.spec, size=model.config.data.size)
    train = loaded.train.batch(torch.arange(min(10_000, len(loaded.train))))
    x, labels = loaded.held_out.batch(torch.arange(500)), loaded.held_out.labels
    mask = centre_mask(tuple(x.shape[1:]))
    mean = train.mean(0)
    nearest = None
    if labels is not None and loaded.train.labels is not None:
        nearest = KNeighborsClassifier(3).fit(train.flatten(1).numpy(), loaded.train.labels[: len(train)].numpy())

    found = inpaint(hierarchy, x, mask, fill=mean)
    errors = inpainting_errors(x, mask, found)
    print("difference to the mean image", errors.difference, "interval", errors.interval)
    noise = inpaint(hierarchy, x, mask, fill=torch.randn_like(x).clamp(-1, 1))
    draws = [again(hierarchy, x, mask, mean, rounds=1, sample=True) for _ in range(20)]
    ways = {
        "the images themselves": x,
        "mean image": found.masked,
        "section 6.1": found.completed,
        "from noise": noise.completed,
        "3 rounds a level": again(hierarchy, x, mask, mean, rounds=3, sample=False),
        "one draw": draws[0],
        "mean of 20 draws": torch.stack(draws).mean(0),
    }
    for way, images in ways.items():
        error = (images - x)[..., mask].flatten(1).square().mean(1).sqrt().mean()
        distance = embedded_distance(hierarchy, model.discriminator, x, images).mean()
        print(f"{way:24} error {error:.3f}   d_c {distance:.3f}", end="")
        if nearest is not None and labels is not None:
            print(f"   label {nearest.score(images.flatten(1).numpy(), labels[:500].numpy()):.3f}", end="")
        print()


if __name__ == "__main__":
    main(sys.argv[1])
