"""A process that is killed or falls silent ends the other one, with a sentence, in seconds."""

import os
import signal
from pathlib import Path

import pytest

from cavmae.datasets.format.manifest import Manifest
from tests.pretrain.engine.running import finish, kill, lines, train, wait_for, words

ENDLESS = {"steps": 100_000, "evaluate_every": 0, "save_every": 0}


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("number", "timeout", "expected"),
    [
        (signal.SIGKILL, 60, "The connection to another process of this run broke"),
        (signal.SIGSTOP, 4, "Nothing has come for 4 s from process {} of this run ("),
    ],
)
def test_the_other_process_ends(
    tmp_path: Path, data_set: Manifest, lost: int, number: int, timeout: int, expected: str
) -> None:
    """A stopped process keeps its connections open, as a machine without power does."""
    run = tmp_path / "run"
    loop = {**ENDLESS, "peer_timeout": timeout}
    started = train(words(tmp_path, run, data_set.folder, loop=loop), 2)
    try:
        wait_for(lambda: any(line["step"] == 3 for line in lines(run)), started)
        os.kill(started[lost].pid, number)
        ((code, messages),) = finish([started[1 - lost]], 45)
    finally:
        kill(started)
    assert code == 1
    assert expected.format(lost) in messages
    assert "start the same command with --resume auto on all machines" in messages
    assert "Traceback" not in messages
