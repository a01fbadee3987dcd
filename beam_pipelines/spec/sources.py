"""Where rows come from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model
from beam_pipelines.formats.options import Format, ParquetFormat
from beam_pipelines.spec.secrets import check_reference


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
    subscription: str | None = Field(
        None,
        description="projects/P/subscriptions/S: the one that the stream reads, whose rows these are; needed where a Cloud Storage subscription wrote the archive.",
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.archive,)


_PROJECT = r"(?:[a-z][a-z0-9.-]*:)?[a-z][a-z0-9-]{4,61}[a-z0-9]"
_TABLE = rf"{_PROJECT}\.\w{{1,1024}}\.[^\s.$@*`/][^.$@*`/\t\r\n]{{0,1023}}"


def _query_name(query: str) -> str:
    """A query, by a short hash of it."""
    return f"query-{hashlib.sha256(query.encode()).hexdigest()[:12]}"


class _Tables(Model):
    """What is read from tables and queries, not from files."""

    @property
    def format(self) -> Format:
        """Columns have types of their own, as in Parquet."""
        return ParquetFormat()

    @property
    def patterns(self) -> tuple[str, ...]:
        """No files."""
        return ()


class BigQueryTable(_Tables):
    """What of BigQuery is read: a table, or the answer of a query."""

    bigquery: str = Field(description="PROJECT.DATASET.TABLE; with `query`, the PROJECT whose job it is.")
    query: str | None = Field(None, description="GoogleSQL that is run once per run; its answer is read, at most 10 GB.")
    where: str | None = Field(
        None, description="A condition of the table's columns, in GoogleSQL: other rows are not read. No aggregates, no subqueries."
    )
    project: str | None = Field(None, description="The project that pays for reading; default: the table's.")
    location: str | None = Field(None, description="Where the query runs; default: where its tables are.")
    endpoint: str | None = Field(
        None,
        description="`http://host:port` of a server that is not Google's, with `grpc_endpoint`; default: BIGQUERY_EMULATOR_HOST, or Google's.",
    )
    grpc_endpoint: str | None = Field(
        None,
        description="`host:port` of its Storage API, `http://host:port` without encryption; default: BIGQUERY_STORAGE_EMULATOR_HOST, or Google's.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        expected, shape = ("PROJECT.DATASET.TABLE", _TABLE) if self.query is None else ("PROJECT, as there is a query", _PROJECT)
        if re.fullmatch(shape, self.bigquery) is None:
            raise ValueError(f"bigquery: got {self.bigquery!r}; expected {expected}")
        for name in ("query", "where"):
            if (given := getattr(self, name)) is not None and not given.strip():
                raise ValueError(f"{name} is empty")
        if self.query is not None and self.where is not None:
            raise ValueError("'where' is for a table; write it into the query")
        if self.query is None and self.location is not None:
            raise ValueError("'location' is for a query; a table is read where it is")
        return self

    @property
    def payer(self) -> str:
        """The project that jobs and read sessions belong to."""
        return self.project or (self.bigquery.rsplit(".", 2)[0] if self.query is None else self.bigquery)

    @property
    def name(self) -> str:
        """What people call it: the table, or the project and a short hash of the query."""
        if self.query is None:
            return self.bigquery
        return f"{self.bigquery}.{_query_name(self.query)}"


class BigQuerySource(BigQueryTable):
    """A BigQuery table, or with `query` the answer of one, read in parallel by the Storage Read API."""

    columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The columns that are read; default: all, or where the contract drops unknown columns, those it names.",
    )
    row_id: str | None = Field(
        None,
        description="An INT64 column that is different in every row: rows then keep their identity from run to run, by which a run over a range finds duplicates elsewhere.",
    )
    arrival: Arrival | None = Field(None, description="When a row arrived, by a column; default: unknown, which is on time.")
    max_streams: int | None = Field(
        None, ge=1, le=1000, description="How many workers may read at once; default: as many as BigQuery proposes."
    )

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.columns is not None and self.query is not None:
            raise ValueError("'columns' is for a table; name them in the query")
        if self.columns is not None and self.row_id is not None and self.row_id not in self.columns:
            raise ValueError(f"row_id {self.row_id!r} is not among 'columns'; add it")
        return self


_NAMED_DATABASE = "postgresql://USER@HOST:PORT/DATABASE or sqlite:///PATH"
_SQLITE = "sqlite:///"
_PASSWORDED = re.compile(r"://[^/?#@]*:(?!\d+(?:/|$)).*@")  # also one with characters that should have been escaped
_SECRETS = frozenset({"password", "sslpassword", "passwd", "pwd"})


class DatabaseTable(_Tables):
    """What of a database is read: a table of PostgreSQL or SQLite, or the answer of a query."""

    database: str = Field(
        description="`postgresql://USER@HOST:PORT/DATABASE`, with libpq's parameters behind a `?`, or `sqlite:///PATH`. Never with a password."
    )
    table: str | None = Field(None, description='The table, as SQL writes it: `orders`, `public.orders`, `"Orders"`; or `query`.')
    query: str | None = Field(None, description="One SELECT, whose answer is read.")
    where: str | None = Field(None, description="A condition of the table's columns, in the database's SQL: other rows are not read.")
    password: str | None = Field(
        None, description="The password as a secret reference; default: PGPASSWORD or a password file where the workers run, as libpq does."
    )

    @field_validator("database")
    @classmethod
    def _located(cls, database: str) -> str:
        """The text is never repeated: it may hold a password."""
        if database.startswith(_SQLITE):
            if not database.removeprefix(_SQLITE).strip("/ "):
                raise ValueError(f"names no file; expected {_NAMED_DATABASE}")
            return database
        try:
            url = urlsplit(database)
            secret = (
                url.password is not None
                or _PASSWORDED.search(database) is not None
                or bool(_SECRETS & {key.lower() for key, _ in parse_qsl(url.query, keep_blank_values=True)})
            )
            located = (
                url.scheme in ("postgresql", "postgres") and url.path.strip("/") != "" and "/" not in url.path[1:] and not url.fragment
            )
        except ValueError:
            secret, located = _PASSWORDED.search(database) is not None, False
        if secret:
            raise ValueError(
                "holds a password; take it out, and write password: env:NAME (or file:/path, gcp:projects/…), or set PGPASSWORD where the workers run"
            )
        if not located or "@" in url.netloc.rpartition("@")[0]:
            raise ValueError(f"is no URL of a database; expected {_NAMED_DATABASE}")
        return database

    @field_validator("password")
    @classmethod
    def _referred(cls, password: str | None) -> str | None:
        problem = check_reference(password) if password is not None else None
        if problem is not None:
            raise ValueError(problem)
        return password

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("a database needs exactly one of 'table' and 'query'")
        for name in ("table", "query", "where"):
            if (given := getattr(self, name)) is not None and not given.strip():
                raise ValueError(f"{name} is empty")
        if self.query is not None and self.where is not None:
            raise ValueError("'where' is for a table; write it into the query")
        if self.sqlite is not None and self.password is not None:
            raise ValueError("'password' is for a server; SQLite has none")
        return self

    @property
    def sqlite(self) -> str | None:
        """The file, where it is SQLite."""
        return self.database.removeprefix(_SQLITE) if self.database.startswith(_SQLITE) else None

    @property
    def place(self) -> str:
        """Where the database is: HOST:PORT/DATABASE without the user, or the file."""
        if self.sqlite is not None:
            return self.sqlite
        url = urlsplit(self.database)
        return f"{url.netloc.rpartition('@')[2]}{url.path}".lstrip("/")

    @property
    def name(self) -> str:
        """What people call it: the table, or a short hash of the query, in its database."""
        what = self.table if self.query is None else _query_name(self.query)
        return f"{self.place}/{what}"


class DatabaseSource(DatabaseTable):
    """A table of PostgreSQL or SQLite, or the answer of a query, read as Arrow by ADBC; needs `beam-pipelines[databases]`."""

    query: str | None = Field(None, description="One SELECT, whose answer is read; needs `row_id`.")
    columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The columns that are read; default: all, or where the contract drops unknown columns, those it names.",
    )
    row_id: str | None = Field(
        None,
        description="An integer column that is different in every row: rows then keep their identity from run to run, by which a run over a range finds duplicates elsewhere.",
    )
    max_splits: int = Field(8, ge=1, le=256, description="How many workers may read a PostgreSQL table at once; each has a connection.")
    arrival: Arrival | None = Field(None, description="When a row arrived, by a column; default: unknown, which is on time.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.query is not None and self.columns is not None:
            raise ValueError("'columns' is for a table; write it into the query")
        if self.query is not None and self.row_id is None:
            raise ValueError("a query needs 'row_id': an integer column of its answer that is different in every row")
        if self.columns is not None and self.row_id is not None and self.row_id not in self.columns:
            raise ValueError(f"row_id {self.row_id!r} is not among 'columns'; add it")
        return self


def _meant(given: Any, words: Mapping[str, type[Model]], default: type[Model]) -> str:
    """Which model a source or lookup is meant to be: one whose word is among its keys, or nearly, and none says `files`; else the `default`."""
    if not isinstance(given, dict):
        return type(given).__name__ if isinstance(given, tuple(words.values())) else default.__name__
    keys = [str(key) for key in given]
    near = (model for word, model in words.items() if "files" not in keys and get_close_matches(word, keys, n=1, cutoff=0.75))
    return next(near, default).__name__


def _kind(source: Any) -> str:
    return _meant(source, {"archive": ArchiveSource, "database": DatabaseSource, "bigquery": BigQuerySource}, FileSource)


TableSource = BigQuerySource | DatabaseSource
"""What `run --mode batch` reads as a table."""
BatchSource = FileSource | ArchiveSource | TableSource
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
        Annotated[
            Annotated[FileSource, Tag("FileSource")]
            | Annotated[ArchiveSource, Tag("ArchiveSource")]
            | Annotated[BigQuerySource, Tag("BigQuerySource")]
            | Annotated[DatabaseSource, Tag("DatabaseSource")],
            Discriminator(_kind),
        ],
        ...,
    ] = Field((), description="Files, archives of streams, tables of BigQuery and of databases, read by `run --mode batch`.")
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


class TableLookup(_Tables):
    """A table held by every worker, whose columns have types of their own."""

    key: str | tuple[str, ...] = Field(description="The column or columns a row is found by.")
    columns: dict[str, str] | None = Field(
        None, description="Column types, where others than the table's are wanted, or should be known before a run."
    )
    refresh: Micros | None = Field(None, gt=0, description="How long a worker trusts its copy in a stream.")
    duplicates: Literal["fail", "first", "last"] = Field("fail", description="What to do with a key that occurs twice.")

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key


class BigQueryLookup(TableLookup, BigQueryTable):
    """A table held by every worker, read from BigQuery."""


class DatabaseLookup(TableLookup, DatabaseTable):
    """A table held by every worker, read from PostgreSQL or SQLite; needs `beam-pipelines[databases]`."""


def _lookup_kind(lookup: Any) -> str:
    return _meant(lookup, {"database": DatabaseLookup, "bigquery": BigQueryLookup}, LookupSource)


AnyLookup = LookupSource | BigQueryLookup | DatabaseLookup
LookupField = Annotated[
    Annotated[LookupSource, Tag("LookupSource")]
    | Annotated[BigQueryLookup, Tag("BigQueryLookup")]
    | Annotated[DatabaseLookup, Tag("DatabaseLookup")],
    Discriminator(_lookup_kind),
]
"""A lookup as a spec has it."""
