"""The base of all sections of settings: typed, frozen, nothing unknown accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halikit.errors import InputError

__all__ = ["ConfigError", "ContextKind", "Fraction", "InitialScale", "NonNegative", "Positive", "Rate", "Section"]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]
ContextKind = Literal["labels", "attributes"]
InitialScale = Annotated[
    float | None,
    Field(gt=0, description="standard deviation of the initial weights, with zero biases; torch's own if none"),
]


class ConfigError(InputError):
    """A setting is unknown, or its value is not allowed."""


class Section(BaseModel):
    """A table of settings. ``"none"`` means no value, because TOML cannot write ``None``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: None if value == "none" else value for key, value in values.items()}

    def without_effect(self) -> dict[str, str]:
        """The settings that have no effect, given the others: each with the reason."""
        return {}

    @property
    def applicable(self) -> tuple[str, ...]:
        """The settings that have an effect, given the others."""
        idle = self.without_effect()
        return tuple(name for name in type(self).model_fields if name not in idle)

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        for name, reason in self.without_effect().items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{_changed(name, value)} has no effect here: {reason}")
        return self


def _changed(name: str, value: Any) -> str:
    """A setting that is not at its default, in words; for a section, the settings in it."""
    if not isinstance(value, Section):
        return f"{name} = {value!r}"
    fields = type(value).model_fields
    changed = [f"{key} = {getattr(value, key)!r}" for key in fields if getattr(value, key) != fields[key].default]
    return f"{', '.join(changed)} in [{name}]"
