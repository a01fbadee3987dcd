"""Session windows: maximal runs of a group's rows whose pauses are shorter than `gap`.

    rows      ·· ·  ·        ·· ·                     gap ≥ `gap` ends a session
    windows   ├──────gap┤    ├────gap┤                [first row, last row + gap)

**A session whose rows span `max_length` or more is cut at the multiples of `max_length` since 1970-01-01 UTC** (for 24h: at UTC midnight).
That is a pure function of the set of rows, and a late row moves no cut but its own. Each piece is a window from its first row to its last row + gap,
or to the cut where the session goes on behind it.

A *run* is what is kept: the first and last instant of rows that belong together inside one cell of that grid, with accumulators. A row is a run of
length zero; runs closer than `gap` join; so merging runs in any grouping and order gives the same sessions, and only runs need to meet, not rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_pipelines.arrow.windows import WindowSpec

Ints = npt.NDArray[np.int64]

FIRST, LAST = "w", "e"
_RUN, _CELL = "_run", "_cell"


def cell(micros: str, spec: WindowSpec) -> str:
    """SQL: the grid cell of an instant, rounded down before 1970 too."""
    length = spec.longest
    return f"(({micros} - (({micros} % {length}) + {length}) % {length}) // {length})"


def numbered_runs(relation: str, groups: Sequence[str], spec: WindowSpec) -> str:
    """SQL: `relation` (group columns, `w`, `e`, …) with `_run`, the session's number within its group, and `_cell`."""
    by = f"PARTITION BY {', '.join(groups)} " if groups else ""
    before = f"max({LAST}) OVER ({by}ORDER BY {FIRST}, {LAST} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    begins = f"SELECT *, (coalesce({FIRST} - {before} >= {spec.gap}, true))::INTEGER AS _begins FROM ({relation})"
    run = f"sum(_begins) OVER ({by}ORDER BY {FIRST}, {LAST} ROWS UNBOUNDED PRECEDING)"
    return f"SELECT * EXCLUDE (_begins), {run} AS {_RUN}, {cell(FIRST, spec)} AS {_CELL} FROM ({begins})"


def run_keys() -> str:
    """SQL: what rows and runs are grouped by, besides the group."""
    return f"{_RUN}, {_CELL}"


def windows(runs: str, groups: Sequence[str], spec: WindowSpec) -> str:
    """SQL: runs, merged, to windows: the runs of a session that is short enough join again, the others are its pieces."""
    by = ", ".join([*groups, _RUN])
    over = f"OVER (PARTITION BY {by})"
    numbered = numbered_runs(runs, groups, spec)
    spans = f"SELECT *, max({LAST}) {over} - min({FIRST}) {over} >= {spec.longest} AS _cut, max({_CELL}) {over} AS _final FROM ({numbered})"
    end = (
        f"CASE WHEN _cut AND {_CELL} < _final THEN least({LAST} + {spec.gap}, ({_CELL} + 1) * {spec.longest}) ELSE {LAST} + {spec.gap} END"
    )
    return f"SELECT *, {end} AS _end, CASE WHEN _cut THEN {_CELL} ELSE 0 END AS _piece FROM ({spans})"


class Found(NamedTuple):
    """For each run, in the order of `order`: the session as a whole (`chain`), its window [start, end), and the end of all that can be in it."""

    order: Ints
    chain: Ints
    start: Ints
    end: Ints
    final: Ints


def found(key: Ints, first: Ints, last: Ints, spec: WindowSpec) -> Found:
    """The windows of runs as `windows` finds them, without SQL: a stream asks at every timer, and there this costs a tenth.

    `final` is the end of the session, or of the piece's cell where the session goes on behind it.
    """
    if not len(key):
        return Found(key, key, key, key, key)
    gap = spec.gap or 0
    order = np.lexsort((last, first, key))
    key, first, last = key[order], first[order], last[order]
    newest = _running_max(key, last)
    begins = np.ones(len(key), bool)
    begins[1:] = (key[1:] != key[:-1]) | (first[1:] - newest[:-1] >= gap)
    chain = np.cumsum(begins) - 1
    at = np.flatnonzero(begins)
    ends = np.maximum.reduceat(last, at)
    cut = (ends - first[at] >= spec.longest)[chain]
    cells = np.floor_divide(first, spec.longest)
    goes_on = cut & (cells < np.maximum.reduceat(cells, at)[chain])
    piece = begins.copy()
    piece[1:] |= cut[1:] & (cells[1:] != cells[:-1])
    pieces, starts = np.cumsum(piece) - 1, np.flatnonzero(piece)
    edge = (cells + 1) * spec.longest
    end = np.maximum.reduceat(np.where(goes_on, np.minimum(last + gap, edge), last + gap), starts)
    return Found(order, chain, first[starts][pieces], end[pieces], np.where(goes_on, edge, ends[chain] + gap))


def _running_max(key: Ints, values: Ints) -> Ints:
    """The largest value so far within each run of equal keys."""
    known, rank = np.unique(values, return_inverse=True)
    group = np.cumsum(np.concatenate(([False], key[1:] != key[:-1])))
    most: Ints = np.maximum.accumulate(group * len(known) + rank) - group * len(known)
    return np.asarray(known[most])
