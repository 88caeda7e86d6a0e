"""What halikit 0.1.0 wrote, as this version reads it.

There, stacks of three levels and more grew level by level, and a discriminator had an adapter in front of its head for
each level. The adapter of the top level is now the first layer of the head, so that Eq. 8 gives the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from halikit.config import Config, read_table
from halikit.discriminator import JointDiscriminator
from halikit.renamed import RENAMED

__all__ = [
    "adapter_in",
    "columns_of",
    "first_levels",
    "levels_in",
    "read_config",
    "upgraded_config",
    "upgraded_tensors",
]

# Settings of growth, which every config of 0.1.0 names.
_GROWTH = ("grow_every", "settled_rate")
# A tensor of an adapter or of a head, what is before it in its name, and whether it is of a pair.
_TENSOR = re.compile(
    r"(?P<before>.*?(?P<pair>parts\.\d+\.)?)(adapters\.(?P<level>\d+)\.1|head\.(?P<layer>\d+))\.(?P<rest>.+)"
)
# Layers that the adapter adds in front of the head.
_ADDED = 2


def upgraded_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a config with the names of this version.

    A config of 0.1.0 names settings of growth. It has neither linear skips nor the sleep phase.
    """
    training, model = values.get("training"), values.get("model")
    if not isinstance(training, Mapping) or not isinstance(model, Mapping):
        return dict(values)
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in values.items()}
    if _GROWTH[0] in training:
        tables["training"] = {name: value for name, value in training.items() if name not in _GROWTH} | {"sleep": 0.0}
        if model.get("family") != "paper":
            tables["model"]["skips"] = False
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        table = tables.get(section)
        if isinstance(table, dict) and key in table:
            tables.setdefault(new_section, {})[new_key] = table.pop(key)
    labels = tables.get("labels")
    if isinstance(labels, dict) and labels.get("number") in (None, "none"):
        del tables["labels"]
    if training.get("method", "adversarial") != "adversarial":
        # Settings without effect were written with defaults that are not those of this version.
        tables = {name: table for name, table in tables.items() if name not in ("game", "discriminator")}
    return tables


def read_config(path: Path) -> Config:
    """The ``config.toml`` of a run, of this version or an earlier one.

    Raises:
        ConfigError: If it is missing, is not TOML, or holds an unknown setting.
    """
    return Config.parse(upgraded_config(read_table(path)), str(path))


def levels_in(names: Iterable[str]) -> int:
    """How many levels the hierarchy has whose tensors have these names."""
    found = (re.match(r"hierarchy\.links\.(\d+)\.", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def upgraded_tensors(tensors: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    """The tensors by the names of this version.

    The top adapter of 0.1.0 becomes the first layer of the head; its other adapters are left out. Until 0.2.0 a
    discriminator of several games called them pairs, and the state of the labels had other names.

    Args:
        tensors: Of a discriminator, and whatever else has none of its names; the states of optimisers as well.
        level: Levels that had been trained.
    """
    tensors = {_upgraded_name(name): tensor for name, tensor in tensors.items()}
    matches = {name: _TENSOR.fullmatch(name) for name in tensors}
    if not any(match and match["level"] for match in matches.values()):
        return tensors
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


def _upgraded_name(name: str) -> str:
    for old, new in (("shares.", "extra.supervised_loss.alignment."), ("graph.", "extra.supervised_loss.graph.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return re.sub(r"(^|\.)pairs\.(\d+)\.", r"\1parts.\2.", name)


def adapter_in(tensors: Mapping[str, Tensor], discriminator: JointDiscriminator) -> nn.Linear:
    """The first layer of the head, of as many features as the file's adapter takes.

    Args:
        tensors: As :func:`upgraded_tensors` gives them, each name behind ``discriminator.``.
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


def columns_of(method: str, *, has_sleep: bool) -> list[str]:
    """Names of the losses of a step, in the order of checkpoints that do not name them.

    Args:
        method: ``training.method``.
        has_sleep: Whether the version knew the sleep phase: not 0.1.0.
    """
    if method == "adversarial":
        return ["d_loss", "g_loss", "rho_q", "rho_p", *["sleep_loss"] * has_sleep, "supervised_loss"]
    return ["negative_elbo"] if method == "elbo" else ["supervised_loss"]
