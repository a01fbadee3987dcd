"""BigQuery tables: made where they are missing, grown where the rows have more columns, never narrowed. No Beam.

missing       made, with partitions, clusters, primary key; the dataset must be there
there         columns are added, REQUIRED is relaxed where rows may have none, `max_staleness` is set; other partitions or clusters: SinkError
at one time   whoever comes second finds the first one's table, and looks again
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from beam_pipelines.arrow.partition import Partition, table_partition
from beam_pipelines.bigquery_service import patiently, said
from beam_pipelines.errors import SinkError, SpecError, TransientError, nearest
from beam_pipelines.pubsub_service import LOG_IN, back_off_s
from beam_pipelines.sinks.bigquery_schema import REPEATED, Field, evolved, read_fields

PATIENCE_S = 120.0
_RACES = 10
_INTERVAL = re.compile(r"(\d+)-(\d+) (\d+) (\d+):(\d+):(\d+(?:\.\d+)?)")
_TIMES = {"TIMESTAMP": {"HOUR", "DAY", "MONTH", "YEAR"}, "DATETIME": {"HOUR", "DAY", "MONTH", "YEAR"}, "DATE": {"DAY", "MONTH", "YEAR"}}
_CLUSTERS = frozenset({"BIGNUMERIC", "BOOLEAN", "DATE", "DATETIME", "GEOGRAPHY", "INTEGER", "NUMERIC", "RANGE", "STRING", "TIMESTAMP"})
_KEYS = _CLUSTERS - {"GEOGRAPHY", "RANGE"} | {"FLOAT"}


class TableState(NamedTuple):
    """A table as it is now. `made`: this call made it; `grown`: this call changed its columns."""

    fields: tuple[Field, ...]
    made: bool = False
    grown: bool = False


@dataclass(frozen=True)
class Partitions:
    """How a table is partitioned. `unit` is HOUR, DAY, MONTH, YEAR or RANGE; a `column` of "" is the time of ingestion. All empty: not at all."""

    unit: str = ""
    column: str = ""
    range: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Partitions:
        """From `day(c)`, `hour(c)`, `month(c)`, `year(c)`, `range(c, start, end, step)`, or `day()` and so on for the time of ingestion.

        Raises SpecError for any other text.
        """
        parsed = table_partition(text)
        return cls(parsed.transform.upper(), parsed.column, parsed.bounds)

    @classmethod
    def read(cls, api: dict[str, Any]) -> Partitions:
        """Those of a table in the REST API's JSON."""
        by_time, by_range = api.get("timePartitioning"), api.get("rangePartitioning")
        if by_range:
            bounds = by_range.get("range") or {}
            return cls(
                "RANGE",
                str(by_range.get("field", "")),
                (int(bounds.get("start", 0)), int(bounds.get("end", 0)), int(bounds.get("interval", 0))),
            )
        return cls(str(by_time.get("type") or "DAY"), str(by_time.get("field") or "")) if by_time else cls()

    def api(self, expiration_micros: int | None) -> dict[str, Any]:
        """What the REST API is told about a new table."""
        if self.unit == "RANGE":
            start, end, step = (str(n) for n in self.range)
            return {"rangePartitioning": {"field": self.column, "range": {"start": start, "end": end, "interval": step}}}
        if not self.unit:
            return {}
        by_time = {"type": self.unit} | ({"field": self.column} if self.column else {})
        return {"timePartitioning": by_time | ({"expirationMs": str(expiration_micros // 1000)} if expiration_micros else {})}

    @property
    def same_as(self) -> tuple[str, str, tuple[int, ...]]:
        """What two have in common that are the same."""
        return self.unit, self.column.lower(), self.range

    def __str__(self) -> str:
        return str(Partition(self.unit.lower(), self.column, self.range)) if self.unit else "nothing"


def ensure_table(
    client: Any, table: str, fields: Sequence[Field], *, partition_by: str | None = None, cluster_by: Sequence[str] = (), partition_expiration: int | None = None,
    require_partition_filter: bool = False, primary_key: Sequence[str] = (), max_staleness: int | None = None,
    patience_s: float = PATIENCE_S, wait: Callable[[float], Any] | None = None,
) -> TableState:  # fmt: skip
    """The table `PROJECT.DATASET.TABLE`, made or grown so that it takes rows with `fields`; doing it again changes nothing, whoever else does it meanwhile.

    `partition_by`: see `Partitions.parse`; `partition_expiration` in microseconds. These, the key and the
    filter are given to a new table only; `max_staleness` (microseconds; None: as it is) also to one that is there. Raises SpecError where columns do not fit partitions, clusters or key; SinkError where there is no such dataset, no permission,
    a column has another type, or an existing table is partitioned, clustered or keyed otherwise; TransientError where BigQuery does not answer for `patience_s`.
    """
    wanted = _Wanted(table, tuple(fields), Partitions.parse(partition_by), tuple(cluster_by), tuple(primary_key), max_staleness)
    wanted.check()
    options = wanted.partitions.api(partition_expiration)
    if require_partition_filter and options:
        options["requirePartitionFilter"] = True
    wait = wait or threading.Event().wait
    for lost in range(1, _RACES + 1):
        found = patiently(lambda: _one_try(client, wanted, options), table, partial(_refusal, table), patience_s=patience_s, wait=wait)
        if found is not None:
            return found
        wait(back_off_s(lost))
    raise TransientError(f"{table}: others changed it {_RACES} times at the same moment.", hint="Run again.")


def fits_table(
    client: Any, table: str, fields: Sequence[Field], *, partition_by: str | None = None, cluster_by: Sequence[str] = (),
    patience_s: float = PATIENCE_S, wait: Callable[[float], Any] | None = None,
) -> bool:  # fmt: skip
    """Whether the table is there; nothing is made or grown. Raises what `ensure_table` would raise of it."""
    wanted = _Wanted(table, tuple(fields), Partitions.parse(partition_by), tuple(cluster_by), ())
    wanted.check()
    api = patiently(lambda: _described(client, table), table, partial(_refusal, table), patience_s=patience_s, wait=wait)
    if api is None:
        return False
    _compare(wanted, api)
    evolved(_fields(api), wanted.fields, where=table)
    return True


@dataclass(frozen=True)
class _Wanted:
    table: str
    fields: tuple[Field, ...]
    partitions: Partitions
    clusters: tuple[str, ...]
    key: tuple[str, ...]
    staleness: int | None = None

    def check(self) -> None:
        """Raises SpecError where the columns do not fit."""
        kinds = {f.name.lower(): f for f in self.fields}
        if self.partitions.column:
            self._partition(self._column(kinds, self.partitions.column, "partition_by"))
        for word, names, allowed, most in (("cluster_by", self.clusters, _CLUSTERS, 4), ("key", self.key, _KEYS, 16)):
            if len(names) > most:
                raise SpecError(f"{self.table}: {word}: {len(names)} columns; BigQuery takes {most}.")
            for name in names:
                column = self._column(kinds, name, word)
                if column.type not in allowed or column.mode == REPEATED:
                    raise SpecError(f"{self.table}: {word}: column {name!r} is {column.sql}; expected one of {', '.join(sorted(allowed))}.")

    def _partition(self, column: Field) -> None:
        unit = self.partitions.unit
        expected = {"INTEGER"} if unit == "RANGE" else {kind for kind, units in _TIMES.items() if unit in units}
        if column.type not in expected or column.mode == REPEATED:
            raise SpecError(
                f"{self.table}: partition_by {self.partitions}: column {column.name!r} is {column.sql}; expected {' or '.join(sorted(expected))}."
            )

    def _column(self, kinds: dict[str, Field], name: str, word: str) -> Field:
        found = kinds.get(name.lower())
        if found is None:
            raise SpecError(f"{self.table}: {word}: no column {name!r};", hint=nearest(name, [f.name for f in self.fields]))
        return found


def _one_try(client: Any, wanted: _Wanted, options: dict[str, Any]) -> TableState | None:
    """None: somebody else was quicker."""
    from google.api_core.exceptions import ClientError, PreconditionFailed

    api = _described(client, wanted.table)
    if api is not None:
        _compare(wanted, api)
    has = _fields(api or {})
    needs = evolved(has, wanted.fields, where=wanted.table)
    changes: dict[str, Any] = {} if needs == has else {"schema": {"fields": [f.api() for f in needs]}}
    if wanted.staleness is not None and wanted.staleness != _staleness(api or {}):
        changes["maxStaleness"] = _interval(wanted.staleness)
    if api is not None and not changes:
        return TableState(has)
    try:
        return (
            TableState(_create(client, wanted, options), made=True)
            if api is None
            else TableState(_change(client, api, changes), grown=needs != has)
        )
    except PreconditionFailed:  # another version than the one read, also where the columns are the same: rows alone can make one
        return None
    except ClientError:  # 409 mostly; a table that looks otherwise now says the same
        again = _described(client, wanted.table)
        if again is None or (api is not None and (_fields(again), _staleness(again)) == (has, _staleness(api))):
            raise
        return None


def _described(client: Any, table: str) -> dict[str, Any] | None:
    from google.api_core.exceptions import NotFound

    try:
        return dict(client.get_table(table, retry=None, timeout=60).to_api_repr())
    except NotFound:
        return None


def _create(client: Any, wanted: _Wanted, options: dict[str, Any]) -> tuple[Field, ...]:
    from google.api_core.exceptions import NotFound
    from google.cloud import bigquery

    project, dataset, name = wanted.table.rsplit(".", 2)
    api = {
        "tableReference": {"projectId": project, "datasetId": dataset, "tableId": name},
        "schema": {"fields": [f.api() for f in wanted.fields]},
        **options,
    }
    if wanted.clusters:
        api["clustering"] = {"fields": list(wanted.clusters)}
    if wanted.key:
        api["tableConstraints"] = {"primaryKey": {"columns": list(wanted.key)}}
    if wanted.staleness is not None:
        api["maxStaleness"] = _interval(wanted.staleness)
    try:
        return _fields(client.create_table(bigquery.Table.from_api_repr(api), retry=None, timeout=60).to_api_repr())
    except NotFound as error:
        raise SinkError(
            f"{wanted.table}: there is no dataset {project}.{dataset}.",
            hint=f"Make it first, where your data shall lie: bq mk --dataset {project}:{dataset}",
        ) from error


def _change(client: Any, api: dict[str, Any], changes: dict[str, Any]) -> tuple[Field, ...]:
    """The table as it was read carries its version, so a change that another made meanwhile is not undone."""
    from google.cloud import bigquery

    names = {"schema": "schema", "maxStaleness": "max_staleness"}
    table = bigquery.Table.from_api_repr({**api, **changes})
    return _fields(client.update_table(table, [names[name] for name in changes], retry=None, timeout=60).to_api_repr())


def _interval(micros: int) -> str:
    """The REST API's text of an interval: years-months days hours:minutes:seconds."""
    seconds, rest = divmod(micros, 1_000_000)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    return f"0-0 {days} {hours % 24}:{minutes % 60}:{seconds % 60}{f'.{rest:06d}' if rest else ''}"


def _staleness(api: dict[str, Any]) -> int | None:
    """A table's `maxStaleness` in microseconds; a month has 30 days, as where BigQuery compares intervals. None: it has none."""
    found = _INTERVAL.fullmatch(str(api.get("maxStaleness") or ""))
    if found is None:
        return None
    years, months, days, hours, minutes = (int(n) for n in found.groups()[:5])
    return ((((years * 12 + months) * 30 + days) * 24 + hours) * 60 + minutes) * 60_000_000 + round(float(found[6]) * 1e6)


def _fields(api: dict[str, Any]) -> tuple[Field, ...]:
    return read_fields((api.get("schema") or {}).get("fields") or ())


def _compare(wanted: _Wanted, api: dict[str, Any]) -> None:
    if api.get("type", "TABLE") != "TABLE":
        raise SinkError(f"{wanted.table}: is a {api['type']}; expected a table.", hint="Choose another name.")
    hint = "Change the spec, or write to another table: BigQuery cannot change this one in place."
    theirs = Partitions.read(api)
    if theirs.same_as != wanted.partitions.same_as:
        raise SinkError(f"{wanted.table}: is partitioned by {theirs}; the spec says {wanted.partitions}.", hint=hint)
    clusters = tuple((api.get("clustering") or {}).get("fields") or ())
    if tuple(c.lower() for c in clusters) != tuple(c.lower() for c in wanted.clusters):
        raise SinkError(
            f"{wanted.table}: is clustered by {', '.join(clusters) or 'nothing'}; the spec says {', '.join(wanted.clusters) or 'nothing'}.",
            hint=hint,
        )
    key = tuple(((api.get("tableConstraints") or {}).get("primaryKey") or {}).get("columns") or ())
    if wanted.key and {k.lower() for k in key} != {k.lower() for k in wanted.key}:
        raise SinkError(
            f"{wanted.table}: its primary key is {', '.join(key) or 'not declared'}; the contract says {', '.join(wanted.key)}.",
            hint=f"Run: ALTER TABLE `{wanted.table}` ADD PRIMARY KEY ({', '.join(wanted.key)}) NOT ENFORCED.",
        )


def _refusal(table: str, error: Exception) -> SinkError:
    code = getattr(error, "code", None)
    hint = {
        403: "Give this account the role roles/bigquery.dataEditor on the dataset.", 401: LOG_IN,
        400: "The table's options contradict each other, or BigQuery does not take them.",
    }.get(code or 0, "")  # fmt: skip
    return SinkError(f"{table}: {said(error)}.", hint=hint)
