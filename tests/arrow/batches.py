"""Batches for tests: provenance beside given columns, and the law of the doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from beam_pipelines.arrow.program import Split
from beam_pipelines.arrow.schema import POSITION, PROVENANCE, RAW, provenance


def with_provenance(columns: Mapping[str, pa.Array | Sequence[object]], *, rows: int | None = None) -> pa.RecordBatch:
    """The columns as rows of source `test` at positions 0, 1, ..., with raw bytes `r0`, `r1`, ..."""
    arrays = {n: c if isinstance(c, pa.Array) else pa.array(c) for n, c in columns.items()}
    n = rows if rows is not None else len(next(iter(arrays.values())))
    raw = pa.array([b"r%d" % i for i in range(n)], pa.binary())
    return pa.RecordBatch.from_arrays(
        [*arrays.values(), *provenance("test", pa.array(range(n), pa.int64())), raw], names=[*arrays, *PROVENANCE.names, RAW]
    )


def positions(split: Split) -> tuple[list[int], list[int]]:
    """Positions of the rows that went on and of the dead letters."""
    return split.rows[POSITION].to_pylist(), split.dead["position"].to_pylist()


def assert_one_door(split: Split, batch: pa.RecordBatch) -> None:
    """Every row of `batch` left once: on, dead or filtered."""
    alive, dead = positions(split)
    assert len(alive) + len(dead) + split.filtered == batch.num_rows
    assert len(set(alive) | set(dead)) == len(alive) + len(dead)
    assert set(alive) | set(dead) <= set(batch[POSITION].to_pylist())
