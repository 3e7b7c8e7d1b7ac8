"""The memory of this process, as the system and as glibc's allocator count it."""

import ctypes
import os
import platform
import sys

import psutil


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def memory_mib() -> dict[str, float]:
    """{'memory_mib': resident, 'allocated_mib': what malloc has given out and not got back}.

    Freed blocks that glibc keeps, and holes between live ones, are resident and not allocated: a leak shows in both, a
    fragmented heap in the first alone. The second is there with glibc from 2.33 only.
    """
    memory = {"memory_mib": psutil.Process().memory_info().rss / 2**20}
    if mallinfo2 := getattr(ctypes.CDLL(None), "mallinfo2", None):
        mallinfo2.restype = _Mallinfo2
        info = mallinfo2()
        memory["allocated_mib"] = (info.uordblks + info.hblkhd) / 2**20
    return memory


def use_huge_pages() -> None:
    """Restarts this process with an allocator that asks for huge pages; a command calls it before its work.

    A step of XLA's CPU backend allocates all its memory anew, and page by page that costs a third of its time. glibc
    reads the setting only when a process starts. Nothing happens if the user has set GLIBC_TUNABLES, or without glibc.
    """
    if "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def return_freed_memory() -> None:
    """Gives the system what was freed: glibc keeps it, and a process seems to grow with every compilation."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
