"""The parts of the page about time: how fresh the rows are, how late they came, how many there are by hour or day."""

from __future__ import annotations

from beam_pipelines.serving.report.charts import bars_over_time, meter
from beam_pipelines.serving.report.facts import LATENESS, Lateness, Times
from beam_pipelines.serving.report.markup import Html, counted, duration, instant, micros_of, number, share, tag
from beam_pipelines.serving.report.tables import facts, note, section, table
from beam_pipelines.serving.report.verdict import streams
from beam_pipelines.sinks.results import RunResults

_SECOND = 1_000_000


def behind(run: RunResults, times: Times) -> tuple[str, str] | None:
    """How far the newest event lies behind the clock, and behind what: a batch's start, a stream's end. None without event times."""
    of, word = (run.metadata.finished_at, "end") if streams(run) else (run.metadata.started_at, "start")
    clock = micros_of(of)
    if not times.event.rows or clock is None:
        return None
    seconds = (clock - times.event.last) / _SECOND
    return (duration(seconds), f"behind the run's {word}") if seconds >= 0 else (duration(-seconds), f"ahead of the run's {word}")


def freshness_section(run: RunResults, times: Times) -> Html:
    """Newest event against the clock; arrival minus event time."""
    found = behind(run, times)
    event, arrival = times.event, times.arrival
    pairs: list[tuple[str, object]] = []
    if event.rows:
        pairs += [
            ("Newest event", f"{instant(event.last)}{f', {found[0]} {found[1]}' if found else ''}"),
            ("Oldest event", instant(event.first)),
        ]
    if arrival.rows:
        pairs += [("Newest arrival", instant(arrival.last)), ("Oldest arrival", instant(arrival.first))]
    said = [] if event.rows else [note("No row has an event time: the contract names none, or the output does not hold it.")]
    late = (
        _lateness(times.lateness)
        if times.lateness
        else [note("How late rows came is not known: no row says when it arrived (", tag("code", "arrival:"), " of a source).")]
    )
    return section("freshness", "Freshness and lateness", _there(times), facts(pairs), *said, *late)


def _there(times: Times) -> Html | None:
    if times.there >= times.rows:
        return None
    return note(
        f"Of the {counted(times.rows, 'row')} that the run wrote, {number(times.there)} are still there; later runs have replaced the rest."
    )


def _lateness(late: Lateness) -> list[Html]:
    pairs = [
        ("Half of the rows within", _span(late.half)), ("95 % within", _span(late.most_95)), ("99 % within", _span(late.most_99)),
        ("From … to", f"{_span(late.least)} … {_span(late.most)}"),
    ]  # fmt: skip
    most = max(late.buckets)
    full = [i for i, rows in enumerate(late.buckets) if rows]
    shown = range(min(full), max(full) + 1)
    rows = [(_bucket(i), meter(late.buckets[i], most), number(late.buckets[i]), share(late.buckets[i], late.rows)) for i in shown]
    return [
        tag("h3", "Arrival minus event time"),
        facts(pairs),
        table(["lateness", "", "rows", "share"], rows, right=("rows", "share"), grow="", class_="dense"),
        note(f"Of the {counted(late.rows, 'row')} with both times. Quantiles are approximate, counts exact."),
    ]


def _span(micros: int) -> str:
    return duration(micros / _SECOND)


def _bucket(i: int) -> str:
    if i == 0:
        return "ahead of its time"
    low = _span(LATENESS[i - 1])
    return f"{low} and more" if i == len(LATENESS) else f"{low} to {_span(LATENESS[i])}"


def throughput_section(times: Times) -> Html:
    """Rows by event time, and by arrival where it is known."""
    charts = [bars_over_time(line, what) for line, what in ((times.by_arrival, "arrival time"), (times.by_event, "event time")) if line]
    none = note("No row has a time.") if not charts else None
    return section("throughput", "Rows over time", _there(times), *charts, none)
