"""Compares a checkpoint with the settings and the machine of the training that continues from it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from halikit.config import Config, differences
from halikit.errors import InputError

__all__ = ["adopted", "check_same_model", "notices", "surroundings"]

# Settings of the discriminator that may change, because all weights keep their shapes.
_FREE = {"discriminator.input_noise", "discriminator.dropout"}
# Settings that do not change the result of the training.
_IDLE = {
    "preset",
    "data.workers",
    "record.keep_checkpoints",
    "record.checkpoint_every",
    "record.best_by",
    "record.loggers",
    "hardware.device",
    "hardware.threads",
    "hardware.prefetch",
    "model.data_shape",
}


def surroundings(device: torch.device, processes: int) -> dict[str, str]:
    """Properties of the machine on which the exact result of a training depends."""
    return {
        "device": device.type,
        "processes": str(processes),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def adopted(before: Config, after: Config) -> Config:
    """The settings to go on with: compiled steps if ``auto`` chose them before, else eager ones."""
    if after.hardware.compile != "auto":
        return after
    hardware = after.hardware.model_copy(update={"compile": before.hardware.compile})
    return after.model_copy(update={"hardware": hardware})


def check_same_model(before: Config, after: Config) -> None:
    """Check that two configs have the same networks and the same method.

    Raises:
        InputError: If they differ; the message lists the settings.
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
    """Messages about other settings or another machine than before the checkpoint.

    Args:
        facts: Facts of the checkpoint, see :class:`~halikit.runs.checkpoints.State`.
        before: Config of the checkpoint.
        after: Config of the training that continues.
        now: Present :func:`surroundings`.
    """
    messages = []
    changed = {name: change for name, change in differences(before, after).items() if name not in _IDLE}
    if changed:
        listed = "; ".join(f"{name}: {change}" for name, change in changed.items())
        messages.append(f"going on from step {facts['step']} with other settings: {listed}")
    moved = [
        f"{name}: {former} → {now[name]}"
        for name, former in facts["surroundings"].items()
        if now.get(name, former) != former
    ]
    if moved:
        messages.append(f"going on elsewhere ({'; '.join(moved)}): the result will not be the same to the last bit")
    return messages
