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
    units = bfloat16_units(device)
    if dtype == torch.float64:
        found = "64", "the model is in float64"
    elif config.sums_densities:
        found = "32", "the evidence bound sums log-densities"
    elif units:
        found = "bf16", f"{units} multiply in it"
    else:
        found = "32", f"this {device.type.upper()} has no units for bfloat16"
    return _chosen(config, "precision", *found)


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
        found = None, "only the game is compiled, without recompute"
    elif convolves and device.type == "cpu":
        found = None, "compiled convolutions are no faster on a CPU"
    elif steps < _WORTH_COMPILING:
        found = None, f"compiling pays from {_WORTH_COMPILING:,} steps on"
    elif not has_compiler(device):
        found = None, "no compiler was found"
    else:
        found = "default", f"it pays from {_WORTH_COMPILING:,} steps on"
    return _chosen(config, "compile", *found)


def _chosen(config: Config, name: str, value: str | None, reason: str) -> Choice:
    hardware = config.hardware.model_copy(update={name: value})
    return Choice(config.model_copy(update={"hardware": hardware}), reason)
