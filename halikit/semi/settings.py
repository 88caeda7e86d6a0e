"""The settings of training with few labels: ``[labels]``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from halikit.settings import Fraction, NonNegative, Positive, Section

__all__ = ["LabelSettings"]


class LabelSettings(Section):
    """How labels are used. Without this section no label is used."""

    number: Positive = Field(description="labelled examples to use, balanced over the classes")
    weight: NonNegative = Field(1.0, description="weight of the supervised cost (Eq. 10) in the generators' loss")
    propagation_neighbours: Positive | None = Field(
        None, description="before training, propagate the labels to all data over a graph of this many neighbours"
    )
    consistency_weight: NonNegative = Field(
        0.0, description="weight of the loss that asks augmented images for the teacher's pseudo-labels"
    )
    consistency_batch_size: Positive | None = Field(
        None, description="unlabelled images in each step of the consistency loss; the batch size if none"
    )
    pseudo_label_threshold: Fraction = Field(
        0.95, description="lowest probability of a class at which the teacher's answer is used as a pseudo-label"
    )
    propagate_every: Positive | None = Field(
        None,
        description="steps between propagations of the labels over a graph of the teacher's latents; "
        "pseudo-labels that disagree with it are not used",
    )

    def without_effect(self) -> dict[str, str]:
        """The settings of the consistency loss, where its weight is 0."""
        names = ("consistency_batch_size", "pseudo_label_threshold", "propagate_every")
        return {} if self.consistency_weight else dict.fromkeys(names, "consistency_weight is 0")

    @model_validator(mode="after")
    def _propagate_once(self) -> Self:
        if self.propagation_neighbours and self.propagate_every:
            raise ValueError("propagation_neighbours labels all data, so propagate_every has nothing to propagate to")
        return self
