"""Batches of a good size: many small ones become few, one huge one becomes several.

A SELECT, a file or a shuffle costs the same for 10 rows as for 1,000. 20,000 to 66,000 rows is where the fixed cost vanishes
and a batch still fits the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from beam_pipelines.errors import RunError

TARGET_ROWS = 65_536
TARGET_BYTES = 64 << 20


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of `batches`, in order, as one batch of their common schema. Dictionaries are unified; one batch comes back as it is.

    Raises RunError where there is no batch, where schemas differ, or where a column of text outgrows its 2 GiB.
    """
    if len(batches) == 1:
        return batches[0]
    if not batches:
        raise RunError("concat: got no batches; expected at least one, because the schema comes from it.")
    schema = batches[0].schema
    for number, batch in enumerate(batches):
        if not batch.schema.equals(schema):
            raise RunError(
                f"concat: batch {number} has another schema: {_difference(schema, batch.schema)}.", hint="Conform batches first."
            )
    try:
        return pa.concat_batches(batches)
    except pa.ArrowInvalid as error:
        rows = sum(b.num_rows for b in batches)
        raise RunError(f"concat: {rows} rows do not fit in one batch: {error}.", hint="Use coalesce, which limits the bytes.") from error


def coalesce(
    batches: Iterable[pa.RecordBatch], *, target_rows: int = TARGET_ROWS, target_bytes: int = TARGET_BYTES
) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order in fewer batches, none over a target unless it came in so.

    Of two neighbours of one schema, one has at least half of a target. Empty batches vanish; a batch of at least half the target
    that comes alone passes without a copy. Memory: one target and one batch.
    """
    pending = Pending(target_rows=target_rows, target_bytes=target_bytes)
    for batch in batches:
        if not pending.fits(batch):
            yield pending.take()
        pending.add(batch)
        if pending.ripe:
            yield pending.take()
    if pending:
        yield pending.take()


def slices(batch: pa.RecordBatch, *, target_rows: int = TARGET_ROWS, target_bytes: int = TARGET_BYTES) -> Iterator[pa.RecordBatch]:
    """`batch` in pieces of equal length, none of more than `target_rows` and about `target_bytes`. No copy."""
    n = batch.num_rows
    count = max(1, -(-n // target_rows), min(n, -(-batch.nbytes // target_bytes)))
    if count == 1:
        yield batch
        return
    step = -(-n // count)
    for start in range(0, n, step):
        yield batch.slice(start, step)


class Pending:
    """Batches of one schema waiting to become one: the push form of `coalesce`, for a DoFn."""

    def __init__(self, *, target_rows: int = TARGET_ROWS, target_bytes: int = TARGET_BYTES) -> None:
        self._target_rows, self._target_bytes = target_rows, target_bytes
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._sized: tuple[pa.RecordBatch, int] | None = None

    def fits(self, batch: pa.RecordBatch) -> bool:
        """Whether `batch` can join: always where nothing waits, else if the schema is the same and the targets hold."""
        if not self._batches or not batch.num_rows:
            return True
        full = self._rows + batch.num_rows > self._target_rows or self._bytes + self._size(batch) > self._target_bytes
        return not full and bool(batch.schema.equals(self._batches[0].schema))

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._batches.append(batch)
            self._rows += batch.num_rows
            self._bytes += self._size(batch)
            self._sized = None

    def _size(self, batch: pa.RecordBatch) -> int:
        """Its bytes, asked once for `fits` and `add`: that looks at every column's buffers."""
        if self._sized is None or self._sized[0] is not batch:
            self._sized = batch, batch.nbytes
        return self._sized[1]

    @property
    def ripe(self) -> bool:
        """Half a target is enough: what waits for more would only be copied."""
        return 2 * self._rows >= self._target_rows or 2 * self._bytes >= self._target_bytes

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(self) -> pa.RecordBatch:
        """All that waits as one batch; nothing waits afterwards."""
        batches, self._batches, self._rows, self._bytes = self._batches, [], 0, 0
        return concat(batches)


def _difference(expected: pa.Schema, got: pa.Schema) -> str:
    if expected.names == got.names:
        changed = [f"{e.name!r} is {g.type}, expected {e.type}" for e, g in zip(expected, got, strict=True) if e != g]
        return "; ".join(changed)
    if sorted(expected.names) == sorted(got.names):
        return f"the columns are in another order; got {', '.join(got.names)}; expected {', '.join(expected.names)}"
    missing, extra = sorted(set(expected.names) - set(got.names)), sorted(set(got.names) - set(expected.names))
    return f"missing {missing}, unexpected {extra}"
