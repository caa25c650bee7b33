"""Freed memory stays with the process.

Batches and the arrays of a training step on a CPU are hundreds of megabytes, allocated and freed again and again. By default glibc gives
them back to the kernel each time, which then has to zero them anew: a third of the time it takes to read a batch, 0.1 s of a small step.
"""

import ctypes
import platform

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1


def give_back_freed_memory() -> None:
    """Gives what is free now back to the kernel. Does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """For this process, from now on. Does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)  # one heap, so that what one thread frees another gets
    libc.mallopt(_M_MMAP_MAX, 0)  # large arrays come from the heap too
    libc.mallopt(_M_TRIM_THRESHOLD, _MOST)
