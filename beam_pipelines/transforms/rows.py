"""The edges of a row-wise job: rows to batches and back.

RecordBatch, Table      ─▶ batches ─▶ the contract's columns ─┐
… of raw records        ─┐                                    │
bytes, str, messages    ─┴▶ raw ─▶ Decode(format) ────────────┼─▶ rows
dicts, Rows, dataclasses ─▶ objects ─▶ Decode("json") ────────┘
anything else           ─▶ dead
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from beam_pipelines import metrics
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.message_positions import message_positions, micros_of
from beam_pipelines.arrow.program import Split, row_json
from beam_pipelines.arrow.schema import (
    ARRIVAL,
    CHANGE,
    POSITION,
    PROVENANCE,
    PROVENANCE_NAMES,
    RAW,
    SOURCE,
    UTC_MICROS,
    Failure,
    Rejected,
    dead_letters,
    provenance,
)  # fmt: skip
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.formats.columnar import roots
from beam_pipelines.formats.encoding import canonical
from beam_pipelines.formats.reader import DECODE
from beam_pipelines.stage_results import arriving, joined
from beam_pipelines.transforms.decode import Decode, Decoded
from beam_pipelines.transforms.row_records import Unreadable, members_of, record
from beam_pipelines.transforms.row_types import kind_of, row_hint, row_of
from beam_pipelines.transforms.stage import COUNTS, DEAD, TARGET_BYTES, TARGET_ROWS, counts_of

OBJECTS, BATCHES = "objects", "batches"
_COLUMNAR = ("parquet", "orc")
_RAW, _MESSAGES, _REFUSED = "raw", "messages", "refused"
_RECORDS = (bytes, str, PubsubMessage, pa.RecordBatch, pa.Table)
_EARLIEST = int(MIN_TIMESTAMP.micros)
_LATEST = int(GlobalWindow().max_timestamp().micros)


class FromRows(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows as decoded batches, ready for `Conform`, with a `read` count for the ledger. Bounded or endless.

    Takes dicts, `beam.Row`s, NamedTuples and dataclasses, which are read by the contract's names and paths; bytes, str and Beam's
    `PubsubMessage`s, which are records in `format`; RecordBatches and Tables, which keep their own columns, unless they hold raw records
    (`_raw`) in `format`, as those of `ReadPubsub` do. All kinds may come mixed. What is none of these, or holds a value that has no JSON
    form, is a dead letter DECODE that names column and Python type; a value never changes its meaning.

    Element timestamps become `_arrival_time` and come back with `ToRows`. A row's identity is (`_source`, `_position`): a message's is made
    of its id and publish time, with `source` as `_source`, so that it stays the same when it is delivered again; a RecordBatch that has
    the two columns keeps them; all others get new ones whenever a bundle is tried again.

    Raises SpecError for a columnar `format`.
    """

    def __init__(self, contract: Contract, *, format: str | dict[str, Any] | Any = "json", source: str = "rows") -> None:  # noqa: A002
        super().__init__()
        self.contract = contract
        self.source = source
        self._decode = Decode(contract, format, messages=True)
        self.format = self._decode.format
        if self.format.type in _COLUMNAR:
            raise SpecError(
                f"FromRows: format {self.format.type!r} is one of files; expected that of one record: json, csv, text or avro.",
                hint="RecordBatches need no format; read files with ReadFiles or Beam's ReadFromParquetBatched.",
            )

    def expand(self, rows: Any) -> Decoded:
        given, dead, counts = arriving(rows)
        encoding = canonical(getattr(self.format, "encoding", "utf-8"))
        apart = self.format.type != "json" or encoding != "utf-8"
        tags = {BATCHES: pa.RecordBatch, DEAD: pa.RecordBatch, COUNTS: Count} | ({OBJECTS: pa.RecordBatch} if apart else {})
        batch = beam.ParDo(_Batch(self.source, self.contract, counted=not counts, apart=apart, encoding=encoding)).with_output_types(
            pa.RecordBatch, **tags
        )
        split = given | "Batch" >> batch.with_outputs(*tags, main=_RAW)
        decoded = [split.raw | "Decode" >> self._decode, split.batches | "Pick" >> Decode(self.contract, "parquet")]
        if apart:
            decoded.append(split[OBJECTS] | "Objects" >> Decode(self.contract, "json"))
        every_rows, every_dead, every_counts = zip(*decoded, strict=True)
        return Decoded(
            joined(every_rows, "Rows"),
            joined([*dead, *every_dead, split.dead], "Dead"),
            joined([*counts, *every_counts, split.counts], "Counts"),
        )


class ToRows(beam.PTransform):  # type: ignore[misc]
    """Row batches as dicts (or `beam.Row`s), with their arrival time as element timestamp where it is known, in the windows they lie in.

    Of `schema`, a Contract or an Arrow schema, rows have exactly its columns, in its order; `beam.Row`s then have a Beam schema, which
    `SqlTransform`, `GroupBy` and transforms of other languages need: instants are Beam's Timestamps, structs are Rows. Without it a row has
    all columns of its batch, but for provenance, unless `provenance` is true.

    A loop over rows: the price of a row-wise edge. Rows without a column of `schema` raise SpecError, and so do rows of a stream's
    Deduplicate, which have `_change`, where `schema` leaves that out: those that are taken back would look like all others.
    """

    def __init__(self, schema: Contract | pa.Schema | None = None, *, as_rows: bool = False, provenance: bool = False) -> None:
        super().__init__()
        if schema is not None and not isinstance(schema, Contract | pa.Schema):
            raise SpecError(f"ToRows: schema: got {type(schema).__name__}; expected a Contract or a pyarrow.Schema.")
        self.schema = schema.arrow_schema() if isinstance(schema, Contract) else schema
        if self.schema is not None and provenance:
            self.schema = pa.schema([*PROVENANCE, *(f for f in self.schema if f.name not in PROVENANCE_NAMES)])
        self.as_rows = as_rows
        self.provenance = provenance

    def expand(self, batches: Any) -> beam.PCollection:
        rows, *_ = arriving(batches)
        unbatch = beam.ParDo(_Unbatch(self.schema, self.as_rows, self.provenance))
        if self.as_rows and self.schema is not None:
            unbatch = unbatch.with_output_types(row_hint({f.name: kind_of(f.type) for f in self.schema}))
        return rows | "Rows" >> unbatch


class _Open:
    """Rows of one kind and window that wait for company: records, element timestamps in microseconds, and for messages their identity."""

    __slots__ = ("bytes", "identities", "micros", "records", "why")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.micros: list[int] = []
        self.bytes = 0
        self.identities: list[tuple[str, int]] = []
        self.why: list[str] = []


class _Batch(beam.DoFn):  # type: ignore[misc]
    """Rows to raw batches, one open batch per kind and window, of at most `TARGET_ROWS` rows and about `TARGET_BYTES`; RecordBatches as they are."""

    def __init__(self, source: str, contract: Contract, *, counted: bool = True, apart: bool = False, encoding: str = "utf-8") -> None:
        self.source = source
        self.counted = counted
        self.objects = OBJECTS if apart else _RAW
        self.encoding = encoding
        self._roots = roots(contract)
        self._members = members_of(contract)

    def setup(self) -> None:
        # a user's own elements have no identity that survives a retry; this makes one that is unique
        self._name = f"{self.source}#{uuid.uuid4().hex[:12]}"
        self._position = 0

    def start_bundle(self) -> None:
        self._open: dict[str, dict[Any, _Open]] = {kind: {} for kind in (_RAW, OBJECTS, _MESSAGES, _REFUSED)}

    def process(self, row: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Iterable[Any]:
        micros = timestamp.micros
        if type(row) is not dict and isinstance(row, _RECORDS):
            return self._records(row, micros, window)
        try:
            return self._add(self.objects, window, record(row, self._members), micros)
        except Unreadable as error:
            return self._add(_REFUSED, window, _shown(row).encode("utf-8", "backslashreplace"), micros, why=str(error))

    def finish_bundle(self) -> Iterator[Any]:
        for kind, windows in self._open.items():
            for window, waiting in windows.items():
                yield from self._stamped(kind, window, waiting)
        self.start_bundle()

    def _records(self, row: Any, micros: int, window: Any) -> Iterable[Any]:
        if isinstance(row, bytes):
            return self._add(_RAW, window, row, micros)
        if isinstance(row, str):
            return self._text(row, micros, window)
        if isinstance(row, PubsubMessage):
            return self._message(row, micros, window)
        return [out for batch in (row.to_batches() if isinstance(row, pa.Table) else [row]) for out in self._batch(batch, micros)]

    def _text(self, row: str, micros: int, window: Any) -> Iterable[Any]:
        try:
            return self._add(_RAW, window, row.encode(self.encoding), micros)
        except UnicodeEncodeError:
            why = f"the text has characters that {self.encoding} has not"
            return self._add(_REFUSED, window, row.encode("utf-8", "backslashreplace"), micros, why=why)

    def _message(self, message: PubsubMessage, micros: int, window: Any) -> Iterable[Any]:
        published = micros if message.publish_time is None else micros_of(message.publish_time)
        arrival = micros if _EARLIEST < micros < _LATEST else published
        if not message.message_id:
            return self._add(_RAW, window, message.data or b"", arrival)
        return self._add(_MESSAGES, window, message.data or b"", arrival, identity=(message.message_id, published))

    def _add(
        self, kind: str, window: Any, record: bytes, micros: int, *, identity: tuple[str, int] | None = None, why: str = ""
    ) -> Iterable[Any]:
        waiting = self._open[kind].get(window)
        if waiting is None:
            waiting = self._open[kind][window] = _Open()
        waiting.records.append(record)
        waiting.micros.append(micros)
        waiting.bytes += len(record)
        if identity is not None:
            waiting.identities.append(identity)
        if why:
            waiting.why.append(why)
        if len(waiting.records) < TARGET_ROWS and waiting.bytes < TARGET_BYTES:
            return ()
        return self._stamped(kind, window, self._open[kind].pop(window))

    def _stamped(self, kind: str, window: Any, waiting: _Open) -> list[Any]:
        """One batch, with the earliest timestamp of its rows: the watermark must not pass rows that are on their way."""
        batch = self._flush(kind, waiting)
        stamp = Timestamp(micros=min(waiting.micros))
        outputs = [*self._doors(kind, batch, waiting.why), *self._counts(batch)]
        return [
            TaggedOutput(out.tag, WindowedValue(out.value, stamp, [window]))
            if isinstance(out, TaggedOutput)
            else WindowedValue(out, stamp, [window])
            for out in outputs
        ]

    def _doors(self, kind: str, batch: pa.RecordBatch, why: Sequence[str]) -> Iterator[Any]:
        if kind == _REFUSED:
            yield from self._letters(batch, why, "python")
        else:
            yield TaggedOutput(OBJECTS, batch) if kind == OBJECTS else batch

    def _flush(self, kind: str, waiting: _Open) -> pa.RecordBatch:
        """Provenance and `_raw`. Beam's beginning and end of time mean that an arrival is not known."""
        raw = pa.array(waiting.records, pa.binary())
        micros = np.array(waiting.micros, np.int64)
        arrival = pa.array(micros, mask=(micros <= _EARLIEST) | (micros >= _LATEST)).cast(UTC_MICROS)
        if kind == _MESSAGES:
            ids, published = zip(*waiting.identities, strict=True)
            positions = message_positions(pa.array(ids, pa.string()), np.array(published, np.int64))
            columns = provenance(self.source, pa.array(positions), arrival)
        else:
            columns = provenance(self._name, self._positions(len(raw)), arrival)
        return pa.RecordBatch.from_arrays([*columns, raw], names=[*PROVENANCE.names, RAW])

    def _batch(self, given: pa.RecordBatch, micros: int) -> Iterator[Any]:
        """A RecordBatch goes on as it is: with columns that the contract reads, as raw records, or out."""
        batch = self._identified(given, micros)
        yield from self._counts(batch)
        if not self._roots or not self._roots.isdisjoint(given.schema.names):
            yield TaggedOutput(BATCHES, batch)
        elif RAW in given.schema.names:
            yield batch
        else:
            found, wanted = (", ".join(sorted(names)) or "none" for names in (given.schema.names, self._roots))
            why = f"the batch has none of the contract's columns ({wanted}); it has {found}"
            yield from self._letters(batch.append_column(RAW, row_json(batch)), [why] * batch.num_rows, "row")

    def _letters(self, refused: pa.RecordBatch, why: Sequence[str], raw_format: str) -> Iterator[Any]:
        if not refused.num_rows:
            return
        letters = dead_letters(refused, [Rejected("decode", DECODE, (Failure("decode", "", text),)) for text in why], raw_format=raw_format)
        metrics.count("rows_dead", letters.num_rows)
        yield TaggedOutput(DEAD, letters)
        yield from (TaggedOutput(COUNTS, c) for c in counts_of(refused, Split(refused.slice(0, 0), letters, 0, {})))

    def _counts(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """What was read, unless the source itself has counted it."""
        if self.counted:
            for source, rows in rows_by_source(batch).items():
                yield TaggedOutput(COUNTS, (unit_of(batch), source, "read", "", rows))

    def _identified(self, batch: pa.RecordBatch, micros: int) -> pa.RecordBatch:
        """`batch` with all provenance: an identity of its own is kept, an arrival that it lacks is that of the element."""
        names = batch.schema.names
        known = SOURCE in names and POSITION in names
        if known and ARRIVAL in names:
            return batch
        arrival = pa.array([micros if _EARLIEST < micros < _LATEST else None] * batch.num_rows, pa.int64()).cast(UTC_MICROS)
        if known:
            return batch.append_column(ARRIVAL, arrival)
        own = [n for n in names if n not in PROVENANCE_NAMES]
        columns = provenance(self._name, self._positions(batch.num_rows), batch.column(ARRIVAL) if ARRIVAL in names else arrival)
        fields = [pa.field(n, c.type) for n, c in zip(PROVENANCE.names, columns, strict=True)] + [batch.schema.field(n) for n in own]
        schema = pa.schema(fields, batch.schema.metadata)
        return pa.RecordBatch.from_arrays([*columns, *(batch.column(n) for n in own)], schema=schema)

    def _positions(self, rows: int) -> pa.Array:
        first, self._position = self._position, self._position + rows
        return pa.array(np.arange(first, first + rows))


def _shown(row: Any) -> str:
    try:
        return repr(row)
    except Exception:  # lists too deep, a number of too many digits, a __repr__ of somebody else's
        return f"<{type(row).__name__}>"


class _Unbatch(beam.DoFn):  # type: ignore[misc]
    def __init__(self, schema: pa.Schema | None, as_rows: bool, provenance: bool) -> None:
        self.schema = schema
        self.as_rows = as_rows
        self.provenance = provenance

    def setup(self) -> None:
        self._kinds = {f.name: kind_of(f.type) for f in self.schema} if self.as_rows and self.schema is not None else None

    def process(
        self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        arrivals = batch.column(ARRIVAL).cast(pa.int64()).to_pylist() if ARRIVAL in batch.schema.names else [None] * batch.num_rows
        windows = [window]
        for values, arrival in zip(batch.select(self._names(batch)).to_pylist(), arrivals, strict=True):
            row = values if not self.as_rows else beam.Row(**values) if self._kinds is None else row_of(values, self._kinds)
            yield row if arrival is None else WindowedValue(row, Timestamp(micros=arrival), windows)  # a TimestampedValue changes windows

    def _names(self, batch: pa.RecordBatch) -> list[str]:
        names: list[str] = batch.schema.names
        if self.schema is None:
            return [n for n in names if self.provenance or n not in PROVENANCE_NAMES | {RAW}]
        if CHANGE in names and CHANGE not in self.schema.names:
            raise SpecError(
                f"ToRows: the rows have {CHANGE}, which says of each whether it stays or is taken back; the schema has no such column.",
                hint="Add it to the schema, as int8, or write Deduplicate(changes=False).",
            )
        for name in self.schema.names:
            if name not in names:
                raise SpecError(f"ToRows: the rows have no column {name!r}.", hint=nearest(name, names))
        return list(self.schema.names)
