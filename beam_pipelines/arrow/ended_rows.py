"""The identities of rows whose windows have closed: only the shard that had a row can say that a correction of it came too late.

    add      rows as their windows close
    take     which rows of a batch were there; they are not any more: what is taken back twice is stale once
    forget   by slices of event time, when no better copy can come any more

25 bytes a row. An identity is a 64-bit hash of source and position; two rows that share one would count a correction too many or too few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.held import Held
from beam_pipelines.arrow.schema import POSITION, SOURCE
from beam_pipelines.arrow.stable_hash import stable_hash

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_ROW = np.dtype([("time", "i8"), ("identity", "i8"), ("taken", "?")])
_SLICES = 8


def identities_of(source: pa.Array, position: pa.Array) -> Ints:
    """A hash of each row's identity, the same in every process."""
    return stable_hash([source, position], len(position))


class EndedRows:
    """See the module; `reach` (microseconds of event time) says how far behind the watermark a row is remembered."""

    def __init__(self, *, reach: int) -> None:
        self._reach = reach
        self._held = Held(_ROW, max(1, reach // _SLICES))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return self._held.nbytes

    def add(self, times: Ints, identities: Ints) -> None:
        """Remembers rows of these event times (microseconds) and `identities_of`."""
        new = np.zeros(len(times), _ROW)
        new["time"], new["identity"] = times, identities
        self._held.add(identities.view(np.uint64), new)

    def take(self, rows: pa.RecordBatch) -> Mask:
        """True for each row (`_source`, `_position`) that is remembered, which it is not afterwards."""
        found = np.zeros(rows.num_rows, bool)
        if not len(self) or not rows.num_rows:
            return found
        wanted, records = identities_of(rows.column(SOURCE), rows.column(POSITION)), self._held.records
        met = np.unique(self._held.meet(wanted.view(np.uint64)).rows)
        met = met[~records["taken"][met]]
        left, of_left = np.unique(records["identity"][met], return_index=True)
        asked, first = np.unique(wanted, return_index=True)
        _, in_left, in_asked = np.intersect1d(left, asked, assume_unique=True, return_indices=True)
        records["taken"][met[of_left[in_left]]] = True
        found[first[in_asked]] = True
        return found

    def forget(self, watermark: int) -> None:
        """Forgets slices of event time that end `reach` before `watermark` (microseconds)."""
        self._held.forget(watermark - self._reach)

    def dump(self) -> pa.RecordBatch | None:
        """What is remembered; `load` takes it back."""
        left = self._held.records[~self._held.records["taken"]]
        if not len(left):
            return None
        return pa.record_batch({name: pa.array(np.ascontiguousarray(left[name])) for name in ("time", "identity")})

    def load(self, dumped: pa.RecordBatch) -> None:
        """Remembers what `dump` gave."""
        self.add(dumped.column("time").to_numpy(), dumped.column("identity").to_numpy())
