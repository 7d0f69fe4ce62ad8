"""Failures of imports: the fault of a machine, not of the task that happens to import."""

import platform
import traceback

from cavmae.common.errors import CavmaeError


def broken_import(error: BaseException) -> str | None:
    """Name of the module whose import raised an error; None: no import did.

    Libraries that do not fit each other raise errors of any kind while they are imported.
    """
    if isinstance(error, ImportError) and error.name:
        return error.name
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals for frame in frames if frame.f_code.co_name == "<module>"]
    if modules:
        return str(modules[-1]["__name__"])
    return "a module" if isinstance(error, ImportError | SyntaxError) else None


def import_error(module: str, error: BaseException, machine: str | None = None) -> CavmaeError:
    """Error that ends a run: every other task of the machine would fail, too.

    Args:
        module: that cannot be imported.
        error: reason.
        machine: name of the machine; None: this one.
    """
    return CavmaeError(
        f"The machine {machine or platform.node()} cannot import {module} "
        f"({type(error).__name__}: {' '.join(str(error).split())[:300]}): install cavmae there, of "
        "the same version and with all its packages, and run the same command again."
    )
