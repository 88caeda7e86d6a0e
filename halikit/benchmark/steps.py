"""Times a training step, compared with a textbook loop and with the speed of the machine.

One run times all of them in turns. Results of different runs cannot be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from halikit.benchmark.yardstick import Yardstick
from halikit.config import Config, override
from halikit.errors import ResourceError
from halikit.hardware.memory import most_memory
from halikit.hardware.processes import resolve_device
from halikit.model import Model, build
from halikit.training.defaults import fitting_mode
from halikit.training.trainer import Trainer
from halikit.utils.random import seeded

__all__ = ["Benchmark", "Machine", "Share", "Timing", "peak_memory", "profile_step", "time_steps"]

# Approximate length of a turn in seconds; long enough to be measured.
_TURN = 0.1
# The machine is measured by a product of square matrices with this side, and by a copy of this many elements, which
# fits in no cache.
_SIDE = {"cpu": 1024, "cuda": 8192}
_COPIED = {"cpu": 2**24, "cuda": 2**28}
# Least number of times that each parameter is moved: it is read forward and backward, and its gradient is written; Adam
# reads the gradient and three more quantities, and writes three.
_PASSES = 10

_YARDSTICK = "textbook: chains and discriminator run twice"
_PLAIN = "textbook, cross-entropy alone: no penalty, no sleep phase"
_CAREFUL = "textbook, careful: no graph, or no weights, that nobody needs"
_TWO_PASSES = "halikit in float32, eager, two backward passes"
_SIMPLE = "halikit in float32, eager"
_HALIKIT = "halikit"


@dataclass(frozen=True)
class Timing:
    """The speed of one implementation of a step.

    Attributes:
        name: Name of the implementation.
        threads: Number of threads of one operation on the CPU.
        seconds: Median time of one step, optimisers included.
        images_per_second: Batch size divided by the median time.
        ratio: Time of the yardstick divided by this time, median over the rounds; above 1 if this one is faster.
        flop: Floating-point operations of a step: two for each multiply-add of the matrix products and convolutions
            that run, forward and backward; other operations are not counted.
        flop_per_second: ``flop`` divided by the median time.
        rate_fraction: ``flop_per_second`` as a fraction of the machine's, with as many threads, in the same run.
    """

    name: str
    threads: int
    seconds: float
    images_per_second: float
    ratio: float
    flop: int
    flop_per_second: float
    rate_fraction: float


@dataclass(frozen=True)
class Machine:
    """The speed of the machine, measured in the same run; medians.

    Attributes:
        threads: Number of threads on the CPU.
        flop_per_second: Floating-point operations per second of a product of large square matrices, in the precision of
            the steps.
        bytes_per_second: Bytes read and written per second by a copy that fits in no cache.
    """

    threads: int
    flop_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Benchmark:
    """The results of one run.

    Attributes:
        batch_size: Number of images in a step.
        timings: The yardstick and its variants, halikit's step in float32 and eager with two backward passes and with
            one, and halikit's step as the config says.
        machine: The machine with each number of threads that occurs in ``timings``.
        bytes: Least number of bytes that halikit's step moves. Tensors saved for the backward pass are written and read
            once; parameters, gradients and Adam's states are moved as often as necessary.
        seconds_for_arithmetic: Time of the operations of halikit's step at the speed of the machine.
        seconds_for_bytes: Time to move ``bytes`` at the bandwidth of the machine. Small models that fit in a cache can
            need less.
    """

    batch_size: int
    timings: tuple[Timing, ...]
    machine: tuple[Machine, ...]
    bytes: int
    seconds_for_arithmetic: float
    seconds_for_bytes: float


@dataclass(frozen=True)
class Share:
    """One kind of operation in a step.

    Attributes:
        operation: Name of the operation.
        share: Its share of the time, in [0, 1].
        calls: Number of calls per step.
    """

    operation: str
    share: float
    calls: float


@dataclass(frozen=True)
class _Way:
    """An implementation of a step: its number of threads, and a function that prepares and returns the step."""

    threads: int
    prepare: Callable[[], Callable[[], object]]


def time_steps(model: Model, *, rounds: int = 10) -> Benchmark:
    """Time implementations of a step in turns, on random data with the batch size of the config.

    They are :class:`~halikit.benchmark.yardstick.Yardstick`, its plain and careful variants, and
    :meth:`halikit.Trainer.step`: in float32 and eager, with two backward passes and with one, and as the config says.
    The yardstick runs with torch's default number of threads, and also with that of
    the config if they differ. Only halikit's steps average the weights and check that all numbers are finite. The model
    is trained by the steps.

    Args:
        model: A model with a discriminator, built from a config.
        rounds: Number of turns of each implementation.

    Raises:
        ValueError: If the model has no config or no discriminator.
    """
    threads = torch.get_num_threads()
    try:
        return _timed(model, rounds)
    finally:
        torch.set_num_threads(threads)


def profile_step(model: Model, *, steps: int = 10) -> list[Share]:
    """The share of each operation in the time of halikit's step, the largest first.

    The time of an operation excludes other operations that it calls.

    Args:
        model: A model with a discriminator, built from a config.
        steps: Number of steps to measure.

    Raises:
        ValueError: If the model has no config or no discriminator.
    """
    way = _ways(model)[_HALIKIT]
    step, device = way.prepare(), model.hierarchy.prior.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    threads = torch.get_num_threads()
    torch.set_num_threads(way.threads)
    try:
        step()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                step()
            _wait_for(device)
    finally:
        torch.set_num_threads(threads)
    rows = profiler.key_averages()
    own = {row.key: row.self_device_time_total if device.type == "cuda" else row.self_cpu_time_total for row in rows}
    total = sum(own.values())
    shares = [Share(row.key, own[row.key] / total, row.count / steps) for row in rows]
    return sorted(shares, key=lambda share: -share.share)


def peak_memory(config: Config, *, of_yardstick: bool = False, steps: int = 3) -> int:
    """Peak memory of the model and a few of halikit's steps in bytes, measured in a separate process.

    On a CPU it is the peak memory of the process, less that before the model was built. On a GPU it is the memory that
    torch allocates.

    Args:
        config: Config of a model with a discriminator; ``model.data_shape`` must be set.
        of_yardstick: Whether to measure the yardstick instead.
        steps: Number of steps.

    Raises:
        ResourceError: If the process ends early, for example because the memory is exhausted.
    """
    name = _YARDSTICK if of_yardstick else _HALIKIT
    task = json.dumps({"config": config.model_dump(mode="json"), "way": name, "steps": steps})
    code = "import sys, halikit.benchmark.steps as b; print(b._peak(sys.stdin.read()))"
    done = subprocess.run([sys.executable, "-c", code], input=task, capture_output=True, text=True, check=False)
    if done.returncode:
        line = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
        raise ResourceError(f"the process that measures memory has ended early: {line}")
    return int(done.stdout.splitlines()[-1])


def _timed(model: Model, rounds: int) -> Benchmark:
    ways = _ways(model)
    prepared = {name: way.prepare() for name, way in ways.items()}
    config, device = _config(model), model.hierarchy.prior.device
    eager = Trainer(model, settings=override(config, {"hardware.compile": None}))
    game = config.game.resolved
    cycle = game.penalty_every if game.gradient_penalty else 1  # steps with and without a penalty, in their proportion
    dtype = torch.bfloat16 if eager.hardware.settings.precision == "bf16" else torch.float32
    probes = {threads: _probes(device, dtype) for threads in dict.fromkeys(way.threads for way in ways.values())}
    times: dict[str, list[float]] = {name: [] for name in ways}
    measured: dict[int, tuple[list[float], list[float]]] = {threads: ([], []) for threads in probes}
    with seeded(0, device):
        flop, turns = {}, {}
        for name, way in ways.items():
            torch.set_num_threads(way.threads)
            for _ in range(cycle + 1):  # the first calls compile the steps, if compilation is on
                prepared[name]()
            flop[name] = _flop(prepared[name], cycle)
            turns[name] = cycle * max(1, min(10, round(_TURN / cycle / _seconds(prepared[name], device))))
        for _ in range(rounds):
            for name, way in ways.items():
                torch.set_num_threads(way.threads)
                times[name].append(_seconds(prepared[name], device, turns[name]))
            for threads, (multiply, copy) in probes.items():
                torch.set_num_threads(threads)
                measured[threads][0].append(_seconds(multiply, device))
                measured[threads][1].append(_seconds(copy, device))
    side, copied = _SIDE[device.type], _COPIED[device.type]
    machine = {
        threads: Machine(threads, 2 * side**3 / median(products), 2 * 4 * copied / median(copies))
        for threads, (products, copies) in measured.items()
    }
    own = machine[ways[_HALIKIT].threads]
    moved = _bytes_moved(model, lambda: eager.step(_batch(model)))
    batch_size = config.training.batch_size
    return Benchmark(
        batch_size,
        tuple(
            _timing(name, ways[name].threads, each, times[_YARDSTICK], flop[name], batch_size, machine)
            for name, each in times.items()
        ),
        tuple(machine.values()),
        moved,
        flop[_HALIKIT] / own.flop_per_second,
        moved / own.bytes_per_second,
    )


def _timing(
    name: str,
    threads: int,
    times: list[float],
    reference: list[float],
    flop: int,
    batch: int,
    machine: Mapping[int, Machine],
) -> Timing:
    seconds = median(times)
    return Timing(
        name,
        threads,
        seconds,
        batch / seconds,
        median(theirs / own for theirs, own in zip(reference, times, strict=True)),
        flop,
        flop / seconds,
        flop / seconds / machine[threads].flop_per_second,
    )


class _NoModules:
    """Stands in for the part of torch's counter that finds the modules: its hooks refuse a gradient penalty."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _flop(step: Callable[[], object], times: int) -> int:
    """Floating-point operations of one call, the mean over ``times`` calls."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        for _ in range(times):
            step()
    return int(counter.get_total_flops()) // times


def _config(model: Model) -> Config:
    if model.config is None:
        raise ValueError("a benchmark needs a model built from a config")
    return model.config


def _ways(model: Model) -> dict[str, _Way]:
    config = _config(model)
    if model.discriminator is None or not config.plays:
        raise ValueError("a benchmark measures the steps of the game, which need a discriminator")
    device = resolve_device(config.hardware.device)
    for part in model.parts.values():
        part.to(device)
    config = fitting_mode(config, model, device, config.training.steps).config
    x = _batch(model)
    default = torch.get_num_threads()
    threads = config.hardware.threads or default

    def textbook(**options: bool) -> Callable[[], object]:
        """A step of the textbook loop."""
        yardstick = Yardstick(model, **options)
        return lambda: yardstick.step(x)

    def halikit(config: Config, *, single_pass: bool = True) -> Callable[[], object]:
        """A step of halikit's trainer."""
        trainer = Trainer(model, settings=config)
        trainer.method.single_pass &= single_pass
        return lambda: trainer.step(x)

    simple = override(config, {"hardware.compile": None, "hardware.precision": "32"})
    ways = {
        _YARDSTICK: _Way(default, textbook),
        _PLAIN: _Way(default, partial(textbook, is_plain=True)),
        _CAREFUL: _Way(default, partial(textbook, is_careful=True)),
    }
    if threads != default:
        ways[f"{_YARDSTICK}, on {threads} thread{'s' * (threads > 1)}"] = _Way(threads, textbook)
    ways[_TWO_PASSES] = _Way(threads, partial(halikit, simple, single_pass=False))
    ways[_SIMPLE] = _Way(threads, partial(halikit, simple))
    ways[_HALIKIT] = _Way(threads, partial(halikit, config))
    return ways


def _batch(model: Model) -> Tensor:
    shape = (_config(model).training.batch_size, *model.hierarchy.spaces[0].shape)
    return torch.rand(shape, device=model.hierarchy.prior.device) * 2 - 1


def _probes(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A matrix product and a copy, which measure the speed of the machine."""
    side = _SIDE[device.type]
    a, b, out = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(3))
    source = torch.rand(_COPIED[device.type], device=device)
    target = torch.empty_like(source)
    return lambda: torch.mm(a, b, out=out), lambda: target.copy_(source)


def _bytes_moved(model: Model, step: Callable[[], object]) -> int:
    """``bytes`` of :class:`Benchmark`."""
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        """Count the storage of a tensor that is saved for the backward pass."""
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        step()
    parameters = [p for part in model.parts.values() for p in part.parameters()]
    for parameter in parameters:
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    return 2 * sum(saved.values()) + _PASSES * sum(p.nbytes for p in parameters)


def _peak(task: str) -> int:
    """Peak memory of this process; :func:`peak_memory` calls it in another process."""
    options = json.loads(task)
    config = Config.parse(options["config"])
    device = resolve_device(config.hardware.device)
    before = most_memory(device)
    model = build(config)
    way = _ways(model)[options["way"]]
    torch.set_num_threads(way.threads)
    step = way.prepare()
    for _ in range(options["steps"]):
        step()
    return most_memory(device) - before


def _seconds(step: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Mean time of one call over ``times`` calls, in seconds."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    _wait_for(device)
    return (time.perf_counter() - start) / times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
