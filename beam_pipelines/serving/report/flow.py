"""The ledger as a picture: bands as thick as they have rows, from the sources through what was read to the doors by which rows left.

flights-01.csv ▉▉▉▉╲               ╱▉▉▉▉ written     The picture for phones has no sources, and its texts keep their size.
flights-02.csv ▉▉▉▉─▉ read ▉──────▉▉▉▉▉
flights-03.csv ▉▉▉▉╱               ╲─── dead
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beam_pipelines.serving.report.markup import Html, counted, cut, cut_front, number, share, tag

_HIGH = 230.0  # of the band that stands for all rows
_THIN = 1.5
_THICK = 11
_SLOT = 38.0  # what two lines of text need
_GAP = 10.0  # between two posts
_HEAD = 26.0  # the line of text above


@dataclass(frozen=True)
class Node:
    """One end of a band: `kind` is its color (written, dead, duplicate, filtered, outside, open, refused, read)."""

    name: str
    rows: int
    kind: str


def flow(read: int, sources: Sequence[Node], doors: Sequence[Node]) -> Html:
    """Two pictures of the same, of which the page shows the one that fits the screen."""
    doors = [d for d in doors if d.rows > 0]
    said = f"{counted(read, 'row')} read" + (f" from {counted(len(sources), 'source')}" if sources else "") + ": "
    said += ", ".join(f"{number(d.rows)} {d.name} ({share(d.rows, read)})" for d in doors) + "."
    return tag(
        "div",
        _picture(read, sources if len(sources) > 1 else (), doors, said, 1000, "wide"),
        _picture(read, (), doors, said, 330, "narrow"),
    )


@dataclass(frozen=True)
class _Edge:
    """Where a band begins or ends: its left or right end x, its upper end y, and how thick it is there."""

    x: float
    y: float
    thick: float


def _picture(read: int, sources: Sequence[Node], doors: Sequence[Node], said: str, width: int, class_: str) -> Html:
    """Sources, if any, stand left of what was read, which stands in the middle; doors on the right, in line with its upper end where there is room."""
    left, middle, right = (260.0, 500.0, 740.0) if sources else (0.0, 0.0, 660.0 if width > 500 else 118.0)
    rooms = [sum(slot for _, _, slot in _stack(nodes, read)) for nodes in (sources, doors)]
    high = max(_HIGH, *rooms) + _HEAD + 6
    top = (high - _HIGH) / 2 if sources else _HEAD
    parts: list[Html] = []
    for nodes, room, x in ((sources, rooms[0], left), (doors, rooms[1], right)):
        y, at = (high - room) / 2 if sources else _HEAD - _GAP / 2, top
        for node, thick, slot in _stack(nodes, read):
            share_of, upper = _HIGH * node.rows / read, y + (slot - thick) / 2
            if nodes is sources:
                parts.append(_band(_Edge(x + _THICK, upper, thick), _Edge(middle, at, share_of), node.kind))
            else:
                parts.append(_band(_Edge(middle + _THICK, at, share_of), _Edge(x, upper, thick), node.kind))
            parts.append(_post(f"{node.name}: {number(node.rows)}", _Edge(x, upper, thick), node.kind))
            parts += _label(node, read, x, y + slot / 2, before=nodes is sources, width=width)
            y, at = y + slot, at + share_of
    parts.append(_post(f"{number(read)} read", _Edge(middle, top, _HIGH), "read"))
    place = {"x": f"{middle + _THICK / 2:.0f}", "text_anchor": "middle"} if sources else {"x": "0"}
    parts.append(tag("text", tag("tspan", number(read), font_weight="600"), " read", y=f"{top - 8:.0f}", **place))
    about = {"role": "img", "aria_label": said, "viewBox": f"0 0 {width} {high:.0f}", "class_": f"flow {class_}"}
    return tag("svg", tag("title", "What became of the rows"), tag("desc", said), *parts, **about)


def _stack(nodes: Sequence[Node], read: int) -> list[tuple[Node, float, float]]:
    """Nodes with their thickness and the room they take, text included. A ledger that does not balance may have more rows than were read."""
    thick = [min(2 * _HIGH, max(_THIN, _HIGH * node.rows / read)) for node in nodes]
    return [(node, t, max(_SLOT, t + _GAP)) for node, t in zip(nodes, thick, strict=True)]


def _post(said: str, at: _Edge, kind: str) -> Html:
    return tag("rect", tag("title", said), x=f"{at.x:.0f}", y=f"{at.y:.1f}", width=_THICK, height=f"{at.thick:.1f}", class_=f"f-{kind}")


def _band(start: _Edge, end: _Edge, kind: str) -> Html:
    half = (start.x + end.x) / 2
    thick_a, thick_b = max(start.thick, 0.8), max(end.thick, 0.8)
    there = f"M{start.x:.0f} {start.y:.1f}C{half:.0f} {start.y:.1f} {half:.0f} {end.y:.1f} {end.x:.0f} {end.y:.1f}"
    a, b = start.y + thick_a, end.y + thick_b
    back = f"L{end.x:.0f} {b:.1f}C{half:.0f} {b:.1f} {half:.0f} {a:.1f} {start.x:.0f} {a:.1f}Z"
    return tag("path", d=there + back, class_=f"f-{kind}")


def _label(node: Node, read: int, x: float, y: float, *, before: bool, width: int) -> list[Html]:
    """Name and number beside a post, left of it or right of it."""
    name = cut_front(node.name, 32) if before else cut(node.name, 34 if width > 500 else 26)
    place = {"x": f"{x - 8:.0f}" if before else f"{x + _THICK + 8:.0f}", "text_anchor": "end" if before else "start"}
    rows = f"{number(node.rows)} · {share(node.rows, read)}"
    return [tag("text", name, y=f"{y - 3:.0f}", **place), tag("text", rows, y=f"{y + 13:.0f}", class_="soft", **place)]
