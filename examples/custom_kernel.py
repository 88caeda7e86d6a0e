"""A kernel of your own: p(x|z) as a mixture of Gaussians, trained by the same trainer on two interleaved moons."""

import pyro.distributions as dist
import torch
import typer
from sklearn.datasets import make_moons
from torch import Tensor, nn

import halikit as hk
from halikit.config import Config, override


class MixtureKernel(hk.DensityKernel):
    """T_{w|v} as a mixture of K diagonal Gaussians; the network gives weights, means and scales."""

    def __init__(self, source: hk.Space, target: hk.Space, components: int = 4) -> None:
        super().__init__(source, target)
        self.sizes = [1, target.size, target.size]
        self.components = components
        self.network = mlp(source.size, components * sum(self.sizes))

    def forward(self, given: Tensor) -> dist.MixtureOfDiagNormals:
        """The mixture over ``target`` for each ``given`` (..., source.size)."""
        parameters = self.network(given).unflatten(-1, (self.components, -1))
        logits, means, scales = parameters.split(self.sizes, -1)
        return dist.MixtureOfDiagNormals(means, 0.05 + 0.5 * scales.sigmoid(), logits.squeeze(-1))

    def mean(self, given: Tensor) -> Tensor:
        """The mean of the mixture, (..., target.size)."""
        mixture = self(given)
        return (mixture.component_logits.softmax(-1).unsqueeze(-1) * mixture.locs).sum(-2)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.1), nn.Linear(64, outputs))


def build() -> hk.Model:
    """One level: x and z1 in the plane, the usual Gaussian up, the mixture down."""
    x, z = hk.Space("x", (2,)), hk.Space("z1", (2,))
    up = hk.GaussianKernel(x, z, mlp(2, 4), gauge="variance_preserving", max_scale=0.5)
    hierarchy = hk.Hierarchy([hk.Link(up, MixtureKernel(z, x))])
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=64, input_noise=0.1))


def main(steps: int = 2000, out: str | None = None) -> float:
    """Train; returns the mean distance of a sample to the nearest moon, in units of the data."""
    torch.manual_seed(0)
    moons = torch.tensor(make_moons(2000, noise=0.05, random_state=0)[0], dtype=torch.float32)
    settings = override(Config(), {"steps": steps, "learning_rate": 1e-3})
    trainer = hk.Trainer(build(), moons, settings=settings, out=out)
    trainer.fit()
    distance = torch.cdist(trainer.averaged.sample(1000), moons).min(1).values.mean().item()
    print(f"a sample is {distance:.3f} from the nearest of 2,000 points after {steps} steps")
    return distance


if __name__ == "__main__":
    typer.run(main)
