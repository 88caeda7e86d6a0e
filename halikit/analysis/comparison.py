"""Tables of scores, models beside each other, one row per attribute or class (Tables 1, 2, 5 and 6)."""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import dataclass

__all__ = ["Comparison"]

# Scores that differ by less are tied: they are proportions of counts, and differ by rounding alone.
_TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Scores in [0, 1], or ratios of such, on finite sets: estimates.

    Attributes:
        title: What they are.
        models: Columns.
        rows: Attributes or classes.
        scores: ``scores[row][model]``.
        apart: Rows with too few positives (or negatives) for their score to count in what is summed up.
        unranked: How many of the first columns are no models, and best at nothing.
    """

    title: str
    models: tuple[str, ...]
    rows: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    apart: frozenset[str] = frozenset()
    unranked: int = 0

    @property
    def counted(self) -> tuple[tuple[float, ...], ...]:
        """The scores of the rows that are not apart."""
        return tuple(scores for row, scores in zip(self.rows, self.scores, strict=True) if row not in self.apart)

    @property
    def mean(self) -> tuple[float, ...]:
        """Over the rows that count, per model; NaN where none does."""
        columns = self._columns()
        return tuple(statistics.fmean(column) if column else math.nan for column in columns)

    @property
    def std(self) -> tuple[float, ...]:
        """Sample standard deviation over these rows, per model; NaN for fewer than two."""
        columns = self._columns()
        return tuple(statistics.stdev(column) if len(column) > 1 else math.nan for column in columns)

    @property
    def best(self) -> tuple[int, ...]:
        """On how many of these rows a model has the best score; ties count for all. Unranked columns are left out."""
        ranked = [scores[self.unranked :] for scores in self.counted]
        return tuple(
            sum(scores[i] >= max(scores) - _TIE for scores in ranked) for i in range(len(self.models) - self.unranked)
        )

    def to_text(self) -> str:
        """In percent, aligned: the rows, those apart, and mean ± standard deviation and number of best below."""
        table = [["", *self.models], *self._percentages(apart=False), *self._summary(" ± ")]
        if self.apart:
            table += [["too few to count:", *[""] * len(self.models)], *self._percentages(apart=True)]
        widths = [max(len(line[i]) for line in table) for i in range(len(self.models) + 1)]
        lines = []
        for name, *cells in table:
            aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
        return "\n".join([self.title, *lines])

    def to_csv(self) -> str:
        """One line per row with the scores as they are, and whether it counts; then mean, standard deviation, best."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["attribute", "counts", *self.models])
        for row, scores in zip(self.rows, self.scores, strict=True):
            writer.writerow([row, int(row not in self.apart), *map(repr, scores)])
        writer.writerow(["mean", "", *map(repr, self.mean)])
        writer.writerow(["std", "", *map(repr, self.std)])
        writer.writerow(["best", "", *[""] * self.unranked, *map(repr, self.best)])
        return file.getvalue()

    def to_latex(self) -> str:
        """A ``tabular``, in percent."""
        head = [["", *map(_escaped, self.models)]]
        body = [[_escaped(row), *cells] for row, *cells in self._percentages(apart=False)]
        below = self._summary(r" $\pm$ ")
        aside = [[rf"\textit{{{_escaped(row)}}}", *cells] for row, *cells in self._percentages(apart=True)]
        groups = [head, body, below, aside] if aside else [head, body, below]
        lines = [r"\begin{tabular}{l" + "r" * len(self.models) + "}", r"\hline"]
        for group in groups:
            lines += [" & ".join(line) + r" \\" for line in group] + [r"\hline"]
        return "\n".join([*lines, r"\end{tabular}", ""])

    def _columns(self) -> list[list[float]]:
        return [[scores[i] for scores in self.counted] for i in range(len(self.models))]

    def _percentages(self, *, apart: bool) -> list[list[str]]:
        return [
            [row, *(f"{100 * score:.2f}" for score in scores)]
            for row, scores in zip(self.rows, self.scores, strict=True)
            if (row in self.apart) == apart
        ]

    def _summary(self, plus_minus: str) -> list[list[str]]:
        moments = [f"{100 * m:.2f}{plus_minus}{100 * s:.2f}" for m, s in zip(self.mean, self.std, strict=True)]
        return [["mean", *moments], [f"best of {len(self.counted)}", *[""] * self.unranked, *map(str, self.best)]]


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)
