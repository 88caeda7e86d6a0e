"""What several measures share: options, and tables of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from halikit.analysis.comparison import Comparison
    from halikit.data import DataSet, Split
    from halikit.hierarchy import Hierarchy
    from halikit.runs.run import Result, Run

__all__ = [
    "Fewest",
    "Levels",
    "MostDraws",
    "Observed",
    "OnTest",
    "ProposalName",
    "ProposalOption",
    "Scale",
    "TableFormat",
    "TableFormatOption",
    "common_data",
    "fewest_for",
    "level_name",
    "level_sets",
    "measured_part",
    "names_of",
    "observed",
    "table_result",
]


class TableFormat(StrEnum):
    """Format of a printed table."""

    text = "text"
    csv = "csv"
    latex = "latex"


class ProposalName(StrEnum):
    """Who draws the states between a latent and the data, where a density is an expectation over them."""

    mixture = "mixture"
    encoder = "encoder"
    decoder = "decoder"


OnTest = Annotated[bool, typer.Option("--test", help="Measure on the test part instead of the validation part.")]
Fewest = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Leave an attribute out of mean and ranking if a part has fewer positives or negatives; 50 by default, "
        "1 for classes.",
        show_default=False,
    ),
]
Levels = Annotated[
    list[str] | None,
    typer.Option("--level", metavar="L", help="Level to use; repeat the option for several.", show_default=False),
]
TableFormatOption = Annotated[TableFormat, typer.Option("--format", help="Format of the table.")]
Scale = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation of a Gaussian around a deterministic p(x|z1), which values in nats need: a number, or "
        "fit to fit it on one half of the data and measure on the other.",
        show_default=False,
    ),
]
ProposalOption = Annotated[
    ProposalName,
    typer.Option(help="Who draws the states between latent and data: the encoder, the decoder, or each of them half."),
]
MostDraws = Annotated[
    int,
    typer.Option(
        "--draws",
        min=2,
        help="Largest number of these draws; from 64 on they are doubled until the mean changes by less than 0.5 nats.",
    ),
]

# Attributes with fewer positives or negatives than that are rare by default; classes never are.
_FEWEST = 50


def measured_part(run: Run, test: bool, number: int | None = None) -> Split:
    """The data to measure on.

    Args:
        run: The run.
        test: Whether to use the test part, instead of the held-out part.
        number: How many, evenly spaced; by default all.
    """
    part = run.data.test if test else run.data.held_out
    return part if number is None else part.evenly(number)


def common_data(runs: Sequence[Run]) -> DataSet:
    """The data set of the first run, for all runs.

    Raises:
        InputError: If a run was trained on data of another shape.
    """
    from halikit.errors import InputError

    data = runs[0].data
    for run in runs:
        if run.config.model.data_shape != data.shape:
            raise InputError(
                f"all runs are measured on {data.spec}, whose data have shape {data.shape}, "
                f"but the model of {run.given} is for {run.config.model.data_shape}"
            )
    return data


def names_of(runs: Sequence[Run]) -> list[str]:
    """Names of runs for the columns of a table: of their directories, or whole paths where two of those are equal."""
    names = [run.given.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.given) for run in runs]


def level_sets(texts: list[str] | None) -> list[list[int]]:
    """Sets of levels from texts such as ``2`` or ``1+2``.

    Raises:
        InputError: If a text is not a set of levels.
    """
    from halikit.errors import InputError

    try:
        return [[int(level) for level in text.split("+")] for text in texts or []]
    except ValueError:
        raise InputError(f"--level takes levels such as 2 or 1+2, got {', '.join(texts or [])}") from None


def level_name(levels: Sequence[int]) -> str:
    """The name of a set of levels, such as ``z1+z2``."""
    return "+".join(f"z{level}" for level in levels)


def fewest_for(fewest: int | None, data: DataSet) -> int:
    """The number of positives and of negatives below which an attribute or class is rare."""
    if fewest is not None:
        return fewest
    return _FEWEST if data.attributes else 1


def table_result(name: str, table: Comparison, format: TableFormat, about: dict[str, Any]) -> Result:
    """A table as a result.

    Args:
        name: Name of the measure.
        table: The table.
        format: Format of the lines.
        about: What else the values say.
    """
    from halikit.runs.run import Result

    text = {TableFormat.text: table.to_text, TableFormat.csv: table.to_csv, TableFormat.latex: table.to_latex}[format]()
    return Result(f"evaluate-{name}", table.title, table.as_dict() | about, text.rstrip("\n").split("\n"))


class Observed(NamedTuple):
    """The hierarchy, the data to measure on, the observation scale, and the scale in words."""

    hierarchy: Hierarchy
    x: Tensor
    scale: float | None
    text: str


def observed(run: Run, number: int, test: bool, scale: str | None, generator: Generator) -> Observed:
    """The data and the observation scale that ``--scale`` asks for.

    Raises:
        InputError: If the text is neither a positive number nor ``fit``.
    """
    from halikit.analysis.reconstruction import fit_observation_scale
    from halikit.errors import InputError

    part = measured_part(run, test, number)
    hierarchy, x = run.conditioned(part), run.batch(part)
    if scale is None:
        return Observed(hierarchy, x, None, "")
    if scale == "fit":
        others, rows = slice(1, None, 2), slice(0, None, 2)
        fitted = fit_observation_scale(hierarchy.rows(others), x[others], generator=generator)
        text = f", observation scale {fitted:.4g}, fitted on {len(x[others]):,} others"
        return Observed(hierarchy.rows(rows), x[rows], fitted, text)
    try:
        fixed = float(scale)
    except ValueError:
        fixed = 0.0
    if not 0 < fixed < float("inf"):
        raise InputError(f"--scale takes a positive number or fit, got {scale!r}")
    return Observed(hierarchy, x, fixed, f", observation scale {fixed:.4g}")
