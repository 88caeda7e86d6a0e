"""How fast a step is, beside the loop that one would write oneself, and beside what the machine can do.

Everything is timed in turns within one run: figures of different runs do not compare.
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
from halikit.hardware.processes import resolve_device
from halikit.model import Model, build
from halikit.training.trainer import Trainer
from halikit.utils.random import seeded

__all__ = ["Benchmark", "Machine", "Share", "Timing", "peak_memory", "profile_step", "time_steps"]

# A turn takes about so many seconds, for the clock's sake.
_TURN = 0.1
# Sides of the matrices, and elements copied, that the machine is measured by; the copy fits in no cache.
_SIDE = {"cpu": 1024, "cuda": 8192}
_COPIED = {"cpu": 2**24, "cuda": 2**28}
# The least that is moved of each parameter: read forward and backward, its gradient written, and by Adam its gradient
# and three more quantities read and three written.
_PASSES = 10

_YARDSTICK = "textbook: chains and discriminator run twice"
_CAREFUL = "textbook, careful: no graph, or no weights, that nobody needs"
_TWO_PASSES = "one forward, two backward passes"
_HALIKIT = "halikit"


@dataclass(frozen=True)
class Timing:
    """One way to step.

    Attributes:
        name: What it is.
        threads: Threads of one operation on the CPU.
        seconds: Median time of one step, optimisers included.
        images_per_second: At that median.
        ratio: Median over the rounds of the yardstick's time by this one's; above 1 where this one is faster.
        flop: Floating-point operations of a step: two for each multiply-add of a matrix product or convolution as it
            is run, forward and backward; no others are counted.
        flop_per_second: At that median.
        rate_fraction: Of the machine's matrix rate on as many threads, measured in the same run.
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
    """What the machine can do, measured in the same run; medians.

    Attributes:
        threads: On the CPU.
        flop_per_second: Of a product of large square matrices, in the precision of the steps.
        bytes_per_second: Read and written, by a copy that fits in no cache.
    """

    threads: int
    flop_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Benchmark:
    """What one run has measured.

    Attributes:
        batch_size: Images in a step.
        timings: The yardstick, its careful variant, two backward passes, and halikit's own whole step, the last.
        machine: For each number of threads among them.
        bytes: The least that halikit's step moves: what the backward pass keeps written and read once, and parameters,
            gradients and Adam's states as often as they must.
        seconds_for_arithmetic: That halikit's operations would take at the machine's matrix rate.
        seconds_for_bytes: That its bytes would take at the machine's bandwidth; small models that fit in a cache can do
            with less.
    """

    batch_size: int
    timings: tuple[Timing, ...]
    machine: tuple[Machine, ...]
    bytes: int
    seconds_for_arithmetic: float
    seconds_for_bytes: float


@dataclass(frozen=True)
class Share:
    """What one kind of operation takes of a step: its share of the time in [0, 1], and how often it runs."""

    operation: str
    share: float
    calls: float


@dataclass(frozen=True)
class _Way:
    """A way to step, on how many threads, and what gets it ready."""

    threads: int
    prepare: Callable[[], Callable[[], object]]


def time_steps(model: Model, *, rounds: int = 10) -> Benchmark:
    """Time ways to step in turns: the yardstick, a careful variant of it, and halikit's with two passes and with one.

    The yardstick is :class:`~halikit.benchmark.yardstick.Yardstick`, on the threads that torch has by default. Where
    the model's settings ask for other threads, it is timed on those as well. halikit's steps are
    :meth:`halikit.Trainer.step` whole, with averaged weights and the guard against numbers that are not finite, which
    the yardstick does not have. Batches are random data at the config's batch size. The model is changed by it.

    Args:
        model: Built from a config, with a discriminator.
        rounds: How often each way has its turn.

    Raises:
        ValueError: If the model has no config or no discriminator.
    """
    threads = torch.get_num_threads()
    try:
        return _timed(model, rounds)
    finally:
        torch.set_num_threads(threads)


def profile_step(model: Model, *, steps: int = 10) -> list[Share]:
    """Where the time of halikit's step goes, by operation, the largest first; own time, calls per step.

    Args:
        model: Built from a config, with a discriminator.
        steps: Steps to look at.

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
    """Bytes that a few of halikit's steps take at their peak, model included, in a process of their own.

    On a CPU, what the process holds beyond what it held before the model was built; on a GPU, what torch allocates.

    Args:
        config: Of a model with a discriminator, the shape of its data among its settings.
        of_yardstick: Whether to measure the yardstick instead.
        steps: How many.

    Raises:
        ResourceError: If the process ends early, as one does that runs out of memory.
    """
    name = _YARDSTICK if of_yardstick else _HALIKIT
    task = json.dumps({"config": config.model_dump(mode="json"), "way": name, "steps": steps})
    code = "import sys, halikit.benchmark.steps as b; print(b._peak(sys.stdin.read()))"
    done = subprocess.run([sys.executable, "-c", code], input=task, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
        raise ResourceError(f"the process that measures memory has ended early: {said}")
    return int(done.stdout.splitlines()[-1])


def _timed(model: Model, rounds: int) -> Benchmark:
    ways = _ways(model)
    prepared = {name: way.prepare() for name, way in ways.items()}
    config, device = _config(model), model.hierarchy.prior.device
    dtype = torch.bfloat16 if config.hardware.precision == "bf16" else torch.float32
    probes = {threads: _probes(device, dtype) for threads in dict.fromkeys(way.threads for way in ways.values())}
    times: dict[str, list[float]] = {name: [] for name in ways}
    seen: dict[int, tuple[list[float], list[float]]] = {threads: ([], []) for threads in probes}
    with seeded(0, device):
        flop, turns = {}, {}
        for name, way in ways.items():
            torch.set_num_threads(way.threads)
            prepared[name]()  # what compiles does so now
            with FlopCounterMode(display=False) as counter:
                prepared[name]()
            flop[name] = counter.get_total_flops()
            turns[name] = max(1, min(10, round(_TURN / _seconds(prepared[name], device))))
        for _ in range(rounds):
            for name, way in ways.items():
                torch.set_num_threads(way.threads)
                times[name].append(_seconds(prepared[name], device, turns[name]))
            for threads, (multiply, copy) in probes.items():
                torch.set_num_threads(threads)
                seen[threads][0].append(_seconds(multiply, device))
                seen[threads][1].append(_seconds(copy, device))
    side, copied = _SIDE[device.type], _COPIED[device.type]
    machine = {
        threads: Machine(threads, 2 * side**3 / median(products), 2 * 4 * copied / median(copies))
        for threads, (products, copies) in seen.items()
    }
    own = machine[ways[_HALIKIT].threads]
    eager = Trainer(model, settings=override(config, {"hardware.compile": None}))
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
    x = _batch(model)
    default = torch.get_num_threads()
    threads = config.hardware.threads or default

    def textbook(is_careful: bool = False) -> Callable[[], object]:
        yardstick = Yardstick(model, is_careful=is_careful)
        return lambda: yardstick.step(x)

    def halikit(single_pass: bool) -> Callable[[], object]:
        trainer = Trainer(model)
        trainer.method.single_pass &= single_pass
        return lambda: trainer.step(x)

    ways = {_YARDSTICK: _Way(default, textbook), _CAREFUL: _Way(default, partial(textbook, is_careful=True))}
    if threads != default:
        ways[f"{_YARDSTICK}, on {threads} thread{'s' * (threads > 1)}"] = _Way(threads, textbook)
    ways[_TWO_PASSES] = _Way(threads, partial(halikit, single_pass=False))
    ways[_HALIKIT] = _Way(threads, partial(halikit, single_pass=True))
    return ways


def _batch(model: Model) -> Tensor:
    shape = (_config(model).training.batch_size, *model.hierarchy.spaces[0].shape)
    return torch.rand(shape, device=model.hierarchy.prior.device) * 2 - 1


def _probes(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A product of matrices and a copy, to measure the machine by."""
    side = _SIDE[device.type]
    a, b, out = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(3))
    source = torch.rand(_COPIED[device.type], device=device)
    target = torch.empty_like(source)
    return lambda: torch.mm(a, b, out=out), lambda: target.copy_(source)


def _bytes_moved(model: Model, step: Callable[[], object]) -> int:
    """See :class:`Benchmark`."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    parameters = [p for part in model.parts.values() for p in part.parameters()]
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return 2 * sum(kept.values()) + _PASSES * sum(p.nbytes for p in parameters)


def _peak(task: str) -> int:
    """What :func:`peak_memory` asks of another process."""
    given = json.loads(task)
    config = Config.parse(given["config"])
    device = resolve_device(config.hardware.device)
    before = _resident()
    model = build(config)
    way = _ways(model)[given["way"]]
    torch.set_num_threads(way.threads)
    step = way.prepare()
    for _ in range(given["steps"]):
        step()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before


def _resident() -> int:
    """The most that this process has held, bytes."""
    import resource

    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _seconds(step: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of one run, the mean over several."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    _wait_for(device)
    return (time.perf_counter() - start) / times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
