"""What can go wrong, by the exit code that the command line gives for it."""

from __future__ import annotations

__all__ = ["DivergedError", "HalikitError", "InputError", "ResourceError", "StoppedError"]


class HalikitError(Exception):
    """An error whose message says what is wrong, where, and what would be right."""

    exit_code = 1


class InputError(HalikitError, ValueError):
    """Bad usage or input: a setting, a file, a data set."""

    exit_code = 2


class DivergedError(HalikitError, RuntimeError):
    """Training came to a loss that is not finite."""

    exit_code = 3


class ResourceError(HalikitError, RuntimeError):
    """Out of disk or memory."""

    exit_code = 4


class StoppedError(HalikitError):
    """A signal has ended the training, which is saved.

    Args:
        message: Where it is saved.
        signal: Its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
