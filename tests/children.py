"""Forked processes: the command line as a shell sees it, and processes to kill. None has to import torch again."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from halikit.cli import main

__all__ = ["Child", "command", "fill_disk", "fork", "limit_memory", "tmpfs", "until"]


# What a training imports once it needs it, which takes seconds: imported here, so that no child has to.
for _name in (
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("sklearn.datasets", "torch._dynamo", "torch.utils.tensorboard.writer"),
):
    import_module(_name)

ALIVE: list[Child] = []


@pytest.fixture(autouse=True)
def _no_child_survives() -> Iterator[None]:
    """For tests that fail before they wait; import it where children are made."""
    yield
    for child in list(ALIVE):
        child.send(signal.SIGKILL)
        child.wait()


@dataclass
class Child:
    """A process that runs a function; its return code is that of a shell: 128 + n when killed by signal n."""

    pid: int
    output: int
    said: str = ""

    def wait(self, timeout: float = 250) -> int:
        """The return code; ``said`` is then all that went to stdout and stderr."""
        deadline = time.monotonic() + timeout
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        if is_late := found == (0, 0):
            self.send(signal.SIGKILL)
            found = os.waitpid(self.pid, 0)
        ALIVE.remove(self)
        self.said = os.pread(self.output, os.fstat(self.output).st_size, 0).decode(errors="replace")
        os.close(self.output)
        assert not is_late, f"still running after {timeout} s\n{self.said}"
        code = os.waitstatus_to_exitcode(found[1])
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def fork(run: Callable[[], object], cwd: Path | None = None, errors: int | None = None) -> Child:
    """Run a function in a process of its own, which exits as the function does; ``errors`` is a file for its stderr."""
    output = os.memfd_create("output")
    pid = os.fork()
    if pid:
        ALIVE.append(Child(pid, output))
        return ALIVE[-1]
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output if errors is None else errors, 2)
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
        # Whatever happens here, the child must not go on with the tests of its parent.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def command(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a forked process: what a shell sees of it, without the seconds that a start takes."""
    errors = os.memfd_create("errors")

    def run() -> None:
        os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}
        sys.argv = ["halikit", *arguments]
        main()

    child = fork(run, cwd, errors)
    code = child.wait()
    complaint = os.pread(errors, os.fstat(errors).st_size, 0).decode(errors="replace")
    os.close(errors)
    assert code == 0 or not check, complaint
    return subprocess.CompletedProcess(["halikit", *arguments], code, child.said, complaint)


def until(condition: Callable[[], object], timeout: float = 200) -> None:
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


def fill_disk(path: Path) -> None:
    """Write a file until there is no room for more."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)


@contextlib.contextmanager
def tmpfs(path: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own size below ``path``; skips the test where none can be mounted."""
    path.mkdir(exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={kibibytes}k none {path} 2>/dev/null"):
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield path
    finally:
        os.system(f"umount -l {path}")
