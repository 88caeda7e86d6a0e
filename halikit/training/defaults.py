"""What ``auto`` stands for in ``[hardware]``: the fastest precision and step that the machine is known to have.

The choice is made from what the hardware and the settings say, never from a timing. So the same run on the same machine
has the same settings each time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from halikit.config import Config
from halikit.hardware.compiled import has_compiler
from halikit.hardware.precision import bfloat16_units
from halikit.model import Model

__all__ = ["Choice", "fitting_mode", "fitting_precision"]

# Steps from which on compiling pays: it takes as long as 1,600 steps of digits save, and thrice that for the first time
# on a machine. On a CPU it saves nothing for convolutions (docs/results/speed.md).
_WORTH_COMPILING = 3000
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Choice(NamedTuple):
    """The settings with one ``auto`` replaced.

    Attributes:
        config: The settings.
        reason: Why this was chosen, in words; empty where the settings named it.
    """

    config: Config
    reason: str


def fitting_precision(config: Config, dtype: torch.dtype, device: torch.device) -> Choice:
    """Replace ``hardware.precision = "auto"``: bfloat16 where the hardware multiplies in it, float32 elsewhere.

    Args:
        config: The settings.
        dtype: Dtype of the weights.
        device: Where the model trains.
    """
    if config.hardware.precision != "auto":
        return Choice(config, "")
    if dtype == torch.float64:
        return _chosen(config, "precision", "64", "the model is in float64")
    if config.sums_densities:
        return _chosen(config, "precision", "32", "the evidence bound sums log-densities")
    if units := bfloat16_units(device):
        return _chosen(config, "precision", "bf16", f"{units} multiply in it")
    return _chosen(config, "precision", "32", f"this {device.type.upper()} has no units for bfloat16")


def fitting_mode(config: Config, model: Model, device: torch.device, steps: int) -> Choice:
    """Replace ``hardware.compile = "auto"``: compiled steps where they save more than they cost.

    Args:
        config: The settings.
        model: The model.
        device: Where the model trains.
        steps: Number of steps to come.
    """
    if config.hardware.compile != "auto":
        return Choice(config, "")
    convolves = any(isinstance(layer, _CONVOLUTIONS) for part in model.parts.values() for layer in part.modules())
    if not config.plays or config.hardware.recompute:
        return _chosen(config, "compile", None, "only the game is compiled, without recompute")
    if convolves and device.type == "cpu":
        return _chosen(config, "compile", None, "compiled convolutions are no faster on a CPU")
    if steps < _WORTH_COMPILING:
        return _chosen(config, "compile", None, f"compiling pays from {_WORTH_COMPILING:,} steps on")
    if not has_compiler(device):
        return _chosen(config, "compile", None, "no compiler was found")
    return _chosen(config, "compile", "default", f"it pays from {_WORTH_COMPILING:,} steps on")


def _chosen(config: Config, name: str, value: str | None, reason: str) -> Choice:
    hardware = config.hardware.model_copy(update={name: value})
    return Choice(config.model_copy(update={"hardware": hardware}), reason)
