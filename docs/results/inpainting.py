"""Inpainting judged by more than pixels: `python inpainting.py RUN`.

The central half of height and width of 500 held-out images is missing. Of every way to fill it: the error over the
missing pixels with the difference to the mean image in per cent, d_c (Eq. 8), and, where there are classes, the share
of labels that 3 nearest neighbours among 10,000 training images still find.
"""

from __future__ import annotations

import sys

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import halikit as hk
from halikit import data
from halikit.analysis.inpainting import centre_mask, inpaint, inpaint_by_search, mean_image
from halikit.analysis.reconstruction import embedded_distance


@torch.no_grad()
def again(hierarchy: hk.Hierarchy, x: Tensor, mask: Tensor, fill: Tensor, *, rounds: int, sample: bool) -> Tensor:
    """The procedure of section 6.1 with several rounds a level, or along drawn states."""
    current = torch.where(mask, fill, x)
    for level in range(len(hierarchy), 0, -1):
        for _ in range(rounds):
            current = torch.where(mask, hierarchy.reconstruct(current, level, sample=sample), x)
    return current


def ways_to_fill(hierarchy: hk.Hierarchy, x: Tensor, mask: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """The completed images by the name of the way."""
    paper = inpaint(hierarchy, x, mask, fill=mean)
    draws = [again(hierarchy, x, mask, mean, rounds=1, sample=True) for _ in range(16)]
    mode = inpaint_by_search(hierarchy, x, mask, fill=mean, draws=0)
    search = inpaint_by_search(hierarchy, x, mask, fill=mean)
    return {
        "the images themselves": x,
        "mean image": paper.masked,
        "section 6.1": paper.completed,
        "section 6.1, 3 rounds a level": again(hierarchy, x, mask, mean, rounds=3, sample=False),
        "section 6.1, one draw": draws[0],
        "section 6.1, mean of 16": torch.stack(draws).mean(0),
        "search, most probable": mode.completed,
        "search, one draw": search.steps["draw"],
        "search, mean of 16": search.completed,
    }


def main(run: str) -> None:
    """Print a line per way."""
    torch.manual_seed(0)
    model = hk.load(run)
    assert model.config is not None
    assert model.discriminator is not None
    hierarchy = model.hierarchy
    loaded = data.load(model.config.data.spec, size=model.config.data.size)
    x, labels = loaded.held_out.batch(torch.arange(min(500, len(loaded.held_out)))), loaded.held_out.labels
    mask = centre_mask(tuple(x.shape[1:]))
    nearest = None
    if labels is not None and loaded.train.labels is not None:
        train = loaded.train.batch(torch.arange(min(10_000, len(loaded.train))))
        nearest = KNeighborsClassifier(3).fit(train.flatten(1).numpy(), loaded.train.labels[: len(train)].numpy())

    ways = ways_to_fill(hierarchy, x, mask, mean_image(loaded.train))
    base = (ways["mean image"] - x)[..., mask].square().mean().sqrt()
    for way, images in ways.items():
        error = (images - x)[..., mask].square().mean().sqrt()
        distance = embedded_distance(hierarchy, model.discriminator, x, images).mean()
        print(f"{way:29} error {error:.3f} ({100 * (error / base - 1):+.1f} %)   d_c {distance:.2f}", end="")
        if nearest is not None and labels is not None:
            print(f"   label {nearest.score(images.flatten(1).numpy(), labels[: len(x)].numpy()):.3f}", end="")
        print()


if __name__ == "__main__":
    main(sys.argv[1])
