"""The messages this process holds and has not acknowledged: their ack ids, their leases, and which of them come again.

    admitted ──▶ waiting or in work, lease extended ──┬─▶ released: acknowledged, or handed back
                                                      └─▶ expired: held for the maximum; the service gives it again

Bookkeeping only: no threads, no network, no clock of its own; whoever holds it locks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_REMEMBERED = 200_000  # acknowledged messages known when they come again; at most twice as many


@dataclass(eq=False)
class Lease:
    """Messages that were pulled together: since when they are held, and until when they are leased (seconds of one clock)."""

    positions: list[int]
    since: float
    granted: float
    until: float
    bytes_each: float
    held: int

    def due(self, now: float) -> bool:
        """Half of the lease is over: the next try, if this one fails, still comes in time."""
        return self.until - now <= self.granted / 2


class Held:
    """The held messages by position. A message that comes again keeps its place; only its newest ack id counts."""

    def __init__(self) -> None:
        self._ack_ids: dict[int, str] = {}
        self._lease_of: dict[int, Lease] = {}
        self._leases: list[Lease] = []
        self._settled: set[int] = set()
        self._settled_before: set[int] = set()
        self._carriers: dict[int, set[int]] = {}  # of held messages that were let in once more
        self.bytes = 0.0

    def __len__(self) -> int:
        return len(self._ack_ids)

    def sent_again(self, positions: list[int], carriers: list[int]) -> None:
        """Lets messages in once more that were acknowledged before, where another message brings them: a carrier, which has a position of its own.
        A carrier that comes again itself is known, as any message."""
        for position, carrier in zip(positions, carriers, strict=True):
            if carrier != position and not self._knows(carrier):
                self._settled.discard(position)
                self._settled_before.discard(position)
                self._carriers.setdefault(position, set()).add(carrier)

    def _knows(self, position: int) -> bool:
        return position in self._settled or position in self._settled_before

    def admit(
        self, positions: list[int], ack_ids: list[str], *, now: float, lease_s: float, size: int
    ) -> tuple[npt.NDArray[np.bool_] | None, list[str]]:
        """Takes messages in. Gives which of them are new (None: all), and the ack ids of those that were acknowledged before."""
        each = size / max(1, len(positions))
        if self._all_new(positions):
            self._hold(positions, ack_ids, Lease(positions, now, lease_s, now + lease_s, each, 0))
            return None, []
        fresh = np.zeros(len(positions), np.bool_)
        settled: list[str] = []
        new: dict[int, str] = {}
        again: dict[int, str] = {}
        for row, (position, ack_id) in enumerate(zip(positions, ack_ids, strict=True)):  # an answer with redeliveries: rare
            if self._knows(position):
                settled.append(ack_id)
            elif position in self._ack_ids:
                again[position] = ack_id
            else:
                fresh[row] = position not in new
                new[position] = ack_id
        self._hold(list(new), list(new.values()), Lease(list(new), now, lease_s, now + lease_s, each, 0))
        self._renew(again, now, lease_s)
        return fresh, settled

    def _all_new(self, positions: list[int]) -> bool:
        found = set(positions)
        settled = found.isdisjoint(self._settled) and found.isdisjoint(self._settled_before)
        return len(found) == len(positions) and settled and self._ack_ids.keys().isdisjoint(found)

    def _hold(self, positions: list[int], ack_ids: list[str], lease: Lease) -> None:
        self._ack_ids.update(zip(positions, ack_ids, strict=True))
        self._lease_of.update(dict.fromkeys(positions, lease))
        self.bytes += lease.bytes_each * len(positions)
        lease.held = len(positions)
        self._leases.append(lease)

    def _renew(self, again: dict[int, str], now: float, lease_s: float) -> None:
        """Redelivered messages: their old lease is gone, the new one still counts from when they were first held."""
        for old in {id(lease): lease for lease in map(self._lease_of.__getitem__, again)}.values():
            moved = [p for p in again if self._lease_of[p] is old]
            old.held -= len(moved)
            self.bytes -= old.bytes_each * len(moved)
            self._hold(moved, [again[p] for p in moved], Lease(moved, old.since, lease_s, now + lease_s, old.bytes_each, 0))

    def release(self, positions: Sequence[int], *, settled: bool = False) -> list[str]:
        """Ends the holding of these messages and gives the ack ids of those that were held. `settled`: if they come again they are known."""
        ended: list[str] = []
        carriers: list[int] = []
        for position in positions:
            if position in self._carriers:
                carriers += self._carriers.pop(position)
            ack_id = self._ack_ids.pop(position, None)
            if ack_id is not None:
                ended.append(ack_id)
                lease = self._lease_of.pop(position)
                lease.held -= 1
                self.bytes -= lease.bytes_each
        if settled:
            self._remember([*positions, *carriers])
        return ended

    def _remember(self, positions: Sequence[int]) -> None:
        self._settled.update(positions)
        if len(self._settled) > _REMEMBERED:
            self._settled_before, self._settled = self._settled, set()

    def due(self, now: float) -> list[tuple[Lease, list[str]]]:
        """The leases to be extended, each with the ack ids it still stands for."""
        self._leases = [lease for lease in self._leases if lease.held]
        return [(lease, [self._ack_ids[p] for p in self._of(lease)]) for lease in self._leases if lease.due(now)]

    def expire(self, before: float) -> int:
        """Gives up what is held since before then: its lease ends by itself and the service gives it again. How many messages."""
        old = [lease for lease in self._leases if lease.held and lease.since < before]
        return sum(len(self.release(self._of(lease))) for lease in old)

    def _of(self, lease: Lease) -> list[int]:
        return [p for p in lease.positions if self._lease_of.get(p) is lease]

    def positions(self) -> Sequence[int]:
        """The positions of all held messages."""
        return list(self._ack_ids)

    def holds(self, position: int) -> bool:
        """Whether the message at `position` is held."""
        return position in self._ack_ids

    def oldest(self) -> float | None:
        """Since when the message held longest is held."""
        return min((lease.since for lease in self._leases if lease.held), default=None)


def extend(leases: Iterable[Lease], *, now: float, lease_s: float) -> None:
    """Notes that the service has extended these leases."""
    for lease in leases:
        lease.granted, lease.until = lease_s, now + lease_s
