"""Memory: how much a device has, an error message when it is exhausted, and faster reuse of freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from halikit.errors import ResourceError

__all__ = ["device_memory", "explained_shortage", "keep_freed", "most_memory"]

# Parameters of glibc's mallopt, and their values here.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = 2**31 - 1, 2**30


def device_memory(device: torch.device) -> int:
    """Memory of a GPU in bytes, whether in use or not; 0 for the CPU, whose memory is that of the machine.

    Without an index it is the least memory of all GPUs, so all processes of a machine get the same number.
    """
    if device.type == "cpu":
        return 0
    gpus = torch.get_device_module(device.type)
    indices = range(gpus.device_count()) if device.index is None else [device.index]
    return min(int(gpus.get_device_properties(index).total_memory) for index in indices)


def most_memory(device: torch.device) -> int:
    """Most memory so far in bytes: that of this process, or what torch has allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


@contextmanager
def explained_shortage(device: torch.device, batch_size: int) -> Iterator[None]:
    """Convert torch's errors about memory within the context into a message with numbers and advice.

    Args:
        device: Device of the training.
        batch_size: Number of images in a step.

    Raises:
        ResourceError: If the memory is exhausted.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_shortage(error):
            raise
        usage = ""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            peak = torch.cuda.max_memory_allocated(device)
            usage = (
                f" (this training took up to {peak / 2**30:.1f} of {total / 2**30:.1f} GiB; {free / 2**30:.1f} free)"
            )
        raise ResourceError(
            f"out of memory on {device} with batches of {batch_size}{usage}; the checkpoints are whole. "
            f"Try training.batch_size={max(2, batch_size // 2)}, a lower model.hidden or discriminator.width"
        ) from None


def _is_shortage(error: BaseException) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def keep_freed() -> None:
    """Let glibc keep freed memory for the next step, in this process from now on.

    By default glibc returns memory to the system at each step and gets it back page by page, which takes a tenth of
    the time of a convolutional step. Nothing changes with another C library, or if a variable ``MALLOC_…`` of the
    environment configures glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    tune(_TRIM_THRESHOLD, _NEVER)
    tune(_MMAP_THRESHOLD, _LARGE)
