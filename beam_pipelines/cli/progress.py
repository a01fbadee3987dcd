"""Progress on a terminal: rows, rows per second, files, share of bytes and time left. Nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from beam_pipelines import metrics
from beam_pipelines.runners.heap import settle_heap
from beam_pipelines.sources.files import list_files
from beam_pipelines.spec.sources import BatchSource

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY_S = 0.2


def watching(
    sources: Sequence[BatchSource], *, quiet: bool, flags: Sequence[str] = ()
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What to enter around a job over `sources` to watch it."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        settle_heap()
        with contextlib.ExitStack() as stack:
            if "multi_processing" in " ".join(flags) and not logging.getLogger().isEnabledFor(logging.INFO):
                stack.enter_context(_silent_workers())
            if not quiet:
                stack.enter_context(_watch(sources))
            yield

    return watch


@contextlib.contextmanager
def _silent_workers() -> Iterator[None]:
    """Worker processes print the traceback of what they also report, and we say it in one sentence: their stderr goes nowhere.

    Ours stays: `sys.stderr` writes to a copy of the descriptor meanwhile.
    """
    ours = sys.stderr
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    with tempfile.TemporaryFile() as nowhere, os.fdopen(kept, "w", buffering=1) as copy:
        ours.flush()
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = copy
        try:
            yield
        finally:
            sys.stderr = ours
            os.dup2(kept, 2)


@contextlib.contextmanager
def _watch(sources: Sequence[BatchSource]) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    sizes = [size for source in sources for _, size in list_files(source.patterns)]
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("starting", total=max(1, sum(sizes)))
        stop = threading.Event()
        thread = threading.Thread(target=_follow, args=(bar, task, len(sizes), stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(bar: Progress, task: TaskID, files: int, stop: threading.Event) -> None:
    begun = time.monotonic()
    while not stop.wait(_EVERY_S):
        seen = metrics.snapshot()
        rows, done, written = (seen.get(name, 0) for name in ("rows_read", "bytes_read", "rows_written"))
        rate = rows / (time.monotonic() - begun)
        text = f"{rows:,} rows read, {rate:,.0f} rows/s" + (f", {min(seen.get('files_read', 0), files)}/{files} files" if files else "")
        bar.update(task, completed=done, description=text + (f", {written:,} written" if written else ""))
