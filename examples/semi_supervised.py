"""Fifty labels among 1,500 digits: the game with them against the labels alone (Eqs. 9 and 10)."""

import torch
import typer

import halikit as hk
from halikit.analysis.classification import class_errors
from halikit.config import Config, override
from halikit.presets.families import dense


def settings(steps: int, labels: int) -> Config:
    """One level of latents under a level of ten classes."""
    changes = {"data_shape": (1, 8, 8), "classes": 10, "labels.number": labels, "training.steps": steps}
    return override(dense(1), changes | {"labels.weight": 20.0, "encoder_noise": 0.3})


def main(steps: int = 4000, labels: int = 50) -> dict[str, int]:
    """Train both ways; returns the errors on the 297 held-out digits."""
    game = settings(steps, labels)
    changes = {"training.method": "supervised", "training.steps": max(1, steps // 5), "final_rate_share": 1.0}
    alone = override(game, changes)
    digits, errors = hk.data.load("digits"), {}
    for name, config in {"the game and labels": game, "labels alone": alone}.items():
        torch.manual_seed(0)
        trainer = hk.Trainer(hk.build(config), digits)
        trainer.fit()
        counted = class_errors(trainer.averaged, digits.test)
        errors[name] = counted.errors
        print(f"{name:20} {counted.errors} errors of {counted.number} with {labels} labels")
    return errors


if __name__ == "__main__":
    typer.run(main)
