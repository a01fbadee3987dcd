"""The testing kit: run a real spec, whole, on rows given in a test, and look at what comes out.

    result = run_spec("flights.yaml", rows=[{"origin": "JFK", ...}])
    assert_rows(result.rows, [{"origin": "JFK", "dest_name": "Miami Intl"}])
    assert result.reasons == {"conform:CAST": 1}

    run_spec_stream("flights.yaml", Timeline().arrive("2024-05-01T10:01Z", {...}).arrive(...))     as a stream, with a clock turned by hand
    assert_batch_equals_stream("flights.yaml", records)                                            in any order, in any bundles
    @given(messages(contract))                                                                     what a producer may send (Hypothesis)

The graph is the one of production, on a real runner; its files are in a temporary folder that is gone when the call returns.
`beam-pipelines test` does the same for the cases of a `tests:` file.

`Broker` is a Pub/Sub in this process, for tests of streams: see `beam_pipelines.testing.broker`.

Most names load what they need when they are first used: a broker needs no Beam, a spec no gRPC, only `records` and `messages` need Hypothesis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_pipelines.testing.broker import Broker
    from beam_pipelines.testing.compare import assert_rows, differences, row_differences
    from beam_pipelines.testing.encoding import encode
    from beam_pipelines.testing.parity import assert_batch_equals_stream
    from beam_pipelines.testing.rows import Record, Rows
    from beam_pipelines.testing.run import SpecResult, run_spec
    from beam_pipelines.testing.strategies import messages, records
    from beam_pipelines.testing.stream import StreamResult, run_spec_stream
    from beam_pipelines.testing.timeline import Message, Timeline

__all__ = [
    "Broker", "Message", "Record", "Rows", "SpecResult", "StreamResult", "Timeline", "assert_batch_equals_stream", "assert_rows", "differences",
    "encode", "messages", "records", "row_differences", "run_spec", "run_spec_stream",
]  # fmt: skip

_MODULES = {
    "Broker": "broker",
    "Message": "timeline",
    "Record": "rows",
    "Rows": "rows",
    "SpecResult": "run",
    "StreamResult": "stream",
    "Timeline": "timeline",
    "assert_batch_equals_stream": "parity",
    "assert_rows": "compare",
    "differences": "compare",
    "encode": "encoding",
    "messages": "strategies",
    "records": "strategies",
    "row_differences": "compare",
    "run_spec": "run",
    "run_spec_stream": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
