"""A stream while it runs: a table that is redrawn on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

from beam_pipelines import metrics
from beam_pipelines.arrow.durations import format_duration
from beam_pipelines.cli.tables import clean, width_of
from beam_pipelines.sources import pubsub
from beam_pipelines.sources.pubsub_pulling import PullStatus
from beam_pipelines.spec.models import PipelineSpec

_LINE_EVERY_S = 5.0
_REDRAW_EVERY_S = 1.0
_UNITS_S = (86_400, 3_600, 60, 1)


@dataclass
class Live:
    """Call it often; it shows what changed since it last did. `spec` names the aggregates, `out` is where to write, clocks are in seconds.

    What else is to be seen while a table stands goes through `say`: a line of somebody else would be drawn over.
    """

    spec: PipelineSpec
    out: TextIO
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    statuses: Callable[[], tuple[PullStatus, ...]] = pubsub.status
    _before: dict[str, int] = field(default_factory=dict)
    _shown_s: float | None = None
    _drawn: int = 0

    def __call__(self) -> None:
        """Shows the state if it is time to."""
        if self._shown_s is None or self.clock() - self._shown_s >= (_REDRAW_EVERY_S if self.out.isatty() else _LINE_EVERY_S):
            self._show([_standing(state, self.wall_clock()) for state in self.statuses()] or ["starting"])

    def say(self, sentence: str) -> None:
        """A sentence above the table; the next look draws it anew."""
        self._write([sentence])
        self._drawn, self._shown_s = 0, self._shown_s if self._drawn == 0 else None

    def end(self) -> None:
        """The totals when all is stored and acknowledged."""
        self._show(["ended"])

    def _show(self, standing: list[str]) -> None:
        now, seen = self.clock(), metrics.snapshot()
        elapsed = now - self._shown_s if self._shown_s is not None else 0.0
        if self.out.isatty():
            width = width_of(self.out) or 80
            lines = [line[: width - 1] for line in (*self._table(seen, elapsed), *standing)]  # a line that wraps is two to the cursor
            self._write(lines)
            self._drawn = len(lines)
        else:
            self._write([f"{_clock()} {'; '.join([*self._line(seen, elapsed), *standing])}"])
        self._before, self._shown_s = seen, now

    def _write(self, lines: list[str]) -> None:
        over = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self.out.write(over + "\n".join(lines) + "\n")
        self.out.flush()

    def _line(self, seen: dict[str, int], elapsed: float) -> list[str]:
        rates = [f"{self._rate('messages_pulled', seen, elapsed)} in, {self._rate('rows_written', seen, elapsed)} out"] if elapsed else []
        counts = ", ".join(f"{seen.get(name, 0):,} {word}" for name, word in self._counters() if seen.get(name))
        return [*rates, counts or "nothing yet"]

    def _table(self, seen: dict[str, int], elapsed: float) -> list[str]:
        counters = self._counters()
        size = max(len(word) for _, word in counters) + 2
        lines = [f"{'':{size}}{'total':>14}{'per second':>14}"]
        return lines + [f"{word:{size}}{seen.get(name, 0):14,}{self._rate(name, seen, elapsed):>14}" for name, word in counters]

    def _rate(self, name: str, seen: dict[str, int], elapsed: float) -> str:
        more = seen.get(name, 0) - self._before.get(name, 0)
        return f"{more / elapsed:,.0f}/s" if elapsed else "-"

    def _counters(self) -> list[tuple[str, str]]:
        found = [("messages_pulled", "pulled"), ("messages_acked", "acknowledged"), ("rows_filtered", "filtered"), ("rows_dead", "dead"),
                 ("rows_duplicate", "duplicate"), ("rows_stale", "for closed windows"), ("rows_written", "written")]  # fmt: skip
        return found + [(f"{name}_written", f"{name} panes") for name in self.spec.aggregates]


def _standing(state: PullStatus, now_s: float) -> str:
    """Where a subscription stands: what this process holds of it and for how long, its watermark and how far that lies behind, what is wrong."""
    oldest = f" (oldest {state.oldest_unacked_s:.0f} s)" if state.held and state.oldest_unacked_s >= 1 else ""
    parts = [f"{state.held:,} held{oldest}"]
    if state.watermark_micros is not None:
        parts.append(f"watermark {_instant(state.watermark_micros)} ({_lag(now_s - state.watermark_micros / 1e6)} behind the clock)")
    if state.out_s:
        parts.append(f"waiting {state.out_s:.0f} s for messages that were leased before")
    trouble = state.error or state.outage
    return f"{state.subscription.rpartition('/')[2]}: " + ", ".join([*parts, *([f"trouble: {clean(trouble)}"] if trouble else [])])


def _lag(seconds: float) -> str:
    """A lag in its two largest units: of a replay of last year nobody needs the seconds."""
    rest, kept = max(0, int(seconds)), 0
    first = next((i for i, unit in enumerate(_UNITS_S) if rest >= unit), len(_UNITS_S) - 1)
    for unit in _UNITS_S[first : first + 2]:
        kept, rest = kept + rest // unit * unit, rest % unit
    return format_duration(kept * 1_000_000)


def _instant(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
