"""Memory that a step needs at each size of convolutional stacks, from one forward pass on a CPU.

    python sizes.py [SIDE…]

Prints for images of each side, 32, 64 and 128 by default, in batches of 32 and single precision: parameters; gibibytes
of weights, averages, gradients and Adam's two moments; and gibibytes of what the forward pass of the game saves for the
backward pass. Penalties differentiate twice and need about twice the last number.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import halikit as hk
from halikit.algorithm import play
from halikit.networks.shapes import fitting_levels
from halikit.networks.sizes import SIZES, SizeName

BATCH, COPIES, FLOAT, GIB = 32, 5, 4, 2**30


def needs(size: SizeName, side: int) -> str:
    """The numbers of a size for images ``(3, side, side)``, in one line."""
    shape = (3, side, side)
    hierarchy = hk.ladder(fitting_levels(shape), shape, size=size)
    discriminator = hk.build_discriminator(hierarchy, width=SIZES[size].discriminator)
    own = [*hierarchy.parameters(), *discriminator.parameters()]
    saved: dict[int, int] = {}

    def noted(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        step = play(hierarchy, discriminator, torch.rand(BATCH, *shape) * 2 - 1)
    for parameter in own:
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    count = sum(parameter.numel() for parameter in own)
    del step  # it kept what was saved, so that no address was used twice
    return (
        f"{size:6} {side:4}  L = {len(hierarchy)}  {count / 1e6:6.1f} M parameters  "
        f"{COPIES * FLOAT * count / GIB:5.2f} GiB of state  {sum(saved.values()) / GIB:5.2f} GiB saved"
    )


if __name__ == "__main__":
    for side in map(int, sys.argv[1:] or (32, 64, 128)):
        for size in SIZES:
            print(needs(size, side), flush=True)
