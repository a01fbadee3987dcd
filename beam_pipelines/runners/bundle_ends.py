"""How a bundle of Beam 2.77 ends: its answer at once, and, on Prism, before the ends of its outputs.

    as Beam does it   … outputs, their ends ─▶ a thread that samples where time goes sleeps on, up to 200 ms ─▶ answer     Prism spins a core meanwhile
    as it is here     … outputs ─▶ answer, ends of outputs                                                                 Prism sleeps until it has both

`install` in each process that runs an SDK harness, `answer_first` where it works for Prism; both stay for the process, and twice is the same as once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

from apache_beam.runners.worker.data_plane import GrpcClientDataChannel
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.runners.worker.statesampler import StateSampler, set_current_tracker

BEAMS_OWN = (StateSampler.start, StateSampler.stop)
_beams_execute, _beams_enqueue = SdkHarness._execute, GrpcClientDataChannel._enqueue_to_send
_lock = threading.Lock()
_ends: dict[str, list[tuple[Any, Any]]] = defaultdict(list)


def install() -> None:
    """Bundles of this process are not sampled: they end with their work.

    A thread per bundle samples what the bundle is doing, at first every 2 ms, then ever more rarely; at the end of the bundle Beam waits for that thread, asleep,
    before it answers the runner. Measured: 90 to 115 ms for each bundle of half a second, on every stage of a message's way. What is lost are Beam's own
    counters of milliseconds per step, which nothing here reads.
    """
    StateSampler.start, StateSampler.stop = _start, _stop


def answer_first() -> None:
    """Bundles of this process answer before they say that their outputs have ended. The two go over different connections, so a runner must take them in any order.

    Prism waits for both. Once it has the ends it spins until it has the answer; the other way round it sleeps (docs/prism.md).
    """
    GrpcClientDataChannel._enqueue_to_send = _keep_ends
    SdkHarness._execute = _execute


def _start(sampler: Any) -> None:
    sampler.tracked_thread = threading.current_thread()
    set_current_tracker(sampler)
    sampler.started = True


def _stop(sampler: Any) -> None:
    set_current_tracker(None)
    sampler.finished = True


def _keep_ends(channel: Any, element: Any) -> None:
    if element.is_last:
        with _lock:
            _ends[element.instruction_id].append((channel, element))
    else:
        _beams_enqueue(channel, element)


def _execute(harness: Any, task: Any, request: Any) -> None:
    _beams_execute(harness, task, request)
    with _lock:
        ends = _ends.pop(request.instruction_id, ())
    for channel, element in ends:
        _beams_enqueue(channel, element)
