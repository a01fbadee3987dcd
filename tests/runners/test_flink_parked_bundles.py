"""Bundles that wait for their checkpoint: their callbacks are kept and called once, their steps work on. What that saves is in tests/flink."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.sdk_worker import BundleProcessorCache, SdkWorker
from apache_beam.transforms.core import DoFn

from beam_pipelines.runners.flink import parked_bundles

finalized: list[int] = []


@pytest.fixture(autouse=True)
def _as_beam_made_it() -> Iterator[None]:
    finalized.clear()
    yield
    SdkWorker.process_bundle, SdkWorker.finalize_bundle, DoFn.BundleFinalizerParam.register = parked_bundles.BEAMS_OWN


class Finalized(beam.DoFn):
    """Gives what it gets; says so when its bundle is finalized."""

    def process(self, element: int, finalizer: Any = DoFn.BundleFinalizerParam) -> Iterator[int]:
        finalizer.register(lambda: finalized.append(element))
        yield element


class Processor:
    """A bundle's steps, as the cache of a worker has them."""

    def __init__(self) -> None:
        self.bundles: list[str] = []
        self.resets = 0
        self.param = DoFn.BundleFinalizerParam()

    def reset(self) -> None:
        self.resets += 1
        self.param.reset()

    def shutdown(self) -> None:
        """Nothing to free."""


def say(number: int) -> None:
    finalized.append(number * (number // number))


def work(cache: BundleProcessorCache, bundle: str, numbers: list[int]) -> Any:
    """Beam's own way through a bundle, without its data: the steps of the cache, callbacks of `numbers`, an answer."""
    processor = cache.get(bundle, "stage")
    processor.bundles.append(bundle)
    for number in numbers:
        processor.param.register(partial(say, number))
    done = beam_fn_api_pb2.ProcessBundleResponse(requires_finalization=processor.param.has_callbacks())
    if not numbers:
        cache.release(bundle)
    return beam_fn_api_pb2.InstructionResponse(instruction_id=bundle, process_bundle=done)


def test_bundles_that_wait_share_their_steps_and_each_is_finalized_once_whatever_its_callbacks_raise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parked_bundles.install()
    parked_bundles.install()
    cache = BundleProcessorCache(frozenset(), None, None, {})
    processor: Any = Processor()
    cache.cached_bundle_processors["stage"].append(processor)
    worker, given = SdkWorker(cache), {"b1": [1, 1], "b2": [0, 2], "b3": [], "b4": [4]}
    monkeypatch.setattr(parked_bundles, "_beams_process", lambda worker, request, bundle: work(cache, bundle, given[bundle]))
    try:
        for bundle, numbers in given.items():
            request = beam_fn_api_pb2.ProcessBundleRequest(process_bundle_descriptor_id="stage")
            assert worker.process_bundle(request, bundle).process_bundle.requires_finalization == bool(numbers)
        assert (processor.bundles, processor.resets, cache.active_bundle_processors) == (list(given), 4, {})
        assert finalized == []
        for bundle in ("b2", "b1"):
            worker.finalize_bundle(beam_fn_api_pb2.FinalizeBundleRequest(instruction_id=bundle), "f")
        assert finalized == [2, 1, 1]
        assert "finalizing a bundle: integer division or modulo by zero" in caplog.text
        with pytest.raises(RuntimeError, match="not in a finalizable state"):  # Beam's own answer: it is through
            worker.finalize_bundle(beam_fn_api_pb2.FinalizeBundleRequest(instruction_id="b1"), "f")
        worker.finalize_bundle(beam_fn_api_pb2.FinalizeBundleRequest(instruction_id="b4"), "f")
        assert finalized == [2, 1, 1, 4]
        assert not any(parked_bundles._parked.values())
    finally:
        cache.shutdown()


def test_workers_of_one_process_that_number_their_bundles_alike_finalize_each_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parked_bundles.install()
    caches = [BundleProcessorCache(frozenset(), None, None, {}) for _ in range(2)]
    monkeypatch.setattr(
        parked_bundles, "_beams_process", lambda worker, request, bundle: work(worker.bundle_processor_cache, bundle, [request])
    )
    try:
        workers = [SdkWorker(cache) for cache in caches]
        for number, (worker, cache) in enumerate(zip(workers, caches, strict=True), start=1):
            processor: Any = Processor()
            cache.cached_bundle_processors["stage"].append(processor)
            worker.process_bundle(number, "b1")
        for expected, worker in zip([[2], [2, 1]], reversed(workers), strict=True):
            worker.finalize_bundle(beam_fn_api_pb2.FinalizeBundleRequest(instruction_id="b1"), "f")
            assert finalized == expected
    finally:
        for cache in caches:
            cache.shutdown()


def test_what_a_worker_has_not_finalized_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parked_bundles.install()
    monkeypatch.setattr(parked_bundles, "_beams_process", lambda worker, request, bundle: work(worker.bundle_processor_cache, bundle, [1]))
    cache = BundleProcessorCache(frozenset(), None, None, {})
    processor: Any = Processor()
    cache.cached_bundle_processors["stage"].append(processor)
    before = len(parked_bundles._parked)
    SdkWorker(cache).process_bundle(None, "b1")
    assert len(parked_bundles._parked) == before + 1
    cache.shutdown()
    del cache
    gc.collect()
    assert len(parked_bundles._parked) == before


def test_a_real_worker_finalizes_what_its_bundles_registered() -> None:
    parked_bundles.install()
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        pipeline | beam.Create(range(1, 6)) | beam.ParDo(Finalized())
    assert sorted(finalized) == [1, 2, 3, 4, 5]
    assert not any(parked_bundles._parked.values())
