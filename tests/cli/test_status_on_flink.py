"""What `status` says of a stream's job on Flink: its checkpoints, how long ago the last was complete, and why later ones were not. The cluster is a script."""

from __future__ import annotations

import time
from pathlib import Path

from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.reached import begin
from tests.cli.conftest import Call
from tests.cli.test_status import no_cluster, spec, state
from tests.runners.test_flink_rest import Serve, serve

__all__ = ["no_cluster", "serve", "spec"]


def test_checkpoints_that_fail_are_said_with_the_age_of_the_last_one(call: Call, spec: Path, serve: Serve) -> None:
    begin(state(spec), take_epoch(state(spec), "s1"))
    done = {"id": 7, "external_path": "gs://b/7", "state_size": 2_800_000, "end_to_end_duration": 1_300,
            "trigger_timestamp": (time.time() - 3_601) * 1000}  # fmt: skip
    failed = {"id": 9, "failure_message": "Checkpoint expired before completing."}
    found = {
        "counts": {"completed": 7, "failed": 2, "in_progress": 1, "restored": 0},
        "latest": {"completed": done, "savepoint": None, "failed": failed},
    }
    job = {"jid": "a1", "name": "s1", "state": "RUNNING", "start-time": 5, "duration": 7}
    rest = serve({
        ("GET", "/jobs/overview"): [(200, {"jobs": [job]})],
        ("GET", "/jobs/a1/checkpoints"): [(200, found)],
        ("GET", "/jobs/a1/metrics?get=numRestarts"): [(200, [])],
    })  # fmt: skip
    said = call("status", spec, "--flink-master", rest.address).out
    assert (
        f"Flink   job a1 at {rest.address}: RUNNING; 7 checkpoints (2 failed, the latest: Checkpoint expired before completing.), "
        "the last of 2.8 MB in 1.3 s, " in said
    )
    assert " ago; restarted 0 times" in said
