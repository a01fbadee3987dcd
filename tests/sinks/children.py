"""Processes that tests kill: each is forked from one server that has imported everything, so that it starts in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.committing import commit_steps, prepare
from tests.sinks.lake import Lake, rows

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.sinks.children"])


def start(target: Any, *arguments: object) -> tuple[ForkServerProcess, Connection]:
    """A process running `target(connection, *arguments)`, and our end of its connection."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=target, args=(theirs, *arguments))
    process.start()
    return process, ours


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(_: Connection, folder: Path, stop: int) -> None:
    """Stages and commits run r2, dies after `stop` steps."""
    lake = Lake(folder)
    steps = lake.steps(lake.run("r2"), lake.output(), rows((3, "b"), (4, "c"), (5, None)))
    for _step in range(stop):
        next(steps)
    die()


def killed_between_outputs(_: Connection, folder: Path) -> None:
    """Commits run r1 of two outputs, dies after the first move."""
    lake, old = Lake(folder), rows((1, "a"), (2, "b"))
    run, one, two = lake.run("r1"), lake.output("one"), lake.output("two", partitions=())
    steps = commit_steps(lake.work(run, [one, two], [*lake.stage(run, one, old), *lake.stage(run, two, old)]))
    while next(steps) != "move one":
        pass
    die()


def preparing(connection: Connection, folder: Path, run_id: str) -> None:
    """Waits for a word, prepares a run, says what came of it, and stays alive until the connection closes."""
    lake = Lake(folder)
    connection.recv()
    try:
        prepare([lake.output()], lake.run(run_id))
        connection.send("held")
    except SinkError:
        connection.send("refused")
    connection.recv()
