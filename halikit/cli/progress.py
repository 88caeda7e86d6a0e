"""The progress of a training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from halikit.runs.record import Record

__all__ = ["Progress"]


# Short names of the losses.
_LABELS = {
    "d_loss": "L_d",
    "g_loss": "L_g",
    "rho_q": "ρ_q",
    "rho_p": "ρ_p",
    "sleep_loss": "S",
    "negative_elbo": "−ELBO",
    "held_out_negative_elbo": "held out",
    "supervised_loss": "L_sup",
    "held_out_label_error": "wrong classes",
}


class Progress:
    """Shows the records of a training; used as a context.

    Args:
        console: Console to print to.
        total: Number of steps.

    Attributes:
        last: The latest record, or ``None``.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.last: Record | None = None
        self._bar = Bar(
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[errors]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, rates="", losses="", errors="")
        self._errors = ""

    def expect(self, total: int) -> None:
        """Set the number of steps."""
        self.total = total
        self._bar.update(self._task, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, record: Record) -> None:
        """Show a record in the bar, and also as a line if it has an evaluation on held-out data."""
        self.last = record
        rates = f"{record.steps_per_second:.0f} steps/s, {record.images_per_second:.0f} images/s"
        losses = " ".join(f"{_LABELS.get(name, name)} {value:.3f}" for name, value in record.losses.items())
        if record.errors:
            self._errors = "errors " + " ".join(f"{error:.3f}" for error in record.errors)
            self._errors += "  recovered " + " ".join(f"{value:.2f}" for value in record.recovery)
        self._bar.update(self._task, completed=record.step, rates=rates, losses=losses, errors=self._errors)
        if record.evaluated:
            left = (self.total - record.step) / record.steps_per_second
            self.console.print(
                f"step {record.step:>7,} of {self.total:,}  {losses}  {self._errors}  "
                f"{rates}, {left / 60:.1f} min left",
                markup=False,
            )
