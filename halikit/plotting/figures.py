"""Curves and bars of measurements, as figures of matplotlib; :func:`as_picture` and :func:`as_svg` draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from halikit.analysis.health import Health
    from halikit.analysis.propositions import Case, LevelTerms
    from halikit.analysis.quantity import Quantity

__all__ = ["as_picture", "as_svg", "curves", "health", "propositions", "training_curves"]


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
