"""The edges of a row-wise job: rows to batches and back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import msgspec
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue, WindowedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, PROVENANCE, PROVENANCE_NAMES, RAW, SOURCE, UTC_MICROS, provenance
from beam_pipelines.transforms.decode import Decode, Decoded
from beam_pipelines.transforms.stage import TARGET_ROWS

_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


class FromRows(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Dicts, `beam.Row`s, NamedTuples, bytes, str or RecordBatches as decoded batches, ready for `Conform`.

    Mappings and rows are read by the contract's names and paths; bytes and str are records in `format`; a RecordBatch keeps its own
    columns. Element timestamps become `_arrival_time` and come back with `ToRows`. A row that cannot be read is a dead letter (DECODE).
    """

    def __init__(self, contract: Contract, *, format: str | dict[str, Any] | Any = "json", source: str = "rows") -> None:  # noqa: A002
        super().__init__()
        self.contract = contract
        self.format = format
        self.source = source

    def expand(self, rows: beam.PCollection) -> Decoded:
        split = rows | "Batch" >> beam.ParDo(_Batch(self.source)).with_output_types(pa.RecordBatch, batches=pa.RecordBatch).with_outputs(
            "batches", main="raw"
        )
        raw = split.raw | "Decode" >> Decode(self.contract, self.format)
        batches = split.batches | "Pick" >> Decode(self.contract, "parquet")
        return Decoded(*((a, b) | f"All{n}" >> beam.Flatten() for n, a, b in zip(("Rows", "Dead", "Counts"), raw, batches, strict=True)))


class ToRows(beam.PTransform):  # type: ignore[misc]
    """Row batches as dicts (or `beam.Row`s), with their arrival time as element timestamp where it is known.

    Provenance columns are left out unless `provenance` is true. This is a loop over rows: the price of a row-wise edge.
    """

    def __init__(self, *, as_rows: bool = False, provenance: bool = False) -> None:
        super().__init__()
        self.as_rows = as_rows
        self.provenance = provenance

    def expand(self, batches: Any) -> beam.PCollection:
        rows = batches if isinstance(batches, beam.PCollection) else batches[0]
        return rows | "Rows" >> beam.ParDo(_Unbatch(self.as_rows, self.provenance))


class _Batch(beam.DoFn):  # type: ignore[misc]
    """Rows to raw batches, one open batch per window; RecordBatches pass to the output `batches` with provenance added."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._open: dict[Any, list[tuple[bytes, int | None]]] = {}

    def setup(self) -> None:
        # a user's own elements have no identity that survives a retry; this makes one that is unique
        self._name = f"{self.source}#{uuid.uuid4().hex[:12]}"
        self._position = 0

    def start_bundle(self) -> None:
        self._open = {}

    def process(self, row: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Iterator[Any]:
        if isinstance(row, pa.RecordBatch):
            yield beam.pvalue.TaggedOutput("batches", self._identified(row, timestamp))
            return
        waiting = self._open.setdefault(window, [])
        waiting.append((_record(row), _micros(timestamp)))
        if len(waiting) >= TARGET_ROWS:
            yield self._stamped(window, self._open.pop(window))

    def finish_bundle(self) -> Iterator[Any]:
        for window, waiting in self._open.items():
            yield self._stamped(window, waiting)
        self._open = {}

    def _stamped(self, window: Any, waiting: list[tuple[bytes, int | None]]) -> WindowedValue:
        """One batch, with the earliest timestamp of its rows: the watermark must not pass rows that are on their way."""
        earliest = min((t for _, t in waiting if t is not None), default=None)
        stamp = window.max_timestamp() if earliest is None and window.max_timestamp() < MAX_TIMESTAMP else MIN_TIMESTAMP
        return WindowedValue(self._flush(waiting), stamp if earliest is None else Timestamp(micros=earliest), [window])

    def _flush(self, waiting: list[tuple[bytes, int | None]]) -> pa.RecordBatch:
        raw = pa.array([r for r, _ in waiting], pa.binary())
        arrival = pa.array([t for _, t in waiting], pa.int64()).cast(UTC_MICROS)
        return pa.RecordBatch.from_arrays(
            [*provenance(self._name, self._positions(len(waiting)), arrival), raw], names=[*PROVENANCE.names, RAW]
        )

    def _identified(self, batch: pa.RecordBatch, timestamp: Any) -> pa.RecordBatch:
        if SOURCE in batch.schema.names and POSITION in batch.schema.names and ARRIVAL in batch.schema.names:
            return batch
        own = [n for n in batch.schema.names if n not in PROVENANCE_NAMES]
        arrival = pa.array([_micros(timestamp)] * batch.num_rows, pa.int64()).cast(UTC_MICROS)
        columns = [*provenance(self._name, self._positions(batch.num_rows), arrival), *(batch.column(n) for n in own)]
        return pa.RecordBatch.from_arrays(columns, names=[*PROVENANCE.names, *own])

    def _positions(self, rows: int) -> pa.Array:
        first, self._position = self._position, self._position + rows
        return pa.array(range(first, first + rows), pa.int64())


class _Unbatch(beam.DoFn):  # type: ignore[misc]
    def __init__(self, as_rows: bool, provenance: bool) -> None:
        self.as_rows = as_rows
        self.provenance = provenance

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        arrivals = batch.column(ARRIVAL).cast(pa.int64()).to_pylist() if ARRIVAL in batch.schema.names else [None] * batch.num_rows
        names = [n for n in batch.schema.names if self.provenance or n not in PROVENANCE_NAMES | {RAW}]
        for row, arrival in zip(batch.select(names).to_pylist(), arrivals, strict=True):
            value = beam.Row(**row) if self.as_rows else row
            yield value if arrival is None else TimestampedValue(value, Timestamp(micros=arrival))


def _record(row: Any) -> bytes:
    """A row as the bytes a decoder reads; what cannot be encoded becomes bytes the decoder rejects, with its text."""
    if isinstance(row, bytes):
        return row
    if isinstance(row, str):
        return row.encode()
    if hasattr(row, "_asdict"):  # NamedTuple and beam.Row
        row = row._asdict()
    if not isinstance(row, Mapping):
        raise TypeError(f"FromRows takes mappings, beam.Rows, NamedTuples, bytes, str or RecordBatches; got {type(row).__name__}")
    try:
        return _ENCODER.encode(dict(row))
    except Exception:
        return repr(row).encode()


def _micros(timestamp: Any) -> int | None:
    """An element timestamp in microseconds; None for Beam's beginning and end of time, which mean that it is not known."""
    known = MIN_TIMESTAMP < timestamp < MAX_TIMESTAMP
    return int(timestamp.micros) if known else None
