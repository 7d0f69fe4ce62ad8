"""Threads: the environment of commands, and the share of each process of a machine."""

import subprocess
import sys

import pytest
import threadpoolctl
import torch

from cavmae.common.threads import (
    cores,
    single_threaded_blas,
    threads_per_process,
    use_one_thread,
)

PROBE = """
import os, sys
from cavmae.common.cli import run
def command(words):
    assert "torch" not in sys.modules
    print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
run(command, [])
"""


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ({}, "1000 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
    ],
)
def test_commands_limit_spinning_before_torch_is_imported(
    given: dict[str, str], printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert threads_per_process() is None
    for processes in (2, cores(), 10 * cores()):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(max(2, processes)))
        threads = threads_per_process()
        assert threads is not None
        assert threads >= 1
        assert threads == 1 or threads * processes <= cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_process() is None


def blas_threads() -> set[int]:
    return {
        lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"
    }


def test_matrix_products_of_numpy_use_one_thread_within_a_context() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        with single_threaded_blas():
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_a_worker_computes_in_one_thread() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        use_one_thread()
        assert blas_threads() == {1}
        assert torch.get_num_threads() == 1
