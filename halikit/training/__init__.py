"""Training: the trainer, its averages and its records. No mathematics here."""

from halikit.training.trainer import Trainer

__all__ = ["Trainer"]
