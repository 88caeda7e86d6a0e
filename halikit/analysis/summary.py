"""Summary of a model: spaces, networks, parameters and cost, as in Table 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from halikit.discriminator import CONTEXT, Discriminator, JointDiscriminator
from halikit.kernels import DensityKernel, GaussianKernel, Kernel
from halikit.model import Model
from halikit.networks.blocks import Dropout, Layer, Reshape, ResidualBlock
from halikit.spaces import Space
from halikit.utils.modes import evaluating

__all__ = ["Part", "Row", "Summary", "summarise"]

# Modules that only reshape have no row.
_RESHAPING = (nn.Flatten, nn.Identity, nn.Unflatten, Reshape)
_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_NONLINEARITIES = (nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh)


@dataclass(frozen=True)
class Row:
    """A row of Table 4: a linear map with its normalisation and nonlinearity, a residual block, or another module.

    Attributes:
        operation: Name of the operation.
        kernel: Size of the convolution's kernel, such as ``3×3``; empty for other operations.
        strides: Strides of the convolution, or ``valid`` if it has no padding; empty for other operations.
        maps: Number of feature maps or units of the output; ``None`` without a linear map.
        norm: ``BN``, ``WN``, ``×`` for neither; the gauge of a Gaussian layer.
        dropout: Probability of dropping an activation; ``None`` without a linear map.
        nonlinearity: Nonlinearity behind the linear map.
        output: Shape of the output for one sample.
        parameters: Number of parameters.
        multiply_adds: Number of multiply-adds of the forward pass for one sample.
    """

    operation: str
    kernel: str
    strides: str
    maps: int | None
    norm: str
    dropout: float | None
    nonlinearity: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Part:
    """A kernel, or a stage of the discriminator.

    Attributes:
        name: Name of the kernel, such as ``T_{z1|x}``, or the state that a stage reads.
        kind: Class of the kernel, with its gauge and scale; empty for stages.
        rows: Rows in the order of the forward pass.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one sample: exact for linear maps and convolutions; no others count."""
        return sum(row.multiply_adds for row in self.rows)


@dataclass(frozen=True)
class Summary:
    """A model's spaces and parts, level by level from the data up."""

    spaces: tuple[Space, ...]
    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]
    discriminator: tuple[Part, ...]

    @property
    def groups(self) -> dict[str, tuple[Part, ...]]:
        """The parts of the encoder, the decoder and the discriminator."""
        return {"encoder": self.encoder, "decoder": self.decoder, "discriminator": self.discriminator}


def summarise(model: Model) -> Summary:
    """Summarise a model: run one zero sample through it and record each module.

    Args:
        model: A model; it is not changed. A hierarchy of kernels of your own that take a context is given one first.
    """
    hierarchy = model.hierarchy.conditioned(model.example_context(1))
    device = hierarchy.prior.device
    states = {space.name: torch.zeros(1, *space.shape, device=device) for space in hierarchy.spaces}
    if hierarchy.context is not None:
        states[CONTEXT] = hierarchy.context[:1]
    with evaluating(*model.parts.values()), torch.no_grad():
        up = tuple(_kernel_part(link.up, states) for link in hierarchy)
        down = tuple(_kernel_part(link.down, states) for link in hierarchy)
        games = model.discriminator.games if model.discriminator else ()
        stages = tuple(part for game in games for part in _game_parts(game, states))
    return Summary(hierarchy.spaces, up, down, stages)


def _kernel_part(kernel: Kernel, states: Mapping[str, Tensor]) -> Part:
    given = states[kernel.source.name]
    details = [type(kernel).__name__]
    for attribute, label in (("gauge", "{}"), ("max_scale", "σ ≤ {}"), ("temperature", "temperature {}")):
        value = getattr(kernel, attribute, None)
        if value is not None:
            details.append(label.format(value))
    # A gauge is part of the Gaussian layer.
    norm = kernel.norm if isinstance(kernel, GaussianKernel) else None
    found, multiply_adds = _recorded(kernel, lambda: kernel.mean(given), without=norm)
    rows = [row for _, row in found]
    # Parameters and multiply-adds outside of the modules belong to the kernel itself.
    parameters = sum(p.numel() for p in kernel.parameters()) - sum(row.parameters for row in rows)
    multiply_adds -= sum(row.multiply_adds for row in rows)
    if isinstance(kernel, DensityKernel) or parameters or multiply_adds:
        name = f"{type(kernel).__name__.removesuffix('Kernel')} layer"
        gauge = getattr(kernel, "gauge", None) or ""
        rows.append(Row(name, "", "", None, gauge, None, "", kernel.target.shape, parameters, multiply_adds))
    return Part(str(kernel), ", ".join(details), tuple(rows))


def _game_parts(game: Discriminator, states: Mapping[str, Tensor]) -> Iterator[Part]:
    """The stages of a game; one part for a discriminator without stages."""
    found, multiply_adds = _recorded(game, lambda: game(states))
    if isinstance(game, JointDiscriminator):
        yield from _stage_parts(game, found)
        return
    rows = [row for _, row in found]
    parameters = sum(p.numel() for p in game.parameters()) - sum(row.parameters for row in rows)
    multiply_adds -= sum(row.multiply_adds for row in rows)
    if parameters or multiply_adds:
        rows.append(Row("other", "", "", None, "", None, "", (), parameters, multiply_adds))
    yield Part(f"reads {', '.join(space.name for space in game.spaces)}", "", tuple(rows))


def _stage_parts(game: JointDiscriminator, found: Iterable[tuple[nn.Module, Row]]) -> Iterator[Part]:
    rows: dict[int, list[Row]] = {}
    spaces = game.spaces
    groups = [*game.stages, game.head] + ([] if game.projection is None else [game.projection])
    owner = {id(m): i for i, group in enumerate(groups) for m in group.modules()}
    for module, row in found:
        if id(module) in owner:
            rows.setdefault(owner[id(module)], []).append(row)
    names = [f"reads {spaces[0].name}", *(f"concatenates {space.name}" for space in spaces[1:])]
    names += ["head", "projection on the context"]
    for i, name in enumerate(names[: len(groups)]):
        yield Part(name, "", tuple(rows.get(i, ())))


def _recorded(
    module: nn.Module, run: Callable[[], Tensor], *, without: nn.Module | None = None
) -> tuple[list[tuple[nn.Module, Row]], int]:
    """The modules that run with their rows, and the number of all multiply-adds; ``without`` gets no row."""
    found: list[tuple[nn.Module, Row]] = []
    started: dict[nn.Module, int] = {}
    counter = FlopCounterMode(display=False)

    def start(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note what was counted before the part."""
        started[part] = counter.get_total_flops()

    def note(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        """Describe the part once it has run."""
        output = output if isinstance(output, Tensor) else output[0]
        multiply_adds = (counter.get_total_flops() - started[part]) // 2
        found.append((part, _described(part, tuple(output.shape[1:]), multiply_adds)))

    parts = [part for part in _parts(module) if part not in (module, without) and not isinstance(part, _RESHAPING)]
    handles = [part.register_forward_pre_hook(start) for part in parts]
    handles += [part.register_forward_hook(note) for part in parts]
    try:
        with counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found, counter.get_total_flops() // 2


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that have a row each."""
    children = [] if isinstance(module, Layer | ResidualBlock) or is_parametrized(module) else list(module.children())
    if not children:
        yield module
    for child in children:
        yield from _parts(child)


def _described(part: nn.Module, output: tuple[int, ...], multiply_adds: int) -> Row:
    modules = [m for m in part.modules() if not isinstance(m, nn.Sequential)]
    linear = next((m for m in modules if isinstance(m, nn.Linear | _CONVOLUTIONS)), None)
    parameters = sum(p.numel() for p in part.parameters())
    if linear is None:
        return Row(_operation(part), "", "", None, "", None, "", output, parameters, multiply_adds)
    kernel, strides, operation = "", "", "Dense"
    if isinstance(linear, _CONVOLUTIONS):
        kernel, strides = ("×".join(map(str, sizes)) for sizes in (linear.kernel_size, linear.stride))
        if not any(linear.padding) and set(linear.kernel_size) != {1}:
            strides = "valid"
        operation = "Convolution"
    if isinstance(part, ResidualBlock):
        operation = "ResNet block"
    is_batch_normed = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for m in modules)
    norm = "BN" if is_batch_normed else "WN" if is_parametrized(linear) else "×"
    dropout = max((m.probability for m in modules if isinstance(m, Dropout)), default=0.0)
    nonlinearity = next((_operation(m) for m in modules if isinstance(m, _NONLINEARITIES)), "Linear")
    return Row(operation, kernel, strides, output[0], norm, dropout, nonlinearity, output, parameters, multiply_adds)


def _operation(module: nn.Module) -> str:
    if isinstance(module, nn.LeakyReLU):
        return f"Leaky ReLU {module.negative_slope}"
    if isinstance(module, nn.Upsample):
        return f"{str(module.mode).capitalize()} upsampling"
    name = type(module).__name__.removeprefix("Parametrized")
    detail = module.extra_repr() if type(module).__module__.startswith("halikit") else ""
    return f"{name} {detail}".strip()
