"""A step as one graph: passes forward and backward and all between them, as torch's compiler makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from halikit.errors import InputError
from halikit.random import seeded

__all__ = ["Captured"]

Outcome = TypeVar("Outcome", bound=tuple[Tensor, ...])


class Captured(Generic[Outcome]):
    """What a function does to gradients and buffers, done by one compiled graph.

    The function runs once for each shape of a batch; the operations that it comes to, its backward passes among them,
    are kept and compiled. It may be any whose course does not depend on values. On a CPU the random numbers are those
    that it would draw itself.

    Args:
        function: Takes a batch, adds to the ``.grad`` of parameters, and returns a named tuple of scalars.
        modules: All whose parameters and buffers it uses.
        mode: Of ``torch.compile``.
        keeps: Whether gradients must outlive the next call; CUDA graphs write over them.
    """

    def __init__(
        self, function: Callable[[Tensor], Outcome], modules: Sequence[nn.Module], *, mode: str, keeps: bool = False
    ) -> None:
        self._played = _Played(function, modules)
        self._mode, self._keeps = mode, keeps
        self._parameters = dict(self._played.named_parameters())
        self._buffers = dict(self._played.named_buffers())
        self._compiled: dict[object, Callable[..., list[Tensor]]] = {}
        # Parameters that the function reaches, and what its outcomes are.
        self._reached: list[str] = []
        self._kind: Callable[..., Outcome]

    def __call__(self, x: Tensor) -> Outcome:
        """The function, on a batch ``(n, ...)``.

        Raises:
            InputError: If the function cannot be captured, or there is no compiler.
        """
        inputs = [*self._parameters.values(), *self._buffers.values(), x]
        inputs = [tensor.detach() for tensor in inputs]
        form = (x.shape, x.stride(), x.dtype)
        if form not in self._compiled:
            self._compiled[form] = self._made(inputs)
        with torch.no_grad():
            results = iter(self._compiled[form](*inputs))
            gradients, buffers = ([next(results) for _ in names] for names in (self._reached, self._buffers))
            if buffers:
                torch._foreach_copy_(list(self._buffers.values()), buffers)
            for name, gradient in zip(self._reached, gradients, strict=True):
                parameter = self._parameters[name]
                if parameter.grad is None:
                    parameter.grad = gradient.clone() if self._keeps else gradient
                else:
                    parameter.grad.add_(gradient)
        return self._kind(*results)

    def _made(self, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
        from torch import _inductor
        from torch._inductor.exc import InvalidCxxCompiler

        device = inputs[-1].device
        options: dict[str, Any] = _inductor.list_mode_options(self._mode)
        # Of memory that it writes over, torch 2.13 sometimes needs the old content yet: gradients are wrong then.
        options |= {"inplace_buffers": False, "allow_buffer_reuse": False}
        # Drawing on a CPU, the compiler's own code is slower than torch's.
        options["fallback_random"] = device.type == "cpu"
        try:
            with seeded(0, device):
                graph = make_fx(self._pure)(*inputs)
                # The compiler may lay tensors out in another way, of which a view might not exist.
                for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
                    node.target = torch.ops.aten.reshape.default
                # What autocast does is part of the graph by now.
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    compiled: Callable[..., list[Tensor]] = _inductor.compile(graph, list(inputs), options=options)
                    compiled(*inputs)
        except InvalidCxxCompiler:
            raise InputError("training.compile on a CPU needs a C++ compiler, such as g++, and finds none") from None
        except torch.OutOfMemoryError:  # that is no fault of the step's; the trainer explains it
            raise
        except RuntimeError as error:
            raise InputError(
                f"this step cannot be compiled, set training.compile to none: {str(error).strip().splitlines()[0]}"
            ) from error
        return compiled

    def _pure(self, *inputs: Tensor) -> list[Tensor]:
        """The function from parameters, buffers and batch to gradients, buffers and outcome; it changes nothing."""
        *tensors, x = inputs
        names = [*self._parameters, *self._buffers]
        given = {name: tensor.clone() for name, tensor in zip(names, tensors, strict=True)}
        for name, parameter in self._parameters.items():
            given[name] = given[name].detach().requires_grad_(parameter.requires_grad)
        outcome = functional_call(self._played, given, (x,))
        self._reached = [name for name in self._parameters if given[name].grad is not None]
        self._kind = type(outcome)
        return [*(given[name].grad for name in self._reached), *(given[name] for name in self._buffers), *outcome]


class _Played(nn.Module):
    """A function as a module that holds those which it uses."""

    def __init__(self, function: Callable[[Tensor], Any], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._function, self._used = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self._function(x)
