"""One process at a time: a lock is refused to others, and goes when its process ends in whatever way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from halikit.errors import InputError
from halikit.runs.lock import locked

HOLD = """
import sys
from pathlib import Path
from halikit.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_refused_to_others_and_goes_with_a_killed_process(tmp_path: Path) -> None:
    """A process of its own, because a fork would share the lock."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"another training is writing to {tmp_path}; wait"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_an_error_releases_a_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    with locked(tmp_path):
        pass


def test_where_no_lock_can_be_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / "no such directory"):
        assert not list(tmp_path.iterdir())

    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with locked(tmp_path), locked(tmp_path):
        pass
