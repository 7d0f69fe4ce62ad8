"""Options of glibc's memory allocator for a process."""

import ctypes
import logging
import platform

log = logging.getLogger("cavmae")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # options of mallopt
LARGE = 1 << 20  # bytes


def keep_memory() -> None:
    """Makes glibc keep freed memory, which halves the time of a training step on the CPU.

    Otherwise every large tensor is a fresh mapping, whose pages the kernel clears one by one. A
    process that only predicts gains nothing (docs/benchmarks/separate.md).
    """
    _set_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def return_memory() -> None:
    """Makes glibc return large blocks that are freed, so that memory does not grow with an input.

    By default it moves the limit of large up to 32 MiB as it goes. Large tensors then lie on the
    heap, among small blocks that last, and what is freed between those is not returned.
    """
    _set_options({M_MMAP_THRESHOLD: LARGE})


def trim_memory() -> None:
    """Returns freed memory to the system once, also what :func:`keep_memory` keeps."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set_options(options: dict[int, int]) -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in options.items():
        if libc.mallopt(option, value) != 1:
            log.info("The memory allocator takes no options: steps may be slow.")
