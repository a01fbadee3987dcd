"""Where programs are kept that are built or fetched once, and one process at a time to make them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from beam_pipelines.errors import RunError


def kept_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of this package in the user's cache, there or not; `XDG_CACHE_HOME` is honoured."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(cache) / "beam_pipelines"


@contextlib.contextmanager
def alone(folder: Path, *, what: str, instead: str) -> Iterator[None]:
    """Waits until no other process is inside for this folder, which is made. The kernel gives the lock back when a process dies.

    Raises RunError where the folder cannot be written; `what` would be kept there, `instead` is what a user may do otherwise.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115  (closed below, and with it the lock)
    except OSError as error:
        raise RunError(
            f"{folder}: no place to keep {what}: {error.strerror}.",
            hint=f"Set XDG_CACHE_HOME to a folder that can be written, or {instead}.",
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
