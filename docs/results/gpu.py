"""Correctness, speed and training on one GPU, in nine minutes; docs/results/gpu.md describes it.

    python gpu.py prepare FOLDER --faces DIR_OR_PACK    # where there is a network: packages and faces to take along
    python gpu.py run OUT.json --faces FACES.pack       # where the GPU is
    python gpu.py run OUT.json --tiny                   # tiny models on any device: a test of the script

``run`` plays pieces, most important first, each in a process of its own, and keeps every result in OUT.json as it
comes. A piece that fails, or takes too long, is kept as a failure, with the results that it had, and the next one
begins. A second call skips what is complete and plays the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MINUTES = 9.0


class Stage(NamedTuple):
    """Pieces of one kind: their names, seconds for all of them, and the most for one."""

    pieces: tuple[str, ...]
    seconds: int
    each: int


STAGES = (
    Stage(("machine",), 30, 30),
    Stage(("tests",), 120, 120),
    Stage(
        tuple(
            f"speed/{name}"
            for name in (
                *("cifar10", "small at 64", "celeba64", "imagenet128", "cifar10, batch 500", "base at 64"),
                *("small at 32", "large at 64", "base at 32", "tiny at 64", "large at 32", "tiny at 32"),
            )
        ),
        210,
        120,
    ),
    Stage(("training",), 180, 180),
)
TINY = {"machine", "tests", "speed/cifar10", "speed/small at 64", "training"}

# Small packages that a machine with torch may lack. Those with ``pydantic`` fit one version of it alone.
WITH_NEEDS = ("pydantic",)
ALONE = (
    *("pyro-ppl", "pyro-api", "opt-einsum", "tqdm", "lightning-fabric", "lightning-utilities", "fsspec", "packaging"),
    *("einops", "safetensors", "typer", "annotated-doc", "click", "shellingham", "rich", "markdown-it-py", "mdurl"),
    *(
        "filelock",
        "jinja2",
        "markupsafe",
        "pygments",
        "pytest",
        "pluggy",
        "iniconfig",
        "hypothesis",
        "sortedcontainers",
    ),
)
# Larger ones, which are expected there: --more NAME takes one along.
EXPECTED = ("torch", "numpy", "pillow", "scikit-learn", "matplotlib")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
FACES, SIDE = 4500, 64
HEADER = 2**16  # more bytes than a pack has besides its images


# --- run --------------------------------------------------------------------------------------------------------------


class Results:
    """What is known, in a JSON file that is replaced as a whole: ``{piece: {"results": …, "done": …}}``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """All of it."""
        return json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}

    def update(self, piece: str, **changes: object) -> None:
        """Change what is known of a piece."""
        kept = self.read()
        kept[piece] = kept.get(piece, {}) | changes
        descriptor, name = tempfile.mkstemp(".tmp", ".gpu", self.path.resolve().parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, self.path)

    def add(self, piece: str, name: str, value: object) -> None:
        """Keep one more result of a piece."""
        self.update(piece, results=self.read().get(piece, {}).get("results", {}) | {name: value})

    def is_done(self, piece: str) -> bool:
        """Whether a piece is complete."""
        return bool(self.read().get(piece, {}).get("done"))


def run(options: argparse.Namespace) -> int:
    """Play the pieces that are missing, as far as the time goes; 1 if some are still missing."""
    end = time.monotonic() + 60 * options.minutes
    results = Results(options.out)
    stages = [stage._replace(pieces=tuple(filter(_wanted(options), stage.pieces))) for stage in STAGES]
    tried: set[str] = set()
    for _ in range(2):  # once more for pieces that found no time, if a later stage has left some
        for place, stage in enumerate(stages):
            reserved = sum(later.seconds for later in stages[place + 1 :] if not _is_over(later, results, tried))
            for piece in stage.pieces:
                left = end - time.monotonic() - reserved
                if piece in tried or results.is_done(piece) or left < min(15, stage.seconds):
                    continue
                tried.add(piece)
                play(piece, results, options, min(left, stage.each))
    missing = [piece for stage in stages for piece in stage.pieces if not results.is_done(piece)]
    print(f"missing: {'; '.join(missing)}. Call again." if missing else "all is done")
    return 1 if missing else 0


def _wanted(options: argparse.Namespace) -> Any:
    return lambda piece: options.only in piece and (not options.tiny or piece in TINY)


def _is_over(stage: Stage, results: Results, tried: set[str]) -> bool:
    return all(piece in tried or results.is_done(piece) for piece in stage.pieces)


def play(piece: str, results: Results, options: argparse.Namespace, seconds: float) -> None:
    """One piece in a process of its own, which ends after so many seconds with all processes that it has started."""
    print(f"{piece}, at most {seconds:.0f} s", flush=True)
    command = [sys.executable, str(HERE / "gpu.py"), "piece", str(options.out), piece, "--seconds", f"{seconds:.0f}"]
    command += ["--faces", str(options.faces)] if options.faces else []
    command += [f"--{name}" for name in ("tiny", "eager") if getattr(options, name)]
    # The packages that were brought fit one another, so they go before those of the machine.
    path = os.pathsep.join(str(place) for place in (ROOT, options.site, os.environ.get("PYTHONPATH")) if place)
    results.update(piece, results={}, done=False, failed="the script was stopped", seconds=None)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            failed = f"exit code {child.returncode}" if child.wait(seconds) else None
        except subprocess.TimeoutExpired:
            failed = f"not done within {seconds:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said.seek(0)
        end = said.read()[-2000:]
    took = round(time.monotonic() - start, 1)
    results.update(piece, done=failed is None, seconds=took, failed=failed and f"{failed}\n{end}")
    print(f"  {'done' if failed is None else failed} in {took} s", flush=True)


def piece(options: argparse.Namespace) -> int:
    """One piece, in this process."""
    import gpu_pieces

    results = Results(options.out)
    given = gpu_pieces.Given(
        lambda name, value: results.add(options.name, name, value),
        options.tiny,
        options.eager,
        options.faces,
        options.seconds,
    )
    gpu_pieces.play(options.name, given)
    return 0


# --- prepare ----------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> int:
    """Put wheels and a pack of faces into a folder, and print the command for the machine with the GPU."""
    folder: Path = options.folder
    wheels, pack = folder / "wheels", folder / "faces.pack"
    wheels.mkdir(parents=True, exist_ok=True)
    download(wheels, WITH_NEEDS, options)
    download(wheels, (*ALONE, *options.more), options, "--no-deps")
    room = int(options.mebibytes * 2**20) - sum(file.stat().st_size for file in wheels.iterdir())
    most = min(FACES, (room - HEADER) // (3 * SIDE**2))
    if most < 20:
        print(f"the wheels leave no room for faces in {options.mebibytes:g} MiB", file=sys.stderr)
        return 1
    number = pack_faces(str(options.faces), pack, most)
    size = sum(file.stat().st_size for file in (*wheels.iterdir(), pack)) / 2**20
    print(f"{number:,} faces and {len(list(wheels.iterdir()))} wheels in {folder}: {size:.1f} MiB")
    print(
        f"\nWhere the GPU is, with torch, {', '.join(EXPECTED[1:-1])} and {EXPECTED[-1]}, in the folder of halikit:\n\n"
        f"python -m pip install -q --no-index --no-deps --target {folder}/site {wheels}/*.whl &&\n"
        f"python docs/results/gpu.py run gpu.json --site {folder}/site --faces {pack}"
    )
    return 0


def download(wheels: Path, names: Sequence[str], options: argparse.Namespace, *more: str) -> None:
    """Fetch wheels for CPython on Linux."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    kind = ["--only-binary=:all:", "--implementation=cp", f"--python-version={options.python}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--dest", str(wheels), *kind, *platforms, *more, *names]
    subprocess.run(command, check=True)


def pack_faces(place: str, pack: Path, most: int) -> int:
    """Pack at most so many images of a data set, evenly spaced, 64×64; the number of images."""
    import numpy as np

    from halikit import data

    found = data.load(place, size=None if place.startswith("pack:") or Path(place).suffix == ".pack" else SIDE)
    if found.shape != (3, SIDE, SIDE):
        raise SystemExit(f"{place} has images of {found.shape}; wanted are (3, {SIDE}, {SIDE})")
    images = found.train.evenly(most).images
    with tempfile.TemporaryDirectory() as folder:
        array = Path(folder) / "faces.npy"
        np.save(array, images.numpy())
        data.pack(f"array:{array}", pack)
    return len(images)


# --- command line -----------------------------------------------------------------------------------------------------


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    playing = argparse.ArgumentParser(add_help=False)
    playing.add_argument("out", type=Path, help="JSON file of the results")
    playing.add_argument("--faces", type=Path, help="pack of 64×64 images for the training")
    playing.add_argument("--tiny", action="store_true", help="tiny models on any device")
    playing.add_argument("--eager", action="store_true", help="without compilation")

    running = commands.add_parser("run", parents=[playing], help="play the pieces that are missing")
    running.add_argument("--site", type=Path, help="folder of packages that the machine may lack")
    running.add_argument("--minutes", type=float, default=MINUTES, help="time for all")
    running.add_argument("--only", default="", help="pieces whose names hold this text")
    running.set_defaults(command=run)

    single = commands.add_parser("piece", parents=[playing], help="one piece, in this process")
    single.add_argument("name")
    single.add_argument("--seconds", type=float, default=180.0, help="time for the piece")
    single.set_defaults(command=piece)

    preparing = commands.add_parser("prepare", help="fetch packages and pack faces")
    preparing.add_argument("folder", type=Path)
    preparing.add_argument("--faces", required=True, help="directory, archive or pack of faces")
    preparing.add_argument("--python", default="3.12", help="version of Python where the GPU is")
    preparing.add_argument("--mebibytes", type=float, default=64.0, help="most that the folder may take")
    preparing.add_argument("--more", action="append", default=[], metavar="NAME", help="one more package")
    preparing.set_defaults(command=prepare)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code."""
    options = parsed(arguments)
    return options.command(options)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a piece ends as well
    sys.exit(main(sys.argv[1:]))
