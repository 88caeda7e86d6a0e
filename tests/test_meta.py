"""Training and inference on torch's meta device, whose tensors have shapes and no values.

Models are built on the CPU and moved, as for a GPU. A tensor that is then made on the CPU, and meets one of the model,
is refused here as on a GPU. So is a step in which the host reads a value or copies to the device, because both let it
wait for a GPU. Three things are replaced, because torch does not have them on meta: autocast (so bfloat16 is tested in
``test_gpu.py`` only), the check of fused Adam for its devices, and values that are read outside of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from conftest import without_machine_code
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import halikit as hk
from halikit.analysis.inference import Inference
from halikit.config import Config, override
from halikit.data import Augmentation, Split
from halikit.presets import families, preset

META = torch.device("meta")
N = 4
DIGITS, IMAGES = (1, 8, 8), (3, 32, 32)
CLASSES = 10
aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.equal.default)
COPIES = (aten._to_copy.default, aten.copy_.default)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of both devices, and lists what a GPU's host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_meta = any(tensor.device == META for tensor in tensors)
        if func in READS and on_meta:
            self.waits.append(str(func))
            return True
        if func in COPIES:
            source = args[-1] if func == aten.copy_.default else args[0]
            target = args[0].device if func == aten.copy_.default else kwargs.get("device") or source.device
            if source.device != target:
                self.waits.append(f"copy of {tuple(source.shape)} from {source.device} to {target}")
            if source.device == META != target:
                return self._made_up(source, kwargs)
        # A scalar on the CPU may be combined with a tensor on a GPU.
        elsewhere = [tensor for tensor in tensors if tensor.device != META and tensor.dim()]
        if on_meta and elsewhere and func not in COPIES:
            raise AssertionError(f"{func}: a tensor {tuple(elsewhere[0].shape)} is not on the device of the model")
        return func(*args, **kwargs)

    def _made_up(self, like: Tensor, kwargs: Any) -> Tensor:
        """Values 0, 1, … in place of those that meta does not have: they are good labels."""
        values = torch.arange(like.numel()).view(like.shape) % CLASSES
        return values.to(kwargs.get("dtype") or like.dtype)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within the context the host must not wait for the device."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == []


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneDevice]:
    """Trainings run on the meta device."""
    monkeypatch.setattr("halikit.hardware.processes.resolve_device", lambda name: META)
    optimiser = import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimiser, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(torch, "autocast", lambda *settings, **more: nullcontext())
    with OneDevice() as mode:
        yield mode


SMALL = {"hidden": 8, "discriminator.width": 16, "batch_size": N, "precision": "32", "compile": None}
DENSE = override(families.dense(2), {"data_shape": DIGITS, "widths": (6, 5), **SMALL})
CONV = override(families.conv(2), {"data_shape": (3, 16, 16), "maps": 1, "units": 8, "penalty_every": 1, **SMALL})
DEEP = override(families.conv(4), {"data_shape": IMAGES, "units": 8, **SMALL})
PAPER = override(preset("cifar10"), {"batch_size": N, "precision": "32", "compile": None})
NOISY = {"dropout": 0.2, "input_noise": 0.2, "final_input_noise": 0.0, "encoder_noise": 0.1}
DENSITIES = {"observation_scale": 0.5, "gauge": None, "max_scale": None}
# Each case has as many options as go together.
CASES: dict[str, tuple[Config, dict[str, object]]] = {
    "dense: several games, standardised": (
        DENSE,
        {"games": (("x", "z1", "z2"), ("x", "z2")), "gauge": "standardised", "gradient_penalty": 1.0, **NOISY},
    ),
    "dense: Wasserstein, mixture, spectral norm": (
        DENSE,
        {"objective": "wasserstein", "prior": "mixture", "weight_norm": False, "spectral_norm": True},
    ),
    "dense: rounds, flow, pairs": (
        DENSE,
        {"objective": "least_squares", "generator_steps": 2, "prior": "flow", "games": "pairwise"},
    ),
    "dense: classes on top, float64": (DENSE, {"model.classes": CLASSES, "precision": "64"}),
    "dense: evidence bound beside the game": (DENSE, {"elbo_weight": 0.1, **DENSITIES}),
    "dense: evidence bound alone": (DENSE, {"training.method": "elbo", **DENSITIES}),
    "conv: four levels": (DEEP, {}),
    "conv: cycle, augmentation": (
        CONV,
        {"cycle_weight": 1.0, "discriminator.augment": ("colour", "shift", "cutout"), "weight_norm": True, **NOISY},
    ),
    "conv: latent noise that falls, running statistics, micro-batches": (
        CONV,
        {"latent_noise_until": 0.6, "sleep_statistics": "running", "accumulate": 2, "memory_format": "channels_last"},
    ),
    "conv: recompute": (CONV, {"recompute": True}),
    "paper": (PAPER, {}),
}
# The second step of a round moves the generators. Pyro validates the first step of training by the bound.
BEFORE = {"dense: rounds, flow, pairs": 1, "dense: evidence bound alone": 1}
# torch.distributions checks the probabilities of classes, constants here, each time that a class is drawn.
WAITS = ["dense: classes on top, float64"]


def batch(shape: tuple[int, ...], n: int = N) -> Tensor:
    return torch.empty(n, *shape, device=META)


def stepped(
    meta: OneDevice, config: Config, *beside: Tensor | None, before: int = 0, waits: bool = False
) -> hk.Trainer:
    """A trainer after a step in which the host did not wait, unless ``waits``, and some steps before it."""
    trainer = hk.Trainer(hk.build(config), on_notice=lambda said: None)
    x = batch(config.model.data_shape)
    for _ in range(before):
        trainer.step(x, *beside)
    with nullcontext() if waits else meta.without_waiting():
        losses = trainer.step(x, *beside)
    assert all(loss.device == META and loss.shape == () for loss in losses.values())
    for module in (*trainer.model.parts.values(), trainer.averaged):
        assert all(tensor.device == META for tensor in module.state_dict().values())
    assert trainer.averaged.training is False
    return trainer


def infer(trainer: hk.Trainer, context: Tensor | None = None) -> None:
    """Encode, decode, reconstruct and sample with averaged weights."""
    inference, shape = Inference(trainer.averaged, batch_size=N), trainer.averaged.spaces[0].shape
    x = batch(shape)
    states = inference.encode(x, context=context)
    decoded = inference.decode(states[trainer.averaged.spaces[-1].name], context=context)
    drawn = [inference.sample(N, context=context), inference.reconstruct(x, 1, context=context), decoded["x"]]
    assert {name: tuple(z.shape[1:]) for name, z in states.items()} == {
        s.name: s.shape for s in trainer.averaged.spaces
    }
    assert all(tensor.device == META for tensor in (*states.values(), *drawn))
    assert all(tensor.shape == x.shape for tensor in drawn)


@pytest.mark.filterwarnings("ignore:Encountered")  # Pyro reads what is made up
@pytest.mark.parametrize("name", CASES)
def test_steps_and_inference(meta: OneDevice, name: str) -> None:
    config, changes = CASES[name]
    infer(stepped(meta, override(config, changes), before=BEFORE.get(name, 0), waits=name in WAITS))


@pytest.mark.parametrize("kind", ["labels", "attributes"])
def test_conditional_models(meta: OneDevice, kind: str) -> None:
    context = torch.zeros(N, dtype=torch.int64, device=META) if kind == "labels" else batch((CLASSES,))
    config = override(DENSE, {"conditional": kind, "context_size": CLASSES})
    labels = context if kind == "labels" else None
    # The discriminator is examined in the first step.
    infer(stepped(meta, config, labels, context, before=1), context)


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")  # torch's own compiler
def test_a_captured_step(meta: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that was made on the CPU would be a constant in the graph."""
    graphs = without_machine_code(monkeypatch)
    stepped(meta, override(DENSE, {"levels": 1, "widths": (6,), "compile": "default"}), before=1)
    constants = [t for graph in graphs for t in (*graph.buffers(), *graph.parameters()) if t.dim()]
    assert graphs
    assert all(tensor.device == META for tensor in constants)


def test_batches_of_images_on_the_device(meta: OneDevice) -> None:
    """Converted and augmented there; the indices come from the CPU."""
    images = torch.zeros(3 * N, *IMAGES, dtype=torch.uint8)
    augmentation = Augmentation(flip=True, shift=2, rotate=10, zoom=0.1, warp=1)
    index = torch.arange(N)
    x = augmentation(Split(images).to(META).batch(index), index, seed=0, epoch=0)
    assert (x.device, x.shape, x.dtype) == (META, (N, *IMAGES), torch.float32)


def test_a_tensor_made_on_the_cpu_is_refused(meta: OneDevice) -> None:
    """The check itself: a kernel whose noise is on the CPU, and one that reads a value."""

    class Wrong(hk.Kernel):
        def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
            return given + torch.randn(given.shape)

    class Waits(hk.Kernel):
        def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
            return given * float(given.sum())

    x, z = hk.Space("x", (3,)), hk.Space("z1", (3,))
    with pytest.raises((AssertionError, RuntimeError), match="device"):
        Wrong(x, z).sample(batch((3,)))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), meta.without_waiting():
        Waits(x, z).sample(batch((3,)))
