"""Where outputs go."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from beam_pipelines.arrow.model import Model


class ParquetSink(Model):
    """Parquet files in hive layout, replaced by whole partitions."""

    path: str = Field(description="The directory.")
    partition_by: tuple[str, ...] = Field((), description="Columns or day(c), hour(c), month(c), year(c); days are UTC.")
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


DESTINATIONS = ("parquet", "csv", "jsonl", "pubsub")


class Sink(Model):
    """One output to one place: `from` is `rows`, `dead_letters` or an aggregate's name; then exactly one of the destinations."""

    from_: str = Field(alias="from", description="`rows`, `dead_letters` or an aggregate's name.")
    parquet: ParquetSink | None = Field(None, description="Parquet files in hive layout.")
    csv: TextSink | None = Field(None, description="A CSV file.")
    jsonl: TextSink | None = Field(None, description="A file of JSON lines.")
    pubsub: PubsubSink | None = Field(None, description="Messages to a Pub/Sub topic.")
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
        """What it writes: parquet, csv, jsonl or pubsub."""
        return next(k for k in DESTINATIONS if getattr(self, k) is not None)

    @property
    def destination(self) -> ParquetSink | TextSink:
        """Where its files lie; not for `pubsub`, which has none."""
        found = self.parquet or self.csv or self.jsonl
        assert found is not None
        return found
