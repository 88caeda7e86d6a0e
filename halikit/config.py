"""One schema for everything that a run depends on: TOML in and out, nothing unknown accepted."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halikit.errors import InputError
from halikit.files import read_bounded

if TYPE_CHECKING:
    from halikit.data import Augmentation

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "ModelConfig",
    "TrainingConfig",
    "differences",
    "override",
    "read_toml",
    "to_toml",
]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]
InitialScale = Annotated[
    float | None, Field(gt=0, description="standard deviation of the initial weights, biases zero; torch's own if none")
]


# Settings that are gone, and what there is instead.
_GONE = {
    "training.grow_every": "since 0.2.0 all levels train at once",
    "training.settled_rate": "since 0.2.0 all levels train at once, at one rate",
}
# No honest config comes near.
_MOST_TOML = 2**20
# Of a name or value in a message, as many characters.
_SHOWN = 100


class ConfigError(InputError):
    """A setting is unknown, or its value is not one that it takes."""


class _Section(BaseModel):
    """A table of settings. ``"none"`` stands for no value, which TOML cannot write."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: None if value == "none" else value for key, value in values.items()}

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings that have an effect, given the others."""
        return tuple(type(self).model_fields)

    @model_validator(mode="after")
    def _idle_settings_are_untouched(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in self.applicable and value != field.default:
                what = f"[{name}]" if isinstance(value, _Section) else f"{name} = {value!r}"
                raise ValueError(f"{what} has no effect here: {self._idle_because}")
        return self

    @property
    def _idle_because(self) -> str:
        return ""


class ModelConfig(_Section):
    """The hierarchy, as :func:`halikit.ladder` builds it, or the paper's; see there for each setting."""

    levels: Positive = 3
    data_shape: tuple[Positive, ...] | None = Field(None, description="shape of x; taken from the data when training")
    family: Literal["dense", "conv", "mixed", "paper"] | None = None
    maps: Annotated[int, Field(ge=0)] | None = None
    widths: tuple[Positive, ...] | None = None
    hidden: Positive | None = None
    depth: Positive = 2
    slope: NonNegative = 0.02
    gauge: Literal["standardised", "variance_preserving"] | None = "variance_preserving"
    max_scale: Annotated[float, Field(gt=0)] | None = 0.5
    skips: bool | None = Field(None, description="linear skips between latents; where latents are vectors if none")
    observation_scale: Annotated[float, Field(gt=0)] | Literal["fitted"] | None = None
    classes: Annotated[int, Field(ge=2)] | None = Field(None, description="a level of so many classes on top (Eq. 9)")
    rectified: bool = Field(True, description="of the paper's family: leaky ReLU before the Gaussian layers of z1")
    initial_scale: InitialScale = None

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings that have an effect, given the family."""
        if self.family != "paper":
            idle = {"rectified"}
        else:
            idle = {"maps", "widths", "hidden", "depth", "skips"} | ({"rectified"} if self.levels == 1 else set())
        return tuple(name for name in super().applicable if name not in idle)

    @property
    def _idle_because(self) -> str:
        return "the paper's networks are those of Table 4" if self.family == "paper" else "it is for family = 'paper'"


class DiscriminatorConfig(_Section):
    """The discriminator, as :func:`halikit.build_discriminator` builds it, or the paper's; see there for settings."""

    form: Literal["joint", "pairwise"] = "joint"
    family: Literal["dense", "conv", "paper"] | None = None
    width: Positive = 256
    depth: Positive = 1
    dropout: Fraction = 0.2
    weight_norm: bool = False
    input_noise: NonNegative = 0.2
    slope: NonNegative = 0.2
    initial_scale: InitialScale = None

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings that have an effect, given the family."""
        idle = {"form", "width", "depth", "dropout"} if self.family == "paper" else set()
        return tuple(name for name in super().applicable if name not in idle)

    @property
    def _idle_because(self) -> str:
        return "the paper's discriminator is that of Table 4"


# Of the game of Algorithm 1, and of nothing else.
_OF_THE_GAME = {
    "objective",
    "discriminator_learning_rate",
    "final_input_noise",
    "sleep",
    "d_steps",
    "g_steps",
    "gradient_penalty",
    "penalty_every",
    "penalised",
}


_OF_CONSISTENCY = {"consistency_batch", "consistency_threshold", "consistency_graph"}
_OF_LABELS = {"propagation", "consistency"} | _OF_CONSISTENCY
_IDLE_UNDER = {
    "adversarial": set(),
    "elbo": _OF_THE_GAME | {"encoder_noise", "labels", "supervised_weight"} | _OF_LABELS,
    "supervised": _OF_THE_GAME | {"supervised_weight"},
}


class TrainingConfig(_Section):
    """The game, Algorithm 1, or what is trained by instead of it; and all around that."""

    method: Literal["adversarial", "elbo", "supervised"] = Field(
        "adversarial",
        description="the game of Algorithm 1, the evidence lower bound (an autoencoder), or labels alone (Eq. 10)",
    )
    labels: Positive | None = Field(None, description="data whose labels are seen, drawn evenly over the classes")
    supervised_weight: NonNegative = Field(1.0, description="weight of Eq. 10 in the generators' loss")
    propagation: Positive | None = Field(
        None, description="nearest neighbours over which labels spread to all data, before training; not at all if none"
    )
    consistency: NonNegative = Field(
        0.0, description="weight beside that: classes that averaged weights are sure of, asked of augmented data"
    )
    consistency_batch: Positive | None = Field(None, description="data it looks at in a step; as in a batch if none")
    consistency_threshold: Fraction = Field(0.95, description="probability of a class from which on they are sure")
    consistency_graph: Positive | None = Field(
        None, description="steps before labels spread (anew) over nearest latents, and no other class is asked; or none"
    )
    steps: Positive = 10_000
    batch_size: Positive = 128
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["32", "bf16"] = "32"
    threads: Positive | None = Field(None, description="threads of one operation on CPU; as torch is set by default")
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        None, description="the whole step as one graph, compiled by torch in this mode"
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="how feature maps lie in memory"
    )
    accumulate: Positive = Field(1, description="micro-batches of a batch, whose gradients are averaged")
    recompute: bool = Field(False, description="compute activations again in the backward pass instead of keeping them")
    prefetch: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="batches made ready by a thread of their own"
    )
    objective: Literal["jensen_shannon", "least_squares", "relativistic"] = "jensen_shannon"
    learning_rate: Rate = 3e-4
    discriminator_learning_rate: Rate | None = Field(None, description="of the discriminator, where it differs")
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    final_learning_rate: Rate = Field(1.0, description="share of the rates left at the last step")
    decay_from: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of the steps after which rates fall"
    )
    encoder_noise: NonNegative = Field(0.0, description="standard deviation of the noise on the encoder's input")
    sleep: Literal["auto"] | NonNegative | tuple[NonNegative, ...] = Field(
        "auto", description="weight of the sleep phase, one for all levels or one for each; by halikit.sleep.RULE"
    )
    final_input_noise: NonNegative | None = Field(
        None, description="noise on the discriminator's x at the last step, where it falls; linear"
    )
    d_steps: Positive = Field(1, description="steps of the discriminator in a round")
    g_steps: Positive = Field(1, description="steps of the generators in a round; 1 : 1 plays both at once")
    gradient_penalty: NonNegative = Field(0.0, description="weight γ of γ/2 · E‖∇s‖², a loss of the discriminator")
    penalty_every: Positive = Field(1, description="every so many steps of the discriminator, at so many times γ")
    penalised: Literal["encoder", "decoder", "both"] = Field("encoder", description="the joint with the penalty")
    averaging: Fraction = Field(0.999, description="decay of the averaged weights")
    log_every: Positive = 50
    evaluate_every: Positive = Field(1000, description="steps between evaluations, pictures and saves of the model")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints, from which training can go on")
    keep: Positive = Field(3, description="newest checkpoints kept; the best one is kept as well")
    sync_batch_norm: bool = Field(False, description="batch statistics over all processes; on GPUs alone")
    timeout: Annotated[float, Field(gt=0)] = Field(300.0, description="seconds to wait for another process")
    max_skipped: Positive = Field(10, description="steps in a row not finite before going back to a checkpoint")

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings that have an effect, given the method."""
        idle = _IDLE_UNDER[self.method] | (set() if self.labels else {"supervised_weight"} | _OF_LABELS)
        idle |= set() if self.labels and self.consistency else _OF_CONSISTENCY
        return tuple(name for name in super().applicable if name not in idle)

    @property
    def _idle_because(self) -> str:
        if self.method == "adversarial":
            return "there are no labels" if self.labels is None else "consistency is 0"
        return f"there is no game under method = {self.method!r}"

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Self:
        if self.method == "supervised" and self.labels is None:
            raise ValueError("method = 'supervised' needs labels, such as labels = 100")
        if self.propagation and self.consistency_graph:
            raise ValueError("propagation leaves no datum without a label: consistency_graph has nothing to spread")
        if self.labels and self.accumulate > 1:
            raise ValueError("accumulate = 1 is all that training with labels has: its labelled batch is not divided")
        if self.compile and (self.method != "adversarial" or self.recompute):
            raise ValueError(
                "compile is for the game alone, without recompute: what is worth computing again it finds by itself"
            )
        if self.method == "elbo" and self.precision != "32":
            raise ValueError(f"method = 'elbo' sums log-densities: precision must be '32', not {self.precision!r}")
        return self


class DataConfig(_Section):
    """The data set."""

    spec: str = "digits"
    size: Positive | None = Field(None, description="crop images to squares and resize them to this side")
    strict: bool = Field(False, description="refuse any file that cannot be used; verify checksums")
    flip: bool = Field(False, description="mirror every other image that is trained on")
    shift: Annotated[int, Field(ge=0)] = Field(0, description="move them by up to so many pixels, mirrored at edges")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="turn them by up to so many degrees")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="scale them by a factor within 1 ± so much")
    warp: NonNegative = Field(0.0, description="bend them, points of a coarse grid by up to so many pixels")

    def augmentation(self) -> Augmentation:
        """What is done to images each time they are trained on."""
        from halikit.data.augmentation import Augmentation

        return Augmentation(flip=self.flip, shift=self.shift, rotate=self.rotate, zoom=self.zoom, warp=self.warp)


class Config(_Section):
    """Everything that a run depends on.

    Example:
        >>> config = Config(model=ModelConfig(levels=2))
        >>> override(config, {"training.steps": 500}).training.steps
        500
    """

    preset: Annotated[str, Field(pattern=r"^\w{1,100}$")] | None = None
    model: ModelConfig = ModelConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings and sections that have an effect, given the method."""
        idle = set() if self.training.method == "adversarial" else {"discriminator"}
        return tuple(name for name in super().applicable if name not in idle)

    @property
    def _idle_because(self) -> str:
        return f"training.method = {self.training.method!r} has no discriminator"

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


def read_toml(path: Path, *, upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None) -> Config:
    """Read a config file.

    Args:
        path: The file.
        upgrade: Makes the table of an earlier version one of this version.

    Raises:
        ConfigError: If the file is missing, is no TOML, or holds what is no setting.
    """
    try:
        text = read_bounded(Path(path), _MOST_TOML).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from None
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of a million digits is no TOMLDecodeError
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return Config.parse(upgrade(values) if upgrade else values, str(path))


def to_toml(config: Config, comments: Mapping[str, str] | None = None) -> str:
    """The config as TOML, every setting that has an effect written out.

    Args:
        config: The settings.
        comments: What to write behind settings, by dotted name; under ``""``, what to write above all of them.
    """
    comments = comments or {}
    lines = [f"# {line}".rstrip() for line in comments.get("", "").splitlines()]
    for name in config.applicable:
        value = getattr(config, name)
        if not isinstance(value, _Section):
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
    # With another method, what belongs to the one before goes, unless it is asked for in the same breath.
    method = resolved.get("training.method", config.training.method)
    if method != config.training.method and method in _IDLE_UNDER:
        values["training"] = {k: v for k, v in values["training"].items() if k not in _IDLE_UNDER[method]}
        values["discriminator"] = values["discriminator"] if method == "adversarial" else {}
    for name, value in resolved.items():
        *section, key = name.split(".")
        (values[section[0]] if section else values)[key] = value
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


def _names() -> list[str]:
    names = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            names += [f"{name}.{key}" for key in section.model_fields]
        else:
            names.append(name)
    return names


def _value(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _resolved(name: str) -> str:
    names = _names()
    if name in names:
        return name
    owners = [full for full in names if full.split(".")[-1] == name]
    if len(owners) == 1:
        return owners[0]
    gone = [full for full in _GONE if name in (full, full.split(".")[-1])]
    if gone:
        raise ConfigError(f"there is no setting {gone[0]!r} any more: {_GONE[gone[0]]}")
    if owners:
        raise ConfigError(f"the setting {name!r} is ambiguous: {' or '.join(owners)}")
    raise ConfigError(f"there is no setting {name!r}{_nearest(name, names)}")


def _nearest(name: str, names: list[str]) -> str:
    by_last_part = {full.split(".")[-1]: full for full in names}
    by_part = [by_last_part[match] for match in get_close_matches(name.split(".")[-1], list(by_last_part), 1, 0.5)]
    near = get_close_matches(name, names, 1, 0.5) + by_part if "." in name else by_part
    return f"; did you mean {near[0]!r}?" if near else ""


def _explained(detail: Any) -> str:
    # Union members appear in the location of an error; only what is a name in the file is of use.
    place = [str(part) for part in detail["loc"]]
    names = _names()
    while len(place) > 1 and ".".join(place) not in names and ".".join(place[:-1]) in names:
        place.pop()
    name, given = _shortened(".".join(place)), _shortened(repr(detail["input"]))
    if detail["type"] == "extra_forbidden" and len(place) == 1:
        near = get_close_matches(name.lower(), list(Config.model_fields), 1, 0.5)
        return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if detail["type"] == "model_type":
        return f"{name} = {given}: it should be a table, [{name}]"
    if name in _GONE:
        return f"there is no setting {name!r} any more: {_GONE[name]}"
    if detail["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{_nearest(name, names)}"
    if detail["type"] == "value_error":
        return f"{name}: {detail['ctx']['error']}".removeprefix(": ")
    message = re.sub(r"^Input", "it", detail["msg"])
    return f"{name} = {given}: {message[0].lower()}{message[1:]}"


def _shortened(text: str) -> str:
    """What a person wants to see of it: a file can hold a name or a value of any length."""
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
