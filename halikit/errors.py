"""The errors of halikit, with the exit codes of the command line."""

from __future__ import annotations

__all__ = ["DivergedError", "HalikitError", "InputError", "ResourceError", "StoppedError"]


class HalikitError(Exception):
    """Base class of the errors whose messages are written for users."""

    exit_code = 1


class InputError(HalikitError, ValueError):
    """Wrong usage or input: a setting, a file, a data set."""

    exit_code = 2


class DivergedError(HalikitError, RuntimeError):
    """Training has diverged: its losses or gradients are not finite."""

    exit_code = 3


class ResourceError(HalikitError, RuntimeError):
    """Disk or memory is full, or another process of the training has ended."""

    exit_code = 4


class StoppedError(HalikitError):
    """A signal has stopped the training, after a checkpoint was written.

    Args:
        message: Message for the user, with the place of the checkpoint.
        signal: Number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
