"""The memory of this process, as counted by the system and by glibc's allocator."""

import ctypes
import os
import platform
import sys

import psutil

_MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2.split()]


def memory_mib() -> dict[str, float]:
    """{'memory_mib': resident memory, 'allocated_mib': memory that malloc has handed out and not got back}.

    Freed blocks that glibc keeps, and holes between live ones, are resident but not allocated: a leak raises both
    numbers, a fragmented heap only the first. 'allocated_mib' needs glibc 2.33 or newer and is left out without it.
    """
    memory = {"memory_mib": psutil.Process().memory_info().rss / 2**20}
    if mallinfo2 := getattr(ctypes.CDLL(None), "mallinfo2", None):
        mallinfo2.restype = _Mallinfo2
        info = mallinfo2()
        memory["allocated_mib"] = (info.uordblks + info.hblkhd) / 2**20
    return memory


def use_huge_pages() -> None:
    """Restarts this process with an allocator that asks for huge pages. A command calls it before its work.

    A step of XLA's CPU backend allocates all its memory anew, which with small pages costs a third of its time. glibc
    reads the setting only when a process starts. Does nothing if the user has set GLIBC_TUNABLES, or without glibc.
    """
    if "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def return_freed_memory() -> None:
    """Returns freed memory to the system: glibc keeps it, so a process seems to grow with every compilation."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
