"""Where rows come from."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

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


class ArchiveSource(Model):
    """What a stream archived: its raw messages, with the times at which they arrived."""

    archive: str = Field(description="The folder of an archive, or of one source in it.")
    format: Format = Field(description="A format's name, or with its options; as in the stream source that filled the archive.")
    arrival: Arrival | None = Field(None, description="As in the stream source: an attribute's time was archived; a column is read again.")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.archive,)


def _kind(source: Any) -> str:
    """Which model a source is meant to be: an archive where a key says so, or nearly, and none says `files`."""
    archive = isinstance(source, ArchiveSource)
    if isinstance(source, dict) and "files" not in source:
        archive = bool(get_close_matches("archive", [str(key) for key in source], n=1, cutoff=0.75))
    return ArchiveSource.__name__ if archive else FileSource.__name__


BatchSource = FileSource | ArchiveSource
"""What `run --mode batch` reads."""


class PubsubSource(Model):
    """A Pub/Sub subscription, read by the stream path. PUBSUB_EMULATOR_HOST is honoured as in Google's clients."""

    pubsub: str = Field(description="projects/P/subscriptions/S")
    format: Format = Field(description="A format's name, or with its options; one record per message.")
    arrival: Arrival | None = Field(None, description="When a row arrived, by a message's attribute; default: the publish time.")
    archive: str | None = Field(None, description="The folder of the raw messages; default: in the pipeline's state folder.")
    endpoint: str | None = Field(
        None, description="Host and port of the service, such as a regional one; `http://host:port` is an emulator. Default: Google's."
    )
    ack_deadline: Micros = Field(
        60_000_000,
        ge=10_000_000,
        le=600_000_000,
        description="How long one lease of a message lasts; leases of messages in work are extended.",
    )
    pulls: int = Field(4, ge=1, le=64, description="Pulls under way at the same time, per process.")
    max_outstanding_messages: int = Field(200_000, ge=1_000, description="Messages a process may hold that are not yet acknowledged.")
    max_outstanding_bytes: int = Field(256 * 2**20, ge=2**20, description="Bytes a process may hold that are not yet acknowledged.")

    @field_validator("pubsub")
    @classmethod
    def _named(cls, name: str) -> str:
        if re.fullmatch(r"projects/[^/\s]+/subscriptions/[^/\s]+", name) is None:
            raise ValueError(f"got {name!r}; expected projects/PROJECT/subscriptions/SUBSCRIPTION")
        return name

    @field_validator("arrival")
    @classmethod
    def _known_before_decode(cls, arrival: Arrival | None) -> Arrival | None:
        if arrival is not None and arrival.column is not None:
            raise ValueError("a stream's clock must be known before its records are decoded: name an attribute, or leave arrival out")
        return arrival


class Sources(Model):
    """Inputs of the batch path and of the stream path."""

    batch: tuple[
        Annotated[Annotated[FileSource, Tag("FileSource")] | Annotated[ArchiveSource, Tag("ArchiveSource")], Discriminator(_kind)], ...
    ] = Field((), description="Files and archives of streams, read by `run --mode batch`.")
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
