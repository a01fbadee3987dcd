"""The heap of a run of the command: it starts without garbage collection, for a start makes much that stays; a batch keeps the memory it has had.

Loads no Beam.
"""

from __future__ import annotations

import ctypes
import gc

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # M_… of malloc.h
_KEPT, _STEP, _LARGEST = 2**30, 2**24, 2**25  # bytes: kept when they are free, asked of the system at a time, of a block of the heap


def settle_heap() -> None:
    """What the start has made stays for good, and is not looked through again; from now on garbage is collected. Nothing in a process that collects already."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def keep_memory() -> None:
    """Has glibc keep what was freed, a gigabyte at most, instead of giving it back: new memory costs a page fault for each 4 KiB. Nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_TRIM, _KEPT), (_TOP_PAD, _STEP), (_MMAP, _LARGEST)):
            mallopt(parameter, value)
