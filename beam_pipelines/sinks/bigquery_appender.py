"""Rows into one BigQuery table by the Storage Write API: requests that it takes, several in flight, again where an error passes. No Beam.

    add ─▶ chunk (9 MB) ─▶ request in flight ─┬▶ stored
                                              ├▶ an error that passes: again, with back-off; with offsets, at the same one: stored before counts as stored
                                              ├▶ reasons for rows: these are refused, the others go again
                                              ├▶ INVALID_ARGUMENT: the table is grown once; then by halves, until the row at fault is alone
                                              └▶ any other: SinkError

`exactly_once`: a stream with offsets whose rows nobody sees until the bundle ends and flushes them, all or none. One that failed leaves its stream behind, unflushed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.pubsub_service import back_off_s
from beam_pipelines.sinks.bigquery_calls import EXTRA_FIELDS, TRANSIENT, Answer, Connection, Writing, answer_of, refusal
from beam_pipelines.sinks.bigquery_encoding import REQUEST_BYTES, cut, rows_bytes, schema_bytes
from beam_pipelines.sinks.bigquery_schema import Field

IN_FLIGHT = 4
PATIENCE_S = 300.0
ALONE = 100
"""Rows that are refused one by one, and nothing is stored meanwhile: then it is not the rows."""
_STREAMS = 3  # one bundle begins anew on so many
_SETTLES = frozenset({"NOT_FOUND"})  # of a table that was just made: the service takes a moment to know it everywhere
_FULL_BYTES = 500_000  # of a request beside its rows, at most
_LARGE = ("larger than max", "request too large", "exceeds the maximum")
Ints = npt.NDArray[np.int64]


class Rows(Protocol):
    """Rows of one request, encoded."""

    def __len__(self) -> int: ...
    def take(self, rows: Ints) -> Rows: ...
    def fill(self, request: Any, *, first: bool) -> None:
        """Puts them into an AppendRowsRequest; into the `first` of a connection with their schema."""
        ...

    @property
    def kind(self) -> object:
        """Equal for rows of one schema."""
        ...


@dataclass(frozen=True)
class ArrowRows:
    """Rows as Arrow, from `bigquery_encoding.wire`."""

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def take(self, rows: Ints) -> ArrowRows:
        n = len(rows)
        if n and rows[-1] - rows[0] == n - 1:
            return ArrowRows(self.batch.slice(int(rows[0]), n))  # no copy
        return ArrowRows(self.batch.take(pa.array(rows)))

    def fill(self, request: Any, *, first: bool) -> None:
        if first:
            request.arrow_rows.writer_schema.serialized_schema = schema_bytes(self.batch.schema)
        request.arrow_rows.rows.serialized_record_batch = rows_bytes(self.batch)

    @property
    def kind(self) -> object:
        return self.batch.schema


class RefusedRow(NamedTuple):
    """A row that BigQuery does not take: of which `add`, at which place in it, and why."""

    batch: int
    row: int
    why: str


@dataclass(eq=False)
class _Chunk:
    """Rows of one request. `places`: where in their `add` they stood."""

    rows: Rows
    batch: int
    places: Ints
    sent: int = 0

    def part(self, rows: Ints) -> _Chunk:
        return _Chunk(self.rows.take(rows), self.batch, self.places[rows])


@dataclass(eq=False)
class _Lane:
    """A stream and the connection to it; `stored` rows have an answer, `sent` are on their way. One bundle at a time has it."""

    stream: str
    connection: Connection | None = None
    kind: object = None
    stored: int = 0
    sent: int = 0

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class _LostError(Exception):
    """The stream is no more, and none of the bundle's rows in it was ever seen."""


@dataclass(eq=False)
class Appender:
    """Appends to one table; one per process and table, for all its threads: it keeps the streams between bundles, as many as run at once.

    `grow` makes the table take the rows once more (`ensure_table`), and gives True where it changed something.
    """

    table: str
    writing: Writing
    exactly_once: bool = False
    grow: Callable[[], bool] = lambda: False
    patience_s: float = PATIENCE_S
    wait: Callable[[float], Any] = field(default_factory=lambda: threading.Event().wait)
    new: bool = False  # this process made the table
    seen: Callable[[tuple[Field, ...]], None] = lambda _: None
    most_bytes: int = REQUEST_BYTES
    _idle: list[_Lane] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bundle(self) -> Appending:
        """What one bundle appends."""
        return Appending(self)

    def take(self) -> _Lane | None:
        """A stream that nobody uses, if there is one."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give(self, lane: _Lane) -> None:
        """Takes a stream back of which all is stored and seen."""
        with self._lock:
            self._idle.append(lane)

    def close(self) -> None:
        """Ends what nobody uses: streams are finalized, where the service still answers."""
        with self._lock:
            lanes, self._idle = self._idle, []
        for lane in lanes:
            lane.close()
            if self.exactly_once:
                with suppress(grpc.RpcError):
                    self.writing.finalize(lane.stream)
        self.writing.close()


class Appending:
    """The rows of one bundle. Not for several threads.

    `finish` waits until all is stored, and gives what was refused. It and `add` raise SinkError where the table is missing or closed to us, TransientError where the
    service did not answer for the appender's patience. What was added is then stored or not; of `exactly_once` nothing is seen of it, unless the answer to the flush was lost.
    """

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._waiting: deque[_Chunk] = deque()
        self._flying: deque[_Chunk] = deque()
        self._stored: list[_Chunk] = []  # of exactly_once: should the stream be lost, they go again
        self._refused: list[RefusedRow] = []
        self._lane: _Lane | None = None
        self._streams = 0
        self._failures, self._waited, self._alone, self._grown = 0, 0.0, 0, False
        self._adds = 0

    def add(self, rows: Rows, places: Ints | None = None, sizes: Sequence[tuple[int, int]] | None = None) -> int:
        """Takes rows; gives the number by which `RefusedRow` knows them. `places`: where they stood in the caller's batch; `sizes`: how to cut them."""
        number, self._adds = self._adds, self._adds + 1
        where = np.arange(len(rows)) if places is None else places
        most_bytes = self._appender.most_bytes
        pieces = sizes or (list(cut(rows.batch, most_bytes=most_bytes)) if isinstance(rows, ArrowRows) else [(0, len(rows))])
        whole = _Chunk(rows, number, where)
        self._waiting.extend(whole if n == len(rows) else whole.part(np.arange(first, first + n)) for first, n in pieces if n)
        self._guarded(lambda: self._pump(wait=False))
        return number

    def finish(self) -> list[RefusedRow]:
        """Waits until everything is stored or refused, and makes it visible; gives what was refused."""
        self._guarded(self._complete)
        if self._lane is not None:
            self._appender.give(self._lane)
            self._lane = None
        refused, self._refused, self._stored = self._refused, [], []
        return sorted(refused)

    def drop(self) -> None:
        """Leaves the stream as it is; the bundle has failed, and comes again."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        self._waiting.clear()
        self._flying.clear()
        self._stored.clear()

    def _guarded(self, do: Callable[[], None]) -> None:
        """Does it, on another stream where the first is no more; a failure leaves no stream in use."""
        while True:
            try:
                return do()
            except _LostError as error:
                self._anew(str(error))
            except BaseException:
                self.drop()
                raise

    def _anew(self, why: str) -> None:
        self._streams += 1
        if self._streams >= _STREAMS:
            self.drop()
            raise TransientError(f"{self._appender.table}: {_STREAMS} streams were lost one after the other: {why}.", hint="Run again.")
        if self._lane is not None:
            self._lane.close()
        self._lane = None
        self._waiting.extendleft(reversed([*self._stored, *self._flying]))
        self._stored.clear()
        self._flying.clear()

    def _complete(self) -> None:
        self._pump(wait=True)
        lane = self._lane
        if self._appender.exactly_once and lane is not None and self._stored:
            self._flush(lane)

    def _pump(self, *, wait: bool) -> None:
        """Sends what waits; reads answers where there is no room, and all of them to `wait` for the end."""
        while self._waiting or (wait and self._flying):
            if self._waiting and len(self._flying) < IN_FLIGHT:
                self._send(self._waiting.popleft())
            else:
                self._land()

    def _send(self, chunk: _Chunk) -> None:
        lane = self._lane = self._lane or (None if self._streams else self._appender.take()) or self._open()
        if lane.connection is not None and lane.kind != chunk.rows.kind:
            if self._flying:
                self._waiting.appendleft(chunk)
                return self._land()
            lane.close()
        first = lane.connection is None
        request = self._request(lane, chunk, first)
        if len(request) > self._appender.most_bytes + _FULL_BYTES and len(chunk.rows) > 1:
            self._waiting.extendleft(reversed(_halves(chunk)))
            return None
        if lane.connection is None:
            lane.connection, lane.kind = self._appender.writing.open(lane.stream), chunk.rows.kind
        lane.sent += len(chunk.rows)
        chunk.sent += 1
        lane.connection.send(request)
        self._flying.append(chunk)
        return None

    def _request(self, lane: _Lane, chunk: _Chunk, first: bool) -> bytes:
        request = self._appender.writing.request()
        if first:
            request.write_stream = lane.stream
        if self._appender.exactly_once:
            request.offset.value = lane.sent
        chunk.rows.fill(request, first=first)
        return bytes(request.SerializeToString())

    def _open(self) -> _Lane:
        writing = self._appender.writing
        if not self._appender.exactly_once:
            return _Lane(writing.default)
        return _Lane(self._patiently(writing.create))

    def _land(self) -> None:
        """Deals with the answer to the oldest request."""
        lane = self._lane
        assert lane is not None and lane.connection is not None  # noqa: PT018  (something flies)
        chunk, answer = self._flying.popleft(), lane.connection.receive()
        if answer.schema:
            self._appender.seen(answer.schema)
            self._reconnect()
        if answer.stored or self._repeated(chunk, answer):
            lane.stored += len(chunk.rows)
            self._failures, self._waited, self._alone = 0, 0.0, 0
            if self._appender.exactly_once:
                self._stored.append(chunk)
            return
        if self._appender.exactly_once and (answer.lost or answer.code in ("OUT_OF_RANGE", "ALREADY_EXISTS")):
            self._flying.appendleft(chunk)
            raise _LostError(answer.message)
        behind = self._behind(lane, answer)
        self._waiting.extendleft(reversed([*self._instead(chunk, answer), *behind]))

    def _repeated(self, chunk: _Chunk, answer: Answer) -> bool:
        """Whether the rows are stored since an earlier request whose answer was lost."""
        return self._appender.exactly_once and answer.code == "ALREADY_EXISTS" and chunk.sent > 1

    def _behind(self, lane: _Lane, answer: Answer) -> list[_Chunk]:
        """What was sent after a request that failed, and must go again. With offsets it has failed as well: its answers are read, so that none of it can arrive later."""
        if answer.broken:
            lane.close()
            behind = list(self._flying)
        elif self._appender.exactly_once:
            behind = list(self._flying)
            for _ in behind:
                if lane.connection is None or lane.connection.receive().broken:
                    lane.close()
        else:
            return []
        self._flying.clear()
        lane.sent = lane.stored
        return behind

    def _instead(self, chunk: _Chunk, answer: Answer) -> list[_Chunk]:
        """What to send in place of a chunk that was not stored."""
        if answer.rows and len(answer.rows) < len(chunk.rows):
            return self._without(chunk, answer.rows)
        if answer.code == "INVALID_ARGUMENT" and self._grow():
            self._reconnect()
            return [chunk]
        if answer.rows:
            return self._without(chunk, answer.rows)
        if any(words in answer.message.lower() for words in _LARGE):
            self._appender.most_bytes = max(100_000, self._appender.most_bytes // 2)  # a server, or what lies before it, takes less
            return self._halved(chunk, answer)
        if answer.code in TRANSIENT or answer.storage == EXTRA_FIELDS or (self._appender.new and answer.code in _SETTLES):
            self._reconnect()
            self._pause(answer)
            return [chunk]
        if answer.code != "INVALID_ARGUMENT":
            raise refusal(self._appender.table, answer)
        return self._halved(chunk, answer)

    def _reconnect(self) -> None:
        """The next request opens a connection: one knows the table's columns from its beginning."""
        if self._lane is not None:
            self._lane.kind = None

    def _grow(self) -> bool:
        """Whether the table has been given what the rows need; tried once in a bundle."""
        if self._grown:
            return False
        self._grown = True
        return self._appender.grow()

    def _without(self, chunk: _Chunk, refused: dict[int, str]) -> list[_Chunk]:
        table = self._appender.table
        for row, why in refused.items():
            self._refused.append(RefusedRow(chunk.batch, int(chunk.places[row]), f"{table} refuses it: {why}"))
        kept = np.setdiff1d(np.arange(len(chunk.rows)), np.fromiter(refused, np.int64))
        return [chunk.part(kept)] if len(kept) else []

    def _halved(self, chunk: _Chunk, answer: Answer) -> list[_Chunk]:
        if len(chunk.rows) > 1:
            return _halves(chunk)
        self._alone += 1
        if self._alone >= ALONE:
            raise SinkError(
                f"{self._appender.table}: {ALONE} rows in a row are refused, each alone: {answer.message.rstrip('.')}.",
                hint="Compare the table's columns with the contract.",
            )
        return self._without(chunk, {0: answer.message})

    def _flush(self, lane: _Lane) -> None:
        """Makes the bundle's rows visible. Where an answer is lost it is asked again: flushed before counts as flushed."""
        asked = False
        while True:
            try:
                return self._appender.writing.flush(lane.stream, lane.stored - 1)
            except grpc.RpcError as error:
                answer = answer_of(error, self._appender.writing.types)
            if answer.code == "ALREADY_EXISTS" or (asked and answer.code == "OUT_OF_RANGE"):  # the local server says the second
                return None
            if answer.lost or answer.code in ("NOT_FOUND", "OUT_OF_RANGE"):
                if asked:
                    raise TransientError(
                        f"{self._appender.table}: the stream was lost while its rows were made visible; whether they are is not known."
                    )
                raise _LostError(answer.message)
            if answer.code not in TRANSIENT:
                raise refusal(self._appender.table, answer)
            asked = True
            self._pause(answer)

    def _patiently(self, do: Callable[[], str]) -> str:
        while True:
            try:
                return do()
            except grpc.RpcError as error:
                answer = answer_of(error, self._appender.writing.types)
            if answer.code not in TRANSIENT and not (self._appender.new and answer.code in _SETTLES):
                raise refusal(self._appender.table, answer)
            self._pause(answer)

    def _pause(self, answer: Answer) -> None:
        self._failures += 1
        pause = back_off_s(self._failures)
        if self._waited + pause > self._appender.patience_s:
            raise TransientError(
                f"{self._appender.table}: {self._appender.writing.endpoint} does not take rows: {answer.code}: {answer.message.rstrip('.')}.",
                hint="Check the network, the quotas of the Storage Write API, the endpoint and BIGQUERY_STORAGE_EMULATOR_HOST.",
            )
        self._appender.wait(pause)
        self._waited += pause


def _halves(chunk: _Chunk) -> list[_Chunk]:
    middle = len(chunk.rows) // 2
    return [chunk.part(np.arange(middle)), chunk.part(np.arange(middle, len(chunk.rows)))]


def batches_of(refused: Sequence[RefusedRow]) -> Iterator[tuple[int, dict[int, str]]]:
    """Refused rows by their `add`: place and reason."""
    found: dict[int, dict[int, str]] = {}
    for one in refused:
        found.setdefault(one.batch, {})[one.row] = one.why
    yield from found.items()
