"""One item of a user's own data set.

| item | what is read |
|---|---|
| a tensor, a NumPy array or an image of Pillow | the image, or vector, sequence or volume |
| a tuple or list | its first entry is the image, its second the label or the attributes; others are not read |
| a dictionary | the image under one of :data:`IMAGE_KEYS`, a label or attributes under one of :data:`LABEL_KEYS` |

A tensor has the shape of one datum: ``(C, H, W)`` for images. A NumPy array is ``(H, W)``, ``(C, H, W)`` or
``(H, W, C)``, or a vector ``(D,)``. Floats become float32; bytes stay bytes, those of vectors excepted. A label is an
integer from 0. Attributes are a vector of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from halikit.data.array import allowed_channels, channels_first, check_range
from halikit.data.dataset import DataError
from halikit.data.image import BadImageError, pixels

__all__ = [
    "IMAGE_KEYS",
    "LABEL_KEYS",
    "Item",
    "are_images",
    "check_values",
    "lowest_and_highest",
    "read_item",
    "stacked",
]

IMAGE_KEYS = ("image", "images", "img", "x", "pixel_values")
LABEL_KEYS = ("label", "labels", "y", "attributes")


class Item(NamedTuple):
    """An item.

    Attributes:
        image: ``shape``, uint8 or float32.
        label: Its label, if it has one.
        attributes: Its attributes, if it has some.
        unread: What else the item holds, in words; empty if there is nothing else.
    """

    image: Tensor
    label: int | None = None
    attributes: tuple[bool, ...] | None = None
    unread: str = ""


def read_item(item: Any, where: str, channels: int | None = None) -> Item:
    """Read an item by the table at the top of this module.

    Args:
        item: What the data set returns.
        where: The data set and the index, for messages.
        channels: Channels of images, if not 1 or 3.

    Raises:
        DataError: If the item has no image, or another label than an integer or a vector of 0 and 1.
    """
    if isinstance(item, Mapping):
        image_key, label_key = _first(IMAGE_KEYS, item), _first(LABEL_KEYS, item)
        if image_key is None:
            found = ", ".join(map(str, item)) or "nothing"
            raise DataError(f"{where} is a dictionary of {found}; an image has one of the keys {', '.join(IMAGE_KEYS)}")
        image, second = item[image_key], None if label_key is None else item[label_key]
        unread = ", ".join(str(key) for key in item if key not in (image_key, label_key))
    elif isinstance(item, tuple | list):
        if not item:
            raise DataError(f"{where} is empty; an item is an image, or (image, label)")
        image, second = item[0], item[1] if len(item) > 1 else None
        unread = f"the entries after the first two of {len(item)}" if len(item) > 2 else ""
    else:
        image, second, unread = item, None, ""
    label, attributes = _second(second, where)
    return Item(_image(image, where, channels), label, attributes, unread)


def stacked(items: Sequence[Item], like: Tensor, rows: Sequence[int], name: str, channels: int | None = None) -> Tensor:
    """The images of items, ``(b, *shape)``.

    Args:
        items: The items.
        like: An image of the shape and the dtype that all must have.
        rows: The indices of the items in the data set, for messages.
        name: The data set, for messages.
        channels: Channels of images, if not 1 or 3.

    Raises:
        DataError: If a shape, a dtype or a value is not allowed.
    """
    for row, item in zip(rows, items, strict=True):
        if item.image.shape != like.shape or item.image.dtype != like.dtype:
            found, wanted = (f"{tuple(x.shape)} of {x.dtype}" for x in (item.image, like))
            raise DataError(f"{name}: item {row} is {found}, but the first is {wanted}; all must be alike")
    images = torch.stack([item.image for item in items])
    check_values(images, rows, name, channels)
    return images


def check_values(images: Tensor, rows: Sequence[int], name: str, channels: int | None = None) -> None:
    """Refuse a value that is not finite, and a floating-point image outside of −1 … 1, as ``array:`` does.

    Args:
        images: ``(b, *shape)``.
        rows: Their indices in the data set.
        name: The data set, for messages.
        channels: Channels of images, if not 1 or 3.

    Raises:
        DataError: It names the first item with such a value.
    """
    limit = 1.0 if are_images(images, channels) else None
    if images.dtype == torch.uint8 or _are_allowed(images, limit):
        return
    row, image = next((row, x) for row, x in zip(rows, images, strict=True) if not _are_allowed(x, limit))
    if not image.isfinite().all():
        value = "a NaN" if image.isnan().any() else "an infinite value"
        raise DataError(f"{name}: {value} in item {row}; every value must be finite")
    check_range(None, np.dtype(np.float32), *lowest_and_highest(image), f"{name}: item {row}", of_all=False)


def lowest_and_highest(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value of ``x`` of any shape; both are NaN if there is a NaN."""
    low, high = x.aminmax()
    return float(low), float(high)


def are_images(x: Tensor, channels: int | None) -> bool:
    """Whether a batch ``(b, *shape)`` is one of images, whose values have a range."""
    return x.dim() == 4 and x.shape[1] in allowed_channels(channels)


def _are_allowed(x: Tensor, limit: float | None) -> bool:
    """Whether all values are finite, and within the limit."""
    low, high = lowest_and_highest(x)
    return -torch.inf < low <= high < torch.inf if limit is None else -limit <= low <= high <= limit


def _first(keys: Sequence[str], item: Mapping[Any, Any]) -> str | None:
    return next((key for key in keys if key in item), None)


def _image(value: Any, where: str, channels: int | None) -> Tensor:
    if isinstance(value, Tensor):
        x = value.detach().cpu()
    else:
        array = value if isinstance(value, np.ndarray) else _pixels(value, where, channels)
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise DataError(f"{where}: values of {array.dtype}; they must be uint8 or floating point")
        array = channels_first(array[None], where, channels)[0] if array.ndim in (2, 3) else array
        x = torch.from_numpy(np.array(array, array.dtype if array.dtype == np.uint8 else np.float32, order="C"))
    if not (x.is_floating_point() or x.dtype == torch.uint8) or not x.dim() or not x.numel():
        raise DataError(f"{where}: {tuple(x.shape)} of {x.dtype}; an image is (C, H, W), uint8 or floating point")
    if channels is not None and (x.dim() != 3 or x.shape[0] != channels):
        raise DataError(f"{where}: shape {tuple(x.shape)}; with channels={channels} it is ({channels}, H, W)")
    return x if x.dtype == torch.uint8 and x.dim() > 1 else x.float()


def _pixels(value: Any, where: str, channels: int | None) -> np.ndarray[Any, Any]:
    """The pixels of an image of Pillow."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        raise DataError(
            f"{where}: the image is of type {type(value).__name__}; it must be a tensor, a NumPy array or an image of "
            "Pillow"
        )
    try:
        return pixels(value, channels=channels)
    except BadImageError as error:
        raise DataError(f"{where}: {error}") from None


def _second(value: Any, where: str) -> tuple[int | None, tuple[bool, ...] | None]:
    """The label or the attributes."""
    if value is None:
        return None, None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        array = np.asarray(None)
    if array.size == 1 and (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)):
        return int(array.item()), None
    if array.ndim == 1 and array.dtype.kind in "buif" and np.isin(array, (0, 1)).all():
        return None, tuple(bool(entry) for entry in array)
    found = f"{array.shape} of {array.dtype}" if array.dtype.kind in "buif" else f"of type {type(value).__name__}"
    raise DataError(
        f"{where}: the label is {found}; a label is an integer from 0, attributes are a vector of 0 and 1; leave it "
        "out if the model is not to read it"
    )
