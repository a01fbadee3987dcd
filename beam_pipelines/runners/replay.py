"""Files into a topic, in the order and at the pace in which their rows once arrived.

    file ─▶ rows by arrival ─▶ one JSON message each, its arrival time as an attribute ─▶ topic

For demonstrations and tests it can also do what networks and producers do: deliver a message twice, and send some that are broken.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import duckdb
import grpc
import pyarrow as pa

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.errors import SinkError, SourceError, SpecError, nearest
from beam_pipelines.places.sql import reading, said
from beam_pipelines.pubsub_service import Topic, code, patiently, where
from beam_pipelines.sinks.publishing import Publisher
from beam_pipelines.sinks.text import json_objects

_TICK_S = 0.1  # a message may go out so much too early: one request each would be slow
_WATCH_ROWS = 1_000
_PATIENCE_S = 10.0
_BATCH_ROWS = 10_000
_AT_NAME = "at$"
_AT = quote(_AT_NAME)
_DO = {
    "NOT_FOUND": "Create the topic, or give --create (for an emulator, set PUBSUB_EMULATOR_HOST).",
    "PERMISSION_DENIED": "Give this account the role roles/pubsub.editor, or make topic and subscription some other way and leave --create out.",
    "UNAVAILABLE": "Check the network and PUBSUB_EMULATOR_HOST.",
    "DEADLINE_EXCEEDED": "Check the network and PUBSUB_EMULATOR_HOST.",
}


@dataclass(frozen=True)
class ReplayPlan:
    """What to play. `speed` is how many times faster than it once was (None: as fast as the topic takes it); `duplicates` and `broken` are shares
    of messages, chosen by `seed`. `null` are texts that stand for NULL in a CSV."""

    files: tuple[str, ...]
    arrival_column: str
    attribute: str
    speed: float | None = None
    duplicates: float = 0.0
    broken: float = 0.0
    seed: int = 1
    null: tuple[str, ...] = ()
    limit: int | None = None


class Outlet(Protocol):
    """Where messages go: `add` takes one, `flush` sends what waits for company."""

    def add(self, data: bytes, attributes: Mapping[str, str], tag: int, *, ordering_key: str = "") -> None: ...

    def flush(self) -> None: ...


class Played(NamedTuple):
    """What went out: messages of rows, and those that were added; `reached` is the arrival of the last row, in microseconds."""

    rows: int = 0
    duplicates: int = 0
    broken: int = 0
    reached: int | None = None

    @property
    def messages(self) -> int:
        return self.rows + self.duplicates + self.broken


def parse_speed(text: str) -> float | None:
    """Times real time in `1000x`; None for `max`.

    Raises SpecError.

    >>> parse_speed("1000x")
    1000.0
    """
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise SpecError(f"--speed {text!r}: expected a number with an x, such as 1000x, or max.")
    return speed


def play(
    plan: ReplayPlan,
    outlet: Outlet,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    watch: Callable[[Played], None] = lambda played: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Played:
    """Plays the plan into `outlet`, row by row in the order of arrival; what waits there at the end is the caller's to finish.

    It ends early once `stopped` says so; `sleep` may then return early. `watch` is told how far it has come. Raises SourceError where a file cannot
    be read, SpecError where it has no such column.
    """
    chance = random.Random(plan.seed)  # noqa: S311  (no secret)
    played, begun, first = Played(), clock(), None
    for data, at in _rows(plan):
        first = at if first is None else first
        early_s = begun + (at - first) / 1e6 / plan.speed - clock() if plan.speed else 0.0
        if early_s > _TICK_S:
            outlet.flush()
            watch(played)
            sleep(early_s)
        elif played.rows % _WATCH_ROWS == 0:
            watch(played)
        if stopped():
            break
        played = _sent(data, at, plan, chance, outlet, played)
    watch(played)
    return played


def _sent(data: bytes, at: int, plan: ReplayPlan, chance: random.Random, outlet: Outlet, played: Played) -> Played:
    """A row's message, and what goes with it by chance."""
    attributes = {plan.attribute: datetime.fromtimestamp(at / 1e6, UTC).isoformat().replace("+00:00", "Z")}
    outlet.add(data, attributes, played.rows)
    again, broken = chance.random() < plan.duplicates, chance.random() < plan.broken
    if again:
        outlet.add(data, attributes, played.rows)
    if broken:
        outlet.add(_break(data, chance), attributes, played.rows)
    return Played(played.rows + 1, played.duplicates + again, played.broken + broken, at)


def _break(data: bytes, chance: random.Random) -> bytes:
    """A copy of the message as a broken producer would send it."""
    ways: list[Callable[[], bytes]] = [
        lambda: data[: len(data) // 2],
        lambda: data.replace(b":", b"", 1),
        lambda: b"\xff" + data,
        lambda: b"not a record at all",
        lambda: data + data,
    ]
    return chance.choice(ways)()


def _rows(plan: ReplayPlan) -> Iterator[tuple[bytes, int]]:
    """(message, arrival in microseconds) of every row, by arrival. Rows without one are left out."""
    limit = f" LIMIT {plan.limit:d}" if plan.limit is not None else ""
    with _reading(plan) as connection:
        found = _selected(connection, plan)
        reader = connection.sql(
            f"SELECT epoch_us({found.arrival}) AS {_AT}, {found.columns} FROM {found.relation} WHERE {found.arrival} IS NOT NULL ORDER BY {_AT}{limit}"
        ).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            own = batch.drop_columns([_AT_NAME])
            messages = own.column(0) if found.whole else json_objects(own)
            yield from zip(messages.cast(pa.binary()).to_pylist(), batch.column(0).to_pylist(), strict=True)


def rows_without_arrival(plan: ReplayPlan) -> int:
    """How many rows of the files have no arrival, or none that can be read: they cannot be played. Raises as `play` does."""
    with _reading(plan) as connection:
        found = _selected(connection, plan)
        counted = connection.execute(f"SELECT count(*) FROM {found.relation} WHERE {found.arrival} IS NULL").fetchone()
    assert counted is not None
    return int(counted[0])


@contextlib.contextmanager
def _reading(plan: ReplayPlan) -> Iterator[duckdb.DuckDBPyConnection]:
    with reading(duckdb.connect(":memory:"), *plan.files) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        try:
            yield connection
        except duckdb.Error as error:
            raise SourceError(f"replay {', '.join(plan.files)}: cannot be read: {said(error)}") from error


class _Selected(NamedTuple):
    """SQL of the files' rows: relation, columns of a message, arrival. `whole`: the one column is the message."""

    relation: str
    columns: str
    arrival: str
    whole: bool = False


def _selected(connection: duckdb.DuckDBPyConnection, plan: ReplayPlan) -> _Selected:
    files = "[" + ", ".join(map(literal, plan.files)) + "]"
    ending = plan.files[0].removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if ending in ("json", "jsonl", "ndjson"):  # as they stand: a message is a line
        arrival = f"TRY_CAST(json->>{literal(plan.arrival_column)} AS TIMESTAMPTZ)"
        return _Selected(f"read_json_objects({files}, format = 'newline_delimited')", "json::VARCHAR", arrival, whole=True)
    if ending == "parquet":
        relation = f"read_parquet({files}, hive_partitioning = false)"
    else:
        nulls = f", nullstr = [{', '.join(map(literal, ('', *plan.null)))}]" if plan.null else ""
        relation = f"read_csv({files}, sample_size = -1, hive_partitioning = false{nulls})"
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    if plan.arrival_column not in types:
        raise SpecError(
            f"--arrival-column {plan.arrival_column!r} is no column of {plan.files[0]};", hint=nearest(plan.arrival_column, types)
        )
    columns = [_column(name, kind) for name, kind in types.items() if name != plan.arrival_column]
    return _Selected(relation, ", ".join(columns) or "NULL AS nothing", f"TRY_CAST({quote(plan.arrival_column)} AS TIMESTAMPTZ)")


def _column(name: str, kind: str) -> str:
    """A column as JSON can hold it: it has no NaN, which mostly stands for nothing."""
    return f"CASE WHEN isfinite({quote(name)}) THEN {quote(name)} END AS {quote(name)}" if kind in ("FLOAT", "DOUBLE") else quote(name)


def publisher(topic: str, *, create: bool = False, subscription: str | None = None, endpoint: str | None = None) -> Publisher[int]:
    """What publishes to `topic` (projects/P/topics/T), in order; with `create`, the topic and `subscription` are made where they are missing.

    Raises SpecError where the Pub/Sub client is not installed, SinkError where the topic refuses or nothing answers.
    """
    made: Publisher[int] = Publisher(Topic(topic, where(endpoint), who=f"replay --to {topic}", error=SinkError), ordered=True)
    try:
        if create:
            patiently(lambda: made.topic.create(subscription), patience_s=_PATIENCE_S)
        patiently(made.topic.describe, patience_s=_PATIENCE_S)
    except grpc.RpcError as error:
        if code(error) != "PERMISSION_DENIED" or create:  # whoever may publish need not be allowed to look
            said = str(error.details()).rstrip(".")
            raise SinkError(f"replay --to {topic}: {code(error)}: {said}.", hint=_DO.get(str(code(error)), "")) from None
    return made
