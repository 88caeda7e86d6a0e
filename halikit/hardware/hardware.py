"""Where and how the steps of a training run: device, precision, threads, memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from halikit.errors import InputError
from halikit.hardware.memory import keep_freed
from halikit.hardware.precision import bfloat16_units
from halikit.hardware.processes import Processes
from halikit.hardware.recompute import recompute_activations
from halikit.settings import Positive, Section

__all__ = ["Hardware", "HardwareSettings"]


class HardwareSettings(Section):
    """Where a training runs and how it uses the machine. Nothing here changes the mathematics."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "32", "64", "bf16"] = Field(
        "auto",
        description="32 for float32, 64 for float64, bf16 for autocast to bfloat16; auto: bf16 if the hardware has it",
    )
    threads: Positive | None = Field(None, description="CPU threads of one operation; torch's own default if none")
    compile: Literal["auto", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        "auto",
        description="compile the whole step as one graph, in this mode of torch.compile; auto: default if it pays",
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="memory layout of feature maps; auto: channels_last for convolutions in bfloat16"
    )
    accumulate: Positive = Field(1, description="micro-batches in a batch; their gradients are averaged")
    recompute: bool = Field(False, description="compute activations again in the backward pass instead of storing them")
    prefetch: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="batches that a thread prepares in advance"
    )
    sync_batch_norm: bool = Field(False, description="batch statistics over all processes (GPUs only)")
    timeout: Annotated[float, Field(gt=0)] = Field(300.0, description="seconds to wait for another process")

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_in_words(cls, value: object) -> object:
        """``--set precision=32`` gives a number."""
        return str(value) if type(value) is int else value


class Hardware:
    """The processes that train together, the device of this one, and how its steps run.

    Args:
        settings: The settings ``[hardware]``, without ``auto`` for precision and compilation.
        on_notice: Called with each notice; by default it is a Python warning.

    Raises:
        InputError: If the device is not available, or the processes cannot be set up.

    Attributes:
        processes: The processes that train together.
        device: Where this process trains.
        memory_format: The memory layout of feature maps, once modules have been prepared.
        notify: Called with each notice; ranks other than 0 say nothing.
    """

    def __init__(self, settings: HardwareSettings, on_notice: Callable[[str], None] = warnings.warn) -> None:
        self.settings = settings
        self.processes = Processes(settings.device, settings.timeout)
        self.device = self.processes.device
        self.memory_format = torch.contiguous_format
        self.notify = on_notice if self.processes.rank == 0 else _ignore
        if settings.precision == "bf16" and not bfloat16_units(self.device):
            self.notify(
                f"this {self.device.type.upper()} has no units for bfloat16: precision = '32' may be many times faster"
            )
        if self.device.type == "cpu":
            keep_freed()

    def place(self, modules: Iterable[nn.Module]) -> None:
        """Move modules to the device and to double precision if asked, with the weights of rank 0 in all processes."""
        dtype = torch.float64 if self.settings.precision == "64" else None
        modules = [module.to(self.device, dtype) for module in modules]
        # Each process initialises its own weights; broadcast those of rank 0.
        self.processes.broadcast(tensor for module in modules for tensor in module.state_dict().values())

    def prepare(self, modules: Iterable[nn.Module]) -> None:
        """Move modules to the device in training mode, and apply the settings that concern modules.

        Raises:
            InputError: If batch statistics are to be synchronised elsewhere than on GPUs.
        """
        settings, modules = self.settings, list(modules)
        if settings.sync_batch_norm and self.device.type != "cuda":
            raise InputError(f"hardware.sync_batch_norm is for GPUs; this training is on {self.device}")
        self.memory_format = self._chosen_memory_format(modules)
        self.place(modules)
        for module in modules:
            module.train()
            if self.memory_format == torch.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if settings.recompute:
                recompute_activations(module)
            if settings.sync_batch_norm:
                nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def layout(self, batch: Tensor) -> Tensor:
        """The batch of images ``(n, C, H, W)`` in the memory format of the model; other batches as they are."""
        return batch.contiguous(memory_format=self.memory_format) if batch.dim() == 4 else batch

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the settings, as a context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Within the context an operation uses as many CPU threads as the settings say."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _chosen_memory_format(self, modules: Iterable[nn.Module]) -> torch.memory_format:
        """As the settings say; ``auto`` takes the format in which convolutions in half precision are fastest.

        Tensor cores need it, and on a CPU oneDNN then has no weights to convert.
        """
        wanted = self.settings.memory_format
        if wanted == "auto":
            convolves = any(isinstance(part, nn.Conv2d) for module in modules for part in module.modules())
            wanted = "channels_last" if convolves and self.settings.precision == "bf16" else "contiguous"
        return torch.channels_last if wanted == "channels_last" else torch.contiguous_format


def _ignore(notice: str) -> None:
    """What ranks other than 0 do with a notice."""
