"""A class-conditional model: kernels of one's own that read the class of each digit as a context."""

import pyro.distributions as dist
import torch
from torch import nn

import halikit as hk


class OfClass(hk.DensityKernel):
    """T_{w|v, class} with Laplace noise."""

    takes_context = True

    def __init__(self, source: hk.Space, target: hk.Space) -> None:
        super().__init__(source, target)
        self.network = nn.Sequential(nn.Linear(source.size + 10, 256), nn.ReLU(), nn.Linear(256, target.size))

    def forward(self, given: torch.Tensor) -> dist.TorchDistribution:
        """The distribution over ``target``."""
        classes = nn.functional.one_hot(self.context, 10)
        mean = self.network(torch.cat([given.flatten(1), classes], 1)).view(-1, *self.target.shape)
        return dist.Laplace(mean, 0.1).to_event(self.target.rank)


def main(steps: int = 3000) -> torch.Tensor:
    """Train on scikit-learn's digits, and draw ten samples of each class, ``(100, 1, 8, 8)``."""
    x, z = hk.Space("x", (1, 8, 8)), hk.Space("z1", (16,))
    hierarchy = hk.Hierarchy([hk.Link(OfClass(x, z), OfClass(z, x))])
    hk.Trainer(hk.Model(hierarchy, hk.build_discriminator(hierarchy, context=10)), "digits").fit(steps)
    return hierarchy.sample(100, context=torch.arange(10).repeat_interleave(10))


if __name__ == "__main__":
    main()
