"""The pieces that gpu.py plays: what they measure, and how. Each gives its results one by one.

Timings of one piece are medians of turns that alternate, and can be compared. Those of different pieces cannot.
Precision and compilation are named everywhere: nothing here is a default.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import halikit as hk
from halikit.benchmark.steps import Benchmark, profile_step, time_steps
from halikit.benchmark.yardstick import Yardstick
from halikit.config import Config, override
from halikit.data import DataSet
from halikit.presets import families, preset
from halikit.runs.record import Record

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TESTS = Path(__file__).resolve().parent.parent.parent / "tests" / "test_gpu.py"
# Modes of compilation, the best first: the next one is tried where one fails. CUDA graphs are for GPUs alone.
MODES = ("reduce-overhead", "default") if DEVICE.type == "cuda" else ("default",)
COMPILING = 0.5  # most of a piece's time that compilation may take
PRESET_BATCH = 100
GOALS = {"times the plain loop": 8.0, "share of the floor": 0.5, "images per second, cifar10": 60_000.0}
Step = Callable[[], object]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Given:
    """What a piece is given.

    Attributes:
        keep: Keeps a result by name, at once.
        is_tiny: Whether models are tiny: a test of the script.
        is_eager: Whether nothing is compiled.
        faces: Pack of faces, if any.
        seconds: Time for the piece.
    """

    keep: Callable[[str, Any], None]
    is_tiny: bool = False
    is_eager: bool = False
    faces: Path | None = None
    seconds: float = 180.0

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of compilation to try."""
        return () if self.is_eager else MODES


def play(piece: str, given: Given) -> None:
    """Play a piece by its name: ``kind``, or ``kind/of what``."""
    kind, _, name = piece.partition("/")
    pieces: dict[str, Callable[..., None]] = {"machine": machine, "tests": tests, "speed": speed, "training": training}
    pieces[kind](given, *[name] * bool(name))


# --- the machine and the tests ----------------------------------------------------------------------------------------


def machine(given: Given) -> None:
    """What there is, and its speed: products of large matrices, and a large copy."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "halikit": hk.__version__}
    given.keep("versions", versions | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()})
    given.keep("processor", {"cores": os.cpu_count(), "threads of torch": torch.get_num_threads()})
    given.keep("goals", GOALS)
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(DEVICE)
        known = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
        given.keep("gpu", {name: getattr(properties, name) for name in known if hasattr(properties, name)})
    side, copied = (8192, 2**28) if DEVICE.type == "cuda" and not given.is_tiny else (256, 2**16)
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("tf32", None, True), ("float32", None, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(side, side, device=DEVICE, dtype=dtype)
        given.keep(f"{name} product, FLOP/s", 2 * side**3 / seconds(lambda a=a: a @ a))
    source = torch.randn(copied, device=DEVICE)
    target = torch.empty_like(source)
    given.keep("copy, bytes/s read and written", 8 * copied / seconds(lambda: target.copy_(source)))


def tests(given: Given) -> None:
    """``tests/test_gpu.py``, each failure as it comes; the piece fails if a test does."""
    import pytest

    os.environ |= {
        "HALIKIT_GPU_TESTS": DEVICE.type,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for the deterministic runs, and read once
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    counts = {"passed": 0, "failed": 0, "skipped": 0}

    class Keeper:
        """Keeps outcomes while the tests run."""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            """One outcome: of the call, or of a set-up that skipped or failed."""
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
                given.keep("counts", counts)
                if report.failed:
                    given.keep(f"failed {report.nodeid.rpartition('::')[2]}", report.longreprtext[-1500:])

    # Without the settings of pyproject.toml, which need plugins.
    chosen = [str(TESTS), "-m", "gpu", "-q", "-c", os.devnull, "--rootdir", str(TESTS.parent), "-p", "no:cacheprovider"]
    chosen += ["-k", "float64 and dense and game"] if given.is_tiny else []
    code = pytest.main(chosen, plugins=[Keeper()])
    if code:
        raise SystemExit(f"pytest ended with {code!r}")


# --- speed ------------------------------------------------------------------------------------------------------------


def config_of(name: str, given: Given) -> Config:
    """A preset, ``"cifar10, batch 500"``, or a size of convolutional stacks, ``"small at 64"``; in bfloat16, eager."""
    head, _, batch = name.partition(", batch ")
    size, _, side = head.partition(" at ")
    if given.is_tiny:
        shape, config = ((3, 16, 16), families.conv(2)) if side else ((1, 8, 8), families.dense(2))
        changes: dict[str, object] = {"data_shape": shape, "hidden": 4, "discriminator.width": 16, "batch_size": 4}
        changes |= {"maps": 1, "units": 8} if side else {"widths": (4, 3)}
    elif side:
        shape = (3, int(side), int(side))
        config, changes = families.fitting(None, shape, "conv"), {"data_shape": shape, "model.size": size}
    else:
        config, changes = preset(head), {"batch_size": PRESET_BATCH}
    changes |= {"batch_size": int(batch)} if batch and not given.is_tiny else {}
    return override(config, {"precision": "bf16", "compile": None, "device": DEVICE.type, **changes})


def speed(given: Given, name: str) -> None:
    """A step beside the plain loop and beside the floors, first eager, then compiled."""
    config, rounds = config_of(name, given), 2 if given.is_tiny else 5
    given.keep("batch size", config.training.batch_size)
    benchmark = time_steps(model_of(config), rounds=rounds)
    floor = max(benchmark.seconds_for_arithmetic, benchmark.seconds_for_bytes)
    given.keep("eager", rounded(asdict(benchmark)))
    given.keep("floor", rounded({"seconds": floor, "images per second": config.training.batch_size / floor}))
    x = batch_of(config)
    steps = {"plain loop": plain_loop(config, x, half=False), "plain loop, bf16": plain_loop(config, x, half=True)}
    eager = trainer_of(config)
    steps["halikit, eager"] = step_of(eager, x)
    given.keep("passes", eager.method.description)
    trainer, mode = compiled_trainer(given, lambda mode, notify: trainer_of(config, mode, notify), x)
    if mode is not None:
        steps[f"halikit, {mode}"] = step_of(trainer, x)
    given.keep("turns", rounded(turns(steps, benchmark, floor, rounds)))
    if DEVICE.type == "cuda":
        given.keep("peak memory of all ways together, bytes", torch.cuda.max_memory_allocated())
    shares = profile_step(model_of(config), steps=2 if given.is_tiny else 5)
    given.keep("costliest operations, eager", [rounded(asdict(share)) for share in shares[:15]])


def model_of(config: Config) -> hk.Model:
    """The model, the same weights each time."""
    torch.manual_seed(0)
    return hk.build(config)


def trainer_of(config: Config, mode: str | None = None, notify: Notify = print, **given: Any) -> hk.Trainer:
    """A trainer in a mode of compilation."""
    return hk.Trainer(model_of(override(config, {"compile": mode})), on_notice=notify, **given)


def batch_of(config: Config) -> torch.Tensor:
    """Random images on the device."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(config.training.batch_size, *config.model.data_shape, generator=generator) * 2 - 1).to(DEVICE)


def step_of(trainer: hk.Trainer, x: torch.Tensor) -> Step:
    """A whole step of halikit."""
    return lambda: trainer.step(x)


def plain_loop(config: Config, x: torch.Tensor, *, half: bool) -> Step:
    """A step of the loop that one would write by hand: eager, in float32 or in bfloat16 with channels_last."""
    model = model_of(config)
    for part in model.parts.values():
        part.to(DEVICE)
    loop = Yardstick(model)
    if not half:
        return lambda: loop.step(x)
    for module in (loop.hierarchy, *loop.games):
        module.to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def step() -> object:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return loop.step(last)

    return step


def compiled_trainer(
    given: Given, make: Callable[[str | None, Notify], hk.Trainer], x: torch.Tensor
) -> tuple[hk.Trainer, str | None]:
    """A trainer after its first steps, in the first mode of compilation that works; eager where none does in time."""
    end = time.perf_counter() + COMPILING * given.seconds
    for mode in given.modes:
        start, notices = time.perf_counter(), list[str]()
        if start >= end:
            break
        try:
            with at_most(end - start):
                trainer = make(mode, notices.append)
                # All kinds of steps: a penalty that is taken every k-th step has a graph of its own, and a CUDA graph
                # is recorded in the second step of a kind.
                for _ in range(2 * trainer.config.game.penalty_every + 1):
                    trainer.step(x)
                wait()
        except Exception as error:
            notices.append(f"{type(error).__name__}: {error}")
        failed = [notice[:600] for notice in notices if "compil" in notice.lower() or "Error" in notice]
        if not failed:
            given.keep(f"{mode}, seconds of compilation", round(time.perf_counter() - start, 2))
            return trainer, mode
        given.keep(f"{mode} fails", failed)
    given.keep("compiled", "no: all steps are eager")
    return make(None, print), None


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the context after so many seconds, and again if something has ignored it."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not compiled within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def turns(steps: Mapping[str, Step], benchmark: Benchmark, floor: float, rounds: int) -> dict[str, dict[str, float]]:
    """Each way in turns: seconds, images per second, times the plain loop, and the floor as a share of its time."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    most = 2 if benchmark.batch_size < 8 else 50
    number = {name: max(1, min(most, round(0.2 / seconds(step, 2)))) for name, step in steps.items()}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, number[name]))
    plain = times["plain loop"]
    return {
        name: {
            "seconds": median(each),
            "images per second": benchmark.batch_size / median(each),
            "times the plain loop": median(theirs / own for theirs, own in zip(plain, each, strict=True)),
            "share of the floor": floor / median(each),
        }
        for name, each in times.items()
    }


def wait() -> None:
    """Until the GPU has done all."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Step, times: int = 10) -> float:
    """Mean time of a call, after one that is not timed."""
    step()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return (time.perf_counter() - start) / times


def rounded(value: Any) -> Any:
    """Numbers with five digits, for a file that people read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


# --- training ---------------------------------------------------------------------------------------------------------


def training(given: Given) -> None:
    """The default convolutional stack on the faces, for as many steps as the time allows; scores as they come.

    The schedule of the learning rates ends at the last step, so the speed is measured first.
    """
    start = time.perf_counter()
    data, config = faces_of(given)
    given.keep("images", {name: len(part) for name, part in data.parts.items()})
    x = data.train.batch(torch.arange(config.training.batch_size)).to(DEVICE)
    scores: list[dict[str, Any]] = []

    def scored(record: Record) -> None:
        if record.errors:
            known = ("step", "seconds", "skipped", "images_per_second", "errors", "recovery", "rho_q", "rho_p")
            scores.append(rounded({name: getattr(record, name) for name in known}))
            given.keep("scores", scores)

    def make(mode: str | None, notify: Notify) -> hk.Trainer:
        return trainer_of(config, mode, notify, data=data, on_record=scored)

    # The first steps, on one batch, are steps of the training too.
    trainer, mode = compiled_trainer(given, make, x)
    given.keep("mode", mode or "eager")
    each = seconds(step_of(trainer, x), 2 if given.is_tiny else 40)
    left = 0.8 * given.seconds - (time.perf_counter() - start)
    steps = 6 if given.is_tiny else max(200, min(config.training.steps, int(left / each)))
    given.keep("steps", {"number": steps, "seconds of one": rounded(each), "of": config.training.steps})
    trainer.fit(steps)
    wait()
    given.keep("seconds in all", round(time.perf_counter() - start, 1))


def faces_of(given: Given) -> tuple[DataSet, Config]:
    """The faces and the settings of the training; made-up images where models are tiny and there is no pack."""
    config = config_of("small at 64", given)
    if given.faces is not None:
        data = hk.data.load(f"pack:{given.faces}")
    elif given.is_tiny:
        data = hk.data.from_tensor(torch.rand(60, *config.model.data_shape) * 2 - 1)
    else:
        raise SystemExit("the training needs --faces, a pack of 64×64 images")
    every = 2 if given.is_tiny else 500
    return data, override(config, {"data_shape": data.shape, "evaluate_every": every, "log_every": every})
