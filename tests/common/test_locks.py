"""Lock of a working folder between real processes."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cavmae.common import locks
from cavmae.common.errors import CavmaeError
from cavmae.common.locks import holder_of, is_held, locked

HOLD = """
import sys
from pathlib import Path
from cavmae.common.locks import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(CavmaeError, match="busy"), locked(folder, "busy"):
                pass
            assert folder.exists()  # it is the other process's
        finally:
            process.kill()
    with locked(folder, "busy"):
        (folder / "part").touch()
    assert (folder / "part").exists()  # an unfinished job stays
    (folder / "part").unlink()
    with locked(folder, "busy"):
        pass
    assert not folder.exists()


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_lock(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "work"
    marker = marker_of(folder, socket.gethostname())
    assert not is_held(folder)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            text = re.sub(r"pid=\d+", f"pid={other.pid}", marker.read_text())
            marker.write_text(text)
            assert not is_held(folder)
            marker.write_text(re.sub(r"start=\d+\n", "", text))  # where the system hides it
            assert is_held(folder)
        finally:
            other.kill()
    assert not is_held(folder)
    with locked(tmp_path / "own", "busy"):
        assert is_held(tmp_path / "own")


def marker_of(folder: Path, host: str) -> Path:
    """Marker of a process that was killed, as if it had run on another machine."""
    program = f"from cavmae.common import locks; locks.LEASE_SECONDS = 1.0\n{HOLD}"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        process.kill()
    marker = folder / "lock"
    marker.write_text(marker.read_text().replace(f"host={socket.gethostname()}", f"host={host}"))
    return marker


@pytest.mark.parametrize("alive", [False, True])
def test_a_process_of_another_machine_is_watched_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, alive: bool
) -> None:
    """A clock that differs by an hour does not matter."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "cavmae")
    folder = tmp_path / "work"
    marker = marker_of(folder, "other")
    holder = holder_of(folder)
    assert holder is not None and holder.host == "other" and holder.pid > 0
    stopped = threading.Event()

    def refresh() -> None:
        while not stopped.wait(0.1):
            hour_ahead = time.time() + 3600
            os.utime(marker, (hour_ahead, hour_ahead))

    thread = threading.Thread(target=refresh)
    if alive:
        thread.start()
    else:
        os.utime(marker, (time.time() + 3600,) * 2)
    try:
        if alive:
            with pytest.raises(CavmaeError, match="busy"), locked(folder, "busy"):
                pass
            assert holder_of(folder) == holder
        else:
            started = time.monotonic()
            with locked(folder, "busy"):
                assert 0.8 < time.monotonic() - started < 10
                own = holder_of(folder)
                assert own is not None and own[:2] == (socket.gethostname(), os.getpid())
            assert holder_of(folder) is None
        assert f"is locked by process {holder.pid} of other: waiting 1 s" in caplog.text
    finally:
        stopped.set()
        if alive:
            thread.join()


def test_a_process_whose_lock_is_taken_stops(tmp_path: Path) -> None:
    program = f"from cavmae.common import locks; locks.LEASE_SECONDS = 0.6\n{HOLD}"
    folder = tmp_path / "work"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        (folder / "lock").unlink()
        assert process.wait(20) == -signal.SIGTERM


def test_a_folder_that_is_removed_may_be_only_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program of somebody else's, which uses the Python interface, must not be ended."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.3)
    with locked(tmp_path / "work", "busy", stop=False):
        (tmp_path / "work" / "lock").unlink()
        deadline = time.monotonic() + 20
        while "is no longer this process's" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
