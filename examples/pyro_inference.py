"""Pyro on a trained hierarchy: condition the decoder's joint on a latent, and weigh the encoder's guesses."""

import pyro
import torch
import typer
from pyro.infer import Importance
from torch import Tensor

import halikit as hk
from halikit.config import override


def trained(steps: int) -> hk.Hierarchy:
    """Two levels on digits, with a density at the bottom: p(x|z1) = N(network(z1), 0.3²)."""
    torch.manual_seed(0)
    changes = {"levels": 2, "observation_scale": 0.3, "training.steps": steps, "preset": "none"}
    trainer = hk.Trainer(hk.build(override(hk.presets.digits(), changes)), "digits")
    trainer.fit()
    return trainer.averaged


@torch.no_grad()
def evidence(hierarchy: hk.Hierarchy, x: Tensor, num_samples: int) -> tuple[float, float]:
    """A lower bound on log p(x) in nats, and the effective number of samples behind it, from importance sampling."""
    posterior = Importance(hierarchy.model, hierarchy.guide, num_samples=num_samples).run(x)
    return posterior.get_log_normalizer().item(), posterior.get_ESS().item()


@torch.no_grad()
def main(steps: int = 4000) -> list[float]:
    """Train; returns bounds on log p(x) of one digit, from 1 to 1,000 samples."""
    with torch.enable_grad():
        hierarchy = trained(steps)
    x = hk.data.load("digits").held_out.batch(torch.tensor([3]))

    # Eq. 4 with z2 held at the encoding of one digit: everything below is drawn afresh, sites by name.
    z2 = hierarchy.encode(x)["z2"].expand(500, -1)
    states = pyro.condition(hierarchy.decoder_joint, {"z2": z2})(500)
    spread = states["x"].std(0).mean().item()
    print(f"with z2 given, pixels vary by {spread:.2f}; over the prior, by {hierarchy.sample(500).std(0).mean():.2f}")

    # The encoder as the guide: its guesses are weighed by how well the decoder explains them.
    bounds = []
    for num_samples in (1, 10, 100, 1000):
        bound, effective = evidence(hierarchy, x, num_samples)
        bounds.append(bound)
        print(f"{num_samples:>5,} samples: log p(x) ≥ {bound:8.1f} nats, {effective:.1f} effective samples")
    return bounds


if __name__ == "__main__":
    typer.run(main)
