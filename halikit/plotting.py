"""Pictures and curves, as functions of arrays.

A picture is an array of bytes ``(height, width, 3)``; curves are figures of matplotlib, which :func:`as_picture` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet
from halikit.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from halikit.analysis.health import Health
    from halikit.analysis.propositions import Case, LevelTerms
    from halikit.analysis.quantity import Quantity

__all__ = [
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
    "labelled_rows",
    "propositions",
    "save_png",
    "strips",
    "training_curves",
]

# Images are enlarged by a whole factor until their shorter side has this many pixels.
_LEGIBLE = 48
# Pixels between images, and their grey value.
_GAP = 2
_BACKGROUND = 255
# With more classes than this, a contact sheet has no row for each class.
_CONTACT_ROWS = 20
_CONTACT_COLUMNS = 12


def as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images in [−1, 1] as bytes.

    Args:
        images: ``(n, C, H, W)`` with 1 or 3 channels; of other numbers the first channel is shown.

    Returns:
        ``(n, H, W, 3)``, enlarged by a whole factor if they are small.

    Raises:
        ValueError: If these are not images.
    """
    if images.dim() != 4:
        raise ValueError(f"pictures are made of images (n, C, H, W), got {tuple(images.shape)}")
    images = images.detach().float().cpu()
    if images.shape[1] != 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, -(-_LEGIBLE // min(pixels.shape[1:3])))
    return pixels.repeat(factor, 1).repeat(factor, 2)


def grid(images: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
    """Images side by side, row by row.

    Args:
        images: ``(n, C, H, W)`` in [−1, 1].
        columns: Number of columns; the square root of n by default.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    pixels = as_pixels(images)
    n, h, w, _ = pixels.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    picture = np.full((rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, 3), _BACKGROUND, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = (i // columns) * (h + _GAP) + _GAP, (i % columns) * (w + _GAP) + _GAP
        picture[top : top + h, left : left + w] = tile
    return picture


def labelled_rows(
    rows: Mapping[str, Tensor] | Sequence[tuple[str, Tensor]], headings: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Rows of images with names on the left, such as inputs above their reconstructions from each level (Fig. 1).

    Args:
        rows: ``(n, C, H, W)`` in [−1, 1] by name, or pairs of name and images; all of one shape.
        headings: Headings of the columns.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    font = ImageFont.load_default(14)
    margin = round(max(font.getlength(name) for name, _ in pairs)) + 12
    strips = []
    for name, images in pairs:
        strip = grid(images, len(images))
        label = Image.new("RGB", (margin, len(strip)), (_BACKGROUND,) * 3)
        ImageDraw.Draw(label).text((margin - 6, len(strip) / 2), name, fill=(0, 0, 0), font=font, anchor="rm")
        strips.append(np.concatenate([np.asarray(label), strip], 1))
    if headings:
        width = strips[0].shape[1]
        head = Image.new("RGB", (width, 22), (_BACKGROUND,) * 3)
        column = (width - margin - _GAP) / len(pairs[0][1])
        for i, heading in enumerate(headings):
            ImageDraw.Draw(head).text((margin + (i + 0.5) * column, 12), heading, (0, 0, 0), font=font, anchor="mm")
        strips.insert(0, np.asarray(head))
    return np.concatenate(strips)


def alternating_columns(inputs: Tensor, reconstructions: Tensor, columns: int = 12) -> NDArray[np.uint8]:
    """Inputs in odd columns, and their reconstructions in even columns on the right (Fig. 7).

    Args:
        inputs: ``(n, C, H, W)`` in [−1, 1].
        reconstructions: ``(n, C, H, W)`` in [−1, 1].
        columns: Number of columns, even.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    both = np.stack([inputs.detach().cpu().numpy(), reconstructions.detach().cpu().numpy()], 1)
    return grid(Tensor(both.reshape(-1, *inputs.shape[1:])), columns)


def inpainting_rows(x: Tensor, masked: Tensor, steps: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The original images, the masked ones, and the result of each level, from the top down (Fig. 4).

    Args:
        x: ``(n, C, H, W)`` in [−1, 1].
        masked: ``(n, C, H, W)`` in [−1, 1].
        steps: ``(n, C, H, W)`` in [−1, 1] after each step, by the name of the latent reconstructed from.
    """
    return labelled_rows({"x": x, "given": masked} | {f"from {name}": images for name, images in steps.items()})


def strips(
    names: Sequence[str], images: Tensor, values: Sequence[float], original: Tensor | None = None
) -> NDArray[np.uint8]:
    """A grid with a row for each base and a column for each value, and originals in the last column (Figs. 5 and 6).

    Args:
        names: Names of the rows.
        images: ``(rows, values, C, H, W)`` in [−1, 1].
        values: Values of the columns.
        original: Original images, ``(rows, C, H, W)``, if there are any.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    headings = [f"{value:g}" for value in values]
    rows = list(images)
    if original is not None:
        rows = [torch.cat([row, image.unsqueeze(0)]) for row, image in zip(images, original, strict=True)]
        headings.append("original")
    return labelled_rows(list(zip(names, rows, strict=True)), headings)


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture ``(height, width, 3)`` as a PNG file, atomically."""
    write_atomically(path, as_png(picture))


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file of a picture ``(height, width, 3)``."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, x_label: str, y_label: str
) -> Figure:
    """Curves through points; points with NaN are left out.

    Args:
        series: x and y values by name.
        title: Title.
        x_label: Label of the x axis.
        y_label: Label of the y axis, with its unit.
    """
    from matplotlib.figure import Figure

    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in series.items():
        measured = [(a, b) for a, b in zip(xs, ys, strict=True) if not math.isnan(b)]
        # A line through one point is invisible, so a single point has a marker.
        axes.plot(*zip(*measured, strict=True), marker="" if len(measured) > 1 else "o", label=name, linewidth=1.4)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def training_curves(metrics: Mapping[str, Sequence[float]], *, has_bound: bool = False) -> dict[str, Figure]:
    """The curves of a run's ``metrics.csv``: losses, predictions, and both distances of Fig. 3 for each level.

    Args:
        metrics: Columns by name, NaN where nothing was measured.
        has_bound: Whether ``log 2 − L_d/2`` is a lower bound on D_JS: with one game and the Jensen–Shannon objective.

    Returns:
        Figures by name, as far as there are data: ``losses``, ``elbo``, ``predictions``, ``bound``, ``error``,
        ``embedded``, ``recovery``.
    """
    steps = metrics["step"]

    def drawn(columns: Mapping[str, str], title: str, y_label: str) -> Figure | None:
        series = {
            label: (steps, metrics[name])
            for name, label in columns.items()
            if name in metrics and not all(map(math.isnan, metrics[name]))
        }
        return curves(series, title=title, x_label="step", y_label=y_label) if series else None

    def per_level(kind: str) -> dict[str, str]:
        latents = {name: name.removeprefix(f"{kind}_") for name in metrics if name.startswith(f"{kind}_")}
        return {name: latent for name, latent in latents.items() if f"error_{latent}" in metrics}

    figures = {
        "losses": drawn(
            {
                "d_loss": "discriminator",
                "g_loss": "generators",
                "sleep_loss": "sleep phase",
                "supervised_loss": "labels (Eq. 10)",
            },
            "Losses",
            "loss",
        ),
        "elbo": drawn(
            {"negative_elbo": "training", "held_out_negative_elbo": "held out"}, "Upper bound on $-\\log p(x)$", "nats"
        ),
        "predictions": drawn({"rho_q": "encoder’s joint", "rho_p": "decoder’s joint"}, "Mean prediction ρ", "ρ"),
        "error": drawn(per_level("error"), "Reconstruction error", "root mean square error"),
        "embedded": drawn(per_level("embedded"), "Embedded reconstruction error", "$d_c$ (Eq. 8)"),
        "recovery": drawn(per_level("recovery"), "Latents recovered from samples, in one step", "$R^2$"),
    }
    if has_bound:
        bound = [math.log(2) - loss / 2 for loss in metrics["d_loss"]]
        figures["bound"] = curves(
            {"log 2 − $L_d$/2": (steps, bound)}, title="Lower bound on $D_{JS}$", x_label="step", y_label="nats"
        )
    return {name: figure for name, figure in figures.items() if figure is not None}


def propositions(cases: Sequence[Case]) -> Figure:
    """The identity, Proposition 2 and Proposition 1, from left to right.

    Args:
        cases: Results of :func:`halikit.analysis.propositions.examine`; the identity is shown for the first case with
            the most levels.
    """
    from matplotlib.figure import Figure

    figure = Figure((13, 4.2), layout="constrained")
    identity, second, first = figure.subplots(1, 3)
    _draw_identity(identity, max((case.terms for case in cases), key=len))
    for kind in dict.fromkeys(case.kind for case in cases):
        terms = [term for case in cases if case.kind == kind for term in case.terms]
        gaps = [(term.entropy.value, term.error.value - term.entropy.value) for term in terms]
        second.scatter(*zip(*gaps, strict=True), s=8, alpha=0.5, label=kind)
        sides = [
            (term.constant * term.js_joint.value, term.error.value - term.entropy.value)
            for term in terms
            if math.isfinite(term.constant)
        ]
        if sides:
            first.scatter(*zip(*sides, strict=True), s=8, alpha=0.5, label=kind)
    gap = "$E[L^l] - H(x|z_l)$, nats"
    second.set(title="Proposition 2: no point is below 0", xlabel="$H(x|z_l)$, nats", ylabel=gap)
    second.axhline(0, color="black", linewidth=0.8)
    second.set_yscale("symlog", linthresh=1)
    first.set(title="Proposition 1: no point is above the line", xlabel="$K\\,D_{JS}(p, q)$, nats", ylabel=gap)
    first.set(xscale="log", yscale="log")
    first.axline((1e-3, 1e-3), (1, 1), color="black", linewidth=0.8)
    for axes in (second, first):
        axes.legend(frameon=False, fontsize=8)
    for axes in (identity, second, first):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_identity(axes: Axes, terms: Sequence[LevelTerms]) -> None:
    levels = [term.level for term in terms]
    entropy, pair, latent, error = (
        np.array([getattr(term, name).value for term in terms]) for name in ("entropy", "kl_pair", "kl_latent", "error")
    )
    axes.bar(levels, entropy, 0.5, label="$H(x|z_l)$")
    axes.bar(levels, pair, 0.5, bottom=entropy, label="$+$ KL$(q(x,z_l)$ ‖ $p(x,z_l))$")
    axes.bar(levels, -latent, 0.16, bottom=entropy + pair, color="black", label="$-$ KL$(q(z_l)$ ‖ $p(z_l))$")
    axes.plot(levels, error, "D", color="tab:red", markersize=8, label="$E[L^l]$, computed independently")
    axes.set(title="The identity, one hierarchy", xlabel="level $l$", ylabel="nats", xticks=levels)
    axes.set_ylim(min(0.0, entropy.min()), 1.45 * (entropy + pair).max())
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def health(found: Health) -> Figure:
    """The use of each latent, and where the joints differ, with standard errors.

    Args:
        found: Result of :func:`halikit.analysis.health.examine`.
    """
    from matplotlib.figure import Figure

    figure = Figure((14, 3.4), layout="constrained")
    recovered, use, ablation, mismatch = figure.subplots(1, 4)
    levels = [level.level for level in found.levels]

    def bars(axes: Axes, quantities: Sequence[Quantity | None], label: str, offset: float = 0.0) -> None:
        values = [math.nan if quantity is None else quantity.value for quantity in quantities]
        errors = [quantity.standard_error or 0.0 if quantity else 0.0 for quantity in quantities]
        places = [level + offset for level in levels]
        axes.bar(places, values, 0.35, yerr=errors, label=label, error_kw={"linewidth": 1})

    recovered.bar([level - 0.18 for level in levels], [level.recovery for level in found.levels], 0.35)
    recovered.bar([level + 0.18 for level in levels], [level.recovery_from_x for level in found.levels], 0.35)
    recovered.set(title="$z_l$ recovered from samples", ylabel="$R^2$, at most 1")
    recovered.legend(["from $z_{l-1}$", "from $x$"], frameon=False, fontsize=8, ncols=2, loc="upper center")
    recovered.set_ylim(min(0.0, recovered.get_ylim()[0]), 1.2)
    bars(use, [level.information for level in found.levels], "information on x")
    use.set(title="Encoder: lower bound on $I(x; z_l)$", ylabel="nats, at most 4.85")
    bars(ablation, [level.error for level in found.levels], "own $z_l$", -0.18)
    bars(ablation, [level.error_shuffled for level in found.levels], "another’s", 0.18)
    ablation.set(title="Decoder: reconstruction error", ylabel="root mean square error")
    bars(mismatch, [level.aggregate.js_bound for level in found.levels], "$q(z_l)$, $p(z_l)$", -0.18)
    bars(mismatch, [level.pair.js_bound for level in found.levels], "with the state below", 0.18)
    mismatch.set(title="Mismatch: lower bound on $D_{JS}$", ylabel="nats, at most 0.69")
    for axes in (recovered, use, ablation, mismatch):
        axes.set_xticks(levels, [level.name for level in found.levels])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (ablation, mismatch):
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    return figure


def as_picture(figure: Figure) -> NDArray[np.uint8]:
    """A figure drawn at twice the usual resolution, ``(height, width, 3)``."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def as_svg(figure: Figure) -> bytes:
    """The bytes of an SVG file of a figure, with letters as outlines; equal figures give equal bytes."""
    from matplotlib import rc_context

    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "halikit"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def contact_sheet(data: DataSet) -> NDArray[np.uint8]:
    """A picture of training images.

    With 2 to 20 classes there is one row for each class, with its first images. Otherwise the images are evenly spaced
    over the training part.

    Args:
        data: A data set.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        DataError: If the data are not images.
    """
    if len(data.shape) != 3:
        raise DataError(f"{data.spec}: a contact sheet needs images, but these are vectors of shape {data.shape}")
    train, labels = data.train, data.train.labels
    if labels is None or not 2 <= len(data.classes) <= _CONTACT_ROWS:
        return grid(
            train.batch(torch.linspace(0, len(train) - 1, min(len(train), _CONTACT_COLUMNS**2)).long()),
            _CONTACT_COLUMNS,
        )
    rows: dict[str, Tensor] = {}
    for label, name in enumerate(data.classes):
        some = (labels == label).nonzero()[:_CONTACT_COLUMNS, 0]
        blank = torch.ones(_CONTACT_COLUMNS - len(some), *data.shape)
        rows[name] = torch.cat([train.batch(some), blank])
    return labelled_rows(rows)
