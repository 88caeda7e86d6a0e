"""Features of data: the outputs of the encoder at each level, for data sets of any size (section 7.1)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from halikit.analysis.inference import Inference, Mode
from halikit.data import Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.utils.files import write_atomically, writing
from halikit.utils.random import derived_seed, seeded
from halikit.utils.safetensors_stream import StoredTensor, make_header

__all__ = ["Written", "encoded", "pooled", "write_features"]

# Default number of samples in a batch.
BATCH_SIZE = 500

# Seconds between the points from which an interrupted export can be resumed.
_SAVED_EVERY = 5.0


@torch.no_grad()
def encoded(
    hierarchy: Hierarchy,
    part: Split,
    *,
    batch_size: int = BATCH_SIZE,
    start: int = 0,
    draw: bool = False,
    seed: int = 0,
    compile: Mode | None = None,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Encode a part of a data set batch by batch, in order.

    Args:
        hierarchy: The hierarchy, in evaluation mode; given the contexts of the data, if it takes one.
        part: The data; each batch is read when it is needed.
        batch_size: Number of samples in a batch.
        start: First sample to encode, a multiple of the batch size.
        draw: Draw every state instead of following the means.
        seed: Seed of the draws. They depend on the seed, the first row of a batch and the batch size alone.
        compile: Mode of ``torch.compile`` for the means; ``None`` does not compile.

    Yields:
        The rows of a batch, and its states by name, ``x`` first, ``(n, *shape)`` each, on the hierarchy's device.
    """
    device = hierarchy.prior.device
    inference = Inference(hierarchy, batch_size=batch_size, compile=compile)
    for first in range(start, len(part), batch_size):
        rows = slice(first, min(first + batch_size, len(part)))
        x = part.batch(torch.arange(rows.start, rows.stop)).to(device)
        if draw:
            with seeded(derived_seed(seed, first), device):
                yield rows, hierarchy.rows(rows).encode(x, sample=True)
        else:
            yield rows, inference.encode(x, context=hierarchy.rows(rows).context)


def pooled(z: Tensor) -> Tensor:
    """Feature maps ``(n, C, H, W)`` averaged over positions, ``(n, C)``; vectors ``(n, D)`` as they are."""
    return z.mean(tuple(range(2, z.dim()))) if z.dim() > 2 else z


@dataclass(frozen=True)
class Written:
    """A summary of an export.

    Attributes:
        rows: Number of samples in the file.
        resumed_from: First row that was encoded; 0 unless an interrupted export was resumed.
        seconds: Duration in seconds.
        size: Size of the file in bytes.
    """

    rows: int
    resumed_from: int
    seconds: float
    size: int

    @property
    def images_per_second(self) -> float:
        """The rate of the export: samples in a second."""
        return (self.rows - self.resumed_from) / max(self.seconds, 1e-9)


def write_features(
    hierarchy: Hierarchy,
    part: Split,
    out: Path | str,
    *,
    levels: Sequence[int] | None = None,
    draw: bool = False,
    pool: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    compile: Mode | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Encode a part of a data set into a safetensors file, batch by batch. Neither has to fit into memory.

    The file holds ``z1`` … by name, ``(n, …)`` float32. It holds ``labels``, ``(n,)`` int64, and ``attributes``,
    ``(n, A)`` bool, if the data have them. Its metadata hold a JSON object under ``halikit.features``. The file appears
    when it is complete; until then the finished rows are in ``.NAME.part`` and ``.NAME.part.json`` beside it.

    Args:
        hierarchy: The hierarchy, in evaluation mode; given the contexts of the data, if it takes one.
        part: The data.
        out: The file; an existing one is replaced.
        levels: Levels to write, from 1 to L; all by default.
        draw: Draw every state instead of following the means.
        pool: Average feature maps over positions.
        batch_size: Number of samples in a batch.
        seed: Seed of the draws.
        about: Further metadata, as JSON takes it: the model, the data.
        resume: Resume an interrupted export.
        compile: Mode of ``torch.compile`` for the means; ``None`` does not compile.
        on_progress: Called with (samples done, samples in all).

    Returns:
        A summary.

    Raises:
        InputError: If a level does not exist, the file cannot be written, or there is no export to resume.
        ResourceError: If the disk is full.
    """
    out = Path(out)
    names = [hierarchy.spaces[level].name for level in _checked(levels, len(hierarchy))]
    meta = {"draw": draw, "pool": pool, "batch_size": batch_size, "seed": seed if draw else None, **(about or {})}
    header, tensors = make_header(_tensors(hierarchy, part, names, pool), "halikit.features", meta)
    size = max(stored.end for stored in tensors.values())
    started = time.perf_counter()
    with writing(out, size):
        first = _begin(out, header, size, resume)
        with _partial(out).open("r+b") as file:
            _fill(file, out, tensors, hierarchy, part, names, meta, first, compile, on_progress)
        os.replace(_partial(out), out)
        _progress_file(out).unlink(missing_ok=True)
    return Written(len(part), first, time.perf_counter() - started, size)


def _tensors(
    hierarchy: Hierarchy, part: Split, names: Sequence[str], pool: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Element type and shape of each tensor in the file; those with the widest elements first, so all are aligned."""
    n = len(part)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    if part.labels is not None:
        tensors["labels"] = torch.int64, (n,)
    for space in hierarchy.spaces:
        if space.name in names:
            tensors[space.name] = torch.float32, (n, *(space.shape[:1] if pool else space.shape))
    if part.attributes is not None:
        tensors["attributes"] = torch.bool, tuple(part.attributes.shape)
    return tensors


def _begin(out: Path, header: bytes, size: int, resume: bool) -> int:
    """Make the file in its full length, or check the one to resume; returns the first row to encode."""
    part = _partial(out)
    if not resume:
        _progress_file(out).unlink(missing_ok=True)
        with part.open("wb") as file:
            file.write(header)
            file.truncate(size)
        return 0
    try:
        rows = int(json.loads(_progress_file(out).read_text("utf-8"))["rows"])
        with part.open("rb") as file:
            found = file.read(len(header))
    except (OSError, ValueError, KeyError):
        raise InputError(f"there is no interrupted writing of {out} to resume; leave --resume out to start") from None
    if found != header:
        raise InputError(
            f"what is left of {out} was made with another model, other data or other settings; "
            "give the same ones, or leave --resume out to start again"
        )
    return rows


def _fill(
    file: BinaryIO,
    out: Path,
    tensors: Mapping[str, StoredTensor],
    hierarchy: Hierarchy,
    part: Split,
    names: Sequence[str],
    meta: Mapping[str, Any],
    first: int,
    compile: Mode | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    size = meta["batch_size"]
    draw, seed = meta["draw"], meta["seed"] or 0
    batches = encoded(hierarchy, part, batch_size=size, start=first, draw=draw, seed=seed, compile=compile)
    saved = time.perf_counter()
    for rows, states in batches:
        chunk = {name: pooled(states[name]) if meta["pool"] else states[name] for name in names}
        if part.labels is not None:
            chunk["labels"] = part.labels[rows]
        if part.attributes is not None:
            chunk["attributes"] = part.attributes[rows]
        for name, values in chunk.items():
            stored = tensors[name]
            file.seek(stored.offset + rows.start * (stored.nbytes // len(part)))
            file.write(values.contiguous().cpu().numpy().tobytes())
        if time.perf_counter() - saved > _SAVED_EVERY:
            _sync(file)
            write_atomically(_progress_file(out), json.dumps({"rows": rows.stop}))
            saved = time.perf_counter()
        if on_progress:
            on_progress(rows.stop, len(part))
    _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _progress_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.part.json")


def _checked(levels: Sequence[int] | None, top: int) -> Sequence[int]:
    levels = range(1, top + 1) if levels is None else levels
    wrong = [level for level in levels if not 1 <= level <= top]
    if wrong or not levels:
        raise InputError(f"levels go from 1 to {top}, got {', '.join(map(str, wrong)) or 'none'}")
    return levels
