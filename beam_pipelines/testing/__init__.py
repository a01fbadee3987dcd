"""The testing kit: run a real spec, whole, on rows given in a test, and look at what comes out.

    result = run_spec("flights.yaml", rows=[{"origin": "JFK", ...}])
    assert_rows(result.rows, [{"origin": "JFK", "dest_name": "Miami Intl"}])
    assert result.reasons == {"conform:CAST": 1}

The graph is the one of production, on a real runner; its files are in a temporary folder that is gone when the call returns.
`beam-pipelines test` does the same for the cases of a `tests:` file.
"""

from beam_pipelines.testing.compare import assert_rows, differences, row_differences
from beam_pipelines.testing.encode import Record, encode
from beam_pipelines.testing.run import SpecResult, run_spec

__all__ = ["Record", "SpecResult", "assert_rows", "differences", "encode", "row_differences", "run_spec"]
