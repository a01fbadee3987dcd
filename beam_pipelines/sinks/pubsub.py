"""Rows, panes or dead letters as messages of a topic, at least once.

    batch ─▶ mask ─▶ one JSON object per row (one SELECT) + attributes ─▶ published before the bundle ends

Nothing can be taken back: a bundle that is repeated publishes its rows again, and a batch run publishes before it commits, so a run that fails
has published, and a second one publishes again. The same row then has the same `source` and `position`: whoever reads drops repeats by these.
A stream that is started again publishes again all that it reads again: whether that was published, repaired or refused before, nobody here can tell.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_pipelines import metrics
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import rows_by_source, unit_of
from beam_pipelines.arrow.doors import DUPLICATE, doors_of
from beam_pipelines.arrow.masking import mask_columns
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, CONTRACT, KEY_HASH, POSITION, PROVENANCE_NAMES, RAW, RUN_ID, SOURCE
from beam_pipelines.errors import SinkError
from beam_pipelines.pubsub_service import Topic, where
from beam_pipelines.sinks.dead_letters import CompleteLetters
from beam_pipelines.sinks.ledger import DEAD_AT_SINK
from beam_pipelines.sinks.publishing import Publisher
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.speed import DOOR, Stored
from beam_pipelines.sinks.text import json_objects, plain_text
from beam_pipelines.sinks.write import COUNTS, DEAD, Masking, Written, refused_letters
from beam_pipelines.spec.sinks import LETTERS, ROWS, PubsubSink

PUBLISHED = "published"
_ROWS = 20_000  # rows turned into text at once
_HELD_ROWS, _HELD_BYTES = 100_000, 64 << 20  # kept until the service has taken their messages; a bundle may be all there is
_RAW_BYTES = 4 << 20  # of a letter: as base64 in JSON it must still fit into a message
_NOT_WRITTEN = PROVENANCE_NAMES | {RAW, KEY_HASH, RUN_ID, CONTRACT, CHANGE}
_OF_PANES = {"pane": "_pane", "index": "_pane_index", "epoch": "_epoch"}
_OF_ROWS = {"source": SOURCE, "position": POSITION, "arrival_time": ARRIVAL}
_OF_LETTERS = {"source": "source", "position": "position", "stage": "stage", "reason": "reason"}


@dataclass(frozen=True)
class _Messages:
    """All a worker needs to make messages of an output's rows."""

    sink: PubsubSink
    output: Output
    endpoint: str
    masking: Masking | None = None
    event_time: str | None = None
    key: tuple[str, ...] = ()


class Publish(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Publishes rows or panes. Takes a PCollection of RecordBatch.

    A bounded one gives `Written(files, dead, counts)`, whose `files` is empty; an unbounded one `Stored(files, dead, doors)`, whose `files` has an
    element per bundle that is published. Rows of `_change` -1 become messages `change: retract` with what they hold of `key` and event time.

    Raises on the worker: SinkError where there is no such topic, no permission, no credentials; TransientError where the service does not answer
    for five minutes. Here: SpecError where google-cloud-pubsub is not installed.
    """

    def __init__(
        self, sink: PubsubSink, *, label: str, run: RunInfo, of: str = ROWS, masking: Masking | None = None, event_time: str | None = None,
        key: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.output = Output(label, of, sink.topic, "jsonl")  # of files it has none
        self._messages = _Messages(sink, self.output, where(sink.endpoint), masking, event_time, tuple(key))

    def expand(self, rows: beam.PCollection) -> Written | Stored:
        done = rows | "Publish" >> beam.ParDo(_Publish(self._messages)).with_outputs(DEAD, COUNTS, DOOR, main=PUBLISHED)
        done[DEAD].element_type = done[DOOR].element_type = pa.RecordBatch
        if rows.is_bounded:
            nothing = done[PUBLISHED] | "NoFiles" >> beam.Filter(_never)
            return Written(nothing, done[DEAD], done[COUNTS])
        return Stored(done[PUBLISHED], done[DEAD], done[DOOR])


def _never(_: object) -> bool:
    """By name, because a lambda is pickled with the place of its file."""
    return False


class PublishDeadLetters(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Completes, masks and publishes dead letters; raw bytes of more than 4 MB are left out. Gives what `Publish` gives."""

    def __init__(
        self, sink: PubsubSink, *, run: RunInfo, contract: Contract, raw_key: Callable[[], str | bytes | None] | None = None, label: str = LETTERS,
    ) -> None:  # fmt: skip
        super().__init__()
        self._complete = CompleteLetters(run, contract, raw_key)
        self._publish = Publish(sink, label=label, run=run, of=LETTERS)
        self.output = self._publish.output

    def expand(self, letters: beam.PCollection) -> Written | Stored:
        complete = letters | "Complete" >> beam.ParDo(self._complete).with_output_types(pa.RecordBatch)
        done: Written | Stored = complete | "Send" >> self._publish
        return done


class _Publish(beam.DoFn):  # type: ignore[misc]
    """Messages go out while the bundle runs; every so many rows, and when it ends, all are waited for, and then it says which rows were refused."""

    def __init__(self, messages: _Messages) -> None:
        self._messages = messages
        self._secret: bytes | None = None
        self._publisher: Publisher[tuple[int, int]] | None = None

    def setup(self) -> None:
        if self._messages.masking is not None:
            self._secret = self._messages.masking.secret()
        sink, endpoint = self._messages.sink, self._messages.endpoint
        topic = Topic(sink.topic, endpoint, who=f"sinks: {sink.topic}", error=SinkError)
        self._publisher = Publisher(topic, ordered=sink.ordering_key is not None)

    def teardown(self) -> None:
        if self._publisher is not None:
            self._publisher.topic.close()

    def start_bundle(self) -> None:
        assert self._publisher is not None
        self._publisher.drop()
        self._forget()
        self._earliest: Any = None

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        if not batch.num_rows:
            return
        self._earliest = timestamp if self._earliest is None else min(self._earliest, timestamp)
        gone = _gone(batch)
        if gone is not None:
            yield TaggedOutput(DOOR, doors_of(batch.filter(gone), DUPLICATE))
        for first in range(0, batch.num_rows, _ROWS):
            self._add(batch.slice(first, _ROWS))
            if self._rows >= _HELD_ROWS or self._bytes >= _HELD_BYTES:
                yield from self._outcomes()

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._outcomes()
        if self._earliest is not None:
            yield _at((PUBLISHED, self._messages.output.name), self._earliest)

    def _forget(self) -> None:
        self._batches: list[pa.RecordBatch] = []  # as given: what may yet be refused
        self._units: list[str] = []
        self._rows = self._bytes = 0

    def _outcomes(self) -> Iterator[Any]:
        """What became of the rows so far, once all their messages are published or refused."""
        assert self._publisher is not None
        refused = self._publisher.finish()
        metrics.count(f"{self._messages.output.name}_published", self._rows - len(refused))
        why: dict[int, dict[int, str]] = {}
        for (number, row), message in refused:
            why.setdefault(number, {})[row] = message
        for number, batch in enumerate(self._batches):
            yield from self._outcome(batch, self._units[number], why.get(number, {}))
        self._forget()

    def _outcome(self, batch: pa.RecordBatch, unit: str, refused: dict[int, str]) -> Iterator[Any]:
        """Counts of a batch, and letters of what was refused of it. A letter that is refused has no letter: it is in the files."""
        name = self._messages.output.name
        lost: dict[str, int] = {}
        if refused and self._messages.output.of != LETTERS:
            order = sorted(refused)
            rows = batch.take(pa.array(order))
            lost = rows_by_source(rows)
            yield TaggedOutput(
                DEAD, _at(refused_letters(name, rows, [refused[r] for r in order], self._messages.event_time), self._earliest)
            )
        for source, rows_ in (Counter(rows_by_source(batch)) - Counter(lost)).items():
            yield TaggedOutput(COUNTS, _at((f"{name}:{unit}", source, "written", name, rows_), MIN_TIMESTAMP))
        for source, rows_ in lost.items():
            yield TaggedOutput(COUNTS, _at((f"{name}:{unit}", source, "dead", DEAD_AT_SINK + name, rows_), MIN_TIMESTAMP))

    def _add(self, batch: pa.RecordBatch) -> None:
        """Makes messages. One loop over rows: protobuf has no other way to make them."""
        assert self._publisher is not None
        if not batch.num_rows:
            return
        number, sink = len(self._batches), self._messages.sink
        self._batches.append(batch)
        self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        masking = self._messages.masking
        shown = batch if masking is None else mask_columns(batch, masking.how, key=self._secret)
        data = self._data(shown)
        self._units.append(unit_of(batch) if SOURCE in batch.schema.names else hashlib.blake2b(b"".join(data), digest_size=16).hexdigest())
        told = self._attributes(batch, shown)
        keys = plain_text(shown.column(sink.ordering_key)).to_pylist() if sink.ordering_key in shown.schema.names else None
        names = list(told)
        add = self._publisher.add
        for row, (content, *values) in enumerate(zip(data, *told.values(), strict=True)):
            attributes = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            add(content, attributes, (number, row), ordering_key=(keys[row] or "") if keys is not None else "")

    def _data(self, shown: pa.RecordBatch) -> list[bytes]:
        columns = [n for n in shown.schema.names if n not in _NOT_WRITTEN or self._messages.output.of != ROWS]
        content = shown.select(columns)
        if self._messages.output.of == LETTERS:
            raw = content.column("raw")
            small = pc.fill_null(pc.less_equal(pc.binary_length(raw), _RAW_BYTES), True)
            content = content.set_column(columns.index("raw"), "raw", pc.if_else(small, raw, pa.scalar(None, raw.type)))
        texts = json_objects(content)
        gone = _gone(shown)
        if gone is not None:
            held = [n for n in columns if n in self._messages.key or n == self._messages.event_time]
            texts = pc.if_else(gone, json_objects(content.select(held)) if held else "{}", texts)
        found: list[bytes] = texts.cast(pa.binary()).to_pylist()
        return found

    def _attributes(self, batch: pa.RecordBatch, shown: pa.RecordBatch) -> dict[str, list[str | None]]:
        """Each attribute's values, row by row; None is no attribute."""
        of = self._messages.output.of
        own = _OF_ROWS if of == ROWS else _OF_LETTERS if of == LETTERS else _OF_PANES
        found: dict[str, list[str | None]] = {"output": [self._messages.output.name] * batch.num_rows}
        found |= {name: plain_text(batch.column(c)).to_pylist() for name, c in own.items() if c in batch.schema.names}
        gone = _gone(batch)
        if gone is not None:
            found["change"] = pc.if_else(gone, "retract", pa.scalar(None, pa.string())).to_pylist()
        chosen = self._messages.sink.attributes.items()
        return found | {name: plain_text(shown.column(c)).to_pylist() for name, c in chosen if c in shown.schema.names}


def _gone(batch: pa.RecordBatch) -> pa.Array | None:
    """Which rows take back one that was published; None where none does."""
    if CHANGE not in batch.schema.names:
        return None
    gone = np.asarray(batch.column(CHANGE)) < 0
    return pa.array(gone) if gone.any() else None


def _at(value: Any, timestamp: Any) -> WindowedValue:
    return WindowedValue(value, timestamp, [GlobalWindow()])
