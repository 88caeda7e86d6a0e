"""Makes a command out of a function on a run or on several: open, compute, present."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.runs.run import Result

__all__ = ["run_command"]

# Options of every such command. Those that the function has as well are handed to it.
_COMMON: dict[str, tuple[Any, Any]] = {
    "data": (common.Data, None),
    "class_name": (common.Class, None),
    "attribute": (common.Attribute, None),
    "weights": (common.Weights, "averaged"),
    "device": (common.Device, "auto"),
    "seed": (common.Seed, 0),
    "out": (common.Out, None),
    "as_json": (common.Json, False),
}


def run_command(function: Callable[..., Result]) -> Callable[..., None]:
    """A command for Typer with the options of the function and the common ones.

    Args:
        function: Takes the opened run as ``run``, or several as ``runs``, and its own options by keyword, annotated as
            Typer reads them; ``seed`` if it draws random numbers, ``out`` if its result depends on the file to write.
            Its docstring is the help.
    """
    first, *own = inspect.signature(function).parameters.values()
    compares = first.name == "runs"
    takes_out = any(parameter.name == "out" for parameter in own)
    options = [_evaluated(parameter, function) for parameter in own if parameter.name not in _COMMON]
    takes_seed = any(parameter.name == "seed" for parameter in own)

    def command(**given: Any) -> None:
        out, as_json = given.pop("out"), given.pop("as_json")
        common.check_writable(out, takes_npy=takes_out)
        if takes_out:
            given["out"] = out
        opening = {name: given.pop(name) for name in ("weights", "device", "data", "class_name", "attribute")}
        paths = given.pop(first.name)
        runs = [common.open_run(path, **opening) for path in (paths if compares else [paths])]
        result = function(runs if compares else runs[0], **given)
        about: dict[str, Any] = {first.name: list(map(str, paths)) if compares else str(paths)}
        about |= {"weights": opening["weights"]} | ({"seed": given["seed"]} if takes_seed else {})
        result = common.with_context(runs, result)
        result = result._replace(values=about | result.values)
        common.present(None if compares else runs[0], result, out=out, as_json=as_json)

    argument = common.RunsArgument if compares else common.RunArgument
    parameters = [
        Parameter(first.name, Parameter.POSITIONAL_OR_KEYWORD, annotation=argument),
        *options,
        *_common_options(takes_seed=takes_seed, compares=compares),
    ]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    # Typer reads both.
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _common_options(*, takes_seed: bool, compares: bool) -> Iterator[Parameter]:
    for name, (annotation, default) in _COMMON.items():
        if name == "out" and compares:
            annotation = common.TableOut
        if name != "seed" or takes_seed:
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _evaluated(parameter: Parameter, function: Callable[..., Any]) -> Parameter:
    """The parameter with its annotation as an object; that of the run itself would need torch."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, function.__globals__)
    return parameter.replace(annotation=annotation, kind=Parameter.KEYWORD_ONLY)
