"""A kernel of your own: p(x|z) as a Gaussian with a low-rank covariance, trained on two interleaved moons."""

import pyro.distributions as dist
import torch
import typer
from sklearn.datasets import make_moons
from torch import Tensor, nn

import halikit as hk
from halikit.config import Config, override


class LowRankKernel(hk.DensityKernel):
    """T_{w|v} as a Gaussian whose elements vary together: a covariance of low rank, plus a diagonal."""

    def __init__(self, source: hk.Space, target: hk.Space, rank: int = 1) -> None:
        super().__init__(source, target)
        self.sizes = [target.size, target.size * rank, target.size]
        self.network = mlp(source.size, sum(self.sizes))

    def forward(self, given: Tensor) -> dist.LowRankMultivariateNormal:
        """The Gaussian over ``target`` for ``given`` (n, source.size)."""
        mean, factor, diagonal = self.network(given).split(self.sizes, -1)
        factor, diagonal = factor.unflatten(1, (self.target.size, -1)), 0.01 * diagonal.sigmoid() + 1e-4
        return dist.LowRankMultivariateNormal(mean, factor, diagonal)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.1), nn.Linear(64, outputs))


def build() -> hk.Model:
    """One level: x and z1 in the plane, the usual Gaussian up, the low-rank Gaussian down."""
    x, z = hk.Space("x", (2,)), hk.Space("z1", (2,))
    up = hk.GaussianKernel(x, z, mlp(2, 4), gauge="variance_preserving", max_scale=0.5)
    hierarchy = hk.Hierarchy([hk.Link(up, LowRankKernel(z, x))])
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=64, input_noise=0.1))


def main(steps: int = 2000, out: str | None = None) -> float:
    """Train; returns the mean distance from a datum to the nearest sample, in units of the data."""
    torch.manual_seed(0)
    moons = torch.tensor(make_moons(2000, noise=0.05, random_state=0)[0], dtype=torch.float32)
    settings = override(Config(), {"steps": steps, "learning_rate": 1e-3})
    trainer = hk.Trainer(build(), moons, settings=settings, out=out)
    trainer.fit()
    distance = torch.cdist(trainer.averaged.sample(1000), moons).min(0).values.mean().item()
    print(f"a datum is {distance:.3f} from the nearest of 1,000 samples after {steps} steps")
    return distance


if __name__ == "__main__":
    typer.run(main)
