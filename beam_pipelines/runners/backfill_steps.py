"""How a range is cut into the steps of a backfill, by the clock on the wall, each whole partitions of every output.

    --from 2013-11-02 --to 2013-11-05 --step 1d, America/New_York        --from 2013-11-02T00:00Z … --step 1d
    ├────24 h────┼─────25 h─────┼────24 h────┤                           ├────24 h────┼────24 h────┼────24 h────┤

Days, weeks, months and years are those of the clock that `--from` is told by: the spec's time_zone for a bare date, else the offset that it names.
Hours are hours. The last step ends with the range.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from beam_pipelines.arrow.partition import FINEST_FIRST
from beam_pipelines.arrow.ranges import Range, minus, show_instant, show_range, union, widened
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.manifest import Committed
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of

MOST_STEPS = 100_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_SHORT = {"hour": "1h", "day": "1d", "month": "1mo", "year": "1y"}
_TRIED = ("1h", "1d", "1w", "1mo", "3mo", "1y")

Input = Literal["batch", "archive"]


class Step(NamedTuple):
    """What one run computes: [start, end) in microseconds of event time, from which input."""

    start: int
    end: int
    input: Input

    @property
    def range(self) -> Range:
        return Range(self.start, self.end)


@dataclass(frozen=True)
class Stride:
    """How long a step is."""

    count: int
    unit: str

    def __str__(self) -> str:
        return f"{self.count}{next(short for short, unit in _UNITS.items() if unit == self.unit)}"


def parse_stride(text: str) -> Stride:
    """The length that `--step` names. Raises SpecError for anything else.

    >>> parse_stride("2w")
    Stride(count=2, unit='week')
    """
    match = re.fullmatch(r"0*([1-9]\d{0,8})(h|d|w|mo|y)", text.strip())
    if match is None:
        raise SpecError(
            f"--step {text!r}: is no length of a step.", hint="Write 1h, 1d, 1w, 1mo (a month) or 1y, or more of one, such as 12h."
        )
    return Stride(int(match[1]), _UNITS[match[2]])


def default_stride(spec: PipelineSpec) -> Stride:
    """The coarsest unit by which an output is partitioned."""
    units = {cut.by.transform for cut in cuts_of(spec)}
    return parse_stride(_SHORT[next((u for u in reversed(FINEST_FIRST) if u in units), "day")])


def clock_of(start: str | None, time_zone: str) -> tzinfo:
    """Whose days a step counts, by how `--from` is written: the spec's clock, unless it names an offset."""
    found = None if start is None else datetime.fromisoformat(start.strip()).tzinfo
    return found or ZoneInfo(time_zone if start is not None else "UTC")


def cut(asked: Range, stride: Stride, clock: tzinfo) -> tuple[Range, ...]:
    """The range in steps, in order, each as long as the stride says, the last perhaps shorter. Raises SpecError where there are too many."""
    ends = [asked.start]
    for at in _ends(asked.start, stride, clock):
        if at >= asked.end:
            break
        if at > ends[-1]:  # a day that a calendar left out is no step
            ends.append(at)
        if len(ends) > MOST_STEPS:
            raise SpecError(f"--step {stride}: makes more than {MOST_STEPS:,} steps of {show_range(asked)}.", hint="Choose a longer one.")
    ends.append(asked.end)
    return tuple(Range(*pair) for pair in pairwise(ends) if pair[0] < pair[1])


def _ends(start: int, stride: Stride, clock: tzinfo) -> Iterator[int]:
    """When each step ends, reckoned from the start: the 31st and a month is the last of a shorter month, and then a 31st again."""
    begun = _EPOCH + timedelta(microseconds=start)
    wall = begun.astimezone(clock).replace(tzinfo=None)
    number = 0
    while True:
        number += stride.count
        try:
            if stride.unit == "hour":
                at = begun + timedelta(hours=number)
            else:
                at = _later(wall, stride.unit, number).replace(tzinfo=clock).astimezone(UTC)
        except (OverflowError, ValueError):  # past the year 9999
            return
        yield (at - _EPOCH) // timedelta(microseconds=1)


def _later(wall: datetime, unit: str, number: int) -> datetime:
    if unit in ("day", "week"):
        return wall + timedelta(days=number * (7 if unit == "week" else 1))
    months = wall.year * 12 + wall.month - 1 + number * (12 if unit == "year" else 1)
    year, month = divmod(months, 12)
    return wall.replace(year=year, month=month + 1, day=min(wall.day, calendar.monthrange(year, month + 1)[1]))


def check_steps(spec: PipelineSpec, asked: Range, stride: Stride, clock: tzinfo) -> tuple[Range, ...]:
    """The range in steps. Raises SpecError where one is not whole partitions of every output, and names the smallest step that is."""
    steps = cut(asked, stride, clock)
    wrong = _misfit(spec, steps)
    if wrong is None:
        return steps
    fitting = next((s for s in _TRIED if _fits(spec, asked, parse_stride(s), clock)), None)
    hint = (
        f"The smallest step that does: --step {fitting}."
        if fitting
        else f"Give --from as an instant, {show_instant(asked.start)}: then steps are of UTC."
    )
    raise SpecError(f"--step {stride}: {wrong}", hint=hint)


def _fits(spec: PipelineSpec, asked: Range, stride: Stride, clock: tzinfo) -> bool:
    try:
        return _misfit(spec, cut(asked, stride, clock)) is None
    except SpecError:  # too many
        return False


def _misfit(spec: PipelineSpec, steps: Iterable[Range]) -> str | None:
    cuts = cuts_of(spec)
    for step in steps:
        for output in cuts:
            if widened(step, output.by.transform) != step:
                unit = output.by.transform
                return f"the step {show_range(step)} does not fit the partitions of '{output.output}', {output.by}, which are whole UTC {unit}s."
    return None


def stale_pieces(
    spec: PipelineSpec,
    rows: Iterable[tuple[int, int]],
    panes: Iterable[tuple[int, int]],
    committed: Sequence[Committed],
    reach: tuple[int, int],
) -> tuple[Step, ...]:
    """What must be computed anew, each from the input that it was computed from, in whole partitions of every output.

    `rows` are the partitions of rows that are stale: a row changes duplicates and windows `reach` (`spec.horizon`) around it. `panes` are those of
    aggregates. Only what is `committed` is computed: elsewhere the stream has the answer. Where a partition holds both inputs, the archive it is.
    """
    before, after = reach
    changed = union([*((start - after, end + before) for start, end in rows), *panes])
    found: dict[str, list[Range]] = {"archive": [], "batch": []}
    for known in committed:
        for part in changed:
            if known.start < part.end and part.start < known.end:
                found[known.input].append(_whole(spec, Range(max(known.start, part.start), min(known.end, part.end))))
    archive = union(found["archive"])
    batch = [left for piece in union(found["batch"]) for left in minus(piece, archive)]
    return tuple(sorted([*(Step(*r, "archive") for r in archive), *(Step(*r, "batch") for r in batch)]))


def _whole(spec: PipelineSpec, piece: Range) -> Range:
    """The smallest range that holds the piece and is whole partitions of every output."""
    for output in sorted(cuts_of(spec), key=lambda c: FINEST_FIRST.index(c.by.transform)):
        piece = widened(piece, output.by.transform)
    return piece
