"""Python's garbage collection around a run of the command, which starts without it: a start makes much that stays."""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """What the start has made stays for good, and is not looked through again; from now on garbage is collected. Nothing in a process that collects already."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
