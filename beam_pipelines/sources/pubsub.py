"""Pub/Sub as an endless source of message batches, on every runner that runs Beam's unbounded sources (all but Dataflow).

subscription ──▶ puller (one for the process) ──▶ reader (one for a bundle, or several) ──▶ MESSAGES batches
                    ▲                                                                          │
                    └── acknowledge what the archive has stored ◀── the bundle is finalized ◀──┘
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import apache_beam as beam
import grpc
import pyarrow as pa
from apache_beam.coders import Coder
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    ReadFromUnboundedSource,
    UnboundedReader,
    UnboundedSource,
    _ReadFromUnboundedSourceDoFn,
)
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from beam_pipelines import arrival_clock, back_pressure, metrics
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.errors import SourceError, TransientError
from beam_pipelines.sources import split_progress
from beam_pipelines.sources.pubsub_calls import Subscription, back_off_s, code, is_transient, refused, where
from beam_pipelines.sources.pubsub_puller import Puller
from beam_pipelines.sources.pubsub_pulling import Delivery, PullSettings, PullStatus
from beam_pipelines.sources.pubsub_replay import Replay
from beam_pipelines.sources.pubsub_reports import in_one, report
from beam_pipelines.spec.sources import PubsubSource

split_progress.install()

# One bundle is a few elements: what was read is committed, and goes on downstream, several times a second.
ELEMENTS_OF_A_BUNDLE, BUNDLE_S = 8, 0.5
BROKEN_OFF = "the runner went back to a checkpoint; the stream is to be started anew."
_LOOK_S = 0.05
POLL_S = 0.2  # Flink cuts it to whole seconds, that is to 0

_lock = threading.Lock()
_pullers: dict[tuple[str, str, str], Puller] = {}
_elements: dict[Puller, list[int]] = {}  # that this process has got, the one that reads first
_elsewhere: list[PullStatus] = []


class ReadPubsub(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Batches of the messages of one subscription, in `arrow.schema.MESSAGES`, marked as coming from source `number` of the spec.

    Element timestamps (the oldest of the batch, or the watermark where that has passed it) and the watermark are arrival times. The watermark
    stands still after a failed pull until messages whose answer was lost are back.

    A message is acknowledged after its bundle is finalized, and with `ack="stored"` only if this process has also called `durable.register` for
    it; with "finalized" the runner's word is enough. `ack_lag` finalizations more are waited for: 1 on Flink, else 0. Redelivered messages keep
    their position.

    `replay` gives batches of the archive (MESSAGES), which come first, marked `as_archived`; until they are through, the watermark stays
    at `replay_from` (microseconds), and live messages are pulled but not given. With `others_s` it stays there as long as messages may be
    leased to an earlier process (None: for a lease from now), while others are given.

    `unbroken` is for jobs that are started anew when they fail, and whose runner would rather go on from a checkpoint: a reader that is to begin elsewhere than where
    the last one ended raises TransientError. What was handed out since is then in no state, and the watermark would pass it.

    A reader waits for messages for `idle_s` before its bundle ends without any: on Flink every bundle leaves something in the state. `control` is a folder by which a process elsewhere follows the source and ends it (`pubsub_reports`).

    `elements` above 1 lets several processes read the subscription: so many elements of the graph stand for it, which the runner spreads as it spreads keys. In each process the first
    of them reads, and the others end at once; several times as many as processes leave none of these out. What the processes must know of one another is in `control` (`pubsub_reports.Together`).

    The reader raises SourceError, which fails the job, where the subscription does not exist or may not be pulled; outages are waited
    for. Raises SpecError where google-cloud-pubsub is not installed.
    """

    def __init__(
        self,
        source: PubsubSource,
        number: int = 0,
        *,
        replay: Replay | None = None,
        replay_from: int | None = None,
        others_s: float | None = 0.0,
        ack: Literal["stored", "finalized"] = "stored",
        ack_lag: int = 0,
        linger_s: float = 0.2,
        poll_s: float = POLL_S,
        idle_s: float = 0.0,
        unbroken: bool = False,
        control: str | None = None,
        elements: int = 1,
    ) -> None:
        super().__init__()
        assert elements == 1 or control is not None
        self.settings = replace(
            pull_settings(source), number=number, ack=ack, ack_lag=ack_lag, linger_s=linger_s, job=uuid.uuid4().hex,
            others_s=others_s, idle_s=idle_s, unbroken=unbroken, control=control, elements=elements,
        )  # fmt: skip
        self.replay, self.replay_from = replay, replay_from
        self.poll_s = poll_s

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        sources = [_Unbounded(self.settings, self.replay, self.replay_from, element) for element in range(self.settings.elements)]
        if len(sources) == 1:
            read = ReadFromUnboundedSource(
                sources[0], poll_interval=self.poll_s, max_records_per_bundle=ELEMENTS_OF_A_BUNDLE, max_read_time_seconds=BUNDLE_S
            )
            return begin | "Pull" >> read
        # Not `UnboundedSource.split`: Flink's runner spreads elements, and keeps all splits of one together.
        pull = beam.ParDo(_ReadFromUnboundedSourceDoFn(self.poll_s, ELEMENTS_OF_A_BUNDLE, BUNDLE_S)).with_output_types(pa.RecordBatch)
        return begin | "Elements" >> beam.Create(sources, reshuffle=False) | "Pull" >> pull


def pull_settings(source: PubsubSource) -> PullSettings:
    """How the spec wants a subscription pulled; where the service is, is decided here and now (see `pubsub_calls.where`)."""
    return PullSettings(
        source.pubsub,
        where(source.endpoint),
        attribute=None if source.arrival is None else source.arrival.attribute,
        lease_s=source.ack_deadline // 1_000_000,
        most_messages=source.max_outstanding_messages,
        most_bytes=source.max_outstanding_bytes,
        pulls=source.pulls,
    )


def status() -> tuple[PullStatus, ...]:
    """How the subscriptions stand that this process reads or has read since `close`, and those it has heard of."""
    with _lock:
        pullers, elsewhere = list(_pullers.values()), list(_elsewhere)
    return (*(puller.status() for puller in pullers), *elsewhere)


def heard(statuses: tuple[PullStatus, ...]) -> None:
    """How the subscriptions stand that other processes of the same job read."""
    with _lock:
        _elsewhere[:] = statuses


def close(timeout_s: float = 10.0) -> None:
    """Ends all pulling of this process, for the launcher after the job: what is stored is acknowledged, the rest is handed back."""
    with _lock:
        pullers = list(_pullers.values())
        _pullers.clear()
        _elements.clear()
    heard(())
    for puller in pullers:
        puller.close(timeout_s)


def check_subscription(source: PubsubSource, *, patience_s: float = 10.0) -> int | None:
    """Raises what is wrong with the subscription, before a job starts; gives its own ack deadline in seconds, None where this account may pull but not look.

    SpecError: google-cloud-pubsub is missing. SourceError: no credentials, no such subscription, no permission to pull, or one that is
    delivered elsewhere (push, BigQuery, Cloud Storage). TransientError: nothing answers within `patience_s`.
    """
    service = Subscription(source.pubsub, where(source.endpoint))
    try:
        described = _patiently(service, patience_s)
        _pullable(service, described)
        return None if described is None else int(described.ack_deadline_seconds)
    finally:
        service.close()


def _patiently(service: Subscription, patience_s: float) -> Any:
    """The description of the subscription; None where this account may pull but not look."""
    deadline = time.monotonic() + patience_s
    failures = 0
    while True:
        try:
            return _look(service, max(1.0, deadline - time.monotonic()))
        except grpc.RpcError as error:
            if not is_transient(error):
                raise refused(service.path, error) from None
            failures += 1
            wait = back_off_s(failures)
            if time.monotonic() + wait > deadline:
                raise TransientError(
                    f"sources.stream: {service.path}: {service.endpoint} does not answer: {str(error.details()).rstrip('.')}.",
                    hint="Check the network, the endpoint and PUBSUB_EMULATOR_HOST.",
                ) from None
        threading.Event().wait(wait)


def _look(service: Subscription, timeout_s: float) -> Any:
    try:
        return service.describe(timeout_s=timeout_s)
    except grpc.RpcError as error:
        if code(error) != "PERMISSION_DENIED":
            raise
    messages = service.pull(1, timeout_s=timeout_s, at_once=True).result().received_messages
    if messages:
        service.lease([m.ack_id for m in messages], 0)
    return None


def _pullable(service: Subscription, described: Any) -> None:
    if described is None:
        return
    for field, where_to in (("push_config", "push_endpoint"), ("bigquery_config", "table"), ("cloud_storage_config", "bucket")):
        if getattr(getattr(described, field), where_to):
            raise SourceError(
                f"sources.stream: {service.path}: is delivered by its {field}; expected a subscription that is pulled.",
                hint="Create another subscription of the topic.",
            )


def _puller(settings: PullSettings, replay: Replay | None, replay_from: int | None) -> Puller:
    """The puller of this process; it is made by the first reader, and the archive is replayed then."""
    key = (settings.endpoint, settings.subscription, settings.job)
    with _lock:
        if key not in _pullers:
            elements: list[int] = []
            if replay is not None and settings.elements > 1:
                replay = in_one(replay, settings, elements)
            puller = _pullers[key] = Puller(settings, replay=replay, replay_from=replay_from)
            _elements[puller] = elements
            if settings.control is not None:
                report(settings.control, _PROCESS, puller, elements)
        return _pullers[key]


def _reads(puller: Puller, element: int) -> bool:
    """Whether this element is the one that reads here: of several in a process the first."""
    with _lock:
        elements = _elements[puller]
        if element not in elements:
            elements.append(element)
        return elements[0] == element


class _Mark(CheckpointMark):  # type: ignore[misc]
    """A token: the process, the puller's job, and what was handed out."""

    def __init__(self, token: str) -> None:
        self.token = token

    def cut_of(self, job: str) -> str:
        """The puller's token, empty if it is that of another process or job."""
        process, of, cut = self.token.split(":")
        return cut if process == _PROCESS and of == job else ""

    def finalize_checkpoint(self) -> None:
        process, job, cut = self.token.split(":")
        if process == _PROCESS:
            with _lock:
                found = [puller for key, puller in _pullers.items() if key[2] == job]
            for puller in found:
                puller.finalize(cut)


# Not the process id alone: containers all count from 1.
_PROCESS = f"{os.getpid()}-{uuid.uuid4().hex}"


class _MarkCoder(Coder):  # type: ignore[misc]
    def encode(self, value: _Mark) -> bytes:
        return value.token.encode()

    def decode(self, encoded: bytes) -> _Mark:
        return _Mark(encoded.decode())

    def is_deterministic(self) -> bool:
        return True


class _Reader(UnboundedReader):  # type: ignore[misc]
    def __init__(self, puller: Puller) -> None:
        self._puller = puller
        self._current: Delivery | None = None
        self._unmarked: list[int] = []

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        self._current = None if back_pressure.full() else self._take()
        for name, amount in self._puller.counted().items():
            metrics.count(_METRICS[name], amount)
        if self._current is not None:
            self._unmarked += self._current.positions
        return self._current is not None

    def _take(self) -> Delivery | None:
        until = time.monotonic() + self._puller.settings.idle_s
        while (found := self._puller.take()) is None and not self._puller.ended and time.monotonic() < until:
            time.sleep(_LOOK_S)
        return found

    def get_current(self) -> pa.RecordBatch:
        assert self._current is not None
        return self._current.batch

    def get_current_timestamp(self) -> Timestamp:
        assert self._current is not None
        return Timestamp(micros=self._current.timestamp)

    def get_watermark(self) -> Timestamp:
        if self._puller.ended:
            return MAX_TIMESTAMP
        micros = self._puller.watermark()
        if micros is None:
            return MIN_TIMESTAMP
        arrival_clock.tell(self._puller.settings.subscription, micros)
        return Timestamp(micros=micros)

    def get_checkpoint_mark(self) -> _Mark:
        positions, self._unmarked = self._unmarked, []
        return _Mark(f"{_PROCESS}:{self._puller.settings.job}:{self._puller.cut(positions)}")

    def close(self) -> None:
        """With messages that no mark stands for the bundle has failed."""
        positions, self._unmarked = self._unmarked, []
        if positions:
            self._puller.give_back(positions)


class _Nothing(UnboundedReader):  # type: ignore[misc]
    """The reader of an element in whose process another one reads."""

    def __init__(self, job: str) -> None:
        self._job = job

    def start(self) -> bool:
        return False

    def advance(self) -> bool:
        return False

    def get_watermark(self) -> Timestamp:
        return MAX_TIMESTAMP

    def get_checkpoint_mark(self) -> _Mark:
        return _Mark(f"{_PROCESS}:{self._job}:")


_METRICS = {
    "pulled": "messages_pulled",
    "pulled_bytes": "bytes_pulled",
    "delivered": "messages_delivered",
    "redelivered": "messages_redelivered",
    "replayed": "messages_replayed",
    "unreadable": "arrival_unreadable",
    "behind": "messages_behind_watermark",
}


class _Unbounded(UnboundedSource):  # type: ignore[misc]
    """One subscription; not split, for the puller has threads of its own. `element`: which of the settings' elements it is."""

    def __init__(self, settings: PullSettings, replay: Replay | None, replay_from: int | None, element: int = 0) -> None:
        self.settings, self.replay, self.replay_from, self.element = settings, replay, replay_from, element

    def split(self, desired_num_splits: int, options: Any = None) -> Iterable[UnboundedSource]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: _Mark | None) -> UnboundedReader:
        puller = _puller(self.settings, self.replay, self.replay_from)
        if not _reads(puller, self.element) and checkpoint_mark is None:
            return _Nothing(self.settings.job)
        if self.settings.unbroken and not puller.goes_on(None if checkpoint_mark is None else checkpoint_mark.cut_of(self.settings.job)):
            raise TransientError(f"{self.settings.subscription}: {BROKEN_OFF}")
        return _Reader(puller)

    def get_checkpoint_mark_coder(self) -> Coder:
        return _MarkCoder()

    def default_output_coder(self) -> Coder:
        return RecordBatchCoder()
