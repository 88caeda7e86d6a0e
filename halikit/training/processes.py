"""Several processes that train one model, and the one process that is the usual case."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from halikit.errors import InputError, ResourceError

__all__ = ["Processes", "is_first", "resolve_device"]

# Host-side agreement on a signal costs a round trip: the others need not hear of it at once.
_HEARD_EVERY = 10


class Processes:
    """The processes that train together: this one alone, unless a launcher such as torchrun has started several.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; of several processes, each takes the GPU of its local rank.
        timeout: Seconds after which a process that waits for another one gives up.

    Raises:
        InputError: If the device is not there, or lightning-fabric, which several processes need, cannot be imported.
        ResourceError: If the processes do not find each other.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
        device: Where this one trains.
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
            # What is agreed on by the hosts must not wait for the devices.
            self._hosts = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            # The first one holds what the others meet by: were it refused what follows, it would leave before they met.
            self.wait()

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, batch_size: int, setting: str = "training.batch_size") -> int:
        """What one process takes of a batch, whose size is that of a setting.

        Raises:
            InputError: If it cannot be divided, or leaves fewer than two samples.
        """
        if batch_size % self.world or batch_size < 2 * self.world:
            raise InputError(
                f"{setting}={batch_size} is for all {self.world} processes together: it must be a multiple "
                f"of {self.world}, and at least {2 * self.world}"
            )
        return batch_size // self.world

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes in every backward pass.

        Args:
            module: Whose forward is all that training calls. Running statistics stay each process's own.
        """
        if self.world == 1:
            return module
        with warnings.catch_warnings():
            # The name that follows it, unknown to older versions, would send buffers around.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                module,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
            )

    def any(self, flag: Tensor) -> None:
        """Let a number, ``()`` on the device, be the largest among the processes; the host does not wait."""
        if self.world > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors of floats be their means over the processes."""
        if self.world > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.world)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors be what they are in the first process."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    @contextmanager
    def averaged(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Average over the processes what backward passes within this context add to ``.grad``.

        For those that do not go through a module of :meth:`wrap`. In all processes they must reach the same parameters.
        """
        if self.world == 1:
            yield
            return
        before = [(parameter, parameter.grad) for parameter in parameters]
        for parameter, _ in before:
            parameter.grad = None
        yield
        self.average(parameter.grad for parameter, _ in before if parameter.grad is not None)
        for parameter, gradient in before:
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def heard(self, signal: int | None, step: int) -> int | None:
        """The signal that any process has caught; all are told of it in the same step, not every one."""
        if self.world == 1:
            return signal
        if step % _HEARD_EVERY:
            return None
        number = torch.tensor(signal or 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._hosts)
        return int(number) or None

    @contextmanager
    def explained_silence(self) -> Iterator[None]:
        """Turn what the backends say when a process is gone into advice.

        Raises:
            ResourceError: If one is gone, or does not answer in time.
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
        """Until all processes have come here."""
        if self.world > 1:
            distributed.barrier(self._hosts)


def is_first() -> bool:
    """Whether this process is the first of those that a launcher has started, if one has."""
    return os.environ.get("RANK", "0") == "0"


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda``; ``auto`` is CUDA where there is some.

    Raises:
        InputError: If it is not there.
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
    except Exception as error:  # a broken package raises anything
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
