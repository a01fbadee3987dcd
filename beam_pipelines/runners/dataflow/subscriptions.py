"""A subscription that Dataflow reads: whether it can, and how it goes back to what open windows need again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np

from beam_pipelines.errors import SourceError
from beam_pipelines.pubsub_service import call, code, connect, patiently, types_for, where

_PATIENCE_S = 30.0
KEEP = "Keep them: retain_acked_messages on the subscription, or retention on its topic."
_ANEW = (
    f"{KEEP} Or give the stream a new `state` folder, which begins anew, and compute what lies "
    "between by `run --mode batch --input archive`."
)


def go_back(subscription: str, micros: int | None, *, ahead: int = 0) -> int:
    """Has the service deliver again what was published at `micros` or later, acknowledged or not; None: all that it keeps. Gives the publish time from which on.

    It goes back by `ahead` more, or by as much of that as is kept. Call it while no job reads the subscription. Raises SourceError where the service does not keep acknowledged
    messages since `micros`, or refuses.
    """
    types = types_for("sources.stream")
    with _asking(subscription) as (channel, routed):
        kept = _kept_since(subscription, _kept_s(channel, subscription, routed, patience_s=_PATIENCE_S), micros)
        since = kept if micros is None else max(kept, micros - ahead)
        seek = call(channel, "Subscriber/Seek", bool)
        request = types.SeekRequest.pb()(subscription=subscription)
        request.time.FromMicroseconds(since)
        patiently(lambda: seek(request, timeout=30.0, metadata=routed), patience_s=_PATIENCE_S)
        return since


def kept_s(subscription: str, *, patience_s: float) -> int:
    """For how many seconds the service keeps acknowledged messages of it; 0: it keeps none. Raises SourceError where the service refuses to say."""
    with _asking(subscription) as (channel, routed):
        return _kept_s(channel, subscription, routed, patience_s=patience_s)


def _kept_s(channel: grpc.Channel, subscription: str, routed: Any, *, patience_s: float) -> int:
    types = types_for("sources.stream")
    describe = call(channel, "Subscriber/GetSubscription", types.Subscription.pb().FromString)
    request = types.GetSubscriptionRequest.pb()(subscription=subscription)
    found = patiently(lambda: describe(request, timeout=min(10.0, patience_s), metadata=routed), patience_s=patience_s)
    own = found.message_retention_duration.seconds if found.retain_acked_messages else 0
    return int(max(own, found.topic_message_retention_duration.seconds))


@contextmanager
def _asking(subscription: str) -> Iterator[tuple[grpc.Channel, Any]]:
    """The service, and what each call says besides; its refusals are SourceErrors."""
    channel = connect(where(), who="sources.stream", error=SourceError)
    try:
        yield channel, (("x-goog-request-params", f"subscription={quote(subscription, safe='')}"),)
    except grpc.RpcError as error:
        what = "there is no such subscription" if code(error) == "NOT_FOUND" else f"{code(error)}: {error.details()}"
        raise SourceError(
            f"sources.stream: {subscription}: {what}; expected one that can be read and sought.",
            hint="The account needs roles/pubsub.subscriber on it, to seek, and roles/pubsub.viewer, to see what it keeps.",
        ) from None
    finally:
        channel.close()


def _kept_since(subscription: str, seconds: int, micros: int | None) -> int:
    """The moment from which on everything is kept. Raises SourceError where that is later than `micros`, or nothing is."""
    since = time.time_ns() // 1_000 - seconds * 1_000_000
    if not seconds or (micros is not None and micros < since):
        needed = "all of them" if micros is None else f"those since {np.datetime64(micros, 'us').astype('datetime64[s]')}Z"
        kept = f"keeps acknowledged messages for {seconds // 3600} hours" if seconds else "keeps no acknowledged messages"
        raise SourceError(f"sources.stream: {subscription}: {kept}, and this start needs {needed} again.", hint=_ANEW)
    return since
