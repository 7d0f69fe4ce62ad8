"""Work for workers that goes wrong in the ways real libraries do."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError
from cavmae.datasets.sharding.job import shard_task as good_work
from cavmae.datasets.sharding.messages import Alive, Stretch, Written


def work(task: Any, report: Any) -> None:
    """Like the real one, but what the video is called happens the first time it is read."""
    fault = Path(task.item.source).stem if task.item.attempt == 0 else ""
    while fault == "wait" and not Path(task.item.source).with_name("go").exists():
        report(Alive())
        time.sleep(0.05)
    if fault == "hang":
        time.sleep(600)
    if fault == "grow":
        hoard = [bytearray(os.urandom(1) * 100_000_000) for _ in range(20)]
        time.sleep(len(hoard) * 30)

    def report_and_crash(message: Any) -> None:
        report(message)
        if fault == "crash" and isinstance(message, Written):
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "survey" and isinstance(message, Stretch) and message.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    good_work(task, report_and_crash)


def say(argument: Any, report: Any) -> Any:
    """For tests of the pool alone."""
    report(("started", argument))
    if argument == "raise":
        raise ValueError("oh")
    if argument == "exit":
        os._exit(3)
    if argument == "stop":
        raise CavmaeError("stop everything")
    if argument == "sleep":
        time.sleep(600)
    if argument == "grow":
        hoard = [bytearray(os.urandom(1) * 100_000_000) for _ in range(20)]
        time.sleep(len(hoard) * 30)
    if argument.startswith("mark "):  # the process of its parent, which Ray runs, and its own
        Path(argument.partition(" ")[2], f"{parent_number()}-{os.getpid()}").touch()
    if argument == "kill" or argument.startswith("mark ") or is_first(argument):
        os.kill(os.getpid(), signal.SIGKILL)
    return argument, os.getpid()


def parent_number() -> int:
    """Number of the process that gave this one its task."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    return parent.pid


def is_first(argument: str) -> bool:
    """Whether ``once FILE`` is the first attempt, which makes the file; others mark themselves."""
    word, _, name = argument.partition(" ")
    if word != "once":
        return False
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        Path(f"{name}.again").touch()
        return False
    return True
