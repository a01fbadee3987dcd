"""Rows remembered in keyed state, forgotten slice by slice of their time: the one stateful DoFn behind `Deduplicate` and `DropRedelivered`.

    (bucket, rows) ─▶ Remember ─▶ what the `Memory` says of them
                        │  └ one event-time timer per bucket, at the end of the earliest slice + `memory.horizon`
                        └ CELLS bags of Arrow blobs and a token; decoded once per process (`keyed_state`)

Works where event-time timers, bag and read-modify-write state do: Prism, Flink, Dataflow, BundleBasedDirectRunner with TestStream. The number of
buckets, CELLS and the names of the states belong to the spec's state: a job whose state was saved with others cannot be updated to this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol
from uuid import uuid4

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import back_pressure
from beam_pipelines.arrow.concat import slices
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.keyed_state import is_resident, recall, remember

BUCKETS = 4
"""Keys of state where nobody says how many, by bits of a hash: few, because a bundle and its state have fixed costs; more than one, for several workers."""

_LAST = GlobalWindow().max_timestamp().micros
_MILLI = 1_000  # timers travel in milliseconds


class Sliced(Protocol):
    """What a bucket remembers: `Copies` or `Identities`."""

    @property
    def first_end(self) -> int | None: ...

    def expire(self, before_micros: int) -> None: ...

    def save(self) -> Iterator[tuple[int, bool, pa.RecordBatch | None]]: ...


class Memory(Protocol):
    """How rows are remembered and judged. Picklable. `horizon`: microseconds of the arrival clock after a slice's end until it is forgotten."""

    @property
    def horizon(self) -> int: ...

    def load(self, cells: Sequence[Sequence[pa.RecordBatch]]) -> Any: ...

    def judge(self, held: Any, rows: pa.RecordBatch) -> Iterable[Any]: ...


class Remember(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """(bucket, rows) -> what `memory` judges of them, given all rows of the bucket within the horizon."""

    TOKEN = ReadModifyWriteStateSpec("token", BytesCoder())
    SLICES = tuple(BagStateSpec(f"slice_{i}", RecordBatchCoder()) for i in range(CELLS))
    EXPIRE = TimerSpec("expire", TimeDomain.WATERMARK)

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._stage = uuid4().hex

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        token: Any = beam.DoFn.StateParam(TOKEN),
        s0: Any = beam.DoFn.StateParam(SLICES[0]),
        s1: Any = beam.DoFn.StateParam(SLICES[1]),
        s2: Any = beam.DoFn.StateParam(SLICES[2]),
        s3: Any = beam.DoFn.StateParam(SLICES[3]),
        s4: Any = beam.DoFn.StateParam(SLICES[4]),
        s5: Any = beam.DoFn.StateParam(SLICES[5]),
        s6: Any = beam.DoFn.StateParam(SLICES[6]),
        s7: Any = beam.DoFn.StateParam(SLICES[7]),
        timer: Any = beam.DoFn.TimerParam(EXPIRE),
    ) -> Iterable[Any]:
        bucket, rows = keyed
        back_pressure.taken(rows.num_rows)
        state = (s0, s1, s2, s3, s4, s5, s6, s7)
        held = self._held(bucket, token, state)
        outputs = list(self._memory.judge(held, rows))  # the state is written before anything is handed on
        self._keep(bucket, held, token, state, timer)
        return outputs

    @on_timer(EXPIRE)  # type: ignore[untyped-decorator]  # Beam ships no types
    def expire(
        self,
        bucket: Any = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        token: Any = beam.DoFn.StateParam(TOKEN),
        s0: Any = beam.DoFn.StateParam(SLICES[0]),
        s1: Any = beam.DoFn.StateParam(SLICES[1]),
        s2: Any = beam.DoFn.StateParam(SLICES[2]),
        s3: Any = beam.DoFn.StateParam(SLICES[3]),
        s4: Any = beam.DoFn.StateParam(SLICES[4]),
        s5: Any = beam.DoFn.StateParam(SLICES[5]),
        s6: Any = beam.DoFn.StateParam(SLICES[6]),
        s7: Any = beam.DoFn.StateParam(SLICES[7]),
        timer: Any = beam.DoFn.TimerParam(EXPIRE),
    ) -> None:
        state = (s0, s1, s2, s3, s4, s5, s6, s7)
        held = self._held(bucket, token, state)
        held.expire(fired.micros - self._memory.horizon)
        self._keep(bucket, held, token, state, timer)

    def _held(self, bucket: int, token: Any, state: Sequence[Any]) -> Any:
        known = recall(self._stage, bucket, token)
        return self._memory.load([list(cell.read()) for cell in state]) if known is None else known

    def _keep(self, bucket: int, held: Sliced, token: Any, state: Sequence[Any], timer: Any) -> None:
        for cell, anew, piece in () if is_resident() else held.save():
            if anew:
                state[cell].clear()
            if piece is not None:
                for part in slices(piece):
                    state[cell].add(part)
        remember(self._stage, bucket, token, held)
        ends = held.first_end
        if ends is not None and (at := -(-(ends + self._memory.horizon) // _MILLI) * _MILLI) < _LAST:
            timer.set(Timestamp(micros=at))


def by_bucket(rows: pa.RecordBatch, buckets: npt.NDArray[Any]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(bucket, its rows) for each bucket that has rows, on their way to `Remember`."""
    order = np.argsort(buckets, kind="stable")
    sorted_rows = rows.take(pa.array(order))
    ends = np.cumsum(np.bincount(buckets)).tolist()
    for bucket, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if end > start:
            some = sorted_rows.slice(start, end - start)
            back_pressure.left(some.num_rows, some.nbytes)
            yield bucket, some


def identified(rows: pa.RecordBatch, names: Sequence[str]) -> None:
    """Raises SpecError where a row has no identity: a stream tells redelivered rows, and takes rows back, by it."""
    missing = [n for n in names if n not in rows.schema.names or rows.column(n).null_count]
    if missing:
        raise SpecError(
            f"deduplicate: rows of a stream need {', '.join(missing)}, which is missing or NULL.",
            hint="Sources of this package and FromRows give rows their identity.",
        )
