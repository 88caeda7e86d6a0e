"""Processes of our own to kill: forked, so that none has to import torch again."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Child", "fork", "limit_memory", "tmpfs", "until"]


@dataclass
class Child:
    """A process that runs a function; its return code is that of a shell: 128 + n when killed by signal n."""

    pid: int
    output: Path

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {timeout} s\n{self.said}")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """All that went to stdout and stderr."""
        return self.output.read_text(errors="replace")


def fork(run: Callable[[], object], cwd: Path | None = None) -> Child:
    """Run a function in a process of its own; it exits as the function does."""
    descriptor, name = tempfile.mkstemp()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return Child(pid, Path(name))
    code = 70
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        if cwd:
            os.chdir(cwd)
        run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def until(condition: Callable[[], object], timeout: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def limit_memory(mebibytes: int) -> None:
    """Let this process take so much more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextmanager
def tmpfs(path: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own size below ``path``; skips the test where none can be mounted."""
    path.mkdir(exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={kibibytes}k none {path} 2>/dev/null"):
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield path
    finally:
        os.system(f"umount -l {path}")
