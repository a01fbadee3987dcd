"""The state of one subscription: which messages wait, which are leased and until when. No clock, no network, no lock of its own.

    add --> waiting --lease--> leased --ack--> gone
               ^                 |
               +--nack, expire---+        (after the last attempt of a dead-letter policy: --> exhausted)

A message of an ordered subscription waits in the lane of its ordering key. A lane hands out a run of its messages and nothing more
until all of them are acked; one that comes back brings back what follows it in the run, acked or not, as the service does.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_MUCH = 10_000


@dataclass(slots=True, frozen=True)
class Stored:
    """A published message, as every subscription of its topic shares it."""

    number: int  # in the order of publishing
    published_ns: int
    size: int  # bytes
    message: Any  # google.pubsub.v1.PubsubMessage


@dataclass(slots=True)
class Flow:
    """What one stream may hold at a time, and holds. 0 is no limit."""

    max_messages: int = 0
    max_bytes: int = 0
    messages: int = 0
    bytes: int = 0

    def room(self, messages: int, size: int) -> tuple[int, int]:
        """How many messages and bytes it may take now, at most those given."""
        if self.max_messages > 0:
            messages = min(messages, self.max_messages - self.messages)
        if self.max_bytes > 0:
            size = min(size, self.max_bytes - self.bytes)
        return messages, size

    def release(self, size: int) -> None:
        self.messages -= 1
        self.bytes -= size


@dataclass(slots=True)
class Lane:
    """The messages of one ordering key: those that wait, and the run that is out."""

    key: str
    waiting: deque[Stored] = field(default_factory=deque)
    run: list[Stored] = field(default_factory=list)
    ack_ids: list[str] = field(default_factory=list)
    open: int = 0


@dataclass(slots=True)
class Lease:
    """One delivery of one message."""

    stored: Stored
    deadline: float
    attempt: int
    flow: Flow | None
    lane: Lane | None = None
    place: int = 0  # in the lane's run


class Backlog:
    """The messages of one subscription that are not acked. Every call costs the messages it names, whatever else waits or is leased."""

    def __init__(self, ack_prefix: str, *, ordered: bool = False, max_attempts: int = 0) -> None:
        self.ack_prefix = ack_prefix
        self.ordered = ordered
        self.max_attempts = max_attempts  # 0: a message may come back for ever
        self.exhausted: list[tuple[Stored, int]] = []  # with attempts made; for the owner to take
        self.acked = 0
        self._ready: deque[Stored] = deque()
        self._lanes: dict[str, Lane] = {}
        self._free: deque[Lane] = deque()  # lanes with waiting messages and none out
        self._leases: dict[str, Lease] = {}
        self._attempts: dict[int, int] = {}  # of messages that came back
        self._deadlines: list[tuple[float, int, Sequence[str]]] = []  # a heap; entries of leases that ended or moved are stale
        self._noted = 0  # ack ids in the heap
        self._counter = 0

    def __len__(self) -> int:
        """How many messages are not acked."""
        return self.waiting + len(self._leases)

    @property
    def waiting(self) -> int:
        return len(self._ready) + sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def leased(self) -> int:
        return len(self._leases)

    def unacked(self) -> list[Stored]:
        """All messages that are not acked, in the order of publishing."""
        found = [*self._ready, *(lease.stored for lease in self._leases.values())]
        found += [stored for lane in self._lanes.values() for stored in lane.waiting]
        return sorted(found, key=lambda stored: stored.number)

    def add(self, messages: Iterable[Stored]) -> None:
        """Takes newly published messages."""
        if not self.ordered:
            self._ready.extend(messages)
            return
        for stored in messages:
            key = stored.message.ordering_key
            if not key:
                self._ready.append(stored)
                continue
            lane = self._lanes.get(key) or self._lanes.setdefault(key, Lane(key))
            if not lane.run and not lane.waiting:
                self._free.append(lane)
            lane.waiting.append(stored)

    def reset(self, messages: Iterable[Stored]) -> None:
        """Makes exactly `messages` wait; leases end without effect on what they were for."""
        for lease in self._leases.values():
            _release(lease)
        self._ready.clear()
        for state in (self._lanes, self._leases, self._attempts):
            state.clear()
        self._free.clear()
        self._deadlines.clear()
        self._noted = 0
        self.add(sorted(messages, key=lambda stored: stored.number))

    def lease(
        self, now: float, *, max_messages: int, max_bytes: int, deadline_s: float, flow: Flow | None = None
    ) -> list[tuple[str, Lease]]:
        """Hands out waiting messages, with ack ids, until `now` + `deadline_s`. The last one may pass `max_bytes`."""
        if flow is not None:
            max_messages, max_bytes = flow.room(max_messages, max_bytes)
        deadline = now + deadline_s
        granted: list[tuple[str, Lease]] = []
        while max_messages > 0 and max_bytes > 0:
            lane = self._free.popleft() if self._free else None
            run = _taken(self._ready if lane is None else lane.waiting, max_messages, max_bytes)
            granted += [self._grant(stored, deadline, flow, lane) for stored in run]
            max_messages -= len(run)
            max_bytes -= sum(stored.size for stored in run)
            if lane is None:
                break
        if granted:
            self._note(deadline, [ack_id for ack_id, _ in granted])
        return granted

    def _grant(self, stored: Stored, deadline: float, flow: Flow | None, lane: Lane | None) -> tuple[str, Lease]:
        self._counter += 1
        ack_id = f"{self.ack_prefix}{self._counter}"
        lease = Lease(stored, deadline, self._attempts.get(stored.number, 0) + 1, flow, lane)
        self._leases[ack_id] = lease
        if lane is not None:
            lease.place = len(lane.run)
            lane.run.append(stored)
            lane.ack_ids.append(ack_id)
            lane.open += 1
        if flow is not None:
            flow.messages += 1
            flow.bytes += stored.size
        return ack_id, lease

    def ack(self, ack_ids: Iterable[str]) -> int:
        """Ends leases for good and says how many; those that ended before are left alone."""
        ended = 0
        for ack_id in ack_ids:
            lease = self._leases.pop(ack_id, None)
            if lease is None:
                continue
            ended += 1
            if lease.attempt > 1:
                self._attempts.pop(lease.stored.number, None)
            _release(lease)
            if lease.lane is not None:
                self._close(lease.lane)
        self.acked += ended
        return ended

    def extend(self, ack_ids: Iterable[str], deadline: float) -> None:
        """Moves the deadline of leases that have not ended, forward or back."""
        moved = [ack_id for ack_id in ack_ids if ack_id in self._leases]
        for ack_id in moved:
            self._leases[ack_id].deadline = deadline
        if moved:
            self._note(deadline, moved)

    def nack(self, ack_ids: Iterable[str]) -> int:
        """Lets messages wait again at once and says how many leases ended so."""
        return sum(self._give_back(ack_id) for ack_id in ack_ids)

    def expire(self, now: float) -> int:
        """Lets the messages of leases past their deadline wait again and says how many leases ended so."""
        ended = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, ack_ids = heapq.heappop(self._deadlines)
            self._noted -= len(ack_ids)
            for ack_id in ack_ids:
                lease = self._leases.get(ack_id)
                if lease is not None and lease.deadline <= now:
                    ended += self._give_back(ack_id)
        return ended

    def next_deadline(self) -> float | None:
        """Before this time no lease expires; None: there is none."""
        return self._deadlines[0][0] if self._deadlines else None

    def holds(self, ack_id: str) -> bool:
        return ack_id in self._leases

    def _give_back(self, ack_id: str) -> bool:
        lease = self._leases.pop(ack_id, None)
        if lease is None:
            return False
        _release(lease)
        spent = 0 < self.max_attempts <= lease.attempt
        if spent:
            self.exhausted.append((lease.stored, lease.attempt))
            self._attempts.pop(lease.stored.number, None)
        else:
            self._attempts[lease.stored.number] = lease.attempt
        if lease.lane is not None:
            self._rewind(lease.lane, lease.place, spent=spent)
        elif not spent:
            self._ready.append(lease.stored)
        return True

    def _rewind(self, lane: Lane, place: int, *, spent: bool) -> None:
        """Takes back a run from `place` on: later messages must not be settled before an earlier one."""
        for ack_id in lane.ack_ids[place + 1 :]:
            lease = self._leases.pop(ack_id, None)
            if lease is not None:
                lane.open -= 1
                _release(lease)
        lane.waiting.extendleft(reversed(lane.run[place + spent :]))
        del lane.run[place:], lane.ack_ids[place:]
        self._close(lane)

    def _close(self, lane: Lane) -> None:
        lane.open -= 1
        if lane.open:
            return
        lane.run.clear()
        lane.ack_ids.clear()
        if lane.waiting:
            self._free.append(lane)
        else:
            del self._lanes[lane.key]

    def _note(self, deadline: float, ack_ids: Sequence[str]) -> None:
        self._counter += 1  # breaks ties in the heap
        heapq.heappush(self._deadlines, (deadline, self._counter, ack_ids))
        self._noted += len(ack_ids)
        if self._noted > _MUCH + 4 * len(self._leases):
            self._forget_stale()

    def _forget_stale(self) -> None:
        groups: dict[float, list[str]] = {}
        for ack_id, lease in self._leases.items():
            groups.setdefault(lease.deadline, []).append(ack_id)
        self._deadlines = [(deadline, i, ids) for i, (deadline, ids) in enumerate(groups.items())]
        heapq.heapify(self._deadlines)
        self._noted = len(self._leases)


def _taken(source: deque[Stored], max_messages: int, max_bytes: int) -> list[Stored]:
    run: list[Stored] = []
    while source and len(run) < max_messages and max_bytes > 0:
        stored = source.popleft()
        max_bytes -= stored.size
        run.append(stored)
    return run


def _release(lease: Lease) -> None:
    if lease.flow is not None:
        lease.flow.release(lease.stored.size)
