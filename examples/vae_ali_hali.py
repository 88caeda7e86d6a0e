"""A variational autoencoder, ALI and HALI on the same digits, the same kernels, for the same number of steps."""

import torch
import typer

import halikit as hk
from halikit.analysis.labels import LabelScores, label_scores
from halikit.config import override

MODELS = {"VAE": hk.presets.vae_digits, "ALI": hk.presets.ali_digits, "HALI": hk.presets.digits}


def main(steps: int = 6000) -> dict[str, LabelScores]:
    """Train all three; returns what is kept of the labels, and how near samples are to the data."""
    digits, found = hk.data.load("digits"), {}
    for name, preset in MODELS.items():
        torch.manual_seed(0)
        trainer = hk.Trainer(hk.build(override(preset(), {"training.steps": steps})), digits)
        trainer.fit()
        found[name] = scores = label_scores(trainer.averaged, digits)
        kept = ", ".join(f"z{level} {share:.2f}" for level, share in enumerate(scores.kept, 1))
        print(f"{name:5} labels kept: {kept}; samples are {scores.sample_distance:.2f} from the nearest digit")
    print(f"held-out digits are {scores.held_out_distance:.2f} from it")
    return found


if __name__ == "__main__":
    typer.run(main)
