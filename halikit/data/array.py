"""``array:``: your own arrays, from ``.npy``, ``.npz`` or ``.safetensors``; pickled arrays are refused.

| key | what it holds |
|---|---|
| ``images`` or ``x`` | ``(n, H, W)``, ``(n, C, H, W)`` or ``(n, H, W, C)``, C = 1, 3 or as asked; vectors ``(n, D)`` |
| ``labels`` or ``y``, if any | ``(n,)`` integers from 0; the classes are those that occur |
| ``classes``, if any (.npz) | names of the classes |
| ``attributes``, if any | ``(n, A)`` of 0 and 1 |
| ``attribute_names``, if any (.npz) | names of the attributes |
| ``range``, if any | two numbers: the values of black and white |

A .npy file holds the images alone. Without ``range``, uint8 images are in 0 … 255 and floating-point images in −1 … 1.
Images that contradict this are refused: values outside of the range, floating-point images that are all in 0 … 1, and
uint8 images without a value above 1. Vectors may hold any finite numbers. The last tenth, in the order of the file, is
held out.

With ``kind="sequence"`` the key ``images`` or ``x`` holds ``(n, T)`` or ``(n, C, T)``, with ``kind="volume"``
``(n, D, H, W)`` or ``(n, C, D, H, W)``, with any number of channels. Their floating-point numbers may be any finite
ones and are not scaled, unless the file has a ``range``. Bytes are scaled from 0 … 255 to −1 … 1, as images are.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import (
    DataError,
    DataSet,
    Kind,
    Request,
    Split,
    check_channels,
    check_labels,
    divided,
    with_occurring_classes,
)
from halikit.data.image import resize_all
from halikit.data.pack import is_pack
from halikit.data.tree import printable, reading

__all__ = ["allowed_channels", "channels_first", "check_range", "from_array", "from_tensor", "has_array", "load_array"]

SUFFIXES = (".npy", ".npz", ".safetensors")
KEYS = ("images", "x", "labels", "y", "classes", "attributes", "attribute_names", "range")
CHANNELS: tuple[int, ...] = (1, 3)  # unless others are asked for
# Numbers of dimensions of an array of each kind, without and with channels, and their names.
DIMENSIONS: dict[Kind, tuple[tuple[int, int], str]] = {
    "sequence": ((2, 3), "(n, T) or (n, C, T)"),
    "volume": ((4, 5), "(n, D, H, W) or (n, C, D, H, W)"),
}
MAX_CLASSES = 2**16

_OR_RANGE = ", or set black and white with the key range (.npz, .safetensors)"

Arrays = Mapping[str, NDArray[Any]]


def has_array(path: Path) -> bool:
    """Whether a file has the suffix of an array."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def load_array(request: Request) -> DataSet:
    """Read a file of arrays by the table at the top of this module.

    Returns:
        Images ``(C, H, W)``, uint8 if they are stored as uint8 with the range 0 … 255, otherwise float32; or vectors,
        sequences ``(C, T)`` or volumes ``(C, D, H, W)``.

    Raises:
        DataError: If the file cannot be read, a shape or a dtype is not allowed, images and labels differ in number, a
            number is not finite, or values are outside of their range.
    """
    spec = request.spec
    if is_pack(request.path):
        raise DataError(f"{spec}: this is a pack: use pack:{spec.partition(':')[2]}")
    return _as_data_set(_read(request.path, spec), request)


def from_array(
    x: NDArray[Any], *, size: int | None = None, kind: Kind | None = None, channels: int | None = None
) -> DataSet:
    """A data set of a NumPy array, which is read as an array in a .npy file is; see :func:`load_array`.

    Args:
        x: ``(n, H, W)``, ``(n, C, H, W)`` or ``(n, H, W, C)``, or vectors ``(n, D)``; other shapes by ``kind``.
        size: As in :func:`halikit.data.load`.
        kind: Likewise.
        channels: Likewise.

    Raises:
        DataError: If the array cannot be used.
    """
    return _as_data_set({"images": x}, Request("array", size=size, kind=kind, channels=channels))


def _as_data_set(arrays: Arrays, request: Request) -> DataSet:
    spec = request.spec
    images = _images(arrays, request)
    n = len(images)
    labels, classes = _labels(arrays, n, spec)
    attributes, attribute_names = _attributes(arrays, n, spec)
    if n < 2:
        raise DataError(f"{spec}: only {n} image or vector; at least two are needed, one of them held out")
    everything = Split(images, labels, attributes)
    cut = n - max(1, n // 10)
    request.progress(n, n)
    data = with_occurring_classes(
        divided(spec, everything[:cut], everything[cut:], classes=classes, attributes=attribute_names)
    )
    unused = [name for name in classes if name not in data.classes] if "classes" in arrays else []
    if unused:
        note = f"no image is of class {', '.join(map(printable, unused[:5]))}{', …' if len(unused) > 5 else ''}"
        data = replace(data, notes=(f"{note}: the classes are those that occur",))
    return data


def allowed_channels(channels: int | None) -> tuple[int, ...]:
    """Numbers of channels that make images of arrays: that which is asked for, otherwise 1 and 3."""
    return CHANNELS if channels is None else (channels,)


def from_tensor(x: Tensor, *, channels: int | None = None) -> DataSet:
    """A data set of samples in memory; the last tenth is held out. Values are checked as those of a file are.

    Args:
        x: ``(n, *shape)`` floats or bytes, at least two samples. Floats become float32, without a graph. Images, with 1
            or 3 channels first, are in [−1, 1], bytes in 0 … 255; other floats may be any.
        channels: Channels of images, 1 to 16, in place of 1 or 3.

    Raises:
        DataError: If there are fewer samples, other numbers, other channels, or values that are not finite or outside
            of the range.
    """
    usable = (x.is_floating_point() or x.dtype == torch.uint8) and x.dim() >= 2 and len(x) >= 2 and x.numel()
    if not usable:
        shape = tuple(x.shape)
        raise DataError(f"a tensor of data is (n, *shape) floats or bytes with n ≥ 2, got {shape} of {x.dtype}")
    check_channels(channels)
    if channels is not None and (x.dim() != 4 or x.shape[1] != channels):
        raise DataError(f"a tensor of shape {tuple(x.shape)}; with channels={channels} it is (n, {channels}, H, W)")
    x = x.detach()
    is_image = x.dim() == 4 and x.shape[1] in allowed_channels(channels)
    if x.dtype != torch.uint8 or x.dim() == 2:
        x = x.to(torch.float32)
    low, high = (float(value) for value in x.aminmax())
    if not np.isfinite((low, high)).all():
        _extremes(x.cpu().numpy(), "tensor")
    if is_image and (low < high or abs(low) > 1):  # one grey throughout is no sign of another range
        check_range(None, np.dtype(str(x.dtype).removeprefix("torch.")), low, high, "tensor")
    cut = len(x) - max(1, len(x) // 10)
    return divided("tensor", Split(x[:cut]), Split(x[cut:]))


def _read(path: Path, spec: str) -> Arrays:
    """The arrays of a file by key."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{spec}: arrays are read from {', '.join(SUFFIXES)}")
    with reading(spec, (Exception,)):  # numpy and safetensors raise many kinds of errors
        try:
            return _load(path, spec)
        except MemoryError:
            raise ValueError("it does not fit into memory, or its header is wrong") from None


def _load(path: Path, spec: str) -> Arrays:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with path.open("rb") as file:
            return {"images": _load_npy(file)}
    if suffix == ".npz":
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            for key in _known([name.removesuffix(".npy") for name in archive.namelist()], spec):
                with archive.open(f"{key}.npy") as member:
                    arrays[key] = _load_npy(member)
        return arrays
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in _known(file.keys(), spec)}
    return {key: (t.float() if t.is_floating_point() else t).numpy() for key, t in tensors.items()}


def _load_npy(file: IO[bytes]) -> NDArray[Any]:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError("it holds pickled Python objects, which could run any code; save plain numbers") from None
        raise


def _known(keys: Iterable[str], spec: str) -> list[str]:
    """The keys that are in the table at the top of this module, among them one for images."""
    keys = sorted(keys)
    if not {"images", "x"}.intersection(keys):
        seen = ", ".join(printable(key[:100]) for key in keys[:5]) or "nothing"
        raise DataError(f"{spec}: it holds {seen}; images must have the key 'images' or 'x', labels 'labels' or 'y'")
    return [key for key in keys if key in KEYS]


def _images(arrays: Arrays, request: Request) -> Tensor:
    """``(n, C, H, W)`` uint8 or float32 in [−1, 1], or ``(n, D)`` float32; other shapes by the requested kind."""
    spec = request.spec
    x = arrays["images"] if "images" in arrays else arrays["x"]
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{spec}: images of {x.dtype}; they must be uint8 or floating point")
    if request.kind:
        return _of_kind(x, arrays.get("range"), request.kind, request)
    if x.size == 0 or x.ndim not in (2, 3, 4):
        raise DataError(
            f"{spec}: shape {x.shape}; images are (n, H, W), (n, C, H, W) or (n, H, W, C), vectors (n, D); "
            "kind=sequence and kind=volume read other arrays"
        )
    low, high = _extremes(x, spec)
    if x.ndim == 2:
        if request.size is not None:
            raise DataError(f"{spec}: vectors of length {x.shape[1]} cannot be resized to size={request.size}")
        return _tensor(np.ascontiguousarray(x, np.float32))
    black, white = check_range(arrays.get("range"), x.dtype, low, high, spec)
    images = channels_first(x, spec, request.channels)
    images = np.ascontiguousarray(resize_all(images, request.size).clip(black, white), images.dtype)
    return _scaled(images, black, white)


def _tensor(x: NDArray[Any]) -> Tensor:
    """A tensor that shares the memory of an array, which may be read-only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of arrays that are read-only; nothing writes to these
        return torch.from_numpy(x)


def _of_kind(x: NDArray[Any], declared: NDArray[Any] | None, kind: Kind, request: Request) -> Tensor:
    """Sequences ``(n, C, T)`` or volumes ``(n, C, D, H, W)``: uint8, or float32."""
    spec, (dimensions, shapes) = request.spec, DIMENSIONS[kind]
    if x.size == 0 or x.ndim not in dimensions:
        raise DataError(f"{spec}: shape {x.shape}; with kind={kind} an array is {shapes}")
    if request.size is not None:
        raise DataError(f"{spec}: {kind}s cannot be resized to size={request.size}; leave the size out")
    low, high = _extremes(x, spec)
    x = x[:, None] if x.ndim == dimensions[0] else x
    if declared is None and x.dtype != np.uint8:
        return _tensor(np.ascontiguousarray(x, np.float32))
    black, white = check_range(declared, x.dtype, low, high, spec)
    return _scaled(np.ascontiguousarray(x), black, white)


def _scaled(x: NDArray[Any], black: float, white: float) -> Tensor:
    """Bytes with the range 0 … 255 as they are, others as float32 in [−1, 1]."""
    if x.dtype == np.uint8 and (black, white) == (0, 255):
        return _tensor(x)
    x = x.astype(np.float32)
    if (black, white) != (-1, 1):
        x = ((x - black) * (2 / (white - black)) - 1).clip(-1, 1)
    return torch.from_numpy(x)


def channels_first(x: NDArray[Any], spec: str, channels: int | None = None) -> NDArray[Any]:
    """Images ``(n, H, W)``, ``(n, C, H, W)`` or ``(n, H, W, C)`` as ``(n, C, H, W)``.

    Raises:
        DataError: If there are not 1 or 3 channels, or those that are asked for.
    """
    allowed = allowed_channels(channels)
    x = x[:, None] if x.ndim == 3 else x
    if x.shape[1] in allowed:
        return x
    if x.shape[3] in allowed:
        return x.transpose(0, 3, 1, 2)
    numbers = " or ".join(map(str, allowed))
    raise DataError(
        f"{spec}: shape {x.shape}; images have {numbers} channels, as (n, C, H, W) or (n, H, W, C); "
        + (
            "ask for others with channels=N; kind=sequence and kind=volume read other arrays"
            if not channels
            else f"channels={channels} is asked for"
        )
    )


def _extremes(x: NDArray[Any], spec: str) -> tuple[float, float]:
    """The lowest and the highest value; refuses values that are not finite."""
    low, high = float(x.min()), float(x.max())
    if not np.isfinite((low, high)).all():
        row = int((~np.isfinite(x)).reshape(len(x), -1).any(1).argmax())
        value = "a NaN" if np.isnan(x[row]).any() else "an infinite value"
        raise DataError(f"{spec}: {value} in row {row}; every value must be finite")
    return low, high


def check_range(
    declared: NDArray[Any] | None, dtype: np.dtype[Any], low: float, high: float, spec: str, *, of_all: bool = True
) -> tuple[float, float]:
    """The values of black and white: the declared ones, otherwise those of the dtype.

    Args:
        declared: The values that the file names, if any.
        dtype: The type of the images.
        low: Their lowest value.
        high: Their highest value.
        spec: The data spec, for the message.
        of_all: Whether the values are those of all images or of many, so that they show another range.

    Raises:
        DataError: If values lie outside of the range, or seem to have another.
    """
    if declared is not None:
        limits = np.asarray(declared, np.float64).ravel().tolist()
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise DataError(f"{spec}: range must be two numbers, the lower one first, not {limits}")
        black, white = limits
    else:
        black, white = (0, 255) if dtype == np.uint8 else (-1, 1)
    # If all values are in 0 … 1, another range was probably meant.
    doubtful = of_all and declared is None and low >= 0 and high <= 1
    if low < black or high > white or doubtful:
        raise DataError(
            f"{spec}: {dtype} images with values from {low:g} to {high:g}, but black is {black:g} and white is "
            f"{white:g}: scale them" + _OR_RANGE * spec.startswith("array:")
        )
    return black, white


def _labels(arrays: Arrays, n: int, spec: str) -> tuple[Tensor | None, tuple[str, ...]]:
    labels = arrays.get("labels", arrays.get("y"))
    if labels is None:
        return None, ()
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{spec}: {n} images need ({n},) integer labels, got {labels.shape} of {labels.dtype}")
    if "classes" in arrays:
        classes = tuple(map(str, arrays["classes"].ravel()))
        check_labels(labels, min(len(classes), MAX_CLASSES) - 1, spec)
    else:
        check_labels(labels, MAX_CLASSES - 1, spec)
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    return torch.from_numpy(labels.astype(np.int64)), classes


def _attributes(arrays: Arrays, n: int, spec: str) -> tuple[Tensor | None, tuple[str, ...]]:
    attributes = arrays.get("attributes")
    if attributes is None:
        return None, ()
    if attributes.ndim != 2 or len(attributes) != n or not np.isin(attributes, (0, 1)).all():
        raise DataError(f"{spec}: {n} images need ({n}, A) attributes of 0 and 1, got {attributes.shape}")
    count = attributes.shape[1]
    names = tuple(map(str, arrays["attribute_names"].ravel() if "attribute_names" in arrays else range(count)))
    if len(names) != count:
        raise DataError(f"{spec}: {len(names)} attribute_names for {count} attributes")
    return torch.from_numpy(attributes.astype(bool)), names
