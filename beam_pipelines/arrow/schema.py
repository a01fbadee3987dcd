"""The columns every batch carries besides the user's: provenance, raw bytes, dead letters, ledger counts.

    raw batch      provenance + `_raw` (text formats, messages)  |  provenance + the source's own columns (Parquet, Avro, ORC)
    row batch      provenance + `_raw` until validation + contract columns + computed columns + `_unknown`
    messages       MESSAGES: what a stream's source gives and the archive keeps
    dead letters   DEAD_LETTERS
    doors          DOORS: rows of a stream that left otherwise

A row's identity, `row_id`, is (`_source`, `_position`): the byte offset of a line, the ordinal of a record in a columnar
file, the message id of a message.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

SOURCE, POSITION, ARRIVAL, RAW, UNKNOWN = "_source", "_position", "_arrival_time", "_raw", "_unknown"
RUN_ID, CONTRACT, KEY_HASH = "_run_id", "_contract", "_key_hash"
MESSAGE_ID, ORDERING_KEY, PUBLISH_TIME, ATTRIBUTES = "_message_id", "_ordering_key", "_publish_time", "_attributes"
CHANGE = "_change"
"""Column of a stream's rows after `Deduplicate`, int8: +1 a row that stays, -1 one that a better copy has made a duplicate."""
LATE_RANK = "_late_rank"
"""Column of a stream's rows inside an aggregate: for which of their windows they are on time (`windowing.late_rank`). No row has it outside."""
STORED_AT = "_stored_at"
"""Column of rows, dead letters and doors in a speed layer: when the bundle came that stored them, by the machine's clock. Views hide it."""

UTC_MICROS = pa.timestamp("us", "UTC")
SOURCE_TYPE = pa.dictionary(pa.int32(), pa.string())
PROVENANCE = pa.schema([(SOURCE, SOURCE_TYPE), (POSITION, pa.int64()), (ARRIVAL, UTC_MICROS)])
PROVENANCE_NAMES = frozenset(PROVENANCE.names)
RAW_BATCH = pa.schema([*PROVENANCE, (RAW, pa.binary())])
RESERVED_PREFIX = "_"
_SOURCE_NUMBER, _ARCHIVED = b"source", b"archived"
_BINARY = {"avro"}  # formats whose records may end in the bytes of a line break

MESSAGES = pa.schema(
    [
        *RAW_BATCH,
        (MESSAGE_ID, pa.string()),
        (ORDERING_KEY, pa.string()),
        (PUBLISH_TIME, UTC_MICROS),
        (ATTRIBUTES, pa.map_(pa.string(), pa.string())),
    ]
)
DOORS = pa.schema([("source", pa.string()), ("position", pa.int64()), ("door", pa.string()), ("arrival_time", UTC_MICROS)])

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


class Reasons(NamedTuple):
    """The verdicts on several rows as columns of DEAD_LETTERS."""

    stage: pa.Array
    reason: pa.Array
    message: pa.Array
    failures: pa.Array

    @classmethod
    def of(cls, verdicts: list[Rejected]) -> Reasons:
        """From verdicts one by one."""
        flat = [failure for verdict in verdicts for failure in verdict.failures]
        names, columns, messages = zip(*flat, strict=True) if flat else ((), (), ())
        ends = list(accumulate((len(v.failures) for v in verdicts), initial=0))
        stages, reasons = pa.array([v.stage for v in verdicts], pa.string()), pa.array([v.reason for v in verdicts], pa.string())
        texts = [pa.array(t, pa.string()) for t in (names, columns, messages)]
        return cls.built(stages, reasons, texts[0], texts[1], texts[2], pa.array(ends, pa.int32()))

    @classmethod
    def built(cls, stage: pa.Array, reason: pa.Array, names: pa.Array, columns: pa.Array, messages: pa.Array, ends: pa.Array) -> Reasons:
        """From flat columns of failures, of which row i has those from `ends[i]` up to `ends[i + 1]`."""
        failures = pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays([names, columns, messages], fields=list(FAILURE)))
        return cls(stage, reason, pc.binary_join(pa.ListArray.from_arrays(ends, messages), "; "), failures)

    @classmethod
    def joined(cls, parts: list[Reasons], rows: pa.Array) -> Reasons:
        """The rows of those numbers, of all parts behind each other."""
        return cls(*(pa.concat_arrays(columns).take(rows) for columns in zip(*parts, strict=True)))

    def verdicts(self) -> list[Rejected]:
        """One by one again."""
        columns = zip(self.stage.to_pylist(), self.reason.to_pylist(), self.failures.to_pylist(), strict=True)
        return [Rejected(stage, reason, tuple(Failure(**f) for f in failures)) for stage, reason, failures in columns]


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


def as_archived(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` marked as coming from the archive, where it need not be stored again."""
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), _ARCHIVED: b"1"})


def is_archived(batch: pa.RecordBatch) -> bool:
    """Whether `as_archived` marked the batch."""
    return _ARCHIVED in (batch.schema.metadata or {})


def dead_letters(
    rows: pa.RecordBatch, verdicts: list[Rejected] | Reasons, *, event_time: pa.Array | None = None, raw_format: str = ""
) -> pa.RecordBatch:
    """Dead letters for `rows` (provenance and `_raw` where present), one verdict per row, in DEAD_LETTERS' schema.

    Run, pipeline and contract are filled in by the dead-letter sink, which alone knows them.
    """
    n = rows.num_rows
    names = set(rows.schema.names)
    reasons = verdicts if isinstance(verdicts, Reasons) else Reasons.of(verdicts)

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return rows.column(name).cast(kind) if name in names else pa.nulls(n, kind)

    known = {
        "source": column(SOURCE, pa.string()),
        "position": column(POSITION, pa.int64()),
        **reasons._asdict(),
        "raw": column(RAW, pa.binary()) if raw_format in _BINARY else without_terminators(column(RAW, pa.binary())),
        "raw_format": pa.array([raw_format] * n, pa.string()),
        "event_time": pa.nulls(n, UTC_MICROS) if event_time is None else event_time,
        "arrival_time": column(ARRIVAL, UTC_MICROS),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in DEAD_LETTERS]
    return pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTERS)


def without_terminators(raw: pa.Array) -> pa.Array:
    """Records without the line terminators in which their slices of a block end (see `formats.lines`)."""
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count, raw.offset)  # Arrow trims no binary
    return pc.ascii_rtrim(text, characters="\r\n").view(pa.binary())
