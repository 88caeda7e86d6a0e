"""Compiles a training step, with its forward and backward passes, into one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from halikit.utils.random import seeded

__all__ = ["CompiledStep", "NotCompilableError", "has_compiler"]


class NotCompilableError(RuntimeError):
    """A function cannot be compiled."""


class CompiledStep:
    """A function that computes gradients and changes buffers, compiled into one graph.

    For each shape of the inputs the function runs once; its operations, backward passes included, are recorded and
    compiled. Its control flow must not depend on the values of tensors. On a CPU the random numbers are the same as
    without compilation.

    Args:
        function: Function that takes tensors, adds to the ``.grad`` of parameters, and returns scalars by name.
        modules: All modules whose parameters and buffers the function uses.
        mode: Mode of ``torch.compile``.
        keep_gradients: Whether gradients are still needed after the next call; CUDA graphs would overwrite them.
    """

    def __init__(
        self,
        function: Callable[..., dict[str, Tensor]],
        modules: Sequence[nn.Module],
        *,
        mode: str,
        keep_gradients: bool = False,
    ) -> None:
        self._module = _FunctionModule(function, modules)
        self._mode, self._keep_gradients = mode, keep_gradients
        self._parameters = dict(self._module.named_parameters())
        self._buffers = dict(self._module.named_buffers())
        self._compiled: dict[object, Callable[..., list[Tensor]]] = {}
        # Names of the parameters that get a gradient, and of the scalars that the function returns.
        self._trained: list[str] = []
        self._names: list[str] = []

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """Run the function on tensors ``(n, ...)``.

        Raises:
            NotCompilableError: If the function cannot be compiled, or there is no compiler.
        """
        inputs = [*self._parameters.values(), *self._buffers.values(), *batch]
        inputs = [tensor.detach() for tensor in inputs]
        form = tuple((x.shape, x.stride(), x.dtype) for x in batch)
        if form not in self._compiled:
            self._compiled[form] = self._compile(inputs)
        with torch.no_grad():
            results = iter(self._compiled[form](*inputs))
            gradients, buffers = ([next(results) for _ in names] for names in (self._trained, self._buffers))
            if buffers:
                torch._foreach_copy_(list(self._buffers.values()), buffers)
            for name, gradient in zip(self._trained, gradients, strict=True):
                parameter = self._parameters[name]
                if parameter.grad is None:
                    parameter.grad = gradient.clone() if self._keep_gradients else gradient
                else:
                    parameter.grad.add_(gradient)
        return dict(zip(self._names, results, strict=True))

    def _compile(self, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
        from torch import _inductor
        from torch._inductor.exc import InvalidCxxCompiler

        device = inputs[-1].device
        options: dict[str, Any] = _inductor.list_mode_options(self._mode)
        # If these are on, torch 2.13 sometimes overwrites memory that it still needs, and gradients are wrong.
        options |= {"inplace_buffers": False, "allow_buffer_reuse": False}
        # On a CPU the compiler's own random numbers are slower than torch's.
        options["fallback_random"] = device.type == "cpu"
        try:
            with seeded(0, device):
                graph = make_fx(self._pure)(*inputs)
                # The compiler may change memory layouts, and a view of the new layout may not exist.
                for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
                    node.target = torch.ops.aten.reshape.default
                # The graph contains the conversions of autocast already.
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    compiled: Callable[..., list[Tensor]] = _inductor.compile(graph, list(inputs), options=options)
                    compiled(*inputs)
        except InvalidCxxCompiler:
            raise NotCompilableError("a CPU needs a C++ compiler, such as g++, and there is none") from None
        except torch.OutOfMemoryError:  # not an error of the compilation; the trainer explains it
            raise
        except Exception as error:  # kernels of users may do anything; what is wrong without compilation shows then
            line = (str(error).strip().splitlines() or [""])[0]
            raise NotCompilableError(f"{type(error).__name__}: {line[:200]}") from error
        return compiled

    def _pure(self, *inputs: Tensor) -> list[Tensor]:
        """The function without side effects: from parameters, buffers and batch to gradients, buffers and scalars."""
        names = [*self._parameters, *self._buffers]
        tensors, batch = inputs[: len(names)], inputs[len(names) :]
        state = {name: tensor.clone() for name, tensor in zip(names, tensors, strict=True)}
        for name, parameter in self._parameters.items():
            state[name] = state[name].detach().requires_grad_(parameter.requires_grad)
        scalars = functional_call(self._module, state, batch)
        self._trained = [name for name in self._parameters if state[name].grad is not None]
        self._names = list(scalars)
        gradients = (state[name].grad for name in self._trained)
        return [*gradients, *(state[name] for name in self._buffers), *scalars.values()]


def has_compiler(device: torch.device) -> bool:
    """Whether there is what compiles for a device: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type != "cpu":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


class _FunctionModule(nn.Module):
    """A function as a module, with the modules that the function uses as submodules."""

    def __init__(self, function: Callable[..., dict[str, Tensor]], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._function, self._used = function, nn.ModuleList(modules)

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        """Call the function."""
        return self._function(*batch)
