"""Ranges of event time as people name them, and which of them a spec's outputs can be replaced over.

    2013-12-01                    midnight by the clock of the spec's time_zone
    2013-12-01T06:00              the same clock; the earlier one where a clock change shows it twice
    2013-12-01T06:00:00Z, +01:00  an instant

A range replaces whole partitions of every output, and partitions are UTC hours, days, months or years.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from beam_pipelines.arrow.partition import Partition
from beam_pipelines.arrow.ranges import Range, show_instant, show_range, widened
from beam_pipelines.errors import SpecError
from beam_pipelines.spec.cuts import WINDOW, cut_of
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import LETTERS, ROWS, ParquetSink, Sink

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Cut(NamedTuple):
    """An output and the unit its partitions have."""

    output: str
    by: Partition


def parse_instant(text: str, time_zone: str, option: str) -> int:
    """The instant that `text` names, in microseconds since 1970. Raises SpecError, naming `option`, for anything else.

    >>> parse_instant("2013-12-01", "America/New_York", "--from") == parse_instant("2013-12-01T05:00:00Z", "UTC", "--from")
    True
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SpecError(
            f"{option} {text!r}: is no date or time.", hint="Write 2013-12-01, 2013-12-01T06:00 or 2013-12-01T06:00:00Z."
        ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=ZoneInfo(time_zone))
    return (found.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def parse_range(spec: PipelineSpec, start: str | None, end: str | None) -> Range | None:
    """The range [start, end) that `--from` and `--to` name; None where neither is given.

    Raises SpecError where one is missing or wrong, where the range is empty or reversed, and where the outputs cannot be replaced over it
    (with the nearest range over which they can).
    """
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise SpecError(
            f"{'--to' if start is None else '--from'} is given alone; expected both.",
            hint="A range is --from START --to END, END not included.",
        )
    found = Range(parse_instant(start, spec.time_zone, "--from"), parse_instant(end, spec.time_zone, "--to"))
    if found.start >= found.end:
        what = "empty" if found.start == found.end else "reversed"
        raise SpecError(
            f"--from {start} --to {end}: the range is {what}.", hint="--from comes first; --to is the first moment after the range."
        )
    check_range(spec, found)
    return found


def check_range(spec: PipelineSpec, asked: Range) -> None:
    """Raises SpecError where an output cannot be replaced over exactly this range."""
    cuts = cuts_of(spec)
    fits = asked
    for cut in cuts:
        fits = widened(fits, cut.by.transform)
    if fits != asked:
        cut = next(c for c in cuts if widened(asked, c.by.transform) != asked)
        raise SpecError(
            f"the range {show_range(asked)} does not fit the partitions of '{cut.output}', {cut.by}, which are whole UTC {cut.by.transform}s.",
            hint=f"The nearest range that does: --from {show_instant(fits.start)} --to {show_instant(fits.end)}."
            + (f" Bare dates are midnight in {spec.time_zone}." if spec.time_zone != "UTC" else ""),
        )


def cuts_of(spec: PipelineSpec) -> list[_Cut]:
    """By which unit of time each output of files is partitioned. Raises SpecError where one cannot be replaced over a range of time."""
    time = spec.contract.event_time
    if time is None:
        raise SpecError("a range of time needs contract.event_time, and the spec names none.", hint="Run without --from and --to.")
    kind = spec.contract.columns[time].dtype.kind if time in spec.contract.columns else "timestamp"
    if kind != "timestamp":
        raise SpecError(
            f"a range of time needs an event time that is an instant; contract.event_time is '{time}', a {kind}.",
            hint="Declare it as type: timestamp, or run without --from and --to.",
        )
    return list(_cuts(spec, time))


def _cuts(spec: PipelineSpec, time: str) -> Iterator[_Cut]:
    for number, sink in enumerate(spec.sinks):
        if sink.pubsub is not None:
            continue
        where = f"sinks[{number}] (from {sink.from_})"
        if sink.from_ == LETTERS:
            _check_letters(sink, where)
            continue
        column = time if sink.from_ == ROWS else WINDOW
        finest = cut_of(sink, column)
        if finest is None:
            raise SpecError(
                f"{where} is not partitioned by {column}: a run over a range cannot replace a part of it.",
                hint=f"Write partition_by: [day({column})], or run without --from and --to.",
            )
        if isinstance(sink.destination, ParquetSink) and sink.destination.replace == "all":
            raise SpecError(f"{where} says replace: all, which a run over a range would empty.", hint="Leave `replace` out.")
        yield _Cut(sink.from_, finest)


def _check_letters(sink: Sink, where: str) -> None:
    if not isinstance(sink.destination, ParquetSink):
        raise SpecError(
            f"{where} is a text file, written whole by each run: a run over a range would lose the letters of other times.",
            hint="Write dead letters as parquet, or run without --from and --to.",
        )
