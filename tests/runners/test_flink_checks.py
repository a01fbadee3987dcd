"""What `doctor` says of clusters that we have not: other versions, full ones, those elsewhere. Their REST service is a script; a real one is in tests/flink."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import RunError
from beam_pipelines.runners.findings import Finding
from beam_pipelines.runners.flink.checks import look_at_flink
from beam_pipelines.runners.flink.cluster import PARTS, cluster_folder
from beam_pipelines.runners.flink.jars import kept_job_server
from beam_pipelines.runners.flink.job import elements_of, expect_room
from beam_pipelines.runners.options import Flink
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.faults.truth import SPEC
from tests.runners.test_flink_rest import Serve, serve
from tests.server_process import bound_port

__all__ = ["serve"]
OVERVIEW = {"flink-version": "1.19.0", "taskmanagers": 1, "slots-total": 4, "slots-available": 1, "jobs-running": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No jar is kept, and no cluster was started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def found(
    serve: Serve, *flags: str, workers: str | None = None, mode: str = "stream", settings: dict[str, str] | None = None, loaded: LoadedSpec | None = None,
    checkpoints: dict[str, object] | None = None, **about: Any
) -> dict[str, Finding]:  # fmt: skip
    config = [{"key": key, "value": value} for key, value in (settings or {}).items()]
    jobs = [] if checkpoints is None else [{"jid": "a1", "name": "s1", "state": "RUNNING", "start-time": 5, "duration": 7}]
    rest = serve({
        ("GET", "/overview"): [(200, {**OVERVIEW, **about})], ("GET", "/jobmanager/config"): [(200, config)],
        ("GET", "/jobs/overview"): [(200, {"jobs": jobs})], ("GET", "/jobs/a1/checkpoints"): [(200, checkpoints)],
    })  # fmt: skip
    return {finding.check: finding for finding in look_at_flink(Flink(rest.address, workers), flags, (mode,), loaded)}


def test_the_cluster_of_this_machine_without_its_workers_is_bad(serve: Serve, tmp_path: Path) -> None:
    rest = serve({("GET", "/overview"): [(200, OVERVIEW)], ("GET", "/jobmanager/config"): [(200, [])]})
    with bound_port() as (port, probe):
        ports = {"rest": int(rest.address.rpartition(":")[2]), "zookeeper": 1, "workers": port}
        parts = {part: {"pid": 0, "began": "", "mark": "x"} for part in PARTS}
        cluster_folder().mkdir(parents=True)
        (cluster_folder() / "cluster.json").write_text(json.dumps({"id": "x", "ports": ports, "slots": 4, "jar": "x.jar", "parts": parts}))
        looked = {finding.check: finding for finding in look_at_flink(Flink(), (), ("batch",), None)}
        assert (looked["Flink"].state, looked["workers"].state) == ("bad", "not looked at")
        assert "has no Python workers" in looked["Flink"].found
        probe.listen()
        looked = {finding.check: finding for finding in look_at_flink(Flink(), (), ("batch",), None)}
        assert (looked["Flink"].state, looked["workers"].found) == ("good", f"a pool listens at 127.0.0.1:{port}")


def test_a_version_that_beam_has_no_runner_for_is_bad(serve: Serve) -> None:
    looked = found(serve, **{"flink-version": "1.12.7"})
    assert looked["job server"].state == "bad"
    assert "the cluster is Flink 1.12; Beam" in looked["job server"].found


def test_a_job_server_that_is_not_here_will_be_built_or_fetched(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kept_job_server().exists()
    monkeypatch.setenv("PATH", "")
    assert "from Maven Central" in found(serve)["job server"].found
    assert "from Maven Central" in found(serve, **{"flink-version": "1.20.1"})["job server"].found
    assert not kept_job_server().parent.exists()


def test_it_says_how_many_processes_a_stream_would_have(serve: Serve) -> None:
    pool: dict[str, Any] = {"workers": "pool:50000", "slots-available": 4}
    assert found(serve, "--parallelism=1", **pool)["slots, stream"].found == "it takes 1, 4 of 4 are free"
    assert found(serve, "--parallelism=2", **pool)["slots, stream"].found.endswith("; 1 Python process read and compute")
    assert found(serve, "--parallelism=2", taskmanagers=3, **pool)["slots, stream"].found.endswith("; 2 Python processes read and compute")
    each = ["--parallelism=4", "--sdk_worker_parallelism=3"]
    assert found(serve, *each, **pool)["slots, stream"].found.endswith("; 3 Python processes read and compute")
    assert found(serve, *each, **{**pool, "workers": None})["slots, stream"].found.endswith("; 1 Python process read and compute"), (
        "loopback"
    )


def test_a_source_has_several_elements_where_several_processes_may_read(serve: Serve) -> None:
    rest = serve({("GET", "/overview"): [(200, OVERVIEW)], ("GET", "/jobmanager/config"): [(200, [])]})
    pool, here = Flink(rest.address, "pool:50000"), Flink(rest.address)
    assert [elements_of(flink, flags) for flink, flags in ((pool, []), (here, ["--parallelism=2"]))] == [1, 1]
    assert elements_of(pool, ["--parallelism=3"]) == 24
    assert elements_of(pool, ["--sdk_worker_parallelism=2"]) == 8, "what reads and what writes down may be in two"


def test_a_cluster_that_has_lost_slots_is_waited_for(serve: Serve) -> None:
    rest = serve(
        {("GET", "/overview"): [(200, OVERVIEW), (200, {**OVERVIEW, "slots-total": 2})], ("GET", "/jobmanager/config"): [(200, [])]}
    )
    pool, flags = Flink(rest.address, "pool:50000"), ["--parallelism=3"]
    expect_room(pool, flags)
    with pytest.raises(RunError, match="--parallelism=3: the cluster has 2 slots"):
        expect_room(pool, flags)


def test_slots_that_others_have_are_a_warning_and_those_that_nobody_has_are_bad(serve: Serve) -> None:
    assert found(serve, "--parallelism=1")["slots, stream"].state == "good"
    assert found(serve, "--parallelism=3")["slots, stream"].state == "warning"
    assert found(serve, mode="batch")["slots, batch"].found == "it takes 4, 1 of 4 are free"
    assert found(serve, "--parallelism=9")["slots, stream"].state == "bad"
    assert found(serve, "--parallelism=9", settings={"kubernetes.cluster-id": "x"})["slots, stream"].state == "warning", "it grows"


def test_checkpoints_are_looked_for_where_the_cluster_says(serve: Serve, tmp_path: Path) -> None:
    assert found(serve)["checkpoints"].state == "warning"
    assert found(serve, settings={"state.checkpoints.dir": "s3://bucket/checkpoints"})["checkpoints"].state == "not looked at"
    (tmp_path / "here").mkdir()
    assert found(serve, settings={"execution.checkpointing.dir": f"file:{tmp_path / 'here'}"})["checkpoints"].state == "good"
    assert list((tmp_path / "here").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "checkpoints" not in found(serve, mode="batch")
    assert found(serve, settings={"state.checkpoints.dir": f"file://{tmp_path}/file/checkpoints"})["checkpoints"].state == "bad"


def test_a_bucket_is_proved_by_the_checkpoints_of_a_job_and_disproved_by_one_that_failed_since(serve: Serve) -> None:
    def checkpoints(path: str, **latest: object) -> dict[str, object]:
        done = {"id": 7, "external_path": path, "state_size": 2_000_000, "end_to_end_duration": 1500, "trigger_timestamp": 4}
        counts = {"completed": 7, "failed": len(latest), "in_progress": 0, "restored": 0}
        return {"counts": counts, "latest": {"completed": done, "savepoint": None, **latest}}

    settings = {"state.checkpoints.dir": "gs://bucket/flink/checkpoints"}
    there, elsewhere = "gs://bucket/flink/checkpoints/a1/chk-7", "gs://bucket/flink/checkpoints-2/a1/chk-7"
    good = found(serve, settings=settings, checkpoints=checkpoints(there))["checkpoints"]
    assert good.state == "good"
    assert good.found.startswith("in gs://bucket/flink/checkpoints; the last of job s1 came ")
    assert good.found.endswith(" s ago, of 2.0 MB in 1.5 s")
    assert found(serve, settings=settings, checkpoints=checkpoints(elsewhere))["checkpoints"].state == "not looked at"
    for number, state in ((6, "good"), (8, "warning")):
        failed = {"id": number, "failure_message": "Checkpoint expired before completing."}
        later = found(serve, settings=settings, checkpoints=checkpoints(there, failed=failed))["checkpoints"]
        assert (later.state, "a later one failed: Checkpoint expired" in later.found) == (state, state == "warning")


def test_a_cluster_without_a_place_for_savepoints_cannot_end_a_stream_in_order(serve: Serve) -> None:
    place = {"state.checkpoints.dir": "gs://bucket/flink/checkpoints"}
    assert found(serve, settings=place)["savepoints"].state == "warning"
    assert "savepoints" not in found(serve, settings={**place, "state.savepoints.dir": "gs://bucket/flink/savepoints"})


def test_an_interval_under_which_leases_end_is_a_warning_and_one_under_which_nothing_is_acknowledged_is_bad(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("ack_deadline: 10s", "ack_deadline: 30s"))
    loaded = load_spec(tmp_path / "spec.yaml", set_={"subscription": "projects/p/subscriptions/s"})
    good = found(serve, loaded=loaded)["acknowledgements"]
    assert (good.state, good.found) == ("good", "a checkpoint every 10 s, leases of 30 s; at most 20,000 messages a second")
    late = found(serve, "--checkpointing_interval=15000", loaded=loaded)["acknowledgements"]
    assert (late.state, late.do) == ("warning", "Say ack_deadline: 40s in the source, or -- --checkpointing_interval=7500.")
    assert found(serve, "--checkpointing_interval=7500", loaded=loaded)["acknowledgements"].state == "good"
    assert found(serve, "--checkpointing_interval=0", loaded=loaded)["acknowledgements"].state == "bad"
