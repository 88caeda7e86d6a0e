"""Tables of scores: a column for each model, a row for each attribute or class (Tables 1, 2, 5 and 6)."""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

from halikit.analysis.quantity import without_nan

__all__ = ["Comparison"]

# Scores that differ by less are tied: scores are ratios of counts, so smaller differences are rounding errors.
_TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Scores in [0, 1] on finite sets, or ratios of two scores: estimates.

    Attributes:
        title: Title of the table.
        models: Names of the columns.
        rows: Names of the attributes or classes.
        scores: ``scores[row][model]``.
        rare: Rows with too few positives or negatives: they count neither in means nor in the ranking.
        unranked: Number of first columns that are not models and have no rank.
    """

    title: str
    models: tuple[str, ...]
    rows: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    rare: frozenset[str] = frozenset()
    unranked: int = 0

    @property
    def counted(self) -> tuple[tuple[float, ...], ...]:
        """The scores of the rows that are not rare."""
        return tuple(scores for row, scores in zip(self.rows, self.scores, strict=True) if row not in self.rare)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean over the rows that are not rare, for each model; NaN if there is none."""
        columns = self._columns()
        return tuple(statistics.fmean(column) if column else math.nan for column in columns)

    @property
    def std(self) -> tuple[float, ...]:
        """Sample standard deviation over the rows that are not rare, for each model; NaN for fewer than two."""
        columns = self._columns()
        return tuple(statistics.stdev(column) if len(column) > 1 else math.nan for column in columns)

    @property
    def best(self) -> tuple[int, ...]:
        """Number of rows on which a model has the best score, for each ranked model; a tie counts for all of them."""
        ranked = [scores[self.unranked :] for scores in self.counted]
        return tuple(
            sum(scores[i] >= max(scores) - _TIE for scores in ranked) for i in range(len(self.models) - self.unranked)
        )

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON takes it; ``None`` in place of NaN."""
        return {
            "models": list(self.models),
            "attributes": list(self.rows),
            "scores": [list(row) for row in self.scores],
            "apart": sorted(self.rare),
            "mean": without_nan(self.mean),
            "std": without_nan(self.std),
            "best": [None] * self.unranked + list(self.best),
        }

    def to_text(self) -> str:
        """The table in percent, aligned: the rows, mean ± standard deviation, number of best scores, rare rows."""
        table = [["", *self.models], *self._percentages(rare=False), *self._summary(" ± ")]
        if self.rare:
            table += [["too few to count:", *[""] * len(self.models)], *self._percentages(rare=True)]
        widths = [max(len(line[i]) for line in table) for i in range(len(self.models) + 1)]
        lines = []
        for name, *cells in table:
            aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
        return "\n".join([self.title, *lines])

    def to_csv(self) -> str:
        """The table as CSV: name, whether the row counts, and scores; then mean, standard deviation, number of best."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["attribute", "counts", *self.models])
        for row, scores in zip(self.rows, self.scores, strict=True):
            writer.writerow([row, int(row not in self.rare), *map(repr, scores)])
        writer.writerow(["mean", "", *map(repr, self.mean)])
        writer.writerow(["std", "", *map(repr, self.std)])
        writer.writerow(["best", "", *[""] * self.unranked, *map(repr, self.best)])
        return file.getvalue()

    def to_latex(self) -> str:
        """The table in percent as a ``tabular`` of LaTeX."""
        head = [["", *map(_escaped, self.models)]]
        body = [[_escaped(row), *cells] for row, *cells in self._percentages(rare=False)]
        below = self._summary(r" $\pm$ ")
        aside = [[rf"\textit{{{_escaped(row)}}}", *cells] for row, *cells in self._percentages(rare=True)]
        groups = [head, body, below, aside] if aside else [head, body, below]
        lines = [r"\begin{tabular}{l" + "r" * len(self.models) + "}", r"\hline"]
        for group in groups:
            lines += [" & ".join(line) + r" \\" for line in group] + [r"\hline"]
        return "\n".join([*lines, r"\end{tabular}", ""])

    def _columns(self) -> list[list[float]]:
        return [[scores[i] for scores in self.counted] for i in range(len(self.models))]

    def _percentages(self, *, rare: bool) -> list[list[str]]:
        return [
            [row, *(f"{100 * score:.2f}" for score in scores)]
            for row, scores in zip(self.rows, self.scores, strict=True)
            if (row in self.rare) == rare
        ]

    def _summary(self, plus_minus: str) -> list[list[str]]:
        moments = [f"{100 * m:.2f}{plus_minus}{100 * s:.2f}" for m, s in zip(self.mean, self.std, strict=True)]
        return [["mean", *moments], [f"best of {len(self.counted)}", *[""] * self.unranked, *map(str, self.best)]]


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)
