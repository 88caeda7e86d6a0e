"""What ``halikit evaluate`` measures.

Each measure is a file here with a function of the same name. The function takes a run, or several ``runs``, and returns
a :class:`~halikit.runs.run.Result`; its keyword arguments are the options of the command. To add a measure, write the
file and add its name to ``MEASURES``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halikit.runs.run import Result

__all__ = ["MEASURES", "measure"]

# In the order of the help.
MEASURES = (
    "labels",
    "recovery",
    "errors",
    "reconstruction",
    "likelihood",
    "health",
    "samples",
    "classes",
    "svm",
    "attributes",
)


def measure(name: str) -> Callable[..., Result]:
    """The function that takes the measure ``name``, one of ``MEASURES``. Getting it imports no torch."""
    function: Callable[..., Result] = getattr(import_module(f"{__name__}.{name}"), name)
    return function
