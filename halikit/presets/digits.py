"""Scikit-learn's 8×8 digits: three levels, trained in two minutes on two cores."""

from __future__ import annotations

from halikit.config import Config, override
from halikit.presets.families import dense

__all__ = ["digits", "digits_conditional"]


def digits() -> Config:
    """Three dense levels on scikit-learn's digits. The paper has no such experiment, so all settings are ours."""
    return override(dense(3), {"preset": "digits", "model.data_shape": (1, 8, 8)})


def digits_conditional() -> Config:
    """The preset digits, with all networks given the class of each digit. All settings are ours."""
    changes = {"preset": "digits_conditional", "model.conditional": "labels", "model.context_size": 10}
    return override(digits(), changes)
