"""``halikit data``: describe data sets, and pack them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.data.report import Report

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="digits, mnist:DIR, …, or a path.", show_default=False)]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the square that images are cropped and resized to.")]
ArrayKind = Annotated[
    Literal["sequence", "volume"] | None,
    typer.Option("--kind", help="sequence or volume, if each row of an array is one.", show_default=False),
]
Channels = Annotated[
    int | None,
    typer.Option(min=1, max=16, help="Channels of images, which are kept; by default 1 or 3.", show_default=False),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse every file that cannot be used; verify checksums.")]

_SHOWN = 12  # skipped files, classes or attributes


app = typer.Typer(help="Look at data sets, and pack them.", no_args_is_help=True, rich_markup_mode="rich")


@app.command()
def info(
    spec: Spec,
    size: Size = None,
    strict: Strict = False,
    kind: ArrayKind = None,
    channels: Channels = None,
    out: Annotated[Path | None, typer.Option(help="PNG file for a contact sheet.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """Count the images, classes and attributes of a data set, and report the range of values and the skipped files.

    Example: halikit data info mnist:downloads/mnist --out sheet.png
    """
    from dataclasses import asdict

    from halikit import data
    from halikit.data.report import report
    from halikit.plotting import contact_sheet, save_png

    common.check_writable(out)
    with common.progress("reading the data") as advance:
        options: Any = {"size": size, "strict": strict, "kind": kind, "channels": channels}
        loaded = data.load(spec, **options, on_progress=advance, on_notice=lambda notice: None)
    found = report(loaded)
    if out is not None:
        save_png(out, contact_sheet(loaded))
    if as_json:
        common.print_json(asdict(found) | {"contact_sheet": str(out) if out else None})
        return
    _print(found)
    if out is not None:
        common.report_path(out)


@app.command()
def pack(
    spec: Spec,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.", show_default=False)],
    size: Size = None,
    strict: Strict = False,
    kind: ArrayKind = None,
    channels: Channels = None,
    as_json: common.Json = False,
) -> None:
    """Decode, crop and resize a data set once, into one file. Train on it with --data pack:OUT.

    Example: halikit data pack celeba:downloads/celeba faces.pack --size 64
    """
    import time

    from halikit import data

    started = time.perf_counter()
    with _exit_on_sigterm(), common.progress("packing") as advance:
        options: Any = {"size": size, "strict": strict, "kind": kind, "channels": channels}
        packed = data.pack(spec, out, **options, on_progress=advance, on_notice=lambda notice: None)
    seconds = time.perf_counter() - started
    parts = {name: len(part) for name, part in packed.parts.items()}
    nbytes = out.stat().st_size
    if as_json:
        common.print_json(
            {
                "path": str(out),
                "origin": packed.origin,
                "shape": packed.shape,
                "parts": parts,
                "skipped": packed.skipped,
                "notes": packed.notes,
                "bytes": nbytes,
                "seconds": seconds,
            }
        )
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in parts.items())
    shape = "×".join(map(str, packed.shape))
    say = common.console().print
    say(f"{counts} of {shape} from {packed.origin}; {nbytes / 2**20:,.1f} MiB in {seconds:.1f} s", markup=False)
    _print_skipped(packed.skipped)
    _print_notes(packed.notes)
    common.report_path(out)


def _print(found: Report) -> None:
    say = common.console().print
    say(f"data        {found.spec}" + (f", packed from {found.origin}" if found.origin else ""), markup=False)
    say("parts       " + ", ".join(f"{name} {count:,}" for name, count in found.parts.items()))
    say(f"shape       {'×'.join(map(str, found.shape))}, {found.dtype}")
    say(
        f"values      {found.minimum:g} to {found.maximum:g}, mean {found.mean:.4g}, "
        f"standard deviation {found.deviation:.4g}"
    )
    from halikit.data.tree import printable

    if found.classes:
        some = [f"{printable(name)} {count:,}" for name, count in found.classes.items()]
        say(f"classes     {len(some)}: {_shortened(some)}", markup=False)
    if found.attributes:
        some = [f"{name} {share:.1%}" for name, share in found.attributes.items()]
        say(f"attributes  {len(some)}: {_shortened(some)}", markup=False)
    _print_skipped(found.skipped)
    _print_notes(found.notes)


def _print_notes(notes: tuple[str, ...]) -> None:
    from halikit.data.tree import printable

    for note in notes:
        common.console().print(f"note        {printable(note)}", markup=False)


def _print_skipped(skipped: tuple[tuple[str, str], ...]) -> None:
    from halikit.data.tree import printable

    say = common.console().print
    for path, reason in skipped[:_SHOWN]:
        say(f"skipped     {printable(path)}: {reason}", markup=False)
    if len(skipped) > _SHOWN:
        say(f"skipped     and {len(skipped) - _SHOWN:,} more")


def _shortened(some: list[str]) -> str:
    return ", ".join(some[:_SHOWN]) + (", …" if len(some) > _SHOWN else "")


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that an incomplete pack is removed."""

    def raise_exit(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
