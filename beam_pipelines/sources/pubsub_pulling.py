"""How a subscription is pulled, what pulling gives, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from beam_pipelines.sources.pubsub_watermark import Patience


@dataclass(frozen=True)
class PullSettings:
    """How one subscription is read. `job` tells the jobs of one process apart; `ack`: what must have happened to a message.

    `others_s`: so long messages may be out that an earlier process had leased; None, after a bad end: for a lease. `idle_s`, `unbroken`, `control`, `elements`: see `ReadPubsub`.
    """

    subscription: str
    endpoint: str
    number: int = 0
    attribute: str | None = None
    lease_s: int = 60
    lease_most_s: float = 3_600.0
    most_messages: int = 200_000
    most_bytes: int = 256 << 20
    pulls: int = 4
    linger_s: float = 0.2
    rest_after_s: float = 60.0
    ack: Literal["stored", "finalized"] = "stored"
    ack_lag: int = 0
    patience: Patience = field(default_factory=Patience)
    job: str = ""
    others_s: float | None = 0.0
    idle_s: float = 0.0
    unbroken: bool = False
    control: str | None = None
    elements: int = 1


@dataclass(frozen=True)
class PullStatus:
    """What the puller of one subscription has done and holds: counts of messages, bytes, seconds.

    `waiting` of the `held` messages are not yet handed out. `behind` were handed out with an arrival before the watermark. `idle_s` ends
    with the last answer that had none, for silence proves nothing, and begins when `out_s` is over: how much longer messages may be leased to a dead process, or to
    a pull whose answer was lost. `outage` says why pulls fail at the moment, `error` why the puller gave up.
    """

    subscription: str
    pulled: int = 0
    pulled_bytes: int = 0
    delivered: int = 0
    acked: int = 0
    handed_back: int = 0
    redelivered: int = 0
    replayed: int = 0
    unreadable: int = 0
    behind: int = 0
    held: int = 0
    held_bytes: int = 0
    waiting: int = 0
    watermark_micros: int | None = None
    oldest_unacked_s: float = 0.0
    idle_s: float = 0.0
    out_s: float = 0.0
    outage: str | None = None
    error: str | None = None


class Answer(NamedTuple):
    """An answer to a pull: its messages, their bytes, and when it came (seconds)."""

    messages: Any
    size: int
    at: float


class Delivery(NamedTuple):
    """One element: a batch of messages, the positions to be acknowledged for it, and its timestamp in microseconds.

    That is its oldest arrival, or the watermark where messages come from behind it: so the watermark behind the sinks waits for them too.
    """

    batch: pa.RecordBatch
    positions: list[int]
    timestamp: int
