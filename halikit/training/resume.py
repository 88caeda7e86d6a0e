"""What may change between a checkpoint and the training that goes on from it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from halikit.config import Config, differences
from halikit.errors import InputError

__all__ = ["check_same_model", "notices", "surroundings"]

# Settings of the discriminator that are part of the game, not of the networks.
_FREE = {"discriminator.input_noise", "discriminator.dropout"}
# Settings that change no weight.
_IDLE = {
    "preset",
    "record.keep_checkpoints",
    "record.checkpoint_every",
    "hardware.device",
    "hardware.threads",
    "hardware.prefetch",
    "model.data_shape",
}


def surroundings(device: torch.device, processes: int) -> dict[str, str]:
    """What must be the same for a training to go on to the last bit."""
    return {
        "device": device.type,
        "processes": str(processes),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def check_same_model(before: Config, after: Config) -> None:
    """Refuse to go on with other networks.

    Raises:
        InputError: Listing the settings that differ.
    """
    changed = {
        name: change
        for name, change in differences(before, after).items()
        if name.startswith(("model.", "discriminator.", "training.method")) and name not in _FREE
    }
    if changed:
        listed = "; ".join(f"{name}: {change}" for name, change in changed.items())
        raise InputError(
            f"the checkpoint is of another architecture: {listed}; leave these as they were, or start anew"
        )


def notices(facts: Mapping[str, Any], before: Config, after: Config, now: Mapping[str, str]) -> list[str]:
    """What a person should know about going on, in sentences.

    Args:
        facts: Of the checkpoint.
        before: Its config.
        after: The config to go on with.
        now: The present :func:`surroundings`.
    """
    said = []
    changed = {name: change for name, change in differences(before, after).items() if name not in _IDLE}
    if changed:
        listed = "; ".join(f"{name}: {change}" for name, change in changed.items())
        said.append(f"going on from step {facts['step']} with other settings: {listed}")
    moved = [
        f"{name}: {then} → {now[name]}" for name, then in facts["surroundings"].items() if now.get(name, then) != then
    ]
    if moved:
        said.append(f"going on elsewhere ({'; '.join(moved)}): the result will not be the same to the last bit")
    return said
