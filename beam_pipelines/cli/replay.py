"""`replay`: files into a topic, as their rows once arrived."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import log_options
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.runners.replay import Played, ReplayPlan

_SHARE = click.FloatRange(0, 1)
_NAP_S = 0.2


@click.command(short_help="Play files into a Pub/Sub topic.")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--to", "topic", required=True, metavar="TOPIC", help="projects/P/topics/T")
@click.option("--arrival-column", required=True, metavar="COLUMN", help="When each row arrived; its time travels as an attribute.")
@click.option("--arrival-attribute", metavar="NAME", help="The attribute's name. Default: the column's.")
@click.option("--speed", default="1x", show_default=True, help="How many times faster than it once was, such as 1000x; or max.")
@click.option("--create", is_flag=True, help="Make the topic, and the subscription, where they are missing.")
@click.option("--subscription", metavar="PATH", help="With --create: projects/P/subscriptions/S.")
@click.option("--duplicates", type=_SHARE, default=0.0, help="Share of messages sent twice.")
@click.option("--broken", type=_SHARE, default=0.0, help="Share of messages after which a broken copy is sent.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses which.")
@click.option("--null", multiple=True, metavar="TEXT", help="What stands for NULL in a CSV, for example NA; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows, the first to arrive.")
@log_options
def replay(
    files: tuple[str, ...], topic: str, arrival_column: str, arrival_attribute: str | None, speed: str, create: bool, subscription: str | None,
    duplicates: float, broken: float, seed: int, null: tuple[str, ...], limit: int | None,
) -> int:  # fmt: skip
    """Play FILES (CSV, Parquet, JSON lines) into a Pub/Sub topic: a JSON message per row, in the order and at the pace of arrival.

    \b
    beam-pipelines replay flights.csv --to projects/demo-project/topics/flights \\
        --arrival-column departed_at --speed 1000x --create
    """
    _check_path("--to", topic, "topics")
    if subscription is not None:
        _check_path("--subscription", subscription, "subscriptions")
        if not create:
            raise SpecError("--subscription: is made with --create; without it nothing is made.", hint="Add --create.")
    from beam_pipelines.runners.replay import ReplayPlan, parse_speed

    plan = ReplayPlan(
        files, arrival_column, arrival_attribute or arrival_column, parse_speed(speed), duplicates=duplicates, broken=broken, seed=seed, null=null,
        limit=limit,
    )  # fmt: skip
    return _play(plan, topic, create=create, subscription=subscription)


def _check_path(option: str, path: str, kind: str) -> None:
    if re.fullmatch(rf"projects/[^/\s]+/{kind}/[^/\s]+", path) is None:
        raise SpecError(f"{option} {path}: expected projects/PROJECT/{kind}/NAME.")
    name = path.rpartition("/")[2]
    if re.fullmatch(r"(?!goog)[A-Za-z][\w.~+%-]{2,254}", name, re.ASCII) is None:
        raise SpecError(
            f"{option} {path}: Pub/Sub takes no such name; got {name!r}; expected 3 to 255 letters, digits and -._~+%, the first a letter, and not goog in front."
        )


def _play(plan: ReplayPlan, topic: str, *, create: bool, subscription: str | None) -> int:
    from beam_pipelines.runners.replay import play, publisher, rows_without_arrival

    missing = rows_without_arrival(plan)
    outlet = publisher(topic, create=create, subscription=subscription)
    progress = Progress()
    with _interruptions() as received:
        play(plan, outlet, watch=progress, sleep=lambda seconds: _sleep(seconds, received), stopped=lambda: bool(received))
        refused = outlet.finish()
    progress.end()
    played = progress.played
    if missing and not played.rows and not received:
        raise RunError(
            f"replay: nothing was published: none of the {missing:,} rows has a time in {plan.arrival_column} that can be read.",
            hint="Give the column of ISO 8601 times as --arrival-column, and what stands for NULL as --null.",
        )
    if missing:
        click.echo(f"warning: {missing:,} rows have no {plan.arrival_column} that can be read, and were left out", err=True)
    if refused:
        click.echo(f"warning: the topic refused {len(refused):,} messages: {refused[0][1]}", err=True)
    click.echo(_summary(played, topic, refused=len(refused), interrupted=bool(received)))
    return 128 + received[0] if received else int(bool(refused))


@contextlib.contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM as a list of their numbers, to be looked at: an exception could come in the middle of a call and be lost there. A second
    one interrupts all the same."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread: whoever called us deals with signals
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sleep(seconds: float, received: list[int]) -> None:
    """Sleeps, in naps after which an interruption is seen."""
    end = time.monotonic() + seconds
    while not received and (rest := end - time.monotonic()) > 0:
        time.sleep(min(rest, _NAP_S))


def _summary(played: Played, topic: str, *, refused: int, interrupted: bool) -> str:
    parts = [f"{played.rows:,} rows"]
    parts += [f"{played.duplicates:,} duplicates"] if played.duplicates else []
    parts += [f"{played.broken:,} broken"] if played.broken else []
    start = "interrupted: " if interrupted else ""
    return f"{start}{played.messages - refused:,} messages published to {topic} ({', '.join(parts)})"


class Progress:
    """Shows on stderr how far a replay has come: a line that is redrawn on a terminal, a line every five seconds elsewhere."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from beam_pipelines.runners.replay import Played

        self.played = Played()
        self._terminal = sys.stderr.isatty()
        self._every_s = 0.2 if self._terminal else 5.0
        self._clock = clock
        self._begun = self._shown = clock()

    def __call__(self, played: Played) -> None:
        self.played = played
        now = self._clock()
        if now - self._shown >= self._every_s and played.reached is not None:
            self._shown = now
            rate = played.messages / max(now - self._begun, 1e-9)
            at = datetime.fromtimestamp(played.reached / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
            text = f"{played.messages:,} messages, {rate:,.0f}/s, at {at} UTC"
            click.echo(f"\r\x1b[K{text}" if self._terminal else text, err=True, nl=not self._terminal)

    def end(self) -> None:
        """Leaves the line of a terminal clean."""
        if self._terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
