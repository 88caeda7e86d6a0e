"""A learned prior: a mixture of Gaussians on z1, trained by the game on eight clusters in the plane."""

import torch
import typer

import halikit as hk
from halikit.config import override


def main(steps: int = 3000, prior: str = "mixture") -> float:
    """Train; returns the share of samples that are within three standard deviations of a cluster."""
    torch.manual_seed(0)
    centres = torch.tensor([[angle.cos(), angle.sin()] for angle in torch.arange(8) * torch.pi / 4])
    data = centres[torch.randint(8, (4000,))] + 0.05 * torch.randn(4000, 2)
    changes = {"levels": 1, "data_shape": (2,), "widths": (2,), "model.hidden": 64, "prior": prior, "steps": steps}
    changes |= {"learning_rate": 1e-3, "discriminator.width": 64, "input_noise": 0.05}
    config = override(hk.Config(), changes)
    trainer = hk.Trainer(hk.build(config), data)
    trainer.fit()
    share = torch.cdist(trainer.averaged.sample(2000), centres).min(1).values.lt(0.15).float().mean().item()
    print(f"{share:.2f} of the samples are in a cluster, with the prior {prior}")
    return share


if __name__ == "__main__":
    typer.run(main)
