"""Keeps freed memory with the process, or gives it back to the kernel.

Batches and the arrays of a training step on a CPU take hundreds of megabytes. They are allocated
and freed again and again. By default glibc gives them back to the kernel each time, and the kernel
then has to zero them anew. That takes a third of the time it takes to read a batch, and 0.1 s of a
small step.
"""

import ctypes
import platform

# The names and numbers are those of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1

# After so many steps a process has its memory where it stays. A step's temporaries are one block. If
# what is allocated between two steps breaks into its place, the next block lies elsewhere, and the
# heap has room for two, until small arrays have places of their own. What is free after each of
# these steps is better given back.
SETTLING = 3


def give_back_freed_memory() -> None:
    """Gives the memory that is free now back to the kernel, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Keeps freed memory with this process from now on, where the C library is glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # With one heap, what one thread frees another thread gets.
    libc.mallopt(_M_ARENA_MAX, 1)
    # Large arrays come from the heap too.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _MOST)
