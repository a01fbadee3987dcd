"""A stream that kills itself at a named point: `python -m tests.faults.points POINT run SPEC ...`. The product knows nothing of it.

Each point replaces a function where it is looked up by one that ends the process with SIGKILL at its n-th call: before it, in the middle, or after.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

When = Callable[..., bool]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def patched(where: str, instead: Callable[[Any], Any]) -> None:
    """Replaces `module:name` or `module:Class.name` by what `instead` makes of it."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(f"beam_pipelines.{module}")
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, instead(getattr(owner, name)))


def before(where: str, nth: int = 1, when: When = lambda *_, **__: True) -> None:
    """Dies before the n-th call for which `when` holds."""
    patched(where, lambda call: _counted(call, nth, when, first=True))


def after(where: str, nth: int = 1, when: When = lambda *_, **__: True) -> None:
    """Dies after the n-th call for which `when` holds."""
    patched(where, lambda call: _counted(call, nth, when, first=False))


def _counted(call: Callable[..., Any], nth: int, when: When, *, first: bool) -> Callable[..., Any]:
    numbers = itertools.count(1)

    @functools.wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        dies = when(*arguments, **named) and next(numbers) == nth
        if dies and first:
            die()
        result = call(*arguments, **named)
        if dies:
            die()
        return result

    return counted


def half_written(path_has: str, nth: int = 1) -> None:
    """Dies with half of a small file on disk, of the n-th whose path has this in it."""

    def instead(call: Callable[..., Any]) -> Callable[..., Any]:
        numbers = itertools.count(1)

        def written(path: str, content: bytes) -> Any:
            if path_has in path and next(numbers) == nth:
                call(path, content[: len(content) // 2])
                die()
            return call(path, content)

        return written

    patched("places:_beside", instead)


def half_a_journal(nth: int = 2) -> None:
    """Dies with half of what is in work written down."""

    def instead(call: Callable[..., Any]) -> Callable[..., Any]:
        numbers = itertools.count(1)

        def written(handle: int, content: bytes, at: int) -> int:
            if next(numbers) == nth:
                os.write(handle, content[: len(content) // 2])
                die()
            return int(call(handle, content, at))

        return written

    patched("transforms.guard:os.pwrite", instead)


def acknowledged_only(count: int = 200) -> None:
    """Dies when `count` messages are acknowledged; until then no file of rows gets its name."""

    def sent(call: Callable[..., Any]) -> Callable[..., Any]:
        def send(outbox: Any) -> None:
            call(outbox)
            if outbox.acked >= count:
                die()

        return send

    before_rows = threading.Event()
    patched("sinks.speed:put_in_place", lambda call: lambda closed: before_rows.wait() if _of("rows")(closed) else call(closed))
    patched("sources.pubsub_outbox:Outbox.send", sent)


def _of(name: str) -> When:
    return lambda closed, *_, **__: f"/{name}.speed/" in closed.path


def _merged(made: str, path: str) -> bool:
    return path.endswith(".1.parquet")


POINTS: dict[str, Callable[[], None]] = {
    "epoch taken, nothing else": lambda: after("runners.stream:take_epoch"),
    "outputs half written": lambda: half_written("outputs.json"),
    "outputs written, account not begun": lambda: before("runners.stream:begin"),
    "account begun, nothing read": lambda: after("runners.stream:begin"),
    "archive file named, not registered": lambda: after("sinks.archive:write_messages"),
    "registered, not acknowledged": lambda: before("sources.pubsub_outbox:Outbox.send", when=lambda outbox: len(outbox) > 0),
    "acknowledged at once": lambda: after("sources.pubsub_outbox:Outbox.send", when=lambda outbox: len(outbox) > 0),
    "acknowledged, no row written": acknowledged_only,
    "journal half written": half_a_journal,
    "in the middle of the work": lambda: before("transforms.guard:os.ftruncate"),
    "before a file of rows": lambda: before("sinks.speed:put_in_place", when=_of("rows")),
    "after a file of rows": lambda: after("sinks.speed:put_in_place", when=_of("rows")),
    "before a file of panes": lambda: before("sinks.speed:put_in_place", when=_of("by_user")),
    "after a file of panes": lambda: after("sinks.speed:put_in_place", when=_of("by_user")),
    "before a file of sessions": lambda: before("sinks.speed:put_in_place", when=_of("visits")),
    "before a file of dead letters": lambda: before("sinks.speed:put_in_place", when=_of("dead")),
    "before a file of panes on time": lambda: before("sinks.speed:put_in_place", when=_of("slides")),
    "merged file not named": lambda: before("formats.named_files:publish", when=_merged),
    "merged file named, nothing deleted": lambda: after("formats.named_files:publish", when=_merged),
    "of replaced files one deleted": lambda: after("formats.compaction:delete"),
    "before progress": lambda: before("sinks.progress:write_progress"),
    "progress half written": lambda: half_written("/progress/", nth=2),
    "after progress": lambda: after("sinks.progress:write_progress"),
    "drained, end not written down": lambda: before("runners.stream:write_progress"),
    "end written down, no record": lambda: after("runners.stream:write_progress"),
}


def main(point: str, arguments: list[str]) -> None:
    """Runs the command with the point armed. Leases of the process before end by the test's clock, so nobody waits for them here, and
    compaction is in a hurry."""
    patched("sources.pubsub_out:LEASE_ENDS_S", lambda _: 1.0 - 10.0)
    patched("runners.stream:_COMPACT_EVERY_S", lambda _: 0.5)
    patched("formats.compaction:GRACE_S", lambda _: 0.5)
    for module in ("formats.archive_compaction", "sinks.speed_compaction"):
        steps = importlib.import_module(f"beam_pipelines.{module}").compact_steps
        steps.__kwdefaults__["fan_in"] = tuple(2 for _ in steps.__kwdefaults__["fan_in"])
    POINTS.get(point, lambda: None)()
    from beam_pipelines.cli import main as command

    command(arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
