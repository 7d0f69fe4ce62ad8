"""What needs no extra works without any: modules are imported with the extras' packages hidden."""

import subprocess
import sys

IMPORTS = """
import importlib, pkgutil, sys
for name in ("skia", "espeakng_loader", "ray", "s3fs", "pyannote", "pesq"):
    sys.modules[name] = None
for room in ("common", "pretrain", "finetune", "tools"):
    package = importlib.import_module(f"cavmae.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            print(module.name, error.name)
"""
# It renders talkers.
OF_EXTRAS = {"cavmae.tools.benchmarks.rendering skia"}


def test_modules_of_commands_import_without_extras() -> None:
    """`cavmae report` once needed the drawing library of the talkers for the name of a file."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) <= OF_EXTRAS
