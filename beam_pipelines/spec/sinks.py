"""Where outputs go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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


class Sink(Model):
    """One output to one place: `from` is `rows`, `dead_letters` or an aggregate's name; then exactly one of the destinations."""

    from_: str = Field(alias="from", description="`rows`, `dead_letters` or an aggregate's name.")
    parquet: ParquetSink | None = Field(None, description="Parquet files in hive layout.")
    csv: TextSink | None = Field(None, description="A CSV file.")
    jsonl: TextSink | None = Field(None, description="A file of JSON lines.")
    provenance: Literal["on", "off"] | None = Field(
        None, description="Whether `_source`, `_position`, ... are written; default: the spec's."
    )

    @model_validator(mode="after")
    def _one(self) -> Sink:
        given = [k for k in ("parquet", "csv", "jsonl") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"a sink has exactly one destination (parquet, csv, jsonl); got {', '.join(given) or 'none'}")
        return self

    @property
    def destination(self) -> ParquetSink | TextSink:
        found = self.parquet or self.csv or self.jsonl
        assert found is not None
        return found
