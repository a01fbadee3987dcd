"""Lookup tables from files, BigQuery and databases, read once per worker process when the first batch asks for them."""

from __future__ import annotations

import io
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import fastavro
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.orc
import pyarrow.parquet

from beam_pipelines.arrow.conform import conform_batch
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.engine import as_batch
from beam_pipelines.arrow.enrich import LookupTable, lookup_table
from beam_pipelines.errors import RunError, SourceError, SpecError, TransientError, nearest
from beam_pipelines.formats.compression import codec_of, decompress
from beam_pipelines.formats.options import CsvFormat, Format
from beam_pipelines.formats.reader import DamagedStream
from beam_pipelines.places import open_read
from beam_pipelines.pubsub_service import back_off_s
from beam_pipelines.sources.bigquery_session import changed, read_table
from beam_pipelines.sources.database_whole import open_whole, read_whole
from beam_pipelines.sources.files import list_files, list_versions
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import AnyLookup, BigQueryLookup, DatabaseLookup, LookupSource

_LOG = logging.getLogger(__name__)
_MAX_EXPANSION = 1000
_PATIENCE_S = 120.0  # with a service that does not answer
_PATIENCE_DATABASE_S = 30.0  # with a server that does not, as while it restarts
_PATIENCE_HELD_S = 5.0  # where a table is held, and rows wait for another
_MOST = 16  # tables held by a process


@dataclass(frozen=True)
class FileLookup:
    """A lookup's files, or its table or query of BigQuery or of a database; calling it gives the table, the same object for all batches of a worker process.

    `job` tells the jobs of one process apart: each reads the files anew, and runs a query once for all its workers. An `endless` job reads them again after the
    lookup's `refresh`; files that cannot be read then leave the table as it was, with a warning, until they can.
    """

    name: str
    source: AnyLookup
    job: str = field(default_factory=lambda: uuid.uuid4().hex)
    endless: bool = False

    def __call__(self) -> LookupTable:
        key = (self.name, self.job)
        with _lock:
            held = _held.get(key)
            if held is None or (self._due_s is not None and time.monotonic() - held.read_s >= self._due_s):
                held = _held[key] = _Held(self._read(held), time.monotonic())
                _held.move_to_end(key)
                while len(_held) > _MOST:
                    _held.popitem(last=False)
        return held.table

    @property
    def _due_s(self) -> float | None:
        return self.source.refresh / 1e6 if self.endless and self.source.refresh is not None else None

    @property
    def _job(self) -> str:
        """Names the query's job: workers that read within one `refresh` share its answer."""
        due_s = self._due_s
        return self.job if due_s is None else f"{self.job}-{int(time.time() // due_s)}"

    def _read(self, held: _Held | None) -> LookupTable:
        try:
            return _loaded(self.name, self.source, self._job, _PATIENCE_S if held is None else _PATIENCE_HELD_S)
        except (RunError, SpecError) as error:
            if held is None:
                raise
            what = "files" if isinstance(self.source, LookupSource) else "table"
            _LOG.warning("lookup '%s' stays as it was, its %s cannot be read: %s", self.name, what, error)
            return held.table


def lookups_of(spec: PipelineSpec, *, endless: bool = False) -> dict[str, FileLookup]:
    """What opens each lookup of `spec`, by name; an `endless` job refreshes them."""
    return {name: FileLookup(name, source, endless=endless) for name, source in spec.lookups.items()}


def versions_of(spec: PipelineSpec, lookups: Mapping[str, FileLookup]) -> tuple[tuple[str, str], ...]:
    """Name and `LookupTable.version` of each lookup that a transform takes columns from; read for it where this process has not yet."""
    taken = {step.lookup.from_ for step in spec.transform if step.lookup is not None}
    return tuple((name, lookups[name]().version) for name in sorted(taken))


def state_of(source: AnyLookup) -> object:
    """What differs when the lookup's content may: its files as they are, when its table of BigQuery was changed; of a query there that is not known, and it is never
    the same. A database does not say when a table was changed: it is read."""
    if isinstance(source, BigQueryLookup):
        return changed(source, who="lookups") or uuid.uuid4().hex
    if isinstance(source, DatabaseLookup):
        return _loaded(source.table or "query", source, "", _PATIENCE_S).version
    return list(list_versions(source.patterns).items())


class _Held(NamedTuple):
    """A table, and when it was read (seconds of the monotonic clock)."""

    table: LookupTable
    read_s: float


_lock = threading.Lock()
_held: OrderedDict[tuple[str, str], _Held] = OrderedDict()


def _loaded(name: str, source: AnyLookup, job: str, patience_s: float) -> LookupTable:
    table = as_batch(_rows(name, source, job, patience_s))
    return lookup_table(_typed(table, source.columns or {}, name), name=name, key=source.keys, duplicates=source.duplicates)


def _rows(name: str, source: AnyLookup, job: str, patience_s: float) -> pa.Table:
    if isinstance(source, BigQueryLookup):
        return read_table(source, who=f"lookup '{name}'", job=job, patience_s=patience_s)
    if isinstance(source, DatabaseLookup):
        return _from_database(source, f"lookup '{name}': {source.name}", min(patience_s, _PATIENCE_DATABASE_S))
    tables = [_read(path, size, source.format, name) for path, size in list_files(source.patterns)]
    return pa.concat_tables(tables, promote_options="permissive")


def _from_database(source: DatabaseLookup, at: str, patience_s: float) -> pa.Table:
    """All rows, read again from the first where the server does not answer or the connection breaks: a worker of a stream begins while it restarts."""
    begun_s, failures = time.monotonic(), 0
    while True:
        try:
            return read_whole(open_whole(source, at))
        except TransientError as error:
            if time.monotonic() - begun_s >= patience_s:
                raise
            failures += 1
            if failures == 1:
                _LOG.warning("%s It is asked again for %.0f s.", error.message, patience_s)
            time.sleep(back_off_s(failures))


def _read(path: str, size: int, fmt: Format, name: str) -> pa.Table:
    try:
        codec = codec_of(path, "auto")
        with open_read(path) as raw:
            stream = raw if codec is None else decompress(raw, codec, max_expansion=_MAX_EXPANSION, compressed_size=size)
            return _READERS[fmt.type](stream, fmt)
    except OSError as error:
        raise SourceError(f"lookup '{name}': {path}: cannot be read: {error}") from error
    except DamagedStream as error:
        raise RunError(f"lookup '{name}': {path}: {error}.", hint="A lookup is read whole or not at all: repair the file.") from error
    except (pa.ArrowException, ValueError) as error:
        raise RunError(
            f"lookup '{name}': {path}: is no valid {fmt.type} file: {error}", hint="A lookup is read whole or not at all."
        ) from error


def _csv(stream: BinaryIO, fmt: Format) -> pa.Table:
    if not isinstance(fmt, CsvFormat):
        raise SpecError(f"a lookup's format: got {fmt.type}; expected csv, json, parquet, avro or orc")
    content = stream.read()
    read = pyarrow.csv.ReadOptions(
        encoding=fmt.encoding, skip_rows=fmt.skip_rows, autogenerate_column_names=not fmt.header and fmt.columns is None,
        column_names=list(fmt.columns) if fmt.columns and not fmt.header else None,
    )  # fmt: skip
    parse = pyarrow.csv.ParseOptions(
        delimiter=fmt.delimiter, quote_char=fmt.quote or False, escape_char=fmt.escape or False, newlines_in_values=fmt.multiline
    )
    header = pyarrow.csv.open_csv(io.BytesIO(content), read_options=read, parse_options=parse).schema.names
    texts = {column: pa.string() for column in header}  # a type is never guessed: "007" stays "007"
    convert = pyarrow.csv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
    return pyarrow.csv.read_csv(io.BytesIO(content), read_options=read, parse_options=parse, convert_options=convert)


_READERS: Mapping[str, Callable[[BinaryIO, Format], pa.Table]] = {
    "csv": _csv,
    "json": lambda stream, _: pyarrow.json.read_json(io.BytesIO(stream.read())),
    "parquet": lambda stream, _: pyarrow.parquet.read_table(io.BytesIO(stream.read()), page_checksum_verification=True),
    "orc": lambda stream, _: pyarrow.orc.read_table(io.BytesIO(stream.read())),
    "avro": lambda stream, _: pa.Table.from_pylist(list(fastavro.reader(stream))),
    "text": _csv,
}


def _typed(table: pa.RecordBatch, columns: Mapping[str, str], name: str) -> pa.RecordBatch:
    """The table with the types the spec gives. Raises RunError for the first value that does not fit."""
    unknown = [c for c in columns if c not in table.schema.names]
    if unknown:
        raise SpecError(f"lookup '{name}': no column {unknown[0]!r} to give a type;", hint=nearest(unknown[0], table.schema.names))
    if not columns:
        return table
    contract = Contract(columns={c: Column(type=kind) for c, kind in columns.items()})
    split = conform_batch(table.select(list(columns)), contract)
    if split.dead.num_rows:
        raise RunError(
            f"lookup '{name}': {split.dead.num_rows} rows do not fit its columns' types; the first: {split.dead['message'][0].as_py()}"
        )
    typed = {n: split.rows[n] if n in columns else table[n] for n in table.schema.names}
    return pa.RecordBatch.from_arrays(list(typed.values()), names=list(typed))
