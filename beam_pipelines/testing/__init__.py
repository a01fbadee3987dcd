"""The testing kit: run a real spec, whole, on rows given in a test, and look at what comes out.

    result = run_spec("flights.yaml", rows=[{"origin": "JFK", ...}])
    assert_rows(result.rows, [{"origin": "JFK", "dest_name": "Miami Intl"}])
    assert result.reasons == {"conform:CAST": 1}

The graph is the one of production, on a real runner; its files are in a temporary folder that is gone when the call returns.
`beam-pipelines test` does the same for the cases of a `tests:` file.

`Broker` is a Pub/Sub in this process, for tests of streams: see `beam_pipelines.testing.broker`.

Most names load what they need when they are first used: a broker needs no Beam, a spec no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazy: its module has the same name, and would take the function's place whenever it is imported.
from beam_pipelines.testing.encode import Record, encode

if TYPE_CHECKING:
    from beam_pipelines.testing.broker import Broker
    from beam_pipelines.testing.compare import assert_rows, differences, row_differences
    from beam_pipelines.testing.run import SpecResult, run_spec

__all__ = ["Broker", "Record", "SpecResult", "assert_rows", "differences", "encode", "row_differences", "run_spec"]

_MODULES = {
    "Broker": "broker",
    "SpecResult": "run",
    "assert_rows": "compare",
    "differences": "compare",
    "row_differences": "compare",
    "run_spec": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
