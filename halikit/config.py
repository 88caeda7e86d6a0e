"""All settings of a run: one section for each owner, read from and written to TOML.

``[training]``, ``[game]`` and ``[record]`` are read by the trainer and defined here. Each other section is defined
beside the code that reads it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from halikit.data.settings import DataSettings
from halikit.hardware.hardware import HardwareSettings
from halikit.networks.discriminator import DiscriminatorSettings
from halikit.networks.ladder import ModelSettings
from halikit.objectives import CUSTOM, OBJECTIVES
from halikit.optimisation.optimisers import OptimiserSettings
from halikit.renamed import GONE, RENAMED
from halikit.semi.settings import LabelSettings
from halikit.settings import ConfigError, Fraction, NonNegative, Positive, Section
from halikit.utils.files import read_bounded

__all__ = [
    "Config",
    "ConfigError",
    "DataSettings",
    "DiscriminatorSettings",
    "GameSettings",
    "HardwareSettings",
    "LabelSettings",
    "ModelSettings",
    "OptimiserSettings",
    "RecordSettings",
    "TrainingSettings",
    "differences",
    "flattened",
    "override",
    "parse_assignments",
    "read_table",
    "read_toml",
    "to_toml",
]

# The largest TOML file that is read, in bytes; no real config comes near.
_LARGEST_TOML = 2**20
# How many characters of a name or value a message shows: a file can hold a name of any length.
_SHOWN = 100


class TrainingSettings(Section):
    """What is trained, and for how long."""

    method: Literal["adversarial", "elbo", "supervised"] = Field(
        "adversarial",
        description="adversarial: the game of Algorithm 1; elbo: the evidence lower bound; "
        "supervised: labels alone (Eq. 10)",
    )
    steps: Positive = Field(10_000, description="number of steps")
    batch_size: Positive = Field(128, description="images in a step, over all processes")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed for weights, data order and noise")
    ema_decay: Fraction = Field(0.999, description="decay of the exponential moving average of the weights")
    encoder_noise: NonNegative = Field(0.0, description="standard deviation of the noise on the encoder's input")


class GameSettings(Section):
    """The game of Algorithm 1."""

    objective: str = Field("jensen_shannon", description=f"pair of losses: {', '.join(OBJECTIVES)}")
    sleep_weights: Literal["auto"] | NonNegative | tuple[NonNegative, ...] = Field(
        "auto", description="weight of the sleep phase: one for all levels, one for each, or auto for the default rule"
    )
    sleep_statistics: Literal["batch", "running"] = Field(
        "batch",
        description="what the encoder normalises the decoder's samples by in the sleep phase: their own statistics, or "
        "the running ones of the game",
    )
    final_input_noise: NonNegative | None = Field(
        None, description="noise on the discriminator's x at the last step; it changes linearly. Constant if none"
    )
    latent_noise_until: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the steps in which model.latent_noise falls to zero, linearly. Constant if none"
    )
    discriminator_steps: Positive = Field(1, description="steps of the discriminator in a round")
    generator_steps: Positive = Field(1, description="steps of the generators in a round; 1 and 1 move both at once")
    gradient_penalty: Literal["auto"] | NonNegative = Field(
        "auto",
        description="weight γ of the discriminator's penalty: γ/2 · E‖∇s‖² at samples, γ · E(‖∇s‖ − 1)² between them; "
        "auto: 10 for the Wasserstein objective or a penalty between samples, otherwise 0",
    )
    penalty_every: Positive = Field(1, description="take the penalty every k-th step of the discriminator, times k")
    penalised_joint: Literal["auto", "encoder", "decoder", "both", "between"] = Field(
        "auto",
        description="where the penalty is taken: at samples of the encoder's joint, the decoder's or both, or between "
        "paired samples; auto: between for the Wasserstein objective, otherwise encoder",
    )
    cycle_weight: NonNegative | tuple[NonNegative, ...] = Field(
        0.0, description="weight of the reconstruction of x from each level: one for all levels, or one for each"
    )
    elbo_weight: NonNegative = Field(0.0, description="weight of the negative evidence bound, which needs densities")

    @field_validator("objective")
    @classmethod
    def _objective_exists(cls, name: str) -> str:
        if name not in OBJECTIVES and not re.fullmatch(f"{CUSTOM}\\w+", name):
            raise ValueError(f"{name!r} is not an objective; there are {', '.join(OBJECTIVES)}")
        return name

    @property
    def resolved(self) -> GameSettings:
        """The settings with ``auto`` replaced, except for the sleep phase, whose weights depend on the model."""
        is_wasserstein, weight, place = self.objective == "wasserstein", self.gradient_penalty, self.penalised_joint
        if place == "auto":
            place = "between" if is_wasserstein else "encoder"
        if weight == "auto":
            weight = 10.0 if is_wasserstein or place == "between" else 0.0
        return self.model_copy(update={"gradient_penalty": weight, "penalised_joint": place})


class RecordSettings(Section):
    """What a run directory records, and when."""

    log_every: Positive = Field(50, description="steps between lines of metrics.csv")
    evaluate_every: Positive = Field(1000, description="steps between evaluations, pictures and saves of the model")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(3, description="newest checkpoints to keep; the best one is kept as well")
    best_by: str = Field(
        "auto",
        description="metric of the best checkpoint: a column of metrics.csv, or error, embedded, recovery or "
        "recovery_from_x for the mean over levels; recovery is best when high, all others when low; auto: error",
    )
    stop_after: Positive | None = Field(
        None, description="stop after so many evaluations without a better stop_metric; never if none"
    )
    stop_metric: str = Field("auto", description="metric of stop_after, as in best_by")
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "trackio"], ...] = Field(
        ("csv", "tensorboard"), description="where metrics go: csv, tensorboard, wandb, trackio; metrics.csv always"
    )
    max_skipped_steps: Positive = Field(
        10, description="steps in a row with NaN or Inf before training goes back to a checkpoint"
    )

    def without_effect(self) -> dict[str, str]:
        """The metric of a rule that is off."""
        return {} if self.stop_after else {"stop_metric": "record.stop_after is not set"}


class Config(Section):
    """Everything that a run depends on. A section that is left out has its defaults; without ``[labels]`` none is used.

    Example:
        >>> config = Config(model=ModelSettings(levels=2))
        >>> override(config, {"training.steps": 500}).training.steps
        500
    """

    preset: Annotated[str, Field(pattern=r"^\w{1,100}$")] | None = None
    model: ModelSettings = ModelSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    training: TrainingSettings = TrainingSettings()
    game: GameSettings = GameSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    labels: LabelSettings | None = None
    record: RecordSettings = RecordSettings()
    hardware: HardwareSettings = HardwareSettings()
    data: DataSettings = DataSettings()

    @property
    def plays(self) -> bool:
        """Whether training is the game of Algorithm 1, with a discriminator."""
        return self.training.method == "adversarial"

    @property
    def sums_densities(self) -> bool:
        """Whether a loss sums log-densities over many elements, which needs more digits than bfloat16 has."""
        return self.training.method == "elbo" or self.game.elbo_weight > 0

    def without_effect(self) -> dict[str, str]:
        """The sections that the method does not read."""
        method = self.training.method
        idle = (
            {} if self.plays else dict.fromkeys(("game", "discriminator"), f"training.method = {method!r} has no game")
        )
        return idle | ({"labels": "training.method = 'elbo' uses no labels"} if method == "elbo" else {})

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        method, labels, hardware = self.training.method, self.labels, self.hardware
        if method == "supervised" and labels is None:
            raise ValueError("training.method = 'supervised' needs labels, such as labels.number = 100")
        if method == "supervised" and labels and labels.weight != 1:
            raise ValueError(
                f"labels.weight = {labels.weight} has no effect here: there is no game to weigh it against"
            )
        if method == "elbo" and (self.training.encoder_noise or self.model.latent_noise):
            name = "training.encoder_noise" if self.training.encoder_noise else "model.latent_noise"
            raise ValueError(f"{name} has no effect here: training.method = 'elbo' has no game")
        if not self.plays and self.optimiser.discriminator_learning_rate:
            raise ValueError("optimiser.discriminator_learning_rate has no effect here: there is no discriminator")
        if self.model.conditional and (labels or self.model.classes):
            raise ValueError(
                "model.conditional excludes labels and model.classes: a model either is given classes or finds them"
            )
        if labels and hardware.accumulate > 1:
            raise ValueError("hardware.accumulate must be 1 with labels: the labelled batch is not divided")
        if hardware.compile not in (None, "auto") and (not self.plays or hardware.recompute):
            raise ValueError("hardware.compile is for the game, without recompute: the compiler decides that by itself")
        if self.sums_densities and hardware.precision == "bf16":
            raise ValueError("the evidence bound sums log-densities: it needs precision '32' or '64', not 'bf16'")
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "config") -> Config:
        """Check a nested mapping.

        Raises:
            ConfigError: With one line per wrong setting: its name, what is wrong, and what would be right.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{where}: {_explained(detail)}" for detail in error.errors()[:3])) from None


def differences(before: Config, after: Config) -> dict[str, str]:
    """What changed from one config to another: by dotted name, in words.

    Example:
        >>> differences(Config(), override(Config(), {"levels": 4}))
        {'model.levels': '3 → 4'}
    """
    return {
        name: f"{_toml_value(a)} → {_toml_value(b)}"
        for name in _names()
        if (a := _value(before, name)) != (b := _value(after, name))
    }


def read_table(path: Path) -> dict[str, Any]:
    """The table of a TOML file, unchecked.

    Raises:
        ConfigError: If the file is missing or is not TOML.
    """
    try:
        text = read_bounded(Path(path), _LARGEST_TOML).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of a million digits is no TOMLDecodeError
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def read_toml(path: Path) -> Config:
    """Read a config file.

    Raises:
        ConfigError: If the file is missing, is not TOML, or holds an unknown setting or a wrong value.
    """
    return Config.parse(read_table(path), str(path))


def to_toml(config: Config, comments: Mapping[str, str] | None = None) -> str:
    """The config as TOML: every section, and in it every setting that has an effect given the others there.

    Args:
        config: The settings.
        comments: Comments behind settings, by dotted name; the one under ``""`` is written above all settings.
    """
    comments = comments or {}
    lines = [f"# {line}".rstrip() for line in comments.get("", "").splitlines()]
    # TOML has single values before tables.
    for name in sorted(type(config).model_fields, key=lambda name: isinstance(getattr(config, name), Section)):
        value = getattr(config, name)
        if not isinstance(value, Section):
            lines.append(_toml_line(name, value, comments.get(name)))
            continue
        lines += ["", f"[{name}]"]
        lines += [_toml_line(key, getattr(value, key), comments.get(f"{name}.{key}")) for key in value.applicable]
    return "\n".join(lines) + "\n"


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with some settings changed.

    Args:
        config: The settings to start from.
        changes: Values by dotted name, ``training.steps``, or by the last part alone where only one section has it.

    Raises:
        ConfigError: If a name is unknown or a value wrong.
    """
    values = config.model_dump()
    resolved = {_resolved(name): value for name, value in changes.items()}
    if not isinstance(resolved.get("labels"), Mapping | None) and resolved["labels"] != "none":
        raise ConfigError(
            f"labels = {resolved['labels']!r}: labels is a section; the number of examples is labels.number"
        )
    method = resolved.get("training.method", config.training.method)
    if method != config.training.method:
        # The settings of the other method's game go, unless they are given in the same call.
        values |= {name: {} for name in ("game", "discriminator") if method != "adversarial"}
        if method != "adversarial":
            values["optimiser"]["discriminator_learning_rate"] = None
        if method == "elbo":
            values["labels"] = None
            values["training"]["encoder_noise"] = values["model"]["latent_noise"] = 0.0
        elif method == "supervised" and values["labels"]:
            values["labels"]["weight"] = 1.0
    for name, value in resolved.items():
        section, _, key = name.rpartition(".")
        if section and values[section] is None:
            values[section] = {}
        (values[section] if section else values)[key] = value
    return Config.parse(values, "setting")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts as :func:`override` takes them; values are read as TOML, or else as plain text.

    Raises:
        ConfigError: If one has no ``=``.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, got {assignment!r}")
        try:
            changes[key.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = text.strip()
    return changes


def flattened(config: Config) -> dict[str, Any]:
    """All settings by dotted name; those of a section that is left out are ``None``."""
    return {name: _value(config, name) for name in _names()}


def sections() -> dict[str, type[Section]]:
    """The sections of a config by name."""
    return {
        name: kind
        for name, field in Config.model_fields.items()
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def _names() -> list[str]:
    tables = sections()
    return [
        full
        for name in Config.model_fields
        for full in ([f"{name}.{key}" for key in tables[name].model_fields] if name in tables else [name])
    ]


def _value(config: Config, name: str) -> Any:
    section, _, key = name.rpartition(".")
    owner = getattr(config, section) if section else config
    return None if owner is None else getattr(owner, key)


def _resolved(name: str) -> str:
    names = _names()
    if name in names or name == "labels":
        return name
    owners = [full for full in names if full.split(".")[-1] == name]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise ConfigError(f"the setting {name!r} is ambiguous: {' or '.join(owners)}")
    raise ConfigError(_unknown(name))


def _unknown(name: str) -> str:
    """What to say about a name that is not a setting."""
    for old, new in (RENAMED | GONE).items():
        if name in (old, old.split(".")[-1]):
            return f"there is no setting {old!r} any more: {f'it is now {new}' if old in RENAMED else new}"
    by_last_part = {full.split(".")[-1]: full for full in _names()}
    by_part = [by_last_part[match] for match in get_close_matches(name.split(".")[-1], list(by_last_part), 1, 0.5)]
    near = get_close_matches(name, _names(), 1, 0.5) + by_part if "." in name else by_part
    return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _explained(detail: Any) -> str:
    # Union members appear in the location of an error; only the names in the file are of use.
    place = [str(part) for part in detail["loc"]]
    names = _names()
    while len(place) > 1 and ".".join(place) not in names and ".".join(place[:-1]) in names:
        place.pop()
    if len(place) > 2:
        place = [place[0], place[-1]]
    name, given = _shortened(".".join(place)), _shortened(repr(detail["input"]))
    if detail["type"] == "extra_forbidden":
        if len(place) > 1:
            return _unknown(name)
        near = get_close_matches(name.lower(), list(Config.model_fields), 1, 0.5)
        return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if detail["type"] == "model_type":
        return f"{name} = {given}: it should be a table, [{name}]"
    if detail["type"] == "missing":
        return f"{name} is missing"
    if detail["type"] == "value_error":
        return f"{name}: {detail['ctx']['error']}".removeprefix(": ")
    message = re.sub(r"^Input", "it", detail["msg"])
    return f"{name} = {given}: {message[0].lower()}{message[1:]}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _toml_line(key: str, value: Any, comment: str | None) -> str:
    return f"{key} = {_toml_value(value)}" + (f"  # {comment}" if comment else "")


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
