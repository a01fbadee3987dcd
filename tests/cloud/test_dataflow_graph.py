"""The graph that goes to Dataflow, built offline as `run --graph` does: what its steps are called, keep and carry, and what must not be in it."""

from __future__ import annotations

import base64
import bz2
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam
import msgspec
import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from beam_pipelines.runners.dataflow.graph import MOST_BYTES, Graph
from beam_pipelines.runners.dataflow.job import DataflowCall, submit
from tests.cloud.dataflow_specs import FLIGHTS, JOB, PLAIN, flights, loaded
from tests.cloud.gcs_server import GcsServer

pytestmark = pytest.mark.cloud
_ROWS, _COUNT = "RecordBatchCoder", "TupleCoder[StrUtf8Coder, StrUtf8Coder, StrUtf8Coder, StrUtf8Coder, VarIntCoder]"
_BY_BUCKET = "TupleCoder[VarIntCoder, RecordBatchCoder]"
_SLICES = {f"slice_{n}": "bag of RecordBatchCoder" for n in range(8)}
_TOKEN = {"token": "read_modify_write of BytesCoder"}
_WINDOWS = {"log": "bag of BytesCoder", **_TOKEN}

KEPT_BY_A_STREAM: dict[str, tuple[tuple[str, ...], dict[str, str], dict[str, str]]] = {
    "Deduplicate/Judge/ParDo(Remember)": ((_BY_BUCKET,), {**_SLICES, **_TOKEN}, {"ts-expire": "event_time"}),
    "Aggregate-by_hour/OpenWindows/ParDo(ShowWindows)": ((_BY_BUCKET,), _WINDOWS, {"ts-due": "event_time"}),
    "Aggregate-sessions/OpenWindows/ParDo(ShowWindows)": ((_BY_BUCKET,), _WINDOWS, {"ts-due": "event_time"}),
    "Progress/WriteDown": (
        ("TupleCoder[StrUtf8Coder, BooleanCoder]",),
        {"pending": "read_modify_write of BooleanCoder"},
        {"ts-tick": "event_time"},
    ),
}
"""State of running jobs is found by these names and read by these coders: a change here is one that no `--update` survives. Say so in CHANGELOG.md."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No project of this machine, and no credentials: whoever wants any, for a secret or a service, fails."""
    for name in ("GOOGLE_CLOUD_PROJECT", "NO_GCE_CHECK", "PUBSUB_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")


@pytest.fixture
def lake(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    bucket = gcs.client().bucket(gcs.bucket())
    bucket.blob("lake/in/a.json").upload_from_string(flights(30))
    bucket.blob("lake/carriers.csv").upload_from_string("code,name\nAA,American\n")
    return f"gs://{bucket.name}/lake"


def proto_of(folder: Path, text: str, mode: Any, **parameters: str) -> tuple[Any, Graph]:
    """Beam's proto as the service would get it, and our description of it."""
    built = submit(loaded(folder, text, **parameters), DataflowCall(replace(JOB, graph=str(folder / "graph.json")), mode, "r1"))
    return built._result.job.proto_pipeline, msgspec.json.decode((folder / "graph.json").read_bytes(), type=Graph)


@pytest.fixture(params=["stream", "batch"])
def built(request: pytest.FixtureRequest, offline: None, lake: str, tmp_path: Path) -> tuple[str, Any, Graph]:
    return request.param, *proto_of(tmp_path, FLIGHTS, request.param, lake=lake)


def test_a_stream_is_built_without_any_service(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # nobody is there
    _, graph = proto_of(tmp_path, PLAIN, "stream")
    assert graph.steps["Read-0/Pull/Read"].kind == "pubsub_read"


def test_what_a_stream_keeps_is_found_again_by_the_next_version(offline: None, lake: str, tmp_path: Path) -> None:
    _, graph = proto_of(tmp_path, FLIGHTS, "stream", lake=lake)
    assert {name: (step.inputs, step.states, step.timers) for name, step in graph.steps.items() if step.keeps} == KEPT_BY_A_STREAM


def test_a_stream_has_no_step_that_would_hold_everything_back(offline: None, lake: str, tmp_path: Path) -> None:
    _, graph = proto_of(tmp_path, FLIGHTS, "stream", lake=lake)
    assert [name for name, step in graph.steps.items() if step.kind == "group_by_key" or step.side_inputs] == []
    assert not [timer for step in graph.steps.values() for timer in step.timers.values() if timer != "event_time"]


def test_no_step_is_named_by_a_line_of_code(built: tuple[str, Any, Graph]) -> None:
    own = [name for name in built[2].steps if "FlatMap(<lambda at core.py" not in name]  # inside of Beam's Create
    assert [name for name in own if ".py" in name or "lambda" in name] == []


def test_rows_travel_in_our_coder(built: tuple[str, Any, Graph]) -> None:
    """A pickled row batch carries all of the block it is a slice of. What is pickled are names of files, and what the commit hears of them."""
    _, _, graph = built
    coders = {coder for step in graph.steps.values() for coder in step.outputs}
    shuffled = {coder for step in graph.steps.values() if step.kind in ("group_by_key", "reshuffle") or step.keeps for coder in step.inputs}
    assert {_ROWS, _COUNT} <= coders
    assert [coder for coder in shuffled if "Pickle" in coder] == []
    assert {name.partition("/")[0] for name, step in graph.steps.items() if any("FastPrim" in c for c in step.inputs if step.keeps)} <= {
        "Commit",
        "ReadFiles",
    }


def test_the_graph_is_far_below_the_services_limit(built: tuple[str, Any, Graph]) -> None:
    _, proto, graph = built
    assert graph.size == proto.ByteSize() < MOST_BYTES / 20


def test_nothing_of_this_machine_is_in_the_graph(built: tuple[str, Any, Graph], tmp_path: Path) -> None:
    _, proto, _ = built
    beam = str(Path(apache_beam.__file__).parent).encode()  # functions of Beam's own say where Beam is, which may be below the checkout
    found = [(name, content.replace(beam, b"")) for name, content in contents(proto)]
    for word in (str(tmp_path), str(Path(__file__).parents[2])):
        assert [name for name, content in found if word.encode() in content] == [], word


def test_no_main_session_is_shipped(built: tuple[str, Any, Graph]) -> None:
    _, proto, _ = built
    shipped = [d for e in proto.components.environments.values() for d in e.dependencies]
    names = [beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(d.role_payload).staged_name for d in shipped]
    assert names == ["submission_environment_dependencies.txt"]  # Beam's own list, which nobody installs


def contents(proto: Any) -> Iterator[tuple[str, bytes]]:
    """What each step carries, unpacked, and everything else but Beam's list of what is installed here."""
    bare = type(proto)()
    bare.CopyFrom(proto)
    for environment in bare.components.environments.values():
        del environment.dependencies[:]
    yield "graph", bare.SerializeToString()
    for transform in bare.components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            yield transform.unique_name, unpacked(payload.do_fn.payload)


def unpacked(pickled: bytes) -> bytes:
    raw = base64.b64decode(pickled)
    for unpack in (zlib.decompress, bz2.decompress):
        try:
            return unpack(raw)
        except (zlib.error, OSError, ValueError):
            continue
    return raw
