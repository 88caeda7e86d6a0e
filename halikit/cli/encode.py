"""``halikit encode``: write features of a data set to a file (section 7.1)."""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.analysis.features import Written
    from halikit.hierarchy import Hierarchy
    from halikit.runs.run import Result, Run


class DataPart(StrEnum):
    """A part of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def encode(
    run: common.RunArgument,
    data: common.Data = None,
    class_name: common.Class = None,
    attribute: common.Attribute = None,
    part: Annotated[DataPart, typer.Option(help="Part of the data set.")] = DataPart.TRAIN,
    level: Annotated[
        list[int] | None, typer.Option(min=1, help="Level to encode; may be repeated; all levels by default.")
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="Sample the latents instead of using conditional means.")
    ] = False,
    pool: Annotated[bool, typer.Option("--pool", help="Average feature maps over their positions.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the file of an interrupted command.")] = False,
    compile: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="Compile the encoder: default or reduce-overhead.", show_default=False),
    ] = None,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; by default features-PART.safetensors in the run.", show_default=False),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Write the features of every level and the labels to a safetensors file, for data sets of any size.

    Example: halikit encode runs/digits --part test --pool --out features.safetensors
    """
    from typing import get_args

    from halikit.analysis.features import write_features
    from halikit.analysis.inference import Mode
    from halikit.errors import InputError

    common.check_writable(out)
    if compile not in (None, *get_args(Mode)):
        raise InputError(f"--compile is one of {', '.join(get_args(Mode))}, got {compile!r}")
    opened = common.open_run(run, weights, device, data, class_name, attribute)
    for one in level or []:
        opened.checked_level(one)
    loaded = opened.data
    if part.value not in loaded.parts:
        raise InputError(f"{loaded.spec} has no {part.value} part; there are {', '.join(loaded.parts)}")
    if out is None:
        opened.make(opened.path)
    path = out or opened.features_file(part.value)
    with common.progress("encoding") as advance:
        written = write_features(
            opened.conditioned(loaded.parts[part.value]),
            loaded.parts[part.value],
            path,
            levels=level,
            draw=draw,
            pool=pool,
            batch_size=batch_size,
            seed=seed,
            about=_about(opened, part),
            resume=resume,
            compile=compile,  # type: ignore[arg-type]
            on_progress=advance,
        )
    common.present(opened, common.with_context([opened], _result(written, part, path)), as_json=as_json)
    if not as_json:
        common.report_path(path)


def _result(written: Written, part: DataPart, path: Path) -> Result:
    from dataclasses import asdict

    from halikit.runs.run import Result

    line = f"{written.rows:,} images, {written.size / 2**20:,.1f} MiB, {written.images_per_second:,.0f} images a second"
    line += f", resumed from image {written.resumed_from:,}" if written.resumed_from else ""
    values = asdict(written) | {"images_per_second": written.images_per_second, "path": str(path)}
    return Result(f"encode-{part.value}", f"Features of the {part.value} part", values, [line])


def _about(run: Run, part: DataPart) -> dict[str, Any]:
    """What the file says of its features; an interrupted command continues a file that says the same alone."""
    about = {
        "model": _digest(run.hierarchy),
        "weights": run.weights,
        "data": run.data.spec,
        "part": part.value,
        "classes": run.data.classes,
        "attributes": run.data.attributes,
    }
    return about | ({"context": run.context_in_words} if run.context_in_words else {})


def _digest(hierarchy: Hierarchy) -> str:
    """The SHA-256 of a hierarchy's weights."""
    digest = sha256()
    for name, tensor in hierarchy.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
