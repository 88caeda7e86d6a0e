"""What a model is made of: spaces, networks, parameters, cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from halikit.discriminator import JointDiscriminator
from halikit.kernels import Kernel
from halikit.model import Model
from halikit.spaces import Space

__all__ = ["Layer", "Part", "Summary", "summarise"]


@dataclass(frozen=True)
class Layer:
    """One layer: what it does, the shape of one sample that comes out, its parameters, multiply-adds per sample."""

    operation: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Part:
    """A kernel, or a stage of the discriminator.

    Attributes:
        name: ``T_{z1|x}``, or what a stage reads.
        kind: Class of the kernel, with its gauge and scale; empty for stages.
        layers: In the order in which they run.
    """

    name: str
    kind: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Parameters in all."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds per sample, forward: those of linear maps and convolutions, exactly; no others are counted."""
        return sum(layer.multiply_adds for layer in self.layers)


@dataclass(frozen=True)
class Summary:
    """A model's spaces and parts."""

    spaces: tuple[Space, ...]
    encoder: tuple[Part, ...]
    decoder: tuple[Part, ...]
    discriminator: tuple[Part, ...]


def summarise(model: Model) -> Summary:
    """Run one zero sample through a model and write down what happens.

    Args:
        model: Left as it is.
    """
    hierarchy = model.hierarchy
    device = hierarchy.prior.device
    states = {space.name: torch.zeros(1, *space.shape, device=device) for space in hierarchy.spaces}
    with _evaluating(hierarchy, model.discriminator), torch.no_grad():
        up = tuple(_kernel_part(link.up, states) for link in hierarchy)
        down = tuple(_kernel_part(link.down, states) for link in hierarchy)
        stages = tuple(part for game in model.discriminator.games for part in _stage_parts(game, states))
    return Summary(hierarchy.spaces, up, down, stages)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    before = [[(m, m.training) for m in module.modules()] for module in modules]
    for module in modules:
        module.eval()
    yield
    for flags in before:
        for m, training in flags:
            m.training = training


def _kernel_part(kernel: Kernel, states: Mapping[str, Tensor]) -> Part:
    given = states[kernel.source.name]
    details = [type(kernel).__name__]
    for attribute, label in (("gauge", "{}"), ("max_scale", "σ ≤ {}"), ("temperature", "temperature {}")):
        value = getattr(kernel, attribute, None)
        if value is not None:
            details.append(label.format(value))
    return Part(str(kernel), ", ".join(details), _layers(kernel, lambda: kernel.mean(given)))


def _stage_parts(game: JointDiscriminator, states: Mapping[str, Tensor]) -> Iterator[Part]:
    layers: dict[int, list[Layer]] = {}
    spaces = game.spaces
    groups = [*game.stages, *(game.adapters or [])[-1:], game.head]
    owner = {id(m): i for i, group in enumerate(groups) for m in group.modules()}
    for module, layer in _recorded(game, lambda: game(states)):
        if id(module) in owner:
            layers.setdefault(owner[id(module)], []).append(layer)
    names = [f"reads {spaces[0].name}", *(f"concatenates {space.name}" for space in spaces[1:])]
    names += [f"adapter of level {len(spaces) - 1}"] * bool(game.adapters) + ["head"]
    for i, name in enumerate(names):
        yield Part(name, "", tuple(layers.get(i, ())))


def _layers(module: nn.Module, run: Callable[[], Tensor]) -> tuple[Layer, ...]:
    return tuple(layer for _, layer in _recorded(module, run))


def _recorded(module: nn.Module, run: Callable[[], Tensor]) -> list[tuple[nn.Module, Layer]]:
    """The layers that run, with their modules: those with parameters of their own, and what follows them."""
    found: list[tuple[nn.Module, Layer]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(p.numel() for p in layer.parameters())
        found.append(
            (layer, Layer(_operation(layer), tuple(output.shape[1:]), parameters, _multiply_adds(layer, inputs[0])))
        )

    leaves = [m for m in module.modules() if _is_layer(m)]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_layer(module: nn.Module) -> bool:
    if hasattr(module, "parametrizations"):
        return True
    return not list(module.children()) and "parametriz" not in type(module).__module__


def _multiply_adds(layer: nn.Module, given: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        hooks, layer._forward_hooks = layer._forward_hooks, type(layer._forward_hooks)()
        try:
            layer(given)
        finally:
            layer._forward_hooks = hooks
    return int(counter.get_total_flops()) // 2


def _operation(layer: nn.Module) -> str:
    name = type(layer).__name__.removeprefix("Parametrized")
    normed = ", weight norm" if hasattr(layer, "parametrizations") else ""
    if isinstance(layer, nn.Conv2d):
        valid = " valid" if layer.padding == (0, 0) and layer.kernel_size != (1, 1) else ""
        return f"Conv {layer.kernel_size[0]}×{layer.kernel_size[1]} / {layer.stride[0]}{valid}{normed}"
    if isinstance(layer, nn.LeakyReLU):
        return f"LeakyReLU {layer.negative_slope}"
    detail = layer.extra_repr() if type(layer).__module__.startswith("halikit") else ""
    return f"{name} {detail}".strip() + normed
