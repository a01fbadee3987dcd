"""Progress on a terminal: rows, rows per second, files, share of bytes and time left. Nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from beam_pipelines import metrics
from beam_pipelines.sources.files import list_files
from beam_pipelines.spec.models import PipelineSpec

_EVERY_S = 0.2


def watching(spec: PipelineSpec, *, quiet: bool) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What to enter around a job to watch it."""
    return contextlib.nullcontext if quiet else lambda: _watch(spec)


@contextlib.contextmanager
def _watch(spec: PipelineSpec) -> Iterator[None]:
    sizes = [size for source in spec.sources.batch for _, size in list_files(source.patterns)]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
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
        rows, done = seen.get("rows_read", 0), seen.get("bytes_read", 0)
        rate = rows / (time.monotonic() - begun)
        written = seen.get("rows_written", 0)
        text = f"{rows:,} rows read, {rate:,.0f} rows/s, {min(seen.get('files_read', 0), files)}/{files} files" + (f", {written:,} written" if written else "")
        bar.update(task, completed=done, description=text)
