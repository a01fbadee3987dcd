"""Where outputs go."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model
from beam_pipelines.arrow.partition import by_ingestion


class ParquetSink(Model):
    """Parquet files in hive layout, replaced by whole partitions."""

    path: str = Field(description="The directory.")
    partition_by: tuple[str, ...] = Field(
        (), description="Columns or day(c), hour(c), month(c), year(c), range(c, start, end, step); days are UTC."
    )
    replace: Literal["partitions", "all"] = Field(
        "partitions", description="What a batch run replaces: the partitions it wrote, or everything."
    )
    compression: Literal["zstd", "snappy", "gzip", "none"] = Field("zstd", description="Of the pages.")
    compression_level: int | None = Field(None, description="zstd: 1 to 22, gzip: 1 to 9; default: 1 for zstd.")
    dictionary: tuple[str, ...] | None = Field(None, description="Columns to dictionary-encode; default: those that repeat.")
    statistics: tuple[str, ...] | None = Field(
        None, description="Columns with min/max statistics; default: event time, key, partition columns, numbers."
    )
    target_file_bytes: int = Field(128 * 2**20, gt=0, description="Files are closed near this size.")
    max_open_files: int = Field(64, gt=0, description="Partitions one worker writes at once.")


class TextSink(Model):
    """CSV or JSON lines, for people."""

    path: str = Field(description="The file.")
    compression: Literal["none", "gzip"] = Field("none", description="Of the whole file.")


class PubsubSink(Model):
    """Messages, one per row: a JSON object, with the row's identity as attributes. Delivery is at least once.

    Attributes of every message: `output`; of rows `source` and `position`, by which a consumer drops repeats, `arrival_time`, and `change: retract`
    where a row published before has become a duplicate; of panes `pane`, `index` and `epoch`; of dead letters `source`, `position`, `stage`, `reason`.
    """

    topic: str = Field(description="projects/P/topics/T")
    format: Literal["json"] = Field("json", description="Of a message's data.")
    ordering_key: str | None = Field(
        None, description="A column; messages with the same value of it stay in order, where their subscription asks for it."
    )
    attributes: dict[str, str] = Field({}, description="More attributes: the column of each, by its name; NULL is no attribute.")
    endpoint: str | None = Field(
        None, description="Host and port of the service, such as a regional one; `http://host:port` is an emulator. Default: Google's."
    )

    @field_validator("topic")
    @classmethod
    def _named(cls, name: str) -> str:
        if re.fullmatch(r"projects/[^/\s]+/topics/[^/\s]+", name) is None:
            raise ValueError(f"got {name!r}; expected projects/PROJECT/topics/TOPIC")
        return name


class BigQuerySink(Model):
    """A BigQuery table. A batch run writes Parquet files and loads them, one load job per partition it replaces; a stream appends by the Storage Write API.

    The table is made if it is missing, and gets the columns of a newer contract. A stream writes to a table of its own beside it, `TABLE_speed`; the views of `serve --bigquery` show both
    as one.
    """

    table: str = Field(description="PROJECT.DATASET.TABLE; the dataset exists.")
    path: str | None = Field(
        None,
        description="The folder of the Parquet files that are loaded, as of a `parquet` sink: `query` reads them. In Cloud Storage, or local, then they are uploaded. Default: `bigquery/TABLE` in the state folder.",
    )
    mode: Literal["at_least_once", "exactly_once", "upsert"] = Field(
        "at_least_once",
        description="How a stream appends: by the default stream, repeats possible after a failure; by offsets, so that a repeated request adds nothing; or by key, the newest version wins.",
    )
    partition_by: str | None = Field(
        None,
        description="day(c), hour(c), month(c) or year(c) of a timestamp or date, or range(c, start, end, step) of an integer: a batch run replaces the partitions it wrote. day(), hour(), month() or year(): by the time of ingestion; a batch run replaces the whole table.",
    )
    cluster_by: tuple[str, ...] = Field((), max_length=4, description="Up to four columns by which the table is sorted.")
    replace: Literal["partitions", "all"] = Field(
        "partitions", description="What a batch run replaces: the partitions it wrote, or everything."
    )
    partition_expiration: Micros | None = Field(None, gt=0, description="After how long a partition of a new table is deleted.")
    require_partition_filter: bool = Field(False, description="Whether queries of a new table must name its partitions.")
    max_staleness: Micros | None = Field(
        None,
        gt=0,
        description="Of `mode: upsert`: how old the answer to a query may be, so that it need not apply the latest changes itself; default: as the table has it, a new one none.",
    )
    location: str | None = Field(None, description="Where load jobs run; default: where the dataset is.")
    endpoint: str | None = Field(
        None,
        description="`http://host:port` of a server that is not Google's, with `grpc_endpoint`; default: BIGQUERY_EMULATOR_HOST, or Google's.",
    )
    grpc_endpoint: str | None = Field(
        None, description="`host:port` of its Storage API; default: BIGQUERY_STORAGE_EMULATOR_HOST, or Google's."
    )

    @field_validator("table")
    @classmethod
    def _named(cls, name: str) -> str:
        if re.fullmatch(r"[a-z][a-z0-9:.-]{4,}[a-z0-9]\.\w{1,1024}\.[\w -]{1,1018}", name) is None:
            raise ValueError(f"got {name!r}; expected PROJECT.DATASET.TABLE")
        return name

    @property
    def files(self) -> ParquetSink:
        """The files that are loaded; those of a table by the time of ingestion have no partitions."""
        by = () if self.partition_by is None or by_ingestion(self.partition_by) else (self.partition_by,)
        return ParquetSink(path=self.path or f"bigquery/{self.table}", partition_by=by, replace=self.replace)


ROWS, LETTERS = "rows", "dead_letters"
"""Outputs that every pipeline has; others are called as their aggregate."""
DESTINATIONS = ("parquet", "csv", "jsonl", "pubsub", "bigquery")


class Sink(Model):
    """One output to one place: `from` is `rows`, `dead_letters` or an aggregate's name; then exactly one of the destinations."""

    from_: str = Field(alias="from", description="`rows`, `dead_letters` or an aggregate's name.")
    parquet: ParquetSink | None = Field(None, description="Parquet files in hive layout.")
    csv: TextSink | None = Field(None, description="A CSV file.")
    jsonl: TextSink | None = Field(None, description="A file of JSON lines.")
    pubsub: PubsubSink | None = Field(None, description="Messages to a Pub/Sub topic.")
    bigquery: BigQuerySink | None = Field(None, description="A BigQuery table.")
    provenance: Literal["on", "off"] | None = Field(
        None, description="Whether `_source`, `_position`, ... are written; default: the spec's."
    )

    @model_validator(mode="after")
    def _one(self) -> Sink:
        given = [k for k in DESTINATIONS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"a sink has exactly one destination ({', '.join(DESTINATIONS)}); got {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """What it writes: parquet, csv, jsonl, pubsub or bigquery."""
        return next(k for k in DESTINATIONS if getattr(self, k) is not None)

    @property
    def destination(self) -> ParquetSink | TextSink:
        """Where its files lie; not for `pubsub`, which has none."""
        if self.bigquery is not None:
            return self.bigquery.files
        found = self.parquet or self.csv or self.jsonl
        assert found is not None
        return found
