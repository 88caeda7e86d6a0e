"""What halikit 0.1.0 wrote, as this version reads it.

There, stacks of three levels and more grew level by level, and a discriminator had an adapter in front of its head for
each level. The adapter of the top level is now the first layer of the head, so that Eq. 8 gives the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halikit.config import Config, read_toml
from halikit.discriminator import JointDiscriminator

__all__ = [
    "adapter_in",
    "first_levels",
    "levels_in",
    "read_config",
    "upgraded_config",
    "upgraded_discriminator",
    "upgraded_outcomes",
]

# Settings of growth, which every config of 0.1.0 names.
_GROWTH = ("grow_every", "settled_rate")
# A tensor of an adapter or of a head, what is before it in its name, and whether it is of a pair.
_TENSOR = re.compile(
    r"(?P<before>.*?(?P<pair>pairs\.\d+\.)?)(adapters\.(?P<level>\d+)\.1|head\.(?P<layer>\d+))\.(?P<rest>.+)"
)
# Layers that the adapter adds in front of the head.
_ADDED = 2


def upgraded_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a config, that of 0.1.0 without growth: no linear skips, no sleep phase; others as they are."""
    training, model = values.get("training"), values.get("model")
    if not isinstance(training, Mapping) or not isinstance(model, Mapping) or _GROWTH[0] not in training:
        return dict(values)
    training = {name: value for name, value in training.items() if name not in _GROWTH}
    if training.get("method") == "adversarial":
        training["sleep"] = 0.0
    if model.get("family") != "paper":
        model = {**model, "skips": False}
    return {**values, "training": training, "model": model}


def read_config(run: Path) -> Config:
    """The ``config.toml`` of a run directory, of this version or an earlier one.

    Raises:
        ConfigError: If it is missing, is no TOML, or holds what is no setting.
    """
    return read_toml(run / "config.toml", upgrade=upgraded_config)


def levels_in(names: Iterable[str]) -> int:
    """How many levels the hierarchy has whose tensors have these names."""
    found = (re.match(r"hierarchy\.links\.(\d+)\.", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def upgraded_discriminator(tensors: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    """The tensors by name, those of the top adapter as the first layer of the head; other adapters are left out.

    Args:
        tensors: Of a discriminator, and whatever else has none of its names; the states of optimisers as well.
        level: Levels that had been trained.
    """
    matches = {name: _TENSOR.fullmatch(name) for name in tensors}
    if not any(match and match["level"] for match in matches.values()):
        return dict(tensors)
    result = {}
    for name, tensor in tensors.items():
        match = matches[name]
        if match is None:
            result[name] = tensor
        elif match["layer"]:
            result[f"{match['before']}head.{int(match['layer']) + _ADDED}.{match['rest']}"] = tensor
        elif match["pair"] or int(match["level"]) == level - 1:
            result[f"{match['before']}head.1.{match['rest']}"] = tensor
    return result


def adapter_in(tensors: Mapping[str, Tensor], discriminator: JointDiscriminator) -> nn.Linear:
    """The first layer of the head, of as many features as the file's adapter takes.

    Args:
        tensors: As :func:`upgraded_discriminator` gives them, each name behind ``discriminator.``.
        discriminator: Of the whole stack.
    """
    whole, found = discriminator.head[1], tensors.get("discriminator.head.1.weight")
    assert isinstance(whole, nn.Linear)
    # A file without one is refused where its tensors are compared.
    features = whole.in_features if found is None or found.dim() != 2 else found.shape[1]
    return nn.Linear(features, whole.out_features)


def first_levels(discriminator: JointDiscriminator, level: int, tensors: Mapping[str, Tensor]) -> JointDiscriminator:
    """The discriminator of a stack that was still growing: its first stages under the adapter that the file holds.

    Args:
        discriminator: Of the whole stack.
        level: Levels that had been trained.
        tensors: As :func:`adapter_in` takes them.
    """
    head = nn.Sequential(nn.Flatten(), adapter_in(tensors, discriminator), *list(discriminator.head)[_ADDED:])
    return JointDiscriminator(
        discriminator.spaces[: level + 1],
        list(discriminator.stages)[: level + 1],
        head,
        input_noise=discriminator.noise.scale,
    )


def upgraded_outcomes(outcomes: Tensor) -> Tensor:
    """What steps of the game came to, ``(steps, 4 or 5)``, with a sleep phase that cost nothing."""
    return torch.cat([outcomes[:, :4], outcomes.new_zeros(len(outcomes), 1), outcomes[:, 4:]], 1)
