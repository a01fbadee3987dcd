"""How far a stream has come durably: the watermark behind all its sinks, kept so that a restart knows where to begin.

    sinks ──what they have stored──▶ Progress ──timer of the arrival clock──▶ {state}/stream/progress/000007.json

Beam lets a timer for time T fire only when everything that arrived before T has gone through all stages before it, and a sink's bundle is done
only when its files are on disk. So, when the timer fires: every row that arrived before T is in the sinks, or in a window still open. Two things are kept count of in this process
besides (`durable`): windows that were due before T and whose timer is later, and messages that came from behind the watermark. Where sources run in several processes each
tells of its messages (`sources.pubsub_reports`), and no timer is later than MOST_AHEAD, which is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.coders import BooleanCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import draining, durable
from beam_pipelines.places import is_local
from beam_pipelines.sinks.reached import Reached, write_progress

_TICK_MICROS = 1_000_000
MOST_AHEAD = 60_000_000
"""Microseconds of the arrival clock by which a timer may be late where sources run in several processes."""
_EVERY_S = 0.5  # of writing it down; the launcher writes the last one
_EVERY_AWAY_S = 2.0  # at a URL: object stores refuse one object more than a write a second, and charge each


class Together(Protocol):
    """The processes in which the sources run: `sources.pubsub_reports.Together`."""

    def heed(self) -> None: ...

    def behind(self, watermark_micros: int) -> int | None: ...


class Progress(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Writes down the watermark behind all that is given: PCollections of anything the sinks emit when something is stored.

    `began_micros` is how far the starts before had come: this one never says less. `together`: the sources run in several processes, each of which keeps count of its own (`durable`).
    """

    def __init__(self, state: str, epoch: int, *, began_micros: int | None = None, together: Together | None = None) -> None:
        super().__init__()
        self._write_down = _WriteDown(state, epoch, began_micros, together)

    def expand(self, stored: Any) -> beam.PCollection:
        one_key = beam.ParDo(_OneKey()).with_output_types(tuple[str, bool])
        keyed = tuple(  # before the Flatten, so in the bundles of the sinks: behind it they would be bundles of their own
            collection | f"OneKey{number}" >> one_key for number, collection in enumerate(stored)
        )
        return keyed | "Everything" >> beam.Flatten() | "WriteDown" >> beam.ParDo(self._write_down)

    def _extract_input_pvalues(self, stored: Iterable[beam.PCollection]) -> tuple[Any, Any]:
        collections = tuple(stored)  # Beam takes a list for values otherwise
        return collections, collections


class _OneKey(beam.DoFn):  # type: ignore[misc]
    """One element a bundle is enough: only its timestamp matters."""

    def start_bundle(self) -> None:
        self._earliest: Any = None

    def process(self, _: Any, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        self._earliest = timestamp if self._earliest is None else min(self._earliest, timestamp)

    def finish_bundle(self) -> Iterator[Any]:
        if self._earliest is not None:
            window = beam.transforms.window.GlobalWindow()
            yield beam.utils.windowed_value.WindowedValue(("progress", True), self._earliest, [window])


class _WriteDown(beam.DoFn):  # type: ignore[misc]
    """A timer is set only where none is pending: each new element would push it ahead of the watermark for ever."""

    PENDING = ReadModifyWriteStateSpec("pending", BooleanCoder())
    TICK = TimerSpec("tick", TimeDomain.WATERMARK)

    def __init__(self, state: str, epoch: int, began_micros: int | None, together: Together | None) -> None:
        self._state, self._epoch, self._began, self._together = state, epoch, began_micros, together
        self._reached = began_micros
        self._written_s = 0.0
        self._every_s = _EVERY_S if is_local(state) else _EVERY_AWAY_S

    def process(
        self,
        _: tuple[str, bool],
        timestamp: Any = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        tick: Any = beam.DoFn.TimerParam(TICK),
    ) -> None:
        if not pending.read():
            pending.write(True)
            tick.set(Timestamp(micros=(timestamp.micros // _TICK_MICROS + 1) * _TICK_MICROS))

    @on_timer(TICK)  # type: ignore[untyped-decorator]  # Beam ships no types
    def _tick(self, timestamp: Any = beam.DoFn.TimestampParam, pending: Any = beam.DoFn.StateParam(PENDING)) -> None:
        pending.clear()
        if self._together is not None:
            self._together.heed()
        now = time.monotonic()
        if draining.cut_short(timestamp.micros) or now - self._written_s < self._every_s:
            return
        through_ms, shown = self._account(timestamp.micros)
        if through_ms is not None and (self._reached is None or shown > self._reached):
            write_progress(self._state, self._epoch, Reached(shown, self._began, through_ms))
            self._reached, self._written_s = shown, now

    def _account(self, watermark_micros: int) -> tuple[int | None, int]:
        """The moment before which everything that was stored is in the sinks, None where it is not known, and up to which arrival all is shown that was due."""
        if self._together is None:
            return durable.all_through(watermark_micros), durable.all_shown(watermark_micros)
        self._written_s = time.monotonic()  # there are files to read and to write also where nothing is written down
        return self._together.behind(watermark_micros), watermark_micros - MOST_AHEAD
