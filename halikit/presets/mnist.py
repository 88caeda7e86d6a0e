"""MNIST: two levels, convolutional."""

from __future__ import annotations

from halikit.config import Config, DataConfig
from halikit.presets.families import conv

__all__ = ["mnist"]


def mnist() -> Config:
    """Two levels on MNIST. The paper trains on it semi-supervised only, and gives no layers: all settings are ours."""
    return conv(2).model_copy(update={"preset": "mnist", "data": DataConfig(spec="mnist:data/mnist")})
