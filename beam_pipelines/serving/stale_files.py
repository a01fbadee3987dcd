"""Which files of a speed layer can hold rows stored since a moment: conditions over partitions and names of files, so that others are not opened.

day=2013-12-01/000001-018bcfe568b4….parquet        finished at 018bcfe568b4 (ms, hexadecimal): no row in it was stored later
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import pairwise

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.partition import FINEST_FIRST
from beam_pipelines.arrow.ranges import partition_value, union, widened
from beam_pipelines.sinks.run import Clock

ON_THE_WAY = 120_000_000
"""Microseconds: a row stored so shortly before a run began may not have been in the archive that it listed; clocks may be as far apart, too."""
MADE_AT = "regexp_extract(filename, '-([0-9a-f]{12})[0-9a-f]{20}[^/]*$', 1)"  # of a file, in ms: no row of it was stored later
_PREFIXES = (13, 10, 7, 4)
"""How long the values of partitions are, of hours to years."""
_NAMED = 400  # partitions that are told apart when files are chosen: it costs some for every file


def made(since: int) -> str:
    """The moment as the name of a file has it. A clock that was set back meanwhile is forgiven some."""
    return f"'{max(0, since - ON_THE_WAY) // 1000:012x}'"


def lie_in(pieces: Iterable[tuple[int, int, int]], layout: Clock | None, at: str) -> str:
    """A condition on the rows of the pieces; on a partition column, where there is one, it holds for the rest of the partition, too."""
    found = []
    for start, end in union((s, e) for s, e, _ in pieces):
        if layout is None:
            found.append(f"({at} >= {start} AND {at} < {end})")
        else:
            whole, part = widened((start, end), layout.unit), quote(layout.partition) + "::VARCHAR"
            first, end_ = (literal(partition_value(at, layout.unit)) for at in whole)
            found.append(f"({part} >= {first} AND {part} < {end_})")
    return f"({' OR '.join(found)})"


def finished_since(pieces: Sequence[tuple[int, int, int]], layout: Clock | None) -> str:
    """A condition on names of files alone, so that the engine leaves out others unopened: those that can hold a row stored since the piece says."""
    for length in () if layout is None else (n for n in _PREFIXES if n <= _PREFIXES[FINEST_FIRST.index(layout.unit)]):
        named = _by_prefix(pieces, length)
        if layout is not None and named is not None:
            since = ", ".join(f"{literal(part)}: {made(at)}" for part, at in named.items())
            return f"{MADE_AT} >= MAP {{{since}}}[regexp_extract(filename, {literal(f'/{layout.partition}=([^/]{{1,{length}}})')}, 1)]"
    return f"{MADE_AT} >= {made(min(since for *_, since in pieces))}"


def _by_prefix(pieces: Sequence[tuple[int, int, int]], length: int) -> dict[str, int] | None:
    """The least number by partitions, or by longer times: by the first letters of their values. None where these are too many, or not so long."""
    unit = FINEST_FIRST[_PREFIXES.index(length)]
    found: dict[str, int] = {}
    for start, end, number in pieces:
        at = start
        while at < end:
            part = partition_value(at, unit)
            found[part] = min(found.get(part, number), number)
            if len(found) > _NAMED or len(part) != length:
                return None
            at = widened((at, at + 1), unit).end
    return found


def least_of(pieces: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same times in disjoint pieces, in order, each with the least number that a piece has there.

    >>> least_of([(0, 4, 7), (2, 6, 3), (8, 9, 3)])
    [(0, 2, 7), (2, 6, 3), (8, 9, 3)]
    """
    waiting, open_ = sorted(pieces, reverse=True), list[tuple[int, int]]()
    found: list[tuple[int, int, int]] = []
    for start, end in pairwise(sorted({at for piece in pieces for at in piece[:2]})):
        while waiting and waiting[-1][0] <= start:
            _, until, number = waiting.pop()
            heapq.heappush(open_, (number, until))
        while open_ and open_[0][1] <= start:
            heapq.heappop(open_)
        if open_ and found and found[-1][1:] == (start, open_[0][0]):
            found[-1] = (found[-1][0], end, open_[0][0])
        elif open_:
            found.append((start, end, open_[0][0]))
    return found
