"""Memory of a process whose large blocks are freed among small ones that last."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from cavmae.common import allocator
{call}

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

lasting = []
for size in (2, 4, 8, 16, 24):  # of each a freed one moves the limit
    np.ones(size << 20, "u1")
before = resident()
for _ in range(8):
    large = [np.ones(4 << 20, "u1")]
    for _ in range(4):
        lasting.append(np.ones(100_000, "u1"))
        large.append(np.ones(4 << 20, "u1"))
    del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc")
def test_large_blocks_are_returned() -> None:
    """8 times 20 MB are taken and freed, 3 MB last."""
    grown = {}
    for call in ("", "allocator.return_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], stdout=subprocess.PIPE, check=True
        )
        grown[call] = float(done.stdout)
    assert grown["allocator.return_memory()"] < 6
    assert grown[""] > 10


KEPT = """
import numpy as np
from cavmae.common import allocator
allocator.keep_memory()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

before = resident()
large = [np.ones(4 << 20, "u1") for _ in range(8)]
lasting = np.ones(100_000, "u1")
del large
kept = resident()
allocator.trim_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc")
def test_kept_memory_is_returned_on_demand() -> None:
    """34 MB, freed below a block that lasts."""
    done = subprocess.run([sys.executable, "-c", KEPT], stdout=subprocess.PIPE, check=True)
    kept, trimmed = map(float, done.stdout.split())
    assert kept > 30
    assert trimmed < 4
