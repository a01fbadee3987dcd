"""The columns every batch carries besides the user's: provenance, raw bytes, dead letters, ledger counts.

    raw batch      provenance + `_raw` (text formats, messages)  |  provenance + the source's own columns (Parquet, Avro, ORC)
    row batch      provenance + `_raw` until validation + contract columns + computed columns + `_unknown`
    dead letters   DEAD_LETTERS

A row's identity, `row_id`, is (`_source`, `_position`): the byte offset of a line, the ordinal of a record in a columnar
file, the message id of a message.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

SOURCE, POSITION, ARRIVAL, RAW, UNKNOWN = "_source", "_position", "_arrival_time", "_raw", "_unknown"
RUN_ID, CONTRACT, KEY_HASH = "_run_id", "_contract", "_key_hash"

UTC_MICROS = pa.timestamp("us", "UTC")
SOURCE_TYPE = pa.dictionary(pa.int32(), pa.string())
PROVENANCE = pa.schema([(SOURCE, SOURCE_TYPE), (POSITION, pa.int64()), (ARRIVAL, UTC_MICROS)])
PROVENANCE_NAMES = frozenset(PROVENANCE.names)
RAW_BATCH = pa.schema([*PROVENANCE, (RAW, pa.binary())])
RESERVED_PREFIX = "_"
_SOURCE_NUMBER = b"source"

FAILURE = pa.struct([("name", pa.string()), ("column", pa.string()), ("message", pa.string())])
DEAD_LETTERS = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("failures", pa.list_(FAILURE)),
        ("raw", pa.binary()),
        ("raw_format", pa.string()),
        ("event_time", UTC_MICROS),
        ("arrival_time", UTC_MICROS),
        ("pipeline", pa.string()),
        ("pipeline_version", pa.string()),
        ("contract", pa.string()),
        ("run_id", pa.string()),
    ]
)


class Failure(NamedTuple):
    """Why one row failed: the check or rule's `name`, the `column` it is about (or ""), and a sentence."""

    name: str
    column: str
    message: str


class Rejected(NamedTuple):
    """The verdict on one row: where it left (`stage`), a stable `reason` code, and all that failed there."""

    stage: str
    reason: str
    failures: tuple[Failure, ...]

    @property
    def message(self) -> str:
        return "; ".join(f.message for f in self.failures)


def provenance(source: str, positions: pa.Array, arrival: pa.Array | None = None) -> list[pa.Array]:
    """The three provenance columns for rows of one source, `positions` int64; `arrival` timestamp[us, UTC] or None (unknown)."""
    n = len(positions)
    codes = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), n), pa.array([source], pa.string()))
    return [codes, positions, pa.nulls(n, UTC_MICROS) if arrival is None else arrival]


def of_source(batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
    """`batch` marked as coming from the spec's source of that number: sources of one job share one PCollection."""
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), _SOURCE_NUMBER: str(number).encode()})


def source_number(batch: pa.RecordBatch) -> int:
    """The number that `of_source` gave; 0 without one."""
    return int((batch.schema.metadata or {}).get(_SOURCE_NUMBER, b"0"))


def dead_letters(
    rows: pa.RecordBatch, verdicts: list[Rejected], *, event_time: pa.Array | None = None, raw_format: str = ""
) -> pa.RecordBatch:
    """Dead letters for `rows` (provenance and `_raw` where present), one verdict per row, in DEAD_LETTERS' schema.

    Run, pipeline and contract are filled in by the dead-letter sink, which alone knows them.
    """
    n = rows.num_rows
    names = set(rows.schema.names)

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return rows.column(name).cast(kind) if name in names else pa.nulls(n, kind)

    known = {
        "source": column(SOURCE, pa.string()),
        "position": column(POSITION, pa.int64()),
        "stage": pa.array([v.stage for v in verdicts], pa.string()),
        "reason": pa.array([v.reason for v in verdicts], pa.string()),
        "message": pa.array([v.message for v in verdicts], pa.string()),
        "failures": _failures(verdicts),
        "raw": without_terminators(column(RAW, pa.binary())),
        "raw_format": pa.array([raw_format] * n, pa.string()),
        "event_time": pa.nulls(n, UTC_MICROS) if event_time is None else event_time,
        "arrival_time": column(ARRIVAL, UTC_MICROS),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in DEAD_LETTERS]
    return pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTERS)


def _failures(verdicts: list[Rejected]) -> pa.Array:
    """The verdicts' failures as a list column, built from flat columns: a dict per failure costs three times as much."""
    flat = [failure for verdict in verdicts for failure in verdict.failures]
    names, columns, messages = zip(*flat, strict=True) if flat else ((), (), ())
    values = pa.StructArray.from_arrays([pa.array(texts, pa.string()) for texts in (names, columns, messages)], fields=list(FAILURE))
    ends = [0]
    for verdict in verdicts:
        ends.append(ends[-1] + len(verdict.failures))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def without_terminators(raw: pa.Array) -> pa.Array:
    """Records without the line terminators in which their slices of a block end (see `formats.lines`)."""
    return pa.array([r if r is None else r.rstrip(b"\r\n") for r in raw.to_pylist()], pa.binary())  # rejected rows only
