"""Where rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model
from beam_pipelines.formats.options import Format


class Arrival(Model):
    """Which attribute of a message or column of a record says when it arrived; default: publish time, or unknown."""

    attribute: str | None = Field(None, description="A message's attribute that holds the time.")
    column: str | None = Field(None, description="A timestamp column of the contract.")

    @model_validator(mode="after")
    def _one(self) -> Arrival:
        if (self.attribute is None) == (self.column is None):
            raise ValueError("arrival needs exactly one of 'attribute' and 'column'")
        return self


class FileSource(Model):
    """Files: a path, a glob, a directory, a URL of any Beam filesystem, or a list of these."""

    files: str | tuple[str, ...] = Field(description="Paths, globs, directories or URLs.")
    format: Format = Field(description='A format\'s name, or `{type: csv, delimiter: ";"}`.')
    compression: Literal["auto", "none", "gzip", "bzip2", "zstd"] = Field("auto", description="`auto` goes by the file's name.")
    arrival: Arrival | None = Field(None, description="When a row arrived; default: unknown, which is on time.")
    max_record_bytes: int = Field(16 * 2**20, gt=0, description="A longer record is a dead letter.")
    max_expansion: int = Field(1000, gt=0, description="Largest ratio of decompressed to compressed bytes, against decompression bombs.")
    block_bytes: int = Field(32 * 2**20, gt=0, description="Bytes per batch and per split of a file.")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.files,) if isinstance(self.files, str) else self.files


class PubsubSource(Model):
    """A Pub/Sub subscription. Declared and validated now; read by the stream path."""

    pubsub: str = Field(description="projects/P/subscriptions/S")
    format: Format = Field(description="A format's name, or with its options; one record per message.")
    arrival: Arrival | None = Field(None, description="When a row arrived; default: the publish time.")


class Sources(Model):
    """Inputs of the batch path and of the stream path."""

    batch: tuple[FileSource, ...] = Field((), description="Files, read by `run --mode batch`.")
    stream: tuple[PubsubSource, ...] = Field((), description="Subscriptions, read by `run --mode stream`.")

    @model_validator(mode="after")
    def _some(self) -> Sources:
        if not self.batch and not self.stream:
            raise ValueError("sources needs 'batch', 'stream' or both")
        return self


class LookupSource(Model):
    """A table held by every worker."""

    files: str | tuple[str, ...] = Field(description="Paths, globs, directories or URLs.")
    format: Format = Field(description="A format's name, or with its options.")
    key: str | tuple[str, ...] = Field(description="The column or columns a row is found by.")
    columns: dict[str, str] | None = Field(None, description="Column types, where text should not stay text.")
    refresh: Micros | None = Field(None, gt=0, description="How long a worker trusts its copy in a stream.")
    duplicates: Literal["fail", "first", "last"] = Field("fail", description="What to do with a key that occurs twice.")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.files,) if isinstance(self.files, str) else self.files

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key
