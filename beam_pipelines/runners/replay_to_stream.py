"""Dead letters into a running stream again, each as the message it was: the same subscription, position and arrival.

    letters ─▶ their messages, from the archive or the letters ─▶ tried alone ─▶ written down ─▶ topic, with `identity` in attributes ─▶ the stream

The stream takes a position once, so what is sent twice is one row. Whether a letter is resolved is seen from what is stored (`resolutions.through_sql`),
never from what was sent. Windows that are closed stay closed: a letter LATE belongs into the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import duckdb
import grpc
import pyarrow as pa

from beam_pipelines.arrow.masking import SEALED, open_sealed
from beam_pipelines.arrow.schema import ARRIVAL, ATTRIBUTES, POSITION, RAW, SOURCE, UTC_MICROS, provenance
from beam_pipelines.edges import raw_key
from beam_pipelines.errors import SinkError, SourceError, SpecError
from beam_pipelines.places.sql import reading
from beam_pipelines.pubsub_service import Topic
from beam_pipelines.runners.direct import importable
from beam_pipelines.runners.letter_partitions import Why
from beam_pipelines.runners.letter_records import Id, Letter, letters_of, messages
from beam_pipelines.runners.replay_letters import Fate
from beam_pipelines.runners.trial import Tried, tried
from beam_pipelines.sinks.publishing import Publisher
from beam_pipelines.sinks.resolutions import TAKEN_UP, new_name, stored_sql, take_up
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, AT_SINK
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.sources.pubsub_calls import Subscription, code, refused, where
from beam_pipelines.sources.pubsub_messages import identity
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sources import PubsubSource
from beam_pipelines.transforms.prepare import row_program

DELETED_TOPIC = "_deleted-topic_"


class Message(NamedTuple):
    """The message of a letter as it was."""

    data: bytes
    attributes: Mapping[str, str]
    arrival: int


@dataclass(frozen=True)
class StreamPlan:
    """What is sent: a fate for each letter, messages by record and the topic of each subscription, and what is written down before (TAKEN_UP)."""

    replay: str
    fates: tuple[Fate, ...]
    messages: Mapping[Id, Message] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    taken: pa.Table = field(default_factory=TAKEN_UP.empty_table)


def plan_stream(loaded: LoadedSpec, letters: pa.Table, *, topic: str | None = None) -> StreamPlan:
    """What to do with these letters (DEAD_LETTERS); `topic` is asked for only where a subscription does not tell its own.

    Raises SpecError where the topic is another one or cannot be found out, or a sealed archive cannot be opened, SourceError where the
    subscription refuses.
    """
    known = letters_of(letters)
    fates: dict[int, Fate] = {n: Fate(n, "no record") for n in set(range(letters.num_rows)) - {letter.number for letter in known}}
    sources = {source.pubsub: source for source in loaded.spec.sources.stream}
    possible: list[Letter] = []
    for letter in known:
        why = _refusal(letter, sources)
        if why is None:
            possible.append(letter)
        else:
            fates[letter.number] = Fate(letter.number, why)
    found = _messages(loaded, letters, possible)
    with importable(loaded.directory):
        outcomes = tried(_batches(loaded, sources, found))
    for letter in possible:
        fates[letter.number] = _judged(letter, found, outcomes)
    sent = {letter.id for letter in possible if fates[letter.number].why == "replay"}
    topics = {name: _topic(sources[name], topic) for name in sorted({source for source, _ in sent})}
    taken = _taken(loaded.state, letters.take(pa.array([x.number for x in possible if x.id in sent], pa.int64())))
    return StreamPlan(new_name("replay"), tuple(fates[n] for n in sorted(fates)), {id_: found[id_] for id_ in sorted(sent)}, topics, taken)


def send(loaded: LoadedSpec, plan: StreamPlan) -> list[tuple[Id, str]]:
    """Sends the messages; gives those that a topic refused, and why. What is sent is written down first.

    Raises SinkError where a topic refuses all, TransientError where nothing answers: then some may be sent, and sending them again does no harm.
    """
    if not plan.messages:
        return []
    take_up(loaded.state, plan.replay, plan.taken)
    endpoints = {source.pubsub: source.endpoint for source in loaded.spec.sources.stream}
    refused_: list[tuple[Id, str]] = []
    for name, path in plan.topics.items():
        with closing(Topic(path, where(endpoints[name]), who=f"dlq replay --topic {path}", error=SinkError)) as topic:
            publisher: Publisher[Id] = Publisher(topic)
            for id_, message in plan.messages.items():
                if id_[0] == name:
                    publisher.add(message.data, {**message.attributes, **identity(*id_, message.arrival)}, id_)
            refused_ += publisher.finish()
    return refused_


def _refusal(letter: Letter, sources: Mapping[str, PubsubSource]) -> Why | None:
    if letter.source not in sources:
        return "of a file"
    if letter.stage in (AT_AGGREGATE, AT_SINK):
        return "for the batch"
    return "no arrival" if letter.arrival is None else None


def _judged(letter: Letter, found: Mapping[Id, Message], outcomes: Mapping[Id, Tried]) -> Fate:
    if letter.id not in found:
        return Fate(letter.number, "not kept")
    outcome = outcomes[letter.id]
    if outcome.outcome == "crash":
        return Fate(letter.number, "crashes")
    return Fate(letter.number, "still refused", outcome.reason) if outcome.outcome == "refused" else Fate(letter.number, "replay")


def _messages(loaded: LoadedSpec, table: pa.Table, letters: Sequence[Letter]) -> dict[Id, Message]:
    """The messages of letters: as archived, else what the letter kept."""
    found: dict[Id, Message] = {}
    for batch in messages(loaded.spec, loaded.state, letters):
        rows = batch.select([SOURCE, POSITION, RAW, ATTRIBUTES]).to_pylist()  # rejected rows only
        arrivals = batch.column(ARRIVAL).cast(pa.int64()).to_pylist()
        for row, arrival in zip(rows, arrivals, strict=True):
            found[row[SOURCE], row[POSITION]] = Message(row[RAW] or b"", dict(row[ATTRIBUTES] or ()), arrival)
    key = raw_key(loaded.spec)
    for letter in letters:
        if letter.id not in found and letter.arrival is not None:
            raw = _opened(table.column("raw")[letter.number].as_py(), table.column("raw_format")[letter.number].as_py() or "", key)
            if raw is not None:
                found[letter.id] = Message(raw, {}, letter.arrival)
    return found


def _opened(raw: bytes | None, raw_format: str, key: Any) -> bytes | None:
    """The record that a letter keeps; None where it keeps none, or it is sealed and the key is another one."""
    if raw is None or not raw_format.endswith(SEALED):
        return raw
    try:
        return None if key is None else open_sealed(pa.array([raw], pa.binary()), key())[0].as_py()
    except SpecError:
        return None


def _batches(loaded: LoadedSpec, sources: Mapping[str, PubsubSource], found: Mapping[Id, Message]) -> Iterator[tuple[pa.RecordBatch, Any]]:
    lookups = lookups_of(loaded.spec)
    for name, source in sources.items():
        mine = [(position, message) for (of, position), message in found.items() if of == name]
        if not mine:
            continue
        positions, given = pa.array([p for p, _ in mine], pa.int64()), [m for _, m in mine]
        columns = [
            *provenance(name, positions, pa.array([m.arrival for m in given], pa.int64()).cast(UTC_MICROS)),
            pa.array([m.data for m in given], pa.binary()),
        ]
        names = [SOURCE, POSITION, ARRIVAL, RAW]
        if source.format.type == "avro":
            columns, names = (
                [*columns, pa.array([list(m.attributes.items()) for m in given], pa.map_(pa.string(), pa.string()))],
                [*names, ATTRIBUTES],
            )
        yield pa.RecordBatch.from_arrays(columns, names=names), row_program(loaded.spec, source, lookups)


def _topic(source: PubsubSource, asked: str | None) -> str:
    """The topic of a subscription. What may not be looked at must be named."""
    with closing(Subscription(source.pubsub, where(source.endpoint))) as service:
        try:
            found = str(service.describe(timeout_s=10.0).topic)
        except grpc.RpcError as error:
            if code(error) != "PERMISSION_DENIED" or asked is None:
                if code(error) == "PERMISSION_DENIED":
                    raise SourceError(
                        f"{source.pubsub}: this account may not look up its topic.", hint="Name it: --topic projects/P/topics/T."
                    ) from None
                raise refused(source.pubsub, error) from None
            return asked
    if found == DELETED_TOPIC:
        raise SourceError(f"{source.pubsub}: its topic was deleted; nothing can be sent to it.", hint="Replay --into batch.")
    if asked is not None and asked != found:
        raise SpecError(f"--topic {asked}: is not the topic of {source.pubsub}, which is {found}.", hint="Leave --topic out.")
    return found


def _taken(state: str, letters: pa.Table) -> pa.Table:
    """As written down, with when the newest letter of each record was stored: what is stored later is of the message that is sent now."""
    said = stored_sql(state)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("letters", letters)
        reading(connection, said or "")
        stored = said or "SELECT NULL::VARCHAR AS source, NULL::BIGINT AS position, NULL::TIMESTAMPTZ AS said_at WHERE FALSE"
        rows = connection.sql(
            f"SELECT letters.*, said_at FROM letters LEFT JOIN ({stored}) AS stored USING (source, position)"
        ).to_arrow_table()
    now = pa.array([int(datetime.now(UTC).timestamp() * 1_000_000)] * rows.num_rows, pa.int64()).cast(UTC_MICROS)
    more = {
        "into": pa.array(["stream"] * rows.num_rows), "planned": pa.nulls(rows.num_rows, pa.string()), "input": pa.nulls(rows.num_rows, pa.string()),
        "lies_at": pa.nulls(rows.num_rows, UTC_MICROS), "taken_at": now,
    }  # fmt: skip
    return pa.table({**{n: rows.column(n) for n in rows.column_names}, **more}).select(TAKEN_UP.names).cast(TAKEN_UP)
