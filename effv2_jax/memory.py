"""The memory of this process, as the system and as glibc's allocator count it."""

import ctypes

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


def return_freed_memory() -> None:
    """Gives the system what was freed: glibc keeps it, and a process seems to grow with every compilation."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
