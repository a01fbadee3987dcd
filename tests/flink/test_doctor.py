"""`doctor` before a stream on a real cluster: what it says is what the job then finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.cli.main import command, run_command
from beam_pipelines.runners.flink.cluster import Cluster
from tests.faults.truth import SPEC
from tests.pubsub_servers import PubsubServer
from tests.server_process import bound_port

pytestmark = pytest.mark.flink


def test_a_cluster_that_takes_the_stream_is_good_and_what_is_wrong_of_it_is_named(
    flink_cluster: Cluster, broker: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    (tmp_path / "spec.yaml").write_text(SPEC)
    given = [
        "doctor", str(tmp_path / "spec.yaml"), "--json", "--mode", "stream", "--set", f"subscription={broker.pair()[1]}",
        "--runner", "flink", "--flink-master", flink_cluster.rest,
    ]  # fmt: skip

    def found(*words: str, code: int) -> dict[str, dict[str, Any]]:
        capsys.readouterr()
        assert run_command(command, [*given, *words]) == code
        return {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}

    checkpoints = flink_cluster.folder / "checkpoints"
    before = {*checkpoints.iterdir()}  # of jobs of other tests
    good = found("--flink-workers", flink_cluster.workers, "--", "--checkpointing_interval=2000", code=0)
    assert {name: check["state"] for name, check in good.items()} == dict.fromkeys(good, "good")
    assert good["Flink"]["found"] == f"1.19.0 at {flink_cluster.rest}, 1 task manager, 2 of 2 slots free"
    assert good["job server"]["found"].endswith("these are tested together")
    assert good["slots, stream"]["found"] == "it takes 1, 2 of 2 are free"
    assert str(checkpoints) in good["checkpoints"]["found"]
    assert good["acknowledgements"]["found"].startswith("a checkpoint every 2 s, leases of 10 s")
    assert {*checkpoints.iterdir()} <= before

    assert found(code=0)["acknowledgements"]["state"] == "warning", "leases of 10 s, a checkpoint every 10 s"
    with bound_port() as (port, _):
        bad = found("--flink-workers", f"127.0.0.1:{port}", "--", "--parallelism=3", code=1)
    assert {name for name, check in bad.items() if check["state"] == "bad"} == {"slots, stream", "workers", "acknowledgements"}
    assert bad["slots, stream"]["found"].startswith("--parallelism=3: the cluster has 2 slots")
