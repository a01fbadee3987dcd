"""What a commit loads into tables: which, how they are laid out, and the files of each partition that changes. `load_jobs` does it. Loads no Beam and no client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from beam_pipelines.arrow.partition import NULL_DIRECTORY, OUTSIDE, Partition
from beam_pipelines.arrow.ranges import Range, partition_range, partition_value
from beam_pipelines.sinks.bigquery_schema import Field, fields_of

NULL = "__NULL__"
"""The partition of rows without a value to partition by."""
YEARS = Range(-315_619_200_000_000, 5_995_814_400_000_000)
"""1960 to 2159: rows of other times are in no partition of time, but in `OUTSIDE`."""


class Table(msgspec.Struct, frozen=True):
    """The table of an output. `name` is PROJECT.DATASET.TABLE; `column` and `unit` (hour, day, month, year, or range with its `bounds`) are what it is partitioned by, a unit alone by the time
    of ingestion, "" by nothing.

    `required` and `descriptions` are of its columns, `expiration` of its partitions in microseconds. Columns in `folders` stand in names of folders only, and are none of the table's.
    """

    name: str
    column: str = ""
    unit: str = ""
    bounds: tuple[int, ...] = ()
    cluster_by: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    descriptions: dict[str, str] = {}
    expiration: int | None = None
    require_partition_filter: bool = False
    location: str | None = None
    endpoint: str | None = None
    folders: tuple[str, ...] = ()

    @property
    def project(self) -> str:
        return self.name.rsplit(".", 2)[0]

    @property
    def partition_by(self) -> str | None:
        return str(Partition(self.unit, self.column, self.bounds)) if self.unit else None

    def fields(self, columns: Sequence[tuple[str, str]]) -> tuple[Field, ...]:
        """Its columns, of an output with these names and SQL types. Raises SpecError where BigQuery has no such name or type."""
        own = [(name, kind) for name, kind in columns if name not in self.folders]
        return fields_of(own, required=self.required, descriptions=self.descriptions)

    def decorator(self, partition: str) -> str:
        """What names the partition in which the files of the folder `partition` belong: `20130101`, or the first number of a range; "" for all of the table.

        That is also all of one by the time of ingestion: when a row was loaded is no property of the row, so a run could not find its partition again.
        """
        if not self.column:
            return ""
        if self.unit == "range":
            value = partition.partition("=")[2]
            return NULL if value == NULL_DIRECTORY else value
        found = partition_range(partition, self.folders[0], self.unit)
        if found is None:
            return NULL
        inside = YEARS.start <= found.start < YEARS.end
        return partition_value(found.start, self.unit).replace("-", "") if inside else OUTSIDE


@dataclass(frozen=True)
class Load:
    """All files (full paths) that a partition of a table is to hold; `decorator` "" is all of the table."""

    decorator: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Loading:
    """What a commit makes of a table: its columns, by names and SQL types, and the partitions that change. `commit` tells commits apart."""

    table: Table
    commit: str
    columns: tuple[tuple[str, str], ...] = ()
    loads: tuple[Load, ...] = field(default=())


def loading_of(
    table: Table, *, commit: str, columns: Sequence[tuple[str, str]], files: Mapping[str, Sequence[str]], changed: Sequence[str] | None
) -> Loading:
    """What leads to a table with `files` (full paths by folder), where the folders `changed` are other than before (None: all may be)."""
    held: dict[str, list[str]] = {}
    for folder, paths in files.items():
        held.setdefault(table.decorator(folder), []).extend(paths)
    wanted = set(held) if changed is None else {table.decorator(folder) for folder in changed}
    return Loading(
        table, commit, tuple(columns), tuple(Load(decorator, tuple(sorted(held.get(decorator, ())))) for decorator in sorted(wanted))
    )
