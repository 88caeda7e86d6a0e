"""Pictures and curves, as functions of arrays.

A picture is an array of bytes ``(height, width, 3)``; curves are figures of matplotlib, which :func:`as_picture` draws.
"""

from halikit.plotting.figures import as_picture, as_svg, curves, health, propositions, training_curves
from halikit.plotting.pictures import (
    Limits,
    alternating_columns,
    as_pixels,
    as_png,
    contact_sheet,
    grid,
    inpainting_rows,
    is_drawable,
    labelled_rows,
    limits_of,
    save_png,
    strips,
)

__all__ = [
    "Limits",
    "alternating_columns",
    "as_picture",
    "as_pixels",
    "as_png",
    "as_svg",
    "contact_sheet",
    "curves",
    "grid",
    "health",
    "inpainting_rows",
    "is_drawable",
    "labelled_rows",
    "limits_of",
    "propositions",
    "save_png",
    "strips",
    "training_curves",
]
