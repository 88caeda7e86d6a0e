"""Scikit-learn's 8×8 digits: three levels in five minutes on two cores."""

from __future__ import annotations

from halikit.config import Config
from halikit.presets.families import dense

__all__ = ["digits"]


def digits() -> Config:
    """Three dense levels on the embedded digits. All settings are ours: the paper has no such experiment."""
    return dense(3).model_copy(update={"preset": "digits"})
