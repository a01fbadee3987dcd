"""Load jobs: a table holds what the committed files hold. Loads no Beam; the client only when there is something to load.

    decided ─▶ files in place ─▶ table made or grown ─▶ a load job for each partition that changed, write-truncate ─▶ old files deleted

The id of a job is made of what it loads. So whoever carries the commit out again finds the jobs of the first try, finished or under way, and a partition is never
loaded twice. Files in Cloud Storage are named in the job; others are uploaded with it, as one file.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from beam_pipelines.arrow.engine import quote
from beam_pipelines.bigquery_service import broken_off, client, patiently, said, where
from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.places import open_read
from beam_pipelines.pubsub_service import back_off_s
from beam_pipelines.sinks.bigquery_encoding import loadable
from beam_pipelines.sinks.bigquery_schema import Field
from beam_pipelines.sinks.bigquery_tables import Partitions, ensure_table, fits_table
from beam_pipelines.sinks.loads import Load, Loading, Table

AT_ONCE = 8
PATIENCE_S = 300.0
REACH_S = 20.0  # nothing has begun yet: whoever starts a run wants to know
_TRIES = 5  # of a job that BigQuery itself broke off
_FILES = 10_000  # that a job may name


def reach(table: Table, *, patience_s: float = REACH_S) -> None:
    """Raises SinkError where there is no such dataset, no permission, no credentials: before a job runs for an hour. TransientError where BigQuery does not answer."""
    service, dataset = _client(table), table.name.rpartition(".")[0]

    def refused(error: Exception) -> SinkError:
        return SinkError(
            f"{table.name}: the dataset cannot be reached: {said(error)}.",
            hint=f"Make it: bq mk --dataset {dataset.replace('.', ':', 1)}; this account needs roles/bigquery.dataEditor on it and roles/bigquery.jobUser on the project.",
        )

    patiently(lambda: service.get_dataset(dataset, retry=None, timeout=60), table.name, refused, patience_s=patience_s)


def fits(table: Table, columns: Sequence[tuple[str, str]]) -> bool:
    """Whether the table is there, before anything is decided. Raises SinkError or SpecError where it cannot take such rows."""
    fields = table.fields(columns)
    return fits_table(_client(table), table.name, fields, partition_by=table.partition_by, cluster_by=table.cluster_by)


def load(loading: Loading) -> None:
    """Makes the table what the files are; again, it finds what was done. Raises SinkError where BigQuery refuses, TransientError where it does not answer."""
    if not loading.loads:
        return
    service = _client(loading.table)
    fields = _ensure(service, loading.table, loading.columns)
    location = loading.table.location or _located(service, loading.table)
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(loading.loads)), thread_name_prefix="load") as pool:
        for done in [pool.submit(_Job(service, loading, one, fields, location).run) for one in loading.loads]:
            done.result()


def _client(table: Table) -> Any:
    return client(table.project, where(table.endpoint), who=f"sinks: {table.name}", error=SinkError, location=table.location)


def _located(service: Any, table: Table) -> str:
    """Where the dataset is: outside of the US and the EU, a job is only found by its place."""
    dataset = table.name.rpartition(".")[0]

    def refused(error: Exception) -> SinkError:
        return SinkError(f"{table.name}: the dataset cannot be reached: {said(error)}.", hint="Run again: the commit goes on.")

    return str(patiently(lambda: service.get_dataset(dataset, retry=None, timeout=60), table.name, refused, patience_s=PATIENCE_S).location)


def _ensure(service: Any, table: Table, columns: Sequence[tuple[str, str]]) -> tuple[Field, ...]:
    made = ensure_table(
        service, table.name, table.fields(columns), partition_by=table.partition_by,
        cluster_by=table.cluster_by, partition_expiration=table.expiration, require_partition_filter=table.require_partition_filter,
    )  # fmt: skip
    return made.fields


@dataclass(frozen=True)
class _Job:
    """One load job, until it is done."""

    client: Any
    loading: Loading
    load: Load
    fields: tuple[Field, ...]
    location: str
    wait: Callable[[float], Any] = field(default_factory=lambda: threading.Event().wait)

    @property
    def target(self) -> str:
        name = self.loading.table.name
        return f"{name}${self.load.decorator}" if self.load.decorator else name

    def run(self) -> None:
        failed = ""
        for attempt in range(_TRIES):
            failed = self._once(f"beam_pipelines_{self._digest()}_{attempt}")
            if not failed:
                return
            self.wait(back_off_s(attempt + 1))
        raise TransientError(
            f"{self.target}: BigQuery broke the load job off {_TRIES} times: {failed}.", hint="Run again: the commit goes on."
        )

    def _digest(self) -> str:
        said = "\n".join([self.target, self.loading.commit, *self.load.files])
        return hashlib.sha256(said.encode()).hexdigest()[:40]

    def _once(self, job_id: str) -> str:
        """Why the job failed although it may succeed under another id; "" where it is done."""
        job = self._patiently(lambda: self._begun(job_id))
        self._patiently(lambda: self._ended(job))
        error = job.error_result
        if not error:
            return ""
        if broken_off(error):
            return str(error.get("message", "")).rstrip(".")
        raise self._refused(str(error.get("message", "")), [str(e.get("message", "")) for e in job.errors or ()])

    def _begun(self, job_id: str) -> Any:
        """The job of that id, begun now or before."""
        from google.api_core.exceptions import Conflict, NotFound

        try:
            return self.client.get_job(job_id, location=self.location, retry=None, timeout=60)
        except NotFound:
            pass
        try:
            try:
                return self._begin(job_id)
            except NotFound:  # of an upload that its server has lost; a table that is not there is not there again
                return self._begin(job_id)
        except Conflict:  # the answer to the first request was lost
            return self.client.get_job(job_id, location=self.location, retry=None, timeout=60)

    def _begin(self, job_id: str) -> Any:
        how: dict[str, Any] = {"job_id": job_id, "location": self.location, "job_config": self._config()}
        files = self.load.files
        if files and all(path.startswith("gs://") for path in files):
            if len(files) > _FILES:
                raise SinkError(
                    f"{self.target}: {len(files):,} files; a load job takes {_FILES:,}.",
                    hint="Raise target_file_bytes, or partition finer.",
                )
            return self.client.load_table_from_uri(list(files), self.target, retry=None, timeout=60, **how)
        with self._one_file() as content:
            return self.client.load_table_from_file(content, self.target, rewind=True, num_retries=6, timeout=300, **how)

    def _config(self) -> Any:
        from google.cloud import bigquery
        from google.cloud.bigquery.format_options import ParquetOptions

        lists = ParquetOptions()  # type: ignore[no-untyped-call]
        lists.enable_list_inference = True
        named = {name for name, _ in self.loading.columns}
        return bigquery.LoadJobConfig(
            source_format="PARQUET", parquet_options=lists, write_disposition="WRITE_TRUNCATE", create_disposition="CREATE_NEVER",
            schema=[bigquery.SchemaField.from_api_repr(f.api()) for f in self.fields if f.name in named or not self.load.decorator],
            **self._layout(bigquery),
        )  # fmt: skip

    def _layout(self, bigquery: Any) -> dict[str, Any]:
        """Of a whole table, which a job would make anew, its partitions and clusters are said again."""
        table = self.loading.table
        api = Partitions.parse(table.partition_by).api(table.expiration)
        by: dict[str, Any] = {}
        if "timePartitioning" in api:
            by["time_partitioning"] = bigquery.TimePartitioning.from_api_repr(api["timePartitioning"])
        if "rangePartitioning" in api:
            by["range_partitioning"] = bigquery.RangePartitioning(_properties=api["rangePartitioning"])
        if table.cluster_by:
            by["clustering_fields"] = list(table.cluster_by)
        return by

    @contextmanager
    def _one_file(self) -> Iterator[Any]:
        """The files as one, which is what an upload takes; of no file one without rows."""
        files = self.load.files
        if len(files) == 1:
            with open_read(files[0]) as content:
                yield content
            return
        if not files:
            yield io.BytesIO(_no_rows(self.loading))
            return
        with tempfile.TemporaryFile(prefix="beam_pipelines_load_") as made:
            _together(files, made)
            made.seek(0)
            yield made

    def _ended(self, job: Any) -> None:
        """Waits for the end of the job, good or bad."""
        from google.api_core.exceptions import GoogleAPICallError

        try:
            job.result(retry=None, timeout=None)
        except GoogleAPICallError:
            if job.state != "DONE":
                raise

    def _patiently(self, do: Callable[[], Any]) -> Any:
        again = "Run again: the commit goes on."
        return patiently(do, self.target, lambda error: self._refused(said(error)), patience_s=PATIENCE_S, wait=self.wait, hint=again)

    def _refused(self, why: str, more: Sequence[str] = ()) -> SinkError:
        others = [text.rstrip(".") for text in more if text and text != why][:3]
        return SinkError(
            f"{self.target}: BigQuery refuses to load {len(self.load.files)} files: {'; '.join([why.rstrip('.'), *others])}.",
            hint="Mend the table or the rights of this account, then run again: the run is decided, and the next one carries it to its end first.",
        )


def _together(files: Sequence[str], out: Any) -> None:
    """The rows of all files as one Parquet file, row group by row group; a column that some do not have is NULL in theirs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = []
    for path in files:
        with open_read(path) as content:
            schemas.append(pq.read_schema(content))
    schema = pa.unify_schemas([s.remove_metadata() for s in schemas], promote_options="default")
    with pq.ParquetWriter(out, schema, compression="zstd", compression_level=1, store_decimal_as_integer=True) as writer:
        for path in files:
            with open_read(path) as content:
                file = pq.ParquetFile(content)
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group)
                    writer.write_table(pa.table([_column(rows, f) for f in schema], schema=schema))


def _column(rows: Any, wanted: Any) -> Any:
    import pyarrow as pa

    return rows.column(wanted.name).cast(wanted.type) if wanted.name in rows.schema.names else pa.nulls(rows.num_rows, wanted.type)


def _no_rows(loading: Loading) -> bytes:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        names = [(quote(name), kind) for name, kind in loading.columns if name not in loading.table.folders]
        empty = connection.sql(f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in names)} LIMIT 0").to_arrow_table()
    required = loading.table.required
    schema = pa.schema([pa.field(f.name, loadable(f.type), nullable=f.name not in required) for f in empty.schema])
    out = io.BytesIO()
    pq.write_table(schema.empty_table(), out)
    return out.getvalue()
