"""Five levels on handwritten digits, trained all at once: what each level keeps of a digit."""

from pathlib import Path

import torch
import typer

import halikit as hk
from halikit import plotting
from halikit.analysis.labels import label_scores
from halikit.config import override
from halikit.presets.families import dense


def main(steps: int = 18_000, out: Path = Path("five_levels.png")) -> tuple[float, ...]:
    """Train; returns the share of held-out digits that each level's reconstruction leaves legible."""
    torch.manual_seed(0)
    # The family's settings have what couples many levels: linear skips, and a sleep phase for the encoder.
    config = override(dense(5), {"data_shape": (1, 8, 8), "training.steps": steps})
    trainer = hk.Trainer(hk.build(config), "digits")
    trainer.fit()

    hierarchy, digits = trainer.averaged, hk.data.load("digits")
    scores = label_scores(hierarchy, digits)
    for level, kept in enumerate(scores.kept, 1):
        print(f"z{level}: {kept:.2f} of the labels survive (of the digits themselves: {scores.reference:.2f})")
    x = digits.held_out.batch(torch.arange(16))
    rows = {"x": x} | {f"z{level}": hierarchy.reconstruct(x, level) for level in range(1, 6)}
    plotting.save_png(out, plotting.labelled_rows(rows))
    return scores.kept


if __name__ == "__main__":
    typer.run(main)
