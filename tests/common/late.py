"""Work whose module is imported by its processes alone."""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool


@worker_pool.with_modules("colorsys")
def has_module(argument: int, report: Any) -> bool:
    return "colorsys" in sys.modules


def import_from(argument: tuple[str, str], report: Any) -> None:
    """Imports a module of a folder."""
    folder, module = argument
    sys.path.insert(0, folder)
    importlib.import_module(module)


def write_pid(path: str, report: Any) -> int:
    """Appends the process's number to a file, after a while."""
    report(None)
    time.sleep(1.0)
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()
