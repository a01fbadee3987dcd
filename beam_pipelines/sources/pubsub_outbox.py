"""What is still to be said to the service about messages: acknowledgements and hand-backs, kept until they are said."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import grpc

from beam_pipelines import metrics
from beam_pipelines.sources.pubsub_calls import Subscription, back_off_s, code, is_transient, refused, requests

_log = logging.getLogger(__name__)
_GONE = ("NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED")


class Outbox:
    """Ack ids on their way to the service. One thread sends; every thread may add."""

    def __init__(self, service: Subscription, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._now_s = now_s
        self._lock = threading.Lock()
        self._acks: list[str] = []
        self._backs: list[str] = []
        self._failures = 0
        self._again_at = 0.0
        self.acked = self.handed_back = 0

    def __len__(self) -> int:
        return len(self._acks) + len(self._backs)

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """These messages are to be acknowledged."""
        with self._lock:
            self._acks += ack_ids

    def hand_back(self, ack_ids: Sequence[str]) -> None:
        """These messages are to be handed back."""
        with self._lock:
            self._backs += ack_ids

    def due_in(self) -> float | None:
        """Seconds until something is to be sent, None if there is nothing."""
        return max(0.0, self._again_at - self._now_s()) if len(self) else None

    def send(self) -> None:
        """Sends all there is, unless a failure a moment ago says wait. What fails stays; it is never dropped because of an outage.

        Raises SourceError where the service refuses for good. An ack id it does not know any more is no loss: its message comes again
        and is acknowledged then.
        """
        if self._now_s() < self._again_at:
            return
        with self._lock:
            acks, self._acks = self._acks, []
            backs, self._backs = self._backs, []
        for ids, call, rest in ((acks, self._acknowledge, self._acks), (backs, self._hand_back, self._backs)):
            sent = 0
            try:
                for part in requests(ids):
                    if not call(part):
                        break
                    sent += len(part)
            finally:
                with self._lock:
                    rest[:0] = ids[sent:]

    def _acknowledge(self, ack_ids: Sequence[str]) -> bool:
        said = self._said(lambda: self._service.acknowledge(ack_ids))
        if said:
            self.acked += len(ack_ids)
            metrics.count("messages_acked", len(ack_ids))
        return said is not None

    def _hand_back(self, ack_ids: Sequence[str]) -> bool:
        said = self._said(lambda: self._service.lease(ack_ids, 0))
        self.handed_back += len(ack_ids) if said else 0
        return said is not None

    def _said(self, call: Callable[[], None]) -> bool | None:
        """True: done. False: refused, and no use to say it again. None: to be said later."""
        try:
            call()
        except grpc.RpcError as error:
            if is_transient(error):
                if not self._failures:
                    _log.warning("%s: acknowledging fails and is tried again: %s: %s", self._service.path, code(error), error.details())
                self._failures += 1
                self._again_at = self._now_s() + back_off_s(self._failures)
                return None
            if code(error) in _GONE:
                raise refused(self._service.path, error) from None
            _log.warning("%s: refused, these messages come again: %s", self._service.path, error.details())
            return False
        self._failures = 0
        return True
