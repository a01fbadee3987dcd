"""What is known besides the rows: who answered when and with what, dead letters, doors. Tables that causes are looked up in.

answers_N   per committed range of output N: run, `as_of`, whether it read the archive, and with which contract and code
starts      per start of the stream: epoch, run, contract and code
lookups     per run and start, and lookup: its version when the run began
letters     dead letters of both layers, and in which of them each is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb

from beam_pipelines.arrow.engine import literal
from beam_pipelines.arrow.schema import CONTRACT, RUN_ID
from beam_pipelines.serving.verify.layers import Layers
from beam_pipelines.serving.verify.retrying import retry
from beam_pipelines.serving.views import BATCH, views
from beam_pipelines.sinks.epochs import all_starts
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.outputs import StreamOutputs
from beam_pipelines.sinks.reached import Reached, starts
from beam_pipelines.sinks.results import find_run, list_runs
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, doors_scan, letters_scan, scan
from beam_pipelines.sinks.views import NO_ROWS
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import LETTERS

_LETTER = "source, position, stage, reason, failures[1].name AS name, epoch_us(event_time) AS moment"


@dataclass(frozen=True)
class Case:
    """The differences of one output, and where to look for their causes."""

    connection: duckdb.DuckDBPyConnection
    spec: PipelineSpec
    state: str
    stream: StreamOutputs
    layers: Layers

    @property
    def table(self) -> str:
        return f"differences_{self.layers.number}"

    @property
    def answers(self) -> str:
        return f"answers_{self.layers.number}"

    @property
    def undecided(self) -> str:
        """A SELECT of the differences that have no cause yet, with the answer of their range."""
        return f'(SELECT d.*, a.* FROM {self.table} AS d JOIN {self.answers} AS a ON d.part >= a.start AND d.part < a."end" WHERE d.cause IS NULL)'

    @property
    def files(self) -> str | None:
        """The files of this output's speed layer, each row at least once; None where there are none."""
        return scan(self.layers.output.folder)

    @property
    def doors(self) -> str | None:
        """Rows that the stream has told to be duplicates, and when it first did (microseconds of the machine's clock); None where there are none."""
        found = doors_scan(self.state)
        told = "source, position, min(epoch_us(_stored_at)) AS stored"
        return None if found is None else f"(SELECT {told} FROM {found} WHERE door = 'duplicate' GROUP BY source, position)"

    def open(self) -> int:
        """How many differences have no cause yet."""
        return int(self.connection.execute(f"SELECT count(*) FROM {self.table} WHERE cause IS NULL").fetchall()[0][0])

    def blame(self, cause: str, sql: str | None) -> None:
        """Says of the differences that `sql`, a SELECT of id and detail, gives that this is their cause, unless they have one."""
        if sql is None:
            return
        found = f"(SELECT id, any_value(detail) AS detail FROM ({sql}) GROUP BY id)"
        update = f"UPDATE {self.table} AS d SET cause = {literal(cause)}, detail = found.detail FROM {found} AS found WHERE d.id = found.id AND d.cause IS NULL"
        retry(lambda: self.connection.execute(update))


def gather(
    connection: duckdb.DuckDBPyConnection, state: str, stream: StreamOutputs, places: Mapping[str, str], each: Iterable[Layers]
) -> None:
    """Makes the tables."""
    each = list(each)
    for layers in each:
        rows = [(r.start, r.end, r.run_id, r.as_of, r.input == "archive", *_made_with(state, r.run_id)) for r in layers.committed]
        columns = (
            'start BIGINT, "end" BIGINT, run_id VARCHAR, as_of BIGINT, archive BOOLEAN, contract VARCHAR, version VARCHAR, package VARCHAR'
        )
        _table(connection, f"answers_{layers.number}", columns, rows)
    _table(
        connection, "starts", "start_epoch BIGINT, run_id VARCHAR, contract VARCHAR, version VARCHAR, package VARCHAR",
        _starts(state, _contracts(connection, each)),
    )  # fmt: skip
    _table(connection, "lookups", "run_id VARCHAR, name VARCHAR, version VARCHAR", _lookups(state, each))
    letters = [f"SELECT {_LETTER}, FALSE AS batch, TRUE AS speed FROM {sql}" for sql in stream_letters(state, stream)]
    letters += [f"SELECT {_LETTER}, TRUE AS batch, FALSE AS speed FROM ({sql})" for sql in batch_letters(state, places)]
    nothing = "SELECT NULL::VARCHAR, NULL::BIGINT, NULL::VARCHAR, NULL::VARCHAR, NULL::VARCHAR, NULL::BIGINT, FALSE, FALSE WHERE FALSE"
    both = "source, position, stage, reason, name, any_value(moment) AS moment, bool_or(batch) AS batch, bool_or(speed) AS speed"
    union = " UNION ALL ".join([f"({nothing})", *letters])
    retry(lambda: connection.execute(
        f"CREATE TEMP TABLE letters AS SELECT {both} FROM ({union}) AS found(source, position, stage, reason, name, moment, batch, speed) "
        "GROUP BY source, position, stage, reason, name"
    ))  # fmt: skip


def stream_letters(state: str, stream: StreamOutputs) -> list[str]:
    """Where dead letters of the stream are, each at least once."""
    return [found for o in stream.outputs if o.of == LETTERS and (found := letters_scan(state, o)) is not None]


def batch_letters(state: str, places: Mapping[str, str]) -> list[str]:
    """SELECTs of the batch's dead letters."""
    sql = views(state, places)
    found = [sql[name + BATCH] for name, snapshot in snapshots(state, places).items() if snapshot.of == LETTERS]
    return [each for each in found if each != NO_ROWS]


def reached(state: str) -> Reached | None:
    """How far the newest start of the stream has come; None where nothing is known."""
    known = starts(state)
    return known[max(known)] if known else None


def is_late(alias: str = "") -> str:
    """A condition on a letter: its row came too late for an aggregate."""
    return f"{alias}stage = {literal(AT_AGGREGATE)} AND {alias}reason = 'LATE'"


def _made_with(state: str, run_id: str) -> tuple[str | None, str | None, str | None]:
    run = find_run(state, run_id)
    return (
        (None, None, None) if run is None else (run.metadata.contract, run.metadata.pipeline_version, run.metadata.beam_pipelines_version)
    )


def _lookups(state: str, each: Iterable[Layers]) -> list[tuple[str, str, str]]:
    """What is on record of the runs that answer, and of all starts of the stream."""
    runs = [find_run(state, run_id) for run_id in dict.fromkeys(r.run_id for layers in each for r in layers.committed)]
    found = {run.metadata.run_id: run.metadata.lookups for run in runs if run is not None}
    found |= {start.run_id: start.lookups for start in all_starts(state).values()}
    return [(run_id, *version) for run_id, versions in found.items() for version in versions.items()]


def _contracts(connection: duckdb.DuckDBPyConnection, each: Iterable[Layers]) -> dict[str, str]:
    """The contract of each start of the stream, as its rows say; of one that was killed nothing else does."""
    found: dict[str, str] = {}
    for layers in each:
        files = scan(layers.output.folder) if {RUN_ID, CONTRACT} <= layers.there["speed"] else None
        if files is not None:
            found |= dict(
                retry(partial(_pairs, connection, f"SELECT DISTINCT {RUN_ID}, {CONTRACT} FROM {files} WHERE {CONTRACT} IS NOT NULL"))
            )
    return found


def _pairs(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[str, str]]:
    return connection.execute(sql).fetchall()


def _starts(state: str, contracts: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """Starts of the stream; what is not known of one that ended without a record is None."""
    found: dict[str, int | None] = dict.fromkeys(
        (*contracts, *(run.metadata.run_id for run in list_runs(state) if run.metadata.mode == "stream"))
    )
    found |= {start.run_id: epoch for epoch, start in all_starts(state).items()}
    made = {run_id: _made_with(state, run_id) for run_id in found}
    return [(epoch, run_id, made[run_id][0] or contracts.get(run_id), *made[run_id][1:]) for run_id, epoch in found.items()]


def _table(connection: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    connection.execute(f"CREATE TEMP TABLE {name} ({columns})")
    if rows:
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
