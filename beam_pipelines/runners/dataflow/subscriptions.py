"""A subscription that Dataflow reads: whether it can, and how it goes back to what open windows need again."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np

from beam_pipelines.errors import SourceError
from beam_pipelines.pubsub_service import call, code, connect, patiently, types_for, where

_PATIENCE_S = 30.0
_ANEW = (
    "Keep them: retain_acked_messages on the subscription, or retention on its topic. Or give the stream a new `state` folder, which begins anew, and compute what lies "
    "between by `run --mode batch --input archive`."
)


def go_back(subscription: str, micros: int | None) -> None:
    """Has the service deliver again what was published at `micros` or later, acknowledged or not; None: all that it keeps.

    Call it while no job reads the subscription. Raises SourceError where the service does not keep acknowledged messages that long, or refuses.
    """
    types, channel = types_for("sources.stream"), connect(where(), who="sources.stream", error=SourceError)
    routed = (("x-goog-request-params", f"subscription={quote(subscription, safe='')}"),)
    describe = call(channel, "Subscriber/GetSubscription", types.Subscription.pb().FromString)
    seek = call(channel, "Subscriber/Seek", bool)
    try:
        found = patiently(
            lambda: describe(types.GetSubscriptionRequest.pb()(subscription=subscription), timeout=10.0, metadata=routed),
            patience_s=_PATIENCE_S,
        )
        since = _kept_since(subscription, found, micros)
        request = types.SeekRequest.pb()(subscription=subscription)
        request.time.FromMicroseconds(since)
        patiently(lambda: seek(request, timeout=30.0, metadata=routed), patience_s=_PATIENCE_S)
    except grpc.RpcError as error:
        what = "there is no such subscription" if code(error) == "NOT_FOUND" else f"{code(error)}: {error.details()}"
        raise SourceError(
            f"sources.stream: {subscription}: {what}; expected one that can be read and sought.",
            hint="The account needs roles/pubsub.subscriber on it, to seek, and roles/pubsub.viewer, to see what it keeps.",
        ) from None
    finally:
        channel.close()


def _kept_since(subscription: str, found: Any, micros: int | None) -> int:
    """`micros`, or where it is None the moment from which on everything is kept. Raises SourceError where that is later than asked for."""
    own = found.message_retention_duration.seconds if found.retain_acked_messages else 0
    kept_s = max(own, found.topic_message_retention_duration.seconds)
    since = time.time_ns() // 1_000 - kept_s * 1_000_000
    if not kept_s or (micros is not None and micros < since):
        needed = "all of them" if micros is None else f"those since {np.datetime64(micros, 'us').astype('datetime64[s]')}Z"
        kept = f"keeps acknowledged messages for {kept_s // 3600} hours" if kept_s else "keeps no acknowledged messages"
        raise SourceError(f"sources.stream: {subscription}: {kept}, and this start needs {needed} again.", hint=_ANEW)
    return since if micros is None else micros
