"""The puller: all pulling, leasing and acknowledging of one subscription in one process.

    pull threads ──▶ answers ──▶ waiting batches ──▶ take() ──▶ cut() … finalize() ──▶ acknowledged
                        │                                              ▲
    keeper thread: extends leases, sends acknowledgements, asks the service once a second whether it still answers

Runners make a new reader for each bundle, and several at once: readers come and go, the puller stays. It rests when nobody reads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines import draining, durable
from beam_pipelines.arrow.schema import POSITION, PUBLISH_TIME, as_archived, of_source
from beam_pipelines.errors import BeamPipelinesError, RunError, SourceError
from beam_pipelines.sources.pubsub_calls import Subscription, back_off_s, code, is_transient, refused, requests
from beam_pipelines.sources.pubsub_held import Held, extend
from beam_pipelines.sources.pubsub_marks import Marks
from beam_pipelines.sources.pubsub_messages import arrivals, clocked, clocked_again, pulled
from beam_pipelines.sources.pubsub_out import Out
from beam_pipelines.sources.pubsub_outbox import Outbox
from beam_pipelines.sources.pubsub_pulling import Answer, Delivery, PullSettings, PullStatus
from beam_pipelines.sources.pubsub_replay import ReadAhead, Replay
from beam_pipelines.sources.pubsub_waiting import Parcel, Waiting, merged
from beam_pipelines.sources.pubsub_watermark import Watermark

_ANSWER = 1_000  # messages of one pull
_SORTED_TOGETHER = 2_000  # messages made into a batch at once: small answers are merged first
_PULL_S, _BEAT_S, _BEAT_TIMEOUT_S, _TICK_S = 30.0, 1.0, 5.0, 0.1
_UNSTORED_S = 60.0
NEVER = -(2**62)  # the watermark at which a source ended that knows of none
_log = logging.getLogger(__name__)


class Puller:
    """See the module. Every method is for any thread. `now_s` is a monotonic clock, by which leases and silences are measured."""

    def __init__(
        self,
        settings: PullSettings,
        *,
        replay: Replay | None = None,
        replay_from: int | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.ended = False
        self.ended_at: int | None = None
        self.others: int | None = None  # how far another process has come that reads the subscription
        self._now_s = now_s
        self._service = Subscription(settings.subscription, settings.endpoint)
        self._lock = threading.Condition()
        self._sorting = threading.Lock()  # taken before _lock
        self._answers: list[Answer] = []
        self._waiting = Waiting()
        self._held = Held()
        self._marks = Marks(lag=settings.ack_lag, now_s=now_s)
        self._released = replay is None and settings.others_s == 0.0
        self._out = Out(others_s=settings.others_s, lease_s=settings.lease_s, now=now_s())
        self._watermark = Watermark(
            publish_clock=settings.attribute is None, start=replay_from, held=not self._released, patience=settings.patience, now_s=now_s
        )  # fmt: skip
        self._replay = None if replay is None else ReadAhead(replay)
        self._replay_begun = False
        self._outbox = Outbox(self._service)
        self._unstored: list[tuple[float, list[int]]] = []
        self._state: Literal["resting", "pulling", "draining", "closed"] = "resting"
        self._unsorted = self._pulling = self._round = 0  # the last of pull threads: those of an earlier round end
        self._threads: list[threading.Thread] = []
        self._in_flight: set[Any] = set()
        self._beat: Any = None
        self._extend_at = 0.0
        self._asked = self._answered_at = self._message_at = self._nothing_at = self._now_s()
        self._outage: str | None = None
        self._error: BaseException | None = None
        self._counts, self._uncounted = Counter[str](), Counter[str]()

    # What readers call

    def take(self) -> Delivery | None:
        """The next element, None if none is due. Raises what made the puller give up."""
        self._sort_in()
        with self._lock:
            self._asked = self._now_s()
            if self._error is not None:
                raise self._error
            if self._state == "resting":
                self._start()
            if self._state == "pulling" and draining.requested():
                self._stop_pulling("draining")
            if self._replay is not None:
                return self._archived(self._replay)
            self._release()
            parcels = self._waiting.take() if self._due() else []
            if not parcels:
                self._end_if_drained()
                return None
        return self._delivery(parcels)

    def watermark(self) -> int | None:
        """The watermark in microseconds, None while nothing is known."""
        self._sort_in()
        with self._lock:
            return self._read_watermark()

    def cut(self, positions: list[int]) -> str:
        """A token by which `finalize` finds these positions again."""
        with self._lock:
            return self._marks.cut(positions)

    def goes_on(self, token: str | None) -> bool:
        """Whether a reader that begins at the mark of `token` (None: at the beginning) goes on where the one before it ended."""
        with self._lock:
            return token == self._marks.last and (token is not None or not self._counts["delivered"])

    def finalize(self, token: str) -> None:
        """The runner has committed what was handed out before the mark of `token`."""
        with self._lock:
            self._settle(self._marks.finalize(token))
            self._lock.notify_all()

    def give_back(self, positions: list[int]) -> None:
        """Messages handed out by a reader that failed: the service may give them to anybody again."""
        with self._lock:
            self._hand_back(positions)

    def counted(self) -> Counter[str]:
        """What was counted since the last call, by the names of the job's metrics."""
        with self._lock:
            counts, self._uncounted = self._uncounted, Counter()
            return counts

    def status(self) -> PullStatus:
        """What the puller has done and holds."""
        with self._lock:
            now = self._now_s()
            return PullStatus(
                self.settings.subscription, **self._counts, acked=self._outbox.acked, handed_back=self._outbox.handed_back, held=len(self._held) + self._unsorted, held_bytes=self._held_bytes(),
                waiting=self._unsorted + len(self._waiting), watermark_micros=self._watermark.reported,
                oldest_unacked_s=now - (self._held.oldest() or now), idle_s=max(0.0, self._nothing_at - max(self._message_at, self._out.until())),
                out_s=max(0.0, self._out.until() - now), outage=self._outage,
                error=None if self._error is None else str(self._error),
            )  # fmt: skip

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._state == "closed"

    def close(self, timeout_s: float = 10.0) -> None:
        """Acknowledges what is stored, hands the rest back, ends all threads. Safe to call twice."""
        with self._lock:
            self._stop_pulling("closed")
            if self._replay is not None:
                self._replay.close()
            threads, self._threads = self._threads, []
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        self._sort_in()
        with self._lock:
            self._settle(self._marks.rest() if self.settings.ack == "finalized" else self._held.positions())
            self._waiting.clear()
            self._hand_back(self._held.positions())
        self._say_the_rest(deadline)
        self._service.close()

    def _say_the_rest(self, deadline: float) -> None:
        try:
            while (due := self._outbox.due_in()) is not None and time.monotonic() + due < deadline:
                with self._lock:
                    self._lock.wait(due)
                self._outbox.send()
        except SourceError as error:
            _log.warning("%s", error)
        if len(self._outbox):
            _log.warning("%s: %d messages were not acknowledged and come again", self.settings.subscription, len(self._outbox))

    # Pulling

    def _start(self) -> None:
        self._state = "pulling"
        self._round += 1
        self._watermark.begin()
        self._threads = [t for t in self._threads if t.is_alive()]
        for number in range(self.settings.pulls):
            self._pulling += 1
            self._thread(f"pull-{number}", self._pull, self._round)
        if not any(t.name.endswith("keep") for t in self._threads):
            self._thread("keep", self._keep)
        if self._replay is not None and not self._replay_begun:
            self._replay_begun = True
            self._thread("replay", self._replay.read)

    def _thread(self, name: str, run: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                run(*arguments)
            except Exception as error:  # a thread that ends in silence would be a job that waits forever
                self.give_up(error)

        thread = threading.Thread(target=guarded, name=f"pubsub-{self.settings.subscription.rsplit('/', 1)[-1]}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop_pulling(self, state: Literal["resting", "draining", "closed"]) -> None:
        self._state = state
        if self._in_flight:
            self._read_watermark()
            self._lost()
        for call in [*self._in_flight, *([] if self._beat is None else [self._beat])]:
            call.cancel()
        self._lock.notify_all()

    def _pull(self, number: int) -> None:
        failures = 0
        try:
            while room := self._room(number):
                begun = time.monotonic()
                try:
                    self._answered(self._result(self._service.pull(room, timeout_s=_PULL_S)))
                    failures = 0
                except grpc.FutureCancelledError:
                    continue
                except grpc.RpcError as error:
                    if code(error) == "DEADLINE_EXCEEDED" and time.monotonic() - begun > 0.9 * _PULL_S:
                        continue  # how the service says that no message came
                    self._failed(error)
                    failures += 1
                    self._pause(back_off_s(failures), number)
        finally:
            with self._lock:
                self._pulling -= 1
                self._lock.notify_all()

    def _room(self, number: int) -> int:
        """How many messages may be pulled, once some may; 0 when this round of pulling is over."""

        def over() -> bool:
            return self._state != "pulling" or self._round != number

        with self._lock:
            self._lock.wait_for(lambda: over() or self._free() > 0)
            return 0 if over() else self._free()

    def _free(self) -> int:
        bytes_free = self.settings.most_bytes - self._held_bytes()
        if bytes_free <= 0:
            return 0
        each = max(1, self._counts["pulled_bytes"] // max(1, self._counts["pulled"]))
        return max(0, min(_ANSWER, self.settings.most_messages - len(self._held) - self._unsorted, bytes_free // each + 1))

    def _held_bytes(self) -> int:
        return round(self._held.bytes) + sum(answer.size for answer in self._answers)

    def _pause(self, seconds: float, number: int) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._state != "pulling" or self._round != number, timeout=seconds)

    def _result(self, call: Any) -> Any:
        with self._lock:
            self._in_flight.add(call)
            if self._state != "pulling":
                call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._in_flight.discard(call)

    def _answered(self, response: Any) -> None:
        messages = response.received_messages
        with self._lock:
            now = self._answered_at = self._now_s()
            if self._outage is not None:
                _log.warning("%s: pulls succeed again", self.settings.subscription)
                self._outage = None
            if not messages:
                self._nothing_at = now
                self._watermark.nothing()
                return
            size = response.ByteSize()
            self._answers.append(Answer(messages, size, now))
            self._unsorted += len(messages)
            self._message_at = now
            self._count(pulled=len(messages), pulled_bytes=size)
            many = self._unsorted >= _SORTED_TOGETHER
        if many:
            self._sort_in()

    def _failed(self, error: grpc.RpcError) -> None:
        if not is_transient(error):
            self.give_up(refused(self.settings.subscription, error))
            return
        with self._lock:
            self._watermark.failed()
            self._lost()
            if self._outage is None and self._state == "pulling":
                self._outage = f"{code(error)}: {error.details()}"
                _log.warning("%s: pulls fail and are tried again: %s", self.settings.subscription, self._outage)

    def give_up(self, error: BaseException) -> None:
        """Stops pulling; the next read raises the first such error, as a RunError where it is none of this package."""
        with self._lock:
            if self._error is None and self._state != "closed":
                self._error = error
                if not isinstance(error, BeamPipelinesError):
                    self._error = RunError(f"sources.stream: {self.settings.subscription}: {type(error).__name__}: {error}")
                    _log.error("%s: reading failed", self.settings.subscription, exc_info=error)
                self._stop_pulling("draining")

    # From answers to elements

    def _sort_in(self) -> None:
        """Makes all answers so far into a batch that waits. When it returns, no message is between answer and batch."""
        with self._sorting:
            with self._lock:
                answers, self._answers = self._answers, []
            if answers:
                messages = list(chain.from_iterable(answer.messages for answer in answers))
                batch = pulled(messages, source=self.settings.subscription, attribute=self.settings.attribute)
                with self._lock:
                    self._admit(*batch, since=answers[0].at, size=sum(answer.size for answer in answers))
                    self._unsorted -= len(messages)

    def _admit(self, rows: pa.RecordBatch, ack_ids: list[str], unreadable: Any, carriers: Any, *, since: float, size: int) -> None:
        positions = rows.column(POSITION).to_pylist()
        if carriers is not None:
            self._held.sent_again(positions, carriers.tolist())
        fresh, again = self._held.admit(positions, ack_ids, now=since, lease_s=self._out.lease_s, size=size)
        if fresh is not None:
            self._outbox.acknowledge(again)
            self._count(redelivered=len(fresh) - int(fresh.sum()))
            rows, unreadable = rows.filter(pa.array(fresh)), unreadable[fresh]
            positions = rows.column(POSITION).to_pylist()
        times = clocked(rows)[~unreadable]
        self._watermark.pulled(times)
        self._count(unreadable=int(unreadable.sum()))
        if positions:
            behind_s = time.time() - pc.max(rows.column(PUBLISH_TIME)).value / 1e6
            self._waiting.add(Parcel(rows, positions, size, since, int(times.min()) if len(times) else None, behind_s))

    def _due(self) -> bool:
        """Whether an element is to be handed out: when it is worth it, or when no more can come."""
        due = self._waiting.due(self._now_s(), linger_s=self.settings.linger_s, last=self._message_at)
        return due or self._state != "pulling" or not self._free()

    def _delivery(self, parcels: list[Parcel]) -> Delivery:
        rows, positions = merged(parcels)
        times = arrivals(rows)
        with self._lock:
            stamp = self._watermark.stamp(times)
            self._count(delivered=rows.num_rows, behind=int(np.count_nonzero(times < stamp)))
        return Delivery(of_source(rows, self.settings.number), positions, stamp)

    def _archived(self, replay: ReadAhead) -> Delivery | None:
        batch = replay.take()
        if batch is None:
            if replay.done():
                self._replay = None
            return None
        times = arrivals(batch)
        self._watermark.replayed(times if self.settings.attribute is None else clocked_again(batch))
        self._count(replayed=batch.num_rows)
        return Delivery(as_archived(of_source(batch, self.settings.number)), [], self._watermark.stamp(times))

    def _release(self) -> None:
        """The watermark runs once the archive is replayed and what nobody here knows of has come back."""
        if not self._released and self.ended_at is None and self._now_s() >= self._out.until():
            self._released = True
            self._watermark.release()

    def _lost(self) -> None:
        """An answer may be on its way to nobody: its messages come again when their first lease ends."""
        self._out.lost(self._now_s())
        self._released = False
        self._watermark.hold()

    def _end_if_drained(self) -> None:
        quiet = not (self._pulling or self._beat or self._unsorted or len(self._waiting))
        if self._state == "draining" and quiet and self.ended_at is None:
            self.ended_at = NEVER if (reported := self._read_watermark()) is None else reported
            self._watermark.hold()  # where others read too until all have ended, and whoever judges timers can know it (`pubsub_reports`)
            if self.settings.elements == 1:
                draining.end(self.ended_at)
                self.ended = True

    def _read_watermark(self) -> int | None:
        return self._watermark.read(self._waiting.oldest(), self.others)

    # After the bundle

    def _settle(self, positions: Sequence[int]) -> None:
        """Acknowledges those of the finalized messages that may be; the others are asked about again, and handed back in the end."""
        if self.settings.ack == "finalized":
            stored = list(positions)
        else:
            found = durable.take_stored(self.settings.subscription, np.array(positions, np.int64))
            stored = [p for p, is_stored in zip(positions, found.tolist(), strict=True) if is_stored]
            rest = [p for p, is_stored in zip(positions, found.tolist(), strict=True) if not is_stored and self._held.holds(p)]
            if rest:
                self._unstored.append((self._now_s(), rest))
        self._outbox.acknowledge(self._held.release(stored, settled=True))

    def _settle_again(self) -> None:
        """Finalized messages that were not stored: perhaps they are now; if not for long, somebody else may have them."""
        again, self._unstored = self._unstored, []
        for since, positions in again:
            if self._now_s() - since > _UNSTORED_S:
                self._hand_back(positions)
            else:
                before = len(self._unstored)
                self._settle(positions)
                self._unstored[before:] = [(since, rest) for _, rest in self._unstored[before:]]

    def _hand_back(self, positions: Sequence[int]) -> None:
        self._outbox.hand_back(self._held.release(positions))
        self._lock.notify_all()

    # The keeper

    def _keep(self) -> None:
        self._out.learn(self._service)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._state == "closed" or self._outbox.due_in() == 0.0, timeout=_TICK_S)
                if self._state == "closed":
                    return
            self._sort_in()
            self._outbox.send()
            self._extend()
            self._ask()
            with self._lock:
                self._tidy()
                if self._state == "resting" and not (len(self._held) or self._unsorted or len(self._outbox) or self._beat):
                    self._threads = [t for t in self._threads if t is not threading.current_thread()]
                    return

    def _extend(self) -> None:
        now = self._now_s()
        with self._lock:
            if now < self._extend_at:
                return
            due = self._held.due(now)
        try:
            for part in requests([ack_id for _, ack_ids in due for ack_id in ack_ids]):
                self._service.lease(part, self.settings.lease_s)
        except grpc.RpcError as error:
            if is_transient(error):
                self._extend_at = now + back_off_s(1)
                return
            _log.warning("%s: a lease was not extended, its messages may come again: %s", self.settings.subscription, error.details())
        with self._lock:
            extend([lease for lease, _ in due], now=now, lease_s=self.settings.lease_s)

    def _ask(self) -> None:
        """A pull that the service answers at once, if no other was answered for a second: it tells "none" from "nobody there"."""
        with self._lock:
            wanted = self._beat is None and self._state == "pulling" and self._now_s() - self._answered_at >= _BEAT_S
            room = self._free() if wanted else 0
        if room:
            self._beat = self._service.pull(room, timeout_s=_BEAT_TIMEOUT_S, at_once=True)
        elif self._beat is not None and self._beat.done():
            try:
                self._answered(self._beat.result())
            except grpc.FutureCancelledError:
                pass
            except grpc.RpcError as error:
                self._answered_at = self._now_s()  # the next one after a second
                self._failed(error)
            finally:
                self._beat = None

    def _tidy(self) -> None:
        now = self._now_s()
        self._settle_again()
        self._held.expire(now - self.settings.lease_most_s)
        self._marks.forget(now - self.settings.lease_most_s)
        if self._state == "pulling" and now - self._asked > self.settings.rest_after_s:
            _log.info("%s: nobody reads; messages that wait are handed back", self.settings.subscription)
            self._stop_pulling("resting")
        if self._state == "resting":
            self._hand_back(self._waiting.clear())

    def _count(self, **amounts: int) -> None:
        self._counts.update(amounts)
        self._uncounted.update(amounts)
