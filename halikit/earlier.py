"""Reads configs, models and checkpoints of earlier versions.

In halikit 0.1.0 stacks of three levels or more grew level by level, and a discriminator had one adapter for each level
in front of its head. The adapter of the top level is now the first layer of the head, so Eq. 8 has the same values.

Convolutional stacks, and discriminators that convolve their data, have had other networks since schema 4. Earlier ones
are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from halikit.config import Config, read_table
from halikit.discriminator import JointDiscriminator
from halikit.networks.shapes import fitting_family
from halikit.renamed import RENAMED

__all__ = [
    "OTHER_NETWORKS",
    "adapter_in",
    "columns_of",
    "first_levels",
    "has_other_networks",
    "levels_in",
    "read_config",
    "upgraded_config",
    "upgraded_tensors",
]

# Settings of growth; every config of 0.1.0 has them.
_GROWTH = ("grow_every", "settled_rate")
# Names of the tensors of adapters and heads. "pair" matches in the discriminators of several games only.
_TENSOR = re.compile(
    r"(?P<before>.*?(?P<pair>parts\.\d+\.)?)(adapters\.(?P<level>\d+)\.1|head\.(?P<layer>\d+))\.(?P<rest>.+)"
)
# Schema of models and checkpoints since which convolutional networks are those of this version.
_CONVOLUTIONS = 4
# What is wrong with earlier ones, and what would be right.
OTHER_NETWORKS = (
    "has convolutional networks of an earlier version, which this version does not build: train again, or load it with "
    "the halikit that wrote it, such as 0.1"
)
# Number of layers in front of the old head: a flattening and the adapter.
_ADDED = 2


def upgraded_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a config with the names and defaults of this version.

    A config of 0.1.0 has settings of growth, which are removed. Its model had neither linear skips nor a sleep phase.
    Later no value for linear skips meant that dense and mixed stacks have them, which is now the default.
    """
    training, model = values.get("training"), values.get("model")
    if not isinstance(training, Mapping) or not isinstance(model, Mapping):
        return dict(values)
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in values.items()}
    if model.get("skips") in (None, "none"):
        tables["model"].pop("skips", None)
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
        # These sections have no effect with this method, but have the defaults of the version that wrote them.
        tables = {name: table for name, table in tables.items() if name not in ("game", "discriminator")}
    return tables


def read_config(path: Path) -> Config:
    """The ``config.toml`` of a run, of this version or an earlier one.

    Raises:
        ConfigError: If it is missing, is not TOML, or holds an unknown setting.
    """
    return Config.parse(upgraded_config(read_table(path)), str(path))


def has_other_networks(config: Config, schema: int) -> bool:
    """Whether a model was written with other networks than this version builds from its config.

    Args:
        config: Config of the model.
        schema: Schema of the model file or the checkpoint.
    """
    model, discriminator = config.model, config.discriminator
    if schema >= _CONVOLUTIONS or model.data_shape is None:
        return False
    is_large = fitting_family(model.data_shape) == "conv"
    convolves = discriminator.family == "conv" or (discriminator.family is None and is_large)
    is_conv = model.family == "conv" or (model.family is None and is_large)
    return is_conv or (config.plays and convolves and len(model.data_shape) > 1)


def levels_in(names: Iterable[str]) -> int:
    """Number of levels of a hierarchy, from the names of its tensors."""
    matches = (re.match(r"hierarchy\.links\.(\d+)\.", name) for name in names)
    return 1 + max((int(match[1]) for match in matches if match), default=0)


def upgraded_tensors(tensors: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    """Rename tensors to the names of this version.

    The top adapter of 0.1.0 becomes the first layer of the head; the other adapters are dropped. Before 0.2.0 a
    discriminator of several games called them pairs, and the state of the labels had other names.

    Args:
        tensors: Tensors of a model or a checkpoint by name, states of optimisers included.
        level: Number of levels trained so far.
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
    """A first layer for the head, with as many input features as the adapter in the file.

    Args:
        tensors: Tensors as returned by :func:`upgraded_tensors`, named ``discriminator.…``.
        discriminator: The discriminator of the whole stack.
    """
    whole, weight = discriminator.head[1], tensors.get("discriminator.head.1.weight")
    assert isinstance(whole, nn.Linear)
    # If the file has no adapter, the later comparison of the tensors raises the error.
    features = whole.in_features if weight is None or weight.dim() != 2 else weight.shape[1]
    return nn.Linear(features, whole.out_features)


def first_levels(discriminator: JointDiscriminator, level: int, tensors: Mapping[str, Tensor]) -> JointDiscriminator:
    """The discriminator of a stack that was still growing: the first stages, then the adapter in the file.

    Args:
        discriminator: The discriminator of the whole stack.
        level: Number of levels trained so far.
        tensors: As for :func:`adapter_in`.
    """
    head = nn.Sequential(nn.Flatten(), adapter_in(tensors, discriminator), *list(discriminator.head)[_ADDED:])
    return JointDiscriminator(
        discriminator.spaces[: level + 1],
        list(discriminator.stages)[: level + 1],
        head,
        input_noise=discriminator.noise.scale,
    )


def columns_of(method: str, *, has_sleep: bool) -> list[str]:
    """Names of the losses of a step, for checkpoints that do not contain the names.

    Args:
        method: ``training.method``.
        has_sleep: Whether the version that wrote the checkpoint had the sleep phase; 0.1.0 did not.
    """
    if method == "adversarial":
        return ["d_loss", "g_loss", "rho_q", "rho_p", *["sleep_loss"] * has_sleep, "supervised_loss"]
    return ["negative_elbo"] if method == "elbo" else ["supervised_loss"]
