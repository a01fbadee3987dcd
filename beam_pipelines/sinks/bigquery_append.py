"""What a stream appends to BigQuery while its bundles run: rows, panes or dead letters, from RecordBatches to requests without a loop over rows.

    batch ─▶ mask ─▶ limits ─▶ the table's types ─▶ requests, several in flight ─▶ the bundle ends: all is stored, and seen
                        └─ rows that BigQuery refuses: dead letters

    at_least_once    TABLE_speed    the default stream: rows are seen at once, and a bundle that failed may have left some
    exactly_once     TABLE_speed    a stream with offsets: a bundle's rows are seen all or none, a repeated request adds nothing
    upsert           TABLE_speed    changes by key, as protobuf: the newest version wins

A bundle that a runner repeats after it was stored is stored again: readers take each (`_source`, `_position`) once, as from the files of the speed layer.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from beam_pipelines import metrics
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.masking import mask_columns
from beam_pipelines.arrow.panes import EPOCH, PANE_INDEX
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, CONTRACT, KEY_HASH, POSITION, RAW, RUN_ID, STORED_AT, UTC_MICROS
from beam_pipelines.bigquery_service import client, where, where_grpc
from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.sinks.bigquery_appender import Appender, Appending, ArrowRows, Ints, batches_of
from beam_pipelines.sinks.bigquery_calls import Writing
from beam_pipelines.sinks.bigquery_encoding import REQUEST_BYTES, REQUEST_ROWS, wire
from beam_pipelines.sinks.bigquery_limits import in_known_years, limits
from beam_pipelines.sinks.bigquery_rows import PSEUDO, changes, proto_rows, sequence_numbers
from beam_pipelines.sinks.bigquery_schema import Field, fields_of
from beam_pipelines.sinks.bigquery_tables import ensure_table
from beam_pipelines.sinks.dead_letters import CompleteLetters
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.write import DEAD, Masking, refused_letters, sql_schema
from beam_pipelines.spec.sinks import LETTERS, ROWS, BigQuerySink

APPENDED, TAKEN = "appended", "taken"
SPEED = "_speed"
"""Ending of the table that a stream appends to."""
_WINDOW_START = "_window_start"
_RAW_BYTES = 8 << 20  # of a letter: a row with more would not fit into a request
_NOT_WRITTEN = frozenset({RAW, KEY_HASH, RUN_ID, CONTRACT, CHANGE})
_STAMPED = frozenset({ROWS, LETTERS})
Mask = npt.NDArray[np.bool_]


class Appended(NamedTuple):
    """`files`: an element per bundle whose rows are stored, for `Progress`; `dead` letters of rows that BigQuery refuses; `taken` are all others, as they came, when their bundle
    is stored: whoever writes these and no more to the files of the same output lets each row leave by one door."""

    files: beam.PCollection
    dead: beam.PCollection
    taken: beam.PCollection


@dataclass(frozen=True)
class _Settings:
    """All a worker needs to append an output."""

    sink: BigQuerySink
    label: str
    of: str
    constants: tuple[tuple[str, str], ...]
    masking: Masking | None = field(default=None, compare=False)
    event_time: str | None = None
    key: tuple[str, ...] = ()
    versions: DeduplicateRule | None = None
    required: tuple[str, ...] = ()
    descriptions: tuple[tuple[str, str], ...] = ()
    rest: str | None = None
    grpc: str = ""

    @property
    def upserts(self) -> bool:
        return self.sink.mode == "upsert" and self.of != LETTERS  # a letter has no key: it is appended

    @property
    def table(self) -> str:
        return self.sink.table + SPEED


class AppendToBigQuery(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Appends rows or panes to a table. Takes a PCollection of RecordBatch, gives `Appended(files, dead, taken)`.

    `key` is the contract's, or an aggregate's `group_by`; `versions` says, for upserts, which version of a key is the newest (default: the latest arrival). `required` and `descriptions` are for
    the table, where it is made.

    Raises on the worker: SinkError where there is no dataset, no permission, no credentials, another type or another partitioning of the table; TransientError where the service
    does not answer for five minutes. Here: SpecError where an upsert has no key, or one that is masked away.
    """

    def __init__(
        self, sink: BigQuerySink, *, label: str, run: RunInfo, of: str = ROWS, masking: Masking | None = None, event_time: str | None = None,
        key: Sequence[str] = (), versions: DeduplicateRule | None = None, required: Sequence[str] = (),
        descriptions: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        constants = ((RUN_ID, run.run_id), (CONTRACT, run.contract)) if of == ROWS else ()
        self.settings = _Settings(
            sink, label, of, constants, masking, event_time, _key(key, of), versions, tuple(required),
            tuple((descriptions or {}).items()), where(sink.endpoint), where_grpc(sink.grpc_endpoint),
        )  # fmt: skip
        self.table = self.settings.table
        if self.settings.upserts:
            _check_key(self.settings)

    def expand(self, rows: beam.PCollection) -> Appended:
        done = rows | "Append" >> beam.ParDo(_Append(self.settings)).with_outputs(DEAD, TAKEN, main=APPENDED)
        done[DEAD].element_type = done[TAKEN].element_type = pa.RecordBatch
        return Appended(done[APPENDED], done[DEAD], done[TAKEN])


class AppendDeadLettersToBigQuery(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Completes, masks and appends dead letters; raw bytes of more than 8 MB are left out. Gives what `AppendToBigQuery` gives; a letter that is refused has no letter: it is
    in the files."""

    def __init__(
        self, sink: BigQuerySink, *, run: RunInfo, contract: Contract, raw_key: Callable[[], str | bytes | None] | None = None, label: str = LETTERS,
    ) -> None:  # fmt: skip
        super().__init__()
        self._complete = CompleteLetters(run, contract, raw_key)
        self._append = AppendToBigQuery(sink, label=label, run=run, of=LETTERS)
        self.table = self._append.table

    def expand(self, letters: beam.PCollection) -> Appended:
        complete = letters | "Complete" >> beam.ParDo(self._complete).with_output_types(pa.RecordBatch)
        done: Appended = complete | "Send" >> self._append
        return done


def _key(key: Sequence[str], of: str) -> tuple[str, ...]:
    return tuple(key) if of == ROWS else (*key, _WINDOW_START)


def _check_key(settings: _Settings) -> None:
    if not settings.key:
        raise SpecError(
            f"sink '{settings.label}': mode upsert needs a key.", hint="Set contract.key, or choose mode at_least_once or exactly_once."
        )
    masked = settings.masking.how if settings.masking is not None else {}
    lost = [name for name in settings.key if masked.get(name) in ("drop", "redact")]
    if lost:
        raise SpecError(
            f"sink '{settings.label}': mode upsert: key column {lost[0]!r} is `sensitive: {masked[lost[0]]}`, so rows have no key.",
            hint="Use hmac: equal values stay equal.",
        )


class _Append(beam.DoFn):  # type: ignore[misc]
    """Requests go out while the bundle runs; it ends when all its rows are stored, and then says which were refused."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._secret: bytes | None = None
        self._bundle: Appending | None = None

    def setup(self) -> None:
        if self._settings.masking is not None:
            self._secret = self._settings.masking.secret()

    def start_bundle(self) -> None:
        if self._bundle is not None:
            self._bundle.drop()
        self._table = _table_of(self._settings)
        self._bundle = self._table.appender.bundle()
        self._given: list[tuple[pa.RecordBatch, Any]] = []
        self._adds: dict[int, int] = {}  # which of the bundle's requests has rows of which batch
        self._refused: dict[int, dict[int, str]] = {}  # by batch: rows and why
        self._rows = 0
        self._stamp = pa.scalar(time.time_ns() // 1000, pa.int64()).cast(UTC_MICROS)

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        if not batch.num_rows:
            return
        number = len(self._given)
        self._given.append((batch, timestamp))
        fresh = self._fresh(batch)
        for first in range(0, len(fresh), REQUEST_ROWS):
            self._add(number, fresh[first : first + REQUEST_ROWS])

    def finish_bundle(self) -> Iterator[Any]:
        assert self._bundle is not None
        for request, why in batches_of(self._bundle.finish()):
            self._refused.setdefault(self._adds[request], {}).update(why)
        name = self._settings.label
        metrics.count(f"{name}_appended", self._rows - sum(map(len, self._refused.values())))
        for number, (batch, timestamp) in enumerate(self._given):
            yield from self._outcome(batch, timestamp, self._refused.get(number, {}))
        if self._given:
            yield _at((APPENDED, name), min(timestamp for _, timestamp in self._given))
        self._given = []

    def _outcome(self, batch: pa.RecordBatch, timestamp: Any, refused: Mapping[int, str]) -> Iterator[Any]:
        """What became of a batch. A letter that is refused has no letter: it is in the files."""
        taken = batch
        if refused and self._settings.of != LETTERS:
            order = sorted(refused)
            letters = refused_letters(
                self._settings.label, batch.take(pa.array(order)), [refused[r] for r in order], self._settings.event_time
            )
            yield TaggedOutput(DEAD, _at(letters, timestamp))
            taken = batch.take(pa.array(np.setdiff1d(np.arange(batch.num_rows), order)))
        if taken.num_rows:
            yield TaggedOutput(TAKEN, _at(taken, timestamp))

    def _fresh(self, batch: pa.RecordBatch) -> Ints:
        """The rows that are appended: all but retractions, which upserts alone must hear of, and only some of these."""
        gone = _gone(batch)
        if gone is None or (self._settings.upserts and self._takes_back):
            return np.arange(batch.num_rows)
        return np.flatnonzero(~gone)

    @property
    def _takes_back(self) -> bool:
        """Whether a duplicate may have another key than the row that is better: else the better one has replaced it, or will."""
        versions = self._settings.versions
        return versions is not None and versions.key is not None and set(versions.key) != set(self._settings.key)

    def _add(self, number: int, places: Ints) -> None:
        """Sends those rows of a batch that the table takes."""
        assert self._bundle is not None
        masking = self._settings.masking
        given = _taken(self._given[number][0], places)
        shown = self._written(given if masking is None else mask_columns(given, masking.how, key=self._secret))
        fields = self._table.fields(shown.schema)
        refused = limits(shown, fields)
        self._rows += len(places)
        if refused:
            self._refused.setdefault(number, {}).update({int(places[row]): why for row, why in refused.items()})
            kept = np.setdiff1d(np.arange(len(places)), np.fromiter(refused, np.int64))
            given, shown, places = given.take(pa.array(kept)), shown.take(pa.array(kept)), places[kept]
        if len(places):
            sent = wire(shown, fields, where=self._settings.table)
            added = self._upsert(given, sent, fields, places) if self._settings.upserts else self._bundle.add(ArrowRows(sent), places)
            self._adds[added] = number

    def _upsert(self, given: pa.RecordBatch, sent: pa.RecordBatch, fields: Sequence[Field], places: Ints) -> int:
        assert self._bundle is not None
        gone = _gone(given)
        by_name = {f.name: f for f in fields}
        own = [by_name[name] for name in sent.schema.names]
        rows = proto_rows(changes(sent, None if gone is None else pa.array(gone), self._sequence(given, gone)), [*own, *PSEUDO])
        return self._bundle.add(rows, places, rows.cut(REQUEST_BYTES, REQUEST_ROWS))

    def _sequence(self, given: pa.RecordBatch, gone: Mask | None) -> pa.Array:
        """Of panes the start of the stream and the number in it. Of rows: the order of versions, the arrival, the place; then that a retraction counts more than what it takes back."""
        if self._settings.of != ROWS:
            return sequence_numbers([given.column(EPOCH), given.column(PANE_INDEX)])
        versions = self._settings.versions or DeduplicateRule()
        order_by = versions.order_by if versions.order_by in given.schema.names else ARRIVAL
        last = pa.array(np.zeros(len(given), np.int64) if gone is None else gone.astype(np.int64))
        columns = [given.column(order_by), given.column(ARRIVAL), given.column(POSITION), last]
        return sequence_numbers(columns, oldest=versions.keep == "oldest")

    def _written(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of the table: what files of the speed layer have."""
        names = [n for n in batch.schema.names if n not in _NOT_WRITTEN or (n in (RUN_ID, CONTRACT) and not self._settings.constants)]
        shown = batch.select(names)
        for name, value in self._settings.constants:
            shown = shown.append_column(name, pa.repeat(pa.scalar(value), batch.num_rows))
        if self._settings.of == LETTERS:
            raw = shown.column("raw")
            small = pc.fill_null(pc.less_equal(pc.binary_length(raw), _RAW_BYTES), True)
            shown = shown.set_column(names.index("raw"), "raw", pc.if_else(small, raw, pa.scalar(None, raw.type)))
            for name in ("event_time", "arrival_time"):
                shown = shown.set_column(names.index(name), name, in_known_years(shown.column(name)))
        if self._settings.of in _STAMPED:
            shown = shown.append_column(STORED_AT, pa.repeat(self._stamp, batch.num_rows))
        return shown


class _Table:
    """A table as this process knows it, for all threads: its columns, and who appends to it."""

    def __init__(self, settings: _Settings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._known: dict[pa.Schema, tuple[Field, ...]] = {}
        self._wanted: dict[tuple[tuple[str, str], ...], tuple[Field, ...]] = {}
        self._who = f"sinks: {settings.table}"
        self.appender = Appender(
            settings.table, Writing(settings.table, settings.grpc, who=self._who), settings.sink.mode == "exactly_once",
            grow=self._grow, seen=lambda _: self._known.clear(),
        )  # fmt: skip

    def fields(self, schema: pa.Schema) -> tuple[Field, ...]:
        """The table's columns, for rows with this schema; it is made or grown before the first of them."""
        found = self._known.get(schema)
        if found is not None:
            return found
        with self._lock:
            found = self._known.get(schema)
            if found is None:
                columns = sql_schema(schema)
                settings = self._settings
                self._wanted[columns] = fields_of(columns, required=settings.required, descriptions=dict(settings.descriptions))
                found = self._known[schema] = self._ensure(self._wanted[columns])
            return found  # another thread, which has heard of a change, may forget it again

    def _ensure(self, wanted: tuple[Field, ...]) -> tuple[Field, ...]:
        settings, sink = self._settings, self._settings.sink
        rest = client(sink.table.rsplit(".", 2)[0], settings.rest, who=self._who, error=SinkError, location=sink.location)
        try:
            table = ensure_table(
                rest, settings.table, wanted, partition_by=sink.partition_by, cluster_by=sink.cluster_by, partition_expiration=sink.partition_expiration,
                require_partition_filter=sink.require_partition_filter, primary_key=settings.key if settings.upserts else (),
                max_staleness=sink.max_staleness if settings.upserts else None,
            )  # fmt: skip
        finally:
            rest.close()
        self.appender.new = self.appender.new or table.made
        return table.fields

    def _grow(self) -> bool:
        with self._lock:
            before = set(self._known.values())
            after = [self._ensure(wanted) for wanted in self._wanted.values()]
            self._known.clear()
            return any(fields not in before for fields in after)


_tables: dict[_Settings, _Table] = {}
_tables_lock = threading.Lock()


def _table_of(settings: _Settings) -> _Table:
    with _tables_lock:
        found = _tables.get(settings)
        if found is None:
            found = _tables[settings] = _Table(settings)
        return found


def close_appenders() -> None:
    """Ends the connections that this process keeps between bundles; the next bundle makes its own."""
    with _tables_lock:
        tables = list(_tables.values())
        _tables.clear()
    for table in tables:
        with suppress(Exception):
            table.appender.close()


atexit.register(close_appenders)


def _taken(batch: pa.RecordBatch, places: Ints) -> pa.RecordBatch:
    """The rows at these ascending places; a slice where they lie side by side, which costs nothing."""
    n = len(places)
    return batch.slice(int(places[0]), n) if places[-1] - places[0] == n - 1 else batch.take(pa.array(places))


def _gone(batch: pa.RecordBatch) -> Mask | None:
    """Which rows take back one that was appended; None where none does."""
    if CHANGE not in batch.schema.names:
        return None
    gone = np.asarray(batch.column(CHANGE)) < 0
    return gone if gone.any() else None


def _at(value: Any, timestamp: Any) -> WindowedValue:
    return WindowedValue(value, timestamp, [GlobalWindow()])
