"""Exports encoder and decoder to files that run without halikit: ``torch.export`` programs or ONNX (extra ``onnx``)."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import Kernel
from halikit.spaces import Space
from halikit.utils.files import write_atomically, writing
from halikit.utils.random import seeded

__all__ = ["Exported", "Format", "export"]

Format = Literal["pt2", "onnx"]

# Batch sizes for tracing a program and for checking it. They differ, because any batch size must work.
_TRACED, _CHECKED = 4, 7


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: The file.
        given: Name of the input, ``(n, *shape)`` with any n.
        gives: Names of the outputs, in order.
        difference: Largest absolute difference between its outputs and those of the hierarchy, on random data: an
            estimate.
    """

    path: Path
    given: str
    gives: tuple[str, ...]
    difference: float


def export(hierarchy: Hierarchy, out: Path | str, *, format: Format = "onnx") -> list[Exported]:
    """Export the encoder, from ``x`` to the means of all levels, and a decoder for each level, from ``z_l`` to ``x``.

    Each file is loaded, run and compared with the hierarchy.

    Args:
        hierarchy: The hierarchy, in evaluation mode; given one context for all data, if it takes one.
        out: Directory of the files ``encoder.onnx``, ``decoder-z1.onnx`` …, or ``….pt2``; created if it is missing.
        format: ``"onnx"``, or ``"pt2"`` for ``torch.export.load``.

    Returns:
        The files.

    Raises:
        InputError: If kernels take a context and are not given one, the mean of a kernel is not known, torch cannot
            export a kernel, a package is missing, or the directory cannot be written to.
        ResourceError: If the disk is full.
    """
    if hierarchy.training:
        raise InputError("what is exported is the model in evaluation mode: call .eval()")
    if hierarchy.takes_context and (hierarchy.context is None or len(hierarchy.context) != 1):
        raise InputError(
            "an exported file takes no context: give one for all data (--class K, or h.conditioned(c[:1]))"
        )
    serialise = {"pt2": _program, "onnx": _onnx}.get(format)
    if serialise is None:
        raise InputError(f"a format is 'onnx' or 'pt2', got {format!r}")
    if format == "onnx":
        _check_onnx()
    for link in hierarchy:
        _check_mean(link.up)
        _check_mean(link.down)
    out = Path(out)
    # Constants in an exported program have a fixed device: the CPU.
    hierarchy = deepcopy(hierarchy).cpu()
    x, *latents = hierarchy.spaces
    parts: list[tuple[nn.Module, Space, list[Space], str]] = [(_Encoder(hierarchy), x, latents, "encoder")]
    parts += [(_Decoder(hierarchy, level), z, [x], f"decoder-{z.name}") for level, z in enumerate(latents, 1)]
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    exported = []
    for module, source, targets, name in parts:
        path = out / f"{name}.{format}"
        given, names = _states(hierarchy, source.name, _TRACED), tuple(space.name for space in targets)
        with _quietly():
            try:
                content = serialise(module.eval(), given, source.name, names)
            except Exception as error:  # torch raises many types of errors
                line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise InputError(f"torch cannot export the {name} of this hierarchy: {line[:300]}") from error
            write_atomically(path, content)
            run = (_run_onnx if format == "onnx" else _run_program)(path)
            other = _states(hierarchy, source.name, _CHECKED)
            with torch.no_grad():
                pairs = zip(run(other), module(other), strict=True)
                difference = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
        exported.append(Exported(path, source.name, names, difference))
    return exported


class _Encoder(nn.Module):
    """All levels of the encoder as one module."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """The means of all latents for ``(n, *shape of x)``, from z1 up."""
        return tuple(self.hierarchy.encode(given).values())[1:]


class _Decoder(nn.Module):
    """The decoder of a level as one module."""

    def __init__(self, hierarchy: Hierarchy, level: int) -> None:
        super().__init__()
        self.hierarchy, self.level = hierarchy, level

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """The data along the means for ``(n, *shape of z_l)``, as the only element."""
        return tuple(self.hierarchy.decode(given, self.level).values())[-1:]


_Run = Callable[[Tensor], Sequence[Tensor]]


def _program(module: nn.Module, given: Tensor, source: str, names: Sequence[str]) -> bytes:
    program = torch.export.export(module, (given,), dynamic_shapes={"given": {0: torch.export.Dim("n")}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(module: nn.Module, given: Tensor, source: str, names: Sequence[str]) -> bytes:
    program = torch.onnx.export(
        module,
        (given,),
        dynamo=True,
        dynamic_shapes={"given": {0: torch.export.Dim("n")}},
        input_names=[source],
        output_names=list(names),
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _run_program(path: Path) -> _Run:
    return torch.export.load(path).module()


def _run_onnx(path: Path) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = (given.name for given in session.get_inputs())
    return lambda given: [torch.from_numpy(output) for output in session.run(None, {source: given.numpy()})]


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}: pip install 'halikit[onnx]', or export as pt2") from None


def _check_mean(kernel: Kernel) -> None:
    """Refuse a kernel whose mean is a draw at fixed noise: exported programs have no generator to fix."""
    if kernel.representative == "draw at fixed noise":
        raise InputError(
            f"{kernel} does not know its mean and gives a draw for it, which cannot be exported; "
            "give its class a method mean"
        )


def _states(hierarchy: Hierarchy, name: str, n: int) -> Tensor:
    """``n`` states of a space, sampled by the decoder."""
    with seeded(n, hierarchy.prior.device), torch.no_grad():
        return hierarchy.sample_states(n)[name]


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the warnings and log messages of torch's exporters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
