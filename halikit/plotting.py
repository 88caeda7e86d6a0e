"""Pictures and curves, as functions of arrays.

A picture is an array of bytes ``(height, width, 3)``; curves are figures of matplotlib, which :func:`as_picture` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, named
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
    "is_drawable",
    "labelled_rows",
    "limits_of",
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
# Height and widths of the tile of a sequence in pixels, and pixels above and below its curves.
_CURVE_HEIGHT, _CURVE_WIDTHS, _CURVE_MARGIN = 64, (96, 192), 3
# Curves are drawn at so many times the resolution and then reduced, which makes smooth lines.
_FINER = 3
# Colours of the channels of a sequence, which repeat; background and zero line of its tile.
_CHANNELS = ("#1f4e9c", "#d1601a", "#2f8a3c", "#b0263a", "#7b4fa8", "#7a5a3c", "#c95fa6", "#5c5c5c")
_PAPER, _ZERO = "#f3f3f3", "#c8c8c8"

Limits = tuple[float, float]


def is_drawable(shape: Sequence[int]) -> bool:
    """Whether there are pictures of states of this shape: sequences, images and volumes."""
    return 2 <= len(shape) <= 4


def limits_of(*states: Tensor) -> Limits:
    """The values that are drawn lowest and highest (or black and white) in a picture of these states.

    Args:
        *states: ``(n, *shape)``, all of one shape.

    Returns:
        (−1, 1) for images. The lowest and the highest finite value for sequences. The first and the last percentile for
        volumes, so that a few far values leave the others visible; (−1, 1) if both are within it.
    """
    axes = states[0].dim() - 2
    values = np.concatenate([state.detach().float().cpu().numpy().ravel() for state in states])
    values = values[np.isfinite(values)]
    if axes == 2 or not values.size:
        return -1.0, 1.0
    low, high = map(float, np.percentile(values, (1, 99) if axes == 3 else (0, 100)))
    if axes == 3 and low >= -1 and high <= 1:
        return -1.0, 1.0
    return (low, high) if low < high else (low - 1, high + 1)


def as_pixels(states: Tensor, limits: Limits | None = None) -> NDArray[np.uint8]:
    """States as tiles of bytes: images themselves, the curves of sequences, the middle slices of volumes.

    A curve has its first value on the left; its channels have different colours. A volume shows the middle of its first
    axis. Values beyond the limits are clipped, and what is not a number is left white.

    Args:
        states: Images ``(n, C, H, W)`` in [−1, 1], sequences ``(n, C, T)`` or volumes ``(n, C, D, H, W)``. Of images
            and volumes with other numbers of channels than 1 and 3, the first channel is shown.
        limits: Values that are drawn lowest and highest, or black and white; by default :func:`limits_of` the states.

    Returns:
        ``(n, height, width, 3)``. Small images and slices are enlarged by a whole factor.

    Raises:
        ValueError: If there are no pictures of such states.
    """
    if not is_drawable(states.shape[1:]):
        raise ValueError(
            f"pictures are made of sequences (n, C, T), images (n, C, H, W) and volumes (n, C, D, H, W), "
            f"got {tuple(states.shape)}"
        )
    states = states.detach().float().cpu()
    low, high = limits or limits_of(states)
    if states.dim() == 3:
        return _curves(states, low, high)
    if states.dim() == 5:
        states = (states[:, :, states.shape[2] // 2] - low) * (2 / (high - low)) - 1
    if states.shape[1] != 3:
        states = states[:, :1].expand(-1, 3, -1, -1)
    states = states.nan_to_num(1.0).clamp(-1, 1)
    pixels = ((states + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, -(-_LEGIBLE // min(pixels.shape[1:3])))
    return pixels.repeat(factor, 1).repeat(factor, 2)


def _curves(states: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """A tile with the curves of each sequence, ``(n, height, width, 3)``."""
    from PIL import Image, ImageDraw

    n, _, length = states.shape
    narrowest, widest = _CURVE_WIDTHS
    size = (min(max(narrowest, length), widest), _CURVE_HEIGHT)
    width, height = (_FINER * side for side in size)
    # A single value is drawn as a line across the tile.
    values = states.expand(-1, -1, 2) if length == 1 else states
    x = np.linspace(0, width - 1, values.shape[2])
    margin = _FINER * _CURVE_MARGIN

    def row(value: NDArray[np.float32] | float) -> Any:
        share = (np.clip(value, low, high) - low) / (high - low)
        return height - 1 - margin - share * (height - 1 - 2 * margin)

    tiles = np.empty((n, size[1], size[0], 3), np.uint8)
    for tile, sequence in zip(tiles, values.numpy(), strict=True):
        image = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(image)
        if low <= 0 <= high:
            pen.line([(0, row(0.0)), (width, row(0.0))], _ZERO, _FINER)
        for number, channel in enumerate(sequence):
            # A curve is interrupted where it has no finite value.
            for part in np.split(np.arange(len(channel)), np.flatnonzero(~np.isfinite(channel))):
                part = part[np.isfinite(channel[part])]
                if len(part) > 1:
                    points = np.stack([x[part], row(channel[part])], 1)
                    pen.line(points.ravel().tolist(), _CHANNELS[number % len(_CHANNELS)], round(1.4 * _FINER), "curve")
        tile[:] = np.asarray(image.reduce(_FINER))
    return tiles


def grid(images: Tensor, columns: int | None = None, limits: Limits | None = None) -> NDArray[np.uint8]:
    """Images side by side, row by row; sequences and volumes as :func:`as_pixels` shows them.

    Args:
        images: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        columns: Number of columns; the square root of n by default.
        limits: As in :func:`as_pixels`.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    pixels = as_pixels(images, limits)
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

    All rows of sequences, or of volumes, have the same limits, so that they can be compared.

    Args:
        rows: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)`` by name, or pairs of name and images;
            all of one shape.
        headings: Headings of the columns.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    font = ImageFont.load_default(14)
    margin = round(max(font.getlength(name) for name, _ in pairs)) + 12
    shared = limits_of(*(images for _, images in pairs))
    strips = []
    for name, images in pairs:
        strip = grid(images, len(images), shared)
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
        inputs: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        reconstructions: The same shape.
        columns: Number of columns, even.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    both = np.stack([inputs.detach().cpu().numpy(), reconstructions.detach().cpu().numpy()], 1)
    return grid(Tensor(both.reshape(-1, *inputs.shape[1:])), columns)


def inpainting_rows(x: Tensor, masked: Tensor, steps: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The original images, the masked ones, and the result of each level, from the top down (Fig. 4).

    Args:
        x: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        masked: The same shape.
        steps: The same shape after each step, by the name of the latent reconstructed from.
    """
    return labelled_rows({"x": x, "given": masked} | {f"from {name}": images for name, images in steps.items()})


def strips(
    names: Sequence[str], images: Tensor, values: Sequence[float], original: Tensor | None = None
) -> NDArray[np.uint8]:
    """A grid with a row for each base and a column for each value, and originals in the last column (Figs. 5 and 6).

    Args:
        names: Names of the rows.
        images: ``(rows, values, *shape)``, with a shape as in :func:`labelled_rows`.
        values: Values of the columns.
        original: Original images, ``(rows, *shape)``, if there are any.

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
        DataError: If the data are vectors.
    """
    if not is_drawable(data.shape):
        raise DataError(
            f"{data.spec}: a contact sheet needs images, sequences or volumes, but these are {named(data.shape)} of "
            f"shape {data.shape}"
        )
    train, labels = data.train, data.train.labels
    if labels is None or not 2 <= len(data.classes) <= _CONTACT_ROWS:
        return grid(
            train.batch(torch.linspace(0, len(train) - 1, min(len(train), _CONTACT_COLUMNS**2)).long()),
            _CONTACT_COLUMNS,
        )
    rows: dict[str, Tensor] = {}
    for label, name in enumerate(data.classes):
        some = (labels == label).nonzero()[:_CONTACT_COLUMNS, 0]
        blank = torch.full((_CONTACT_COLUMNS - len(some), *data.shape), math.nan)
        rows[name] = torch.cat([train.batch(some), blank])
    return labelled_rows(rows)
