"""``array:``: arrays of your own, from ``.npy``, ``.npz`` or ``.safetensors``; never pickled ones.

| key | what it holds |
|---|---|
| ``images`` or ``x`` | ``(n, H, W)``, ``(n, C, H, W)`` or ``(n, H, W, C)`` with C = 1 or 3; vectors ``(n, D)`` |
| ``labels`` or ``y``, if any | ``(n,)`` integers from 0 |
| ``classes``, if any (.npz) | their names |
| ``attributes``, if any | ``(n, A)`` of 0 and 1 |
| ``attribute_names``, if any (.npz) | their names |
| ``range``, if any | two numbers: what black and white are |

A .npy holds the images alone. Without a ``range``, bytes say 0 … 255 and floats say −1 … 1, and are refused if their
values say otherwise: beyond the range, or in another one that is common (all of a float image in 0 … 1, no byte above
1). Vectors may hold any finite numbers. The last tenth, in the order of the file, is held out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import resize_all
from halikit.data.pack import is_pack
from halikit.data.request import Request
from halikit.data.tree import printable

__all__ = ["has_array", "load_array"]

SUFFIXES = (".npy", ".npz", ".safetensors")
KEYS = ("images", "x", "labels", "y", "classes", "attributes", "attribute_names", "range")
CHANNELS = (1, 3)
MAX_CLASSES = 2**16

_BLOCK = 2**24  # elements looked at in one go

Arrays = dict[str, NDArray[Any]]


def has_array(path: Path) -> bool:
    """Whether a file is named as an array is."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def load_array(request: Request) -> DataSet:
    """Read a file of arrays by the table at the head of this module.

    Returns:
        Images ``(C, H, W)``, uint8 if they are stored as bytes with their whole range, else float32; or vectors.

    Raises:
        DataError: If the file cannot be read, a shape or a dtype is none of these, images and labels do not agree in
            number, a number is not finite, or values are not in their range.
    """
    if is_pack(request.path):
        raise DataError(f"{request.spec}: this is a pack: use pack:{request.spec.partition(':')[2]}")
    arrays = _arrays(request.path, request.spec)
    images = _images(arrays, request)
    n = len(images)
    labels, classes = _labels(arrays, n, request.spec)
    attributes, names = _attributes(arrays, n, request.spec)
    if n < 2:
        raise DataError(f"{request.spec}: {n} of them; it takes two, to train on and to hold out")
    everything = Split(images, labels, attributes)
    cut = n - max(1, n // 10)
    request.progress(n, n)
    return DataSet(
        spec=request.spec,
        shape=tuple(images.shape[1:]),
        classes=classes,
        train=everything[:cut],
        validation=None,
        test=everything[cut:],
        attributes=names,
    )


def _arrays(path: Path, spec: str) -> Arrays:
    """What a file holds, by key."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return {"images": np.load(path, allow_pickle=False)}
        if suffix == ".npz":
            return _npz(path, spec)
        if suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
            return {key: _numpy(value) for key, value in found.items() if key in KEYS} or _no_images(spec, found)
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{spec}: does not fit into memory, or its header lies") from None
    except Exception as error:  # each of the three has errors of its own
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if "allow_pickle" in reason or "pickle" in reason.lower():
            reason = "it holds Python objects, which are pickled and could run any code; save plain numbers"
        raise DataError(f"{spec} cannot be read: {printable(reason[:200])}") from None
    raise DataError(f"{spec}: arrays come as {', '.join(SUFFIXES)}")


def _npz(path: Path, spec: str) -> Arrays:
    found: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        for key in keys:
            if key in KEYS:
                with archive.open(f"{key}.npy") as member:
                    found[key] = np.lib.format.read_array(member, allow_pickle=False)
    return found or _no_images(spec, keys)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _no_images(spec: str, keys: Iterable[str]) -> Arrays:
    seen = ", ".join(printable(key[:100]) for key in sorted(keys)[:5]) or "nothing"
    raise DataError(f"{spec}: it holds {seen}; images are looked for under 'images' or 'x', labels under 'labels'")


def _images(arrays: Mapping[str, NDArray[Any]], request: Request) -> Tensor:
    """``(n, C, H, W)`` uint8 or float32 in [−1, 1], or ``(n, D)`` float32."""
    spec = request.spec
    x = next((arrays[key] for key in ("images", "x") if key in arrays), None)
    if x is None:
        _no_images(spec, arrays)
    assert x is not None
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{spec}: images of {x.dtype}; they are uint8 or floating point")
    if x.size == 0 or x.ndim not in (2, 3, 4):
        raise DataError(f"{spec}: shape {x.shape}; images are (n, H, W), (n, C, H, W) or (n, H, W, C), vectors (n, D)")
    low, high = _extremes(x, spec)
    if x.ndim == 2:
        if request.size is not None:
            raise DataError(f"{spec}: vectors of {x.shape[1]} have no size={request.size}")
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))
    black, white = _range(arrays, x.dtype, (low, high), spec)
    images = np.ascontiguousarray(_planes(x, spec))
    if request.size is not None:
        n, channels, *sizes = images.shape
        images = resize_all(images.reshape(-1, *sizes), request.size).reshape(n, channels, request.size, request.size)
        images = images.clip(black, white).astype(images.dtype)
    if images.dtype == np.uint8 and (black, white) == (0, 255):
        return torch.from_numpy(images)
    images = images.astype(np.float32)
    if (black, white) != (-1, 1):
        images = ((images - black) * (2 / (white - black)) - 1).clip(-1, 1)
    return torch.from_numpy(images)


def _planes(x: NDArray[Any], spec: str) -> NDArray[Any]:
    """Channels before rows."""
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] in CHANNELS:
        return x
    if x.shape[3] in CHANNELS:
        return x.transpose(0, 3, 1, 2)
    raise DataError(f"{spec}: shape {x.shape}; images have 1 or 3 channels, as (n, C, H, W) or (n, H, W, C)")


def _extremes(x: NDArray[Any], spec: str) -> tuple[float, float]:
    """The least and the greatest value; every one is finite."""
    rows = max(1, _BLOCK // max(1, x[0].size))
    low, high = np.inf, -np.inf
    for start in range(0, len(x), rows):
        some = x[start : start + rows]
        if not np.isfinite(some).all():
            at = int((~np.isfinite(some)).reshape(len(some), -1).any(1).argmax())
            what = "a NaN" if np.isnan(some[at]).any() else "an infinity"
            raise DataError(f"{spec}: {what} in item {start + at}; every value must be finite")
        low, high = min(low, float(some.min())), max(high, float(some.max()))
    return low, high


def _range(
    arrays: Mapping[str, NDArray[Any]], dtype: np.dtype[Any], seen: tuple[float, float], spec: str
) -> tuple[float, float]:
    """What black and white are."""
    low, high = seen
    values = f"{spec}: {dtype} images with values from {low:g} to {high:g}"
    if "range" in arrays:
        declared = np.asarray(arrays["range"], np.float64).ravel()
        if len(declared) != 2 or not declared[0] < declared[1]:
            raise DataError(f"{spec}: range is two numbers, the lower one first, not {declared.tolist()}")
        black, white = map(float, declared)
        if low < black or high > white:
            raise DataError(f"{values}, but their range says {black:g} to {white:g}")
        return black, white
    fix = "or say so with a key range = [black, white] (.npz, .safetensors)"
    if dtype == np.uint8:
        if high <= 1:
            raise DataError(f"{values}, where bytes say 0 to 255: multiply by 255, {fix}")
        return 0, 255
    if low < -1 or high > 1:
        raise DataError(f"{values}, where floats say −1 to 1: scale them, save them as uint8, {fix}")
    if low >= 0:
        raise DataError(f"{values}, where floats say −1 to 1: save 2 * x − 1, {fix}")
    return -1, 1


def _labels(arrays: Mapping[str, NDArray[Any]], n: int, spec: str) -> tuple[Tensor | None, tuple[str, ...]]:
    labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
    if labels is None:
        return None, ()
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{spec}: {n} images need ({n},) integer labels, got {labels.shape} of {labels.dtype}: they do not match"
        )
    names = tuple(map(str, arrays["classes"].ravel())) if "classes" in arrays else None
    count = int(labels.max()) + 1 if names is None else len(names)
    if labels.min() < 0 or labels.max() >= min(count, MAX_CLASSES):
        raise DataError(
            f"{spec}: labels from {labels.min()} to {labels.max()}; they go from 0 to "
            f"{MAX_CLASSES - 1 if names is None else count - 1}"
        )
    return torch.from_numpy(labels.astype(np.int64)), names or tuple(map(str, range(count)))


def _attributes(arrays: Mapping[str, NDArray[Any]], n: int, spec: str) -> tuple[Tensor | None, tuple[str, ...]]:
    flags = arrays.get("attributes")
    if flags is None:
        return None, ()
    if flags.ndim != 2 or len(flags) != n or not np.isin(flags, (0, 1)).all():
        raise DataError(
            f"{spec}: {n} images need ({n}, A) attributes of 0 and 1, got {flags.shape} of {flags.dtype}: "
            "they do not match"
        )
    names = tuple(map(str, arrays["attribute_names"].ravel() if "attribute_names" in arrays else range(flags.shape[1])))
    if len(names) != flags.shape[1]:
        raise DataError(f"{spec}: {len(names)} attribute_names for {flags.shape[1]} attributes")
    return torch.from_numpy(flags.astype(bool)), names
