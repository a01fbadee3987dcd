"""Messages that are leased to nobody who will acknowledge them: to a process that is gone, or to a pull whose answer was lost.

    pulled by another ──▶ it dies ─────────────── lease ends ──▶ delivered again, here
    pulled here ──▶ the connection falls ── first lease ends ──▶ delivered again, here

Nobody knows whether there are any. So long as there may be, the watermark must not pass them: their windows would close without them.
"""

from __future__ import annotations

import grpc

from beam_pipelines.sources.pubsub_calls import Subscription, code, refused

FIRST_LEASE_S = 10.0  # the service's default, until the subscription was looked at
LEASE_ENDS_S = 2.0  # within which the service gives messages again whose lease has ended


class Out:
    """Until when such messages may be out, in seconds of a monotonic clock. `others_s`: as in `PullSettings`; `lease_s`: of messages in work."""

    def __init__(self, *, others_s: float | None, lease_s: float, now: float) -> None:
        self.first_lease_s: float | None = None
        self._others_s, self._lease_s = others_s, lease_s
        self._begun, self._lost_at = now, float("-inf")

    @property
    def lease_s(self) -> float:
        """The lease that the service gives without being asked."""
        return self.first_lease_s or FIRST_LEASE_S

    def learn(self, service: Subscription) -> None:
        """Asks the service for that lease. Who may only pull may not look: then its default is assumed. Raises SourceError where there is no such subscription."""
        if self.first_lease_s is not None:
            return
        self.first_lease_s = FIRST_LEASE_S
        try:
            self.first_lease_s = float(service.describe(timeout_s=4.0).ack_deadline_seconds or FIRST_LEASE_S)
        except grpc.RpcError as error:
            if code(error) == "NOT_FOUND":
                raise refused(service.path, error) from None

    def lost(self, now: float) -> None:
        """An answer may be on its way to nobody."""
        self._lost_at = now

    def until(self) -> float:
        """When the last of them is back at the latest."""
        others_s = max(self.lease_s, self._lease_s) + LEASE_ENDS_S if self._others_s is None else self._others_s
        return max(self._begun + others_s, self._lost_at + self.lease_s + LEASE_ENDS_S)
