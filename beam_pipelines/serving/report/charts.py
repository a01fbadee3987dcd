"""Pictures of counts: bars over time, meters in tables. Widths follow the page, so labels are text of the page and never shrink with a picture."""

from __future__ import annotations

from collections.abc import Sequence

from beam_pipelines.serving.report.facts import Timeline
from beam_pipelines.serving.report.markup import Html, counted, duration, instant, number, tag

_HIGH = 100.0
_LEAST = 1.2  # of _HIGH: so that one row is seen beside a million
_NAMES = {1: "second", 60: "minute", 3_600: "hour", 86_400: "day", 604_800: "week"}


def meter(part: float, whole: float, tone: str = "") -> Html:
    """A bar as long as the part of the whole. Says nothing itself: the number stands beside it."""
    percent = 0.0 if not whole else max(0.0, min(100.0, 100 * part / whole))
    shown = max(percent, 0.6) if part > 0 else 0.0
    return tag("span", tag("i", style=f"width:{shown:.2f}%"), class_=f"meter {tone}".strip(), aria_hidden="true")


def bars_over_time(timeline: Timeline, what: str) -> Html:
    """Rows over time, as a picture and as a table. `what` says which time it is."""
    per, most = width_name(timeline.width), max(timeline.bars, default=0)
    end = timeline.start + len(timeline.bars) * timeline.width
    middle = (timeline.start + end) // 2
    said = (
        f"{counted(sum(timeline.bars), 'row')} by {what}, one bar per {per}, from {instant(timeline.start)} to {instant(end)}. "
        f"The highest bar is {counted(most, 'row')}, at {instant(_start(timeline, _highest(timeline.bars)))}; {_empty(timeline.bars)}."
    )
    rects = [_rect(timeline, i, rows, most) for i, rows in enumerate(timeline.bars) if rows]
    svg = tag(
        "svg", tag("title", f"Rows by {what}"), tag("desc", said), *rects, role="img", aria_label=said,
        viewBox=f"0 0 {len(timeline.bars)} {_HIGH:.0f}", preserveAspectRatio="none",
    )  # fmt: skip
    axis = [tag("span", instant(at, seconds=False)) for at in (timeline.start, middle, end)]
    return tag(
        "figure",
        tag("figcaption", f"Rows by {what} (UTC), per {per}", outside(timeline)),
        tag("div", svg, tag("span", number(most), class_="top"), class_="plot"),
        tag("div", *axis, class_="axis"),
        _as_table(timeline, per),
    )


def outside(timeline: Timeline) -> str:
    """The rows that the bars leave out."""
    parts = [(timeline.before, "earlier"), (timeline.after, "later"), (timeline.undated, "without this time")]
    said = ", ".join(f"{number(rows)} {word}" for rows, word in parts if rows)
    return f" (not shown: {said})" if said else ""


def width_name(micros: int) -> str:
    """`hour`, `15 min`, `4 weeks`: what a bar stands for."""
    seconds = micros // 1_000_000
    if seconds in _NAMES:
        return _NAMES[seconds]
    weeks = seconds / 604_800
    return f"{weeks:,.0f} weeks" if weeks >= 2 and weeks.is_integer() else duration(seconds)


def _rect(timeline: Timeline, i: int, rows: int, most: int) -> Html:
    high = max(_LEAST, _HIGH * rows / most)
    thick = 0.84 if len(timeline.bars) <= 120 else 0.96
    said = tag("title", f"{instant(_start(timeline, i))}: {counted(rows, 'row')}")
    return tag("rect", said, x=f"{i + (1 - thick) / 2:.2f}", y=f"{_HIGH - high:.1f}", width=f"{thick}", height=f"{high:.1f}")


def _as_table(timeline: Timeline, per: str) -> Html:
    rows = [tag("tr", tag("td", instant(_start(timeline, i))), tag("td", number(n), class_="n")) for i, n in enumerate(timeline.bars) if n]
    head = tag("thead", tag("tr", tag("th", f"{per} from", scope="col"), tag("th", "rows", scope="col", class_="n")))
    return tag("details", tag("summary", "The same as a table"), tag("table", head, tag("tbody", *rows)), class_="picture")


def _start(timeline: Timeline, i: int) -> int:
    return timeline.start + i * timeline.width


def _highest(bars: Sequence[int]) -> int:
    return max(range(len(bars)), key=bars.__getitem__, default=0)


def _empty(bars: Sequence[int]) -> str:
    none = sum(not n for n in bars)
    return f"{counted(none, 'bar')} of {len(bars)} {'is' if none == 1 else 'are'} empty"
