"""Local times become instants: what a clock on the wall showed, in a time zone, as UTC.

    America/New_York   2013-03-10   01:59 ─▶ 03:00      02:30 was never shown     `missing`:   dead_letter | earlier | later
                       2013-11-03   01:59 ─▶ 01:00      01:30 was shown twice     `ambiguous`: earlier | later | dead_letter

A missing time has no instant: `earlier` takes the last microsecond before the gap, `later` the first instant after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.schema import UTC_MICROS, Failure, Rejected
from beam_pipelines.errors import SpecError

NAIVE = "_naive_"
"""Prefix of the flag column that says in which rows a column holds a local time."""
TIME = "TIME"
_ARROW_WORD = {"earlier": "earliest", "later": "latest", "dead_letter": "earliest"}
_WALL = pa.timestamp("us")


@dataclass(frozen=True)
class LocalColumn:
    """A timestamp column that holds local times of `zone` where its flag column is TRUE, or in all rows if `always`."""

    name: str
    zone: str
    ambiguous: Literal["earlier", "later", "dead_letter"] = "earlier"
    missing: Literal["earlier", "later", "dead_letter"] = "dead_letter"
    always: bool = False
    sensitive: bool = False


@dataclass(frozen=True)
class LocalTimes:
    """Kernel: the local times of `columns` become instants, the flag columns go, rows that have no instant are rejected (TIME)."""

    columns: tuple[LocalColumn, ...]
    stage: ClassVar[str] = "conform"
    sees_rejected: ClassVar[bool] = True

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        failures: dict[int, list[Failure]] = {}
        for column in self.columns:
            local = None if column.always else arrays.pop(NAIVE + column.name)
            arrays[column.name], rejected = to_instants(arrays[column.name], column, local=local)
            for row in rejected:
                failures.setdefault(row, []).append(rejected[row])
        out = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        return out, {row: Rejected(self.stage, TIME, tuple(found)) for row, found in failures.items()}


def to_instants(wall: pa.Array, column: LocalColumn, *, local: pa.Array | None = None) -> tuple[pa.Array, dict[int, Failure]]:
    """The timestamps of `wall` as instants, and the rows that have none; rows for which `local` is not TRUE are instants already.

    >>> from datetime import datetime
    >>> wall = pa.array([datetime(2013, 7, 1, 12), datetime(2013, 3, 10, 2, 30)], pa.timestamp('us'))
    >>> instants, missing = to_instants(wall, LocalColumn('departure', 'America/New_York'))
    >>> instants[0].as_py().isoformat(), missing[1].message
    ('2013-07-01T16:00:00+00:00', "departure: got local time '2013-03-10 02:30:00', which the clock of America/New_York skips")
    """
    wall = wall.cast(_WALL)
    if local is not None:
        local = pc.fill_null(local, False)
        if not pc.any(local).as_py():
            return wall.cast(UTC_MICROS), {}
    times = wall if local is None else pc.if_else(local, wall, pa.scalar(None, _WALL))
    instants, failures = _assumed(times, column)
    return (instants if local is None else pc.if_else(local, instants, wall.cast(UTC_MICROS))), failures


def _assumed(wall: pa.Array, column: LocalColumn) -> tuple[pa.Array, dict[int, Failure]]:
    ambiguous, missing = _ARROW_WORD[column.ambiguous], _ARROW_WORD[column.missing]
    earliest = _assume(wall, column.zone, "earliest", "earliest")
    latest = _assume(wall, column.zone, "latest", "latest")
    gap = pc.fill_null(pc.not_equal(earliest, latest), False).to_numpy(zero_copy_only=False)
    if not gap.any():
        return earliest, {}
    rows = np.flatnonzero(gap)
    width = latest.take(pa.array(rows)).cast(pa.int64()).to_numpy() - earliest.take(pa.array(rows)).cast(pa.int64()).to_numpy()
    failures: dict[int, Failure] = {}
    if column.missing == "dead_letter":
        failures |= _failures(wall, rows[width == 1], column, "skips")
    if column.ambiguous == "dead_letter":
        failures |= _failures(wall, rows[width != 1], column, "shows twice")
    return _assume(wall, column.zone, ambiguous, missing), failures


def _failures(wall: pa.Array, rows: np.ndarray, column: LocalColumn, what: str) -> dict[int, Failure]:
    def message(row: int) -> str:
        time = "that is not shown (sensitive)" if column.sensitive else f"'{wall[row].as_py()}'"
        return f"{column.name}: got local time {time}, which the clock of {column.zone} {what}"

    return {row: Failure(column.name, column.name, message(row)) for row in rows.tolist()}  # rejected rows only


def _assume(wall: pa.Array, zone: str, ambiguous: str, nonexistent: str) -> pa.Array:
    return pc.assume_timezone(wall, zone, ambiguous=ambiguous, nonexistent=nonexistent).cast(UTC_MICROS)


def is_utc(zone: str) -> bool:
    """Whether local times of `zone` are UTC, so that nothing need be done."""
    return zone.upper() in ("UTC", "ETC/UTC", "Z", "ZULU", "ETC/ZULU")


def check_zones(zones: Sequence[str]) -> None:
    """Raises SpecError for a time zone that does not exist."""
    for zone in zones:
        try:
            _assume(pa.array([0], _WALL), zone, "earliest", "earliest")
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise SpecError(f"time zone {zone!r} is not known here.", hint="Expected a name such as UTC or America/New_York.") from error
