"""The processes that train one model: usually one, or several started by a launcher."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from halikit.errors import InputError, ResourceError

__all__ = ["Processes", "is_first", "resolve_device"]

# Steps between two exchanges about signals: each takes a round trip between the hosts.
_AGREE_EVERY = 10


class Processes:
    """The processes that train together: only this one, unless a launcher such as torchrun has started several.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. If there are several processes, each uses the GPU with the
            number of its local rank.
        timeout: Seconds that a process waits for another one before it raises an error.

    Raises:
        InputError: If the device is not available, or there are several processes and lightning-fabric cannot be
            imported.
        ResourceError: If the processes cannot connect to each other.

    Attributes:
        rank: Rank of this process, from 0.
        world: Number of processes.
        device: Device of this process.
    """

    def __init__(self, device: str, timeout: float) -> None:
        self.rank, self.world = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.world == 1:
            self.device = resolve_device(device)
            return
        self.rank = int(os.environ.get("RANK", "0"))
        with self.explained_silence():
            fabric = _launched(resolve_device(device).type, self.world, timeout)
            self.rank, self.device = fabric.global_rank, fabric.device
            # A group for messages between the hosts. They must not wait for the devices.
            self._hosts = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            # Rank 0 holds the store through which the others connect. It must not end before they have connected.
            self.wait()

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0; only rank 0 writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int, setting: str = "training.batch_size") -> int:
        """The batch size of one process.

        Args:
            batch_size: Batch size of all processes together.
            setting: Name of its setting, for the message.

        Raises:
            InputError: If the batch size is not a multiple of the number of processes, or each would have fewer than
                two samples.
        """
        if batch_size % self.world or batch_size < 2 * self.world:
            raise InputError(
                f"{setting}={batch_size} is for all {self.world} processes together: it must be a multiple "
                f"of {self.world}, and at least {2 * self.world}"
            )
        return batch_size // self.world

    def maximum(self, flag: Tensor) -> None:
        """Replace a number, ``()`` on the device, by its maximum over the processes, without waiting for the device."""
        if self.world > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of floats by their means over the processes."""
        if self.world > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.world)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def agreed(self, number: int) -> int:
        """The number that rank 0 has given."""
        shared = torch.tensor(number, device=self.device)
        self.broadcast([shared])
        return int(shared)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of parameters by their means over the processes.

        The same parameters must have gradients in all processes.
        """
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            group = [gradient for gradient in gradients if gradient.dtype == dtype]
            # One message for all gradients.
            flat = torch.cat([gradient.reshape(-1) for gradient in group])
            distributed.all_reduce(flat)
            parts = flat.div_(self.world).split([gradient.numel() for gradient in group])
            torch._foreach_copy_(group, [part.view_as(gradient) for part, gradient in zip(parts, group, strict=True)])

    def agree_on_signal(self, signal: int | None, step: int) -> int | None:
        """The signal that any process has caught, if any; all processes return it in the same step."""
        if self.world == 1:
            return signal
        if step % _AGREE_EVERY:
            return None
        number = torch.tensor(signal or 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._hosts)
        return int(number) or None

    @contextmanager
    def explained_silence(self) -> Iterator[None]:
        """Convert the errors of the communication backends within the context into a message for users.

        Raises:
            ResourceError: If a process has ended, or does not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not re.search(r"gloo|nccl|peer|timed ?out|distributed", str(error), re.IGNORECASE):
                raise
            raise ResourceError(
                f"process {self.rank} of {self.world} has lost another one: {str(error).splitlines()[0][:200]}\n"
                "start all of them again, with --resume"
            ) from None

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.world > 1:
            distributed.barrier(self._hosts)


def is_first() -> bool:
    """Whether this process has rank 0; for use before :class:`Processes` exists."""
    return os.environ.get("RANK", "0") == "0"


def resolve_device(name: str) -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA if it is available.

    Raises:
        InputError: If the name is not valid or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise InputError(f"a device is auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def _launched(kind: str, world: int, timeout: float) -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except Exception as error:  # a broken package may raise any error
        raise InputError(
            f"training in {world} processes needs lightning-fabric, which cannot be imported "
            f"({type(error).__name__}: {error}); pip install --force-reinstall lightning-fabric"
        ) from None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    backend = "nccl" if kind == "cuda" else "gloo"
    strategy = DDPStrategy(process_group_backend=backend, timeout=timedelta(seconds=timeout))
    fabric = Fabric(accelerator=kind, devices=here, num_nodes=world // here, strategy=strategy)
    fabric.launch()
    return fabric
