"""Bundles that wait for their checkpoint, which Beam 2.77 keeps whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.sdk_worker import BundleProcessorCache, SdkWorker
from apache_beam.transforms.core import DoFn

BEAMS_OWN = (SdkWorker.process_bundle, SdkWorker.finalize_bundle, DoFn.BundleFinalizerParam.register)
_beams_process, _beams_finalize, _beams_register = BEAMS_OWN
_LOG = logging.getLogger(__name__)
_lock = threading.Lock()
_parked: WeakKeyDictionary[BundleProcessorCache, dict[str, list[Callable[[], object]]]] = WeakKeyDictionary()
"""By the worker's cache and the bundle: several workers in one process number their bundles alike. What a worker leaves behind goes with it."""
_of_this_bundle = threading.local()


def install() -> None:
    """Of a bundle that has ended and whose finalization the runner is to ask for, only what is to be called then is kept. Twice is the same as once.

        as Beam does it   bundle ─▶ its steps, with all that they have loaded, wait until it is finalized; the next bundle gets new ones
        as it is here     bundle ─▶ its callbacks wait; the next bundle gets the same steps

    On Flink a source's bundles, five a second, are finalized when a checkpoint is complete. Each kept 1.8 MB: 9 MB a second, gigabytes where the checkpoint store is slow
    or away for minutes. Runners that finalize at once, as Prism does, have bundles share steps anyway.

    It must run in each process that works for Flink, before its first bundle.
    """
    SdkWorker.process_bundle, SdkWorker.finalize_bundle = _process, _finalize
    DoFn.BundleFinalizerParam.register = _register


def _register(param: Any, callback: Callable[[], object]) -> None:
    _beams_register(param, callback)
    callbacks = getattr(_of_this_bundle, "callbacks", None)
    if callbacks is not None:  # else the bundle is of a runner in this process that has no such worker
        callbacks.append(callback)


def _process(worker: Any, request: Any, instruction_id: str) -> Any:
    callbacks = _of_this_bundle.callbacks = []
    try:
        response = _beams_process(worker, request, instruction_id)
    finally:
        _of_this_bundle.callbacks = None
    if response.process_bundle.requires_finalization:
        worker.bundle_processor_cache.release(instruction_id)  # where that fails the bundle does, and is finalized by nobody
        with _lock:
            _parked.setdefault(worker.bundle_processor_cache, {})[instruction_id] = callbacks
    return response


def _finalize(worker: Any, request: Any, instruction_id: str) -> Any:
    with _lock:
        callbacks = _parked.get(worker.bundle_processor_cache, {}).pop(request.instruction_id, None)
    if callbacks is None:
        return _beams_finalize(worker, request, instruction_id)
    for callback in callbacks:
        try:
            callback()
        except Exception as error:  # as Beam does: the others are called all the same
            _LOG.warning("finalizing a bundle: %s", error)
    return beam_fn_api_pb2.InstructionResponse(instruction_id=instruction_id, finalize_bundle=beam_fn_api_pb2.FinalizeBundleResponse())
