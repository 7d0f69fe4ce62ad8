"""Lock of a working folder between real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cavmae.common.errors import CavmaeError
from cavmae.common.locks import locked

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
