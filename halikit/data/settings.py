"""The settings of the data set and its augmentation: ``[data]``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from halikit.data.augmentation import Augmentation
from halikit.data.dataset import Kind
from halikit.settings import NonNegative, Positive, Section

__all__ = ["DataSettings"]


class DataSettings(Section):
    """The data set, and what is done to its images each time they are trained on."""

    spec: str = Field("digits", description="data set, such as digits, mnist:DIR or folder:DIR")
    size: Positive | None = Field(None, description="side in pixels: crop images to squares and resize them to it")
    kind: Kind | None = Field(None, description="sequence or volume, if each row of an array is one (array:)")
    channels: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="channels of images, which are kept (folders, array:); none: 1 for grey, 3 for colour"
    )
    strict: bool = Field(False, description="refuse any file that cannot be used; verify checksums")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="processes that read a Dataset of your own; none: those of its DataLoader"
    )
    epoch_images: Annotated[int, Field(ge=2)] | None = Field(
        None, description="items in an epoch of an IterableDataset; none: its length"
    )
    flip: bool = Field(False, description="mirror each training image with probability 1/2")
    shift: Annotated[int, Field(ge=0)] = Field(0, description="shift by up to this many pixels, mirrored at the edges")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="rotate by up to this many degrees")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="zoom by a factor within 1 ± this number")
    warp: NonNegative = Field(0.0, description="bend: move the points of a coarse grid by up to this many pixels")

    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(flip=self.flip, shift=self.shift, rotate=self.rotate, zoom=self.zoom, warp=self.warp)

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of :func:`halikit.data.as_data_set`."""
        return {name: getattr(self, name) for name in ("size", "strict", "kind", "channels", "workers", "epoch_images")}
