"""What a start of a stream leaves that ends with an error: a record that says so, and a stream that goes on, also under the same id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_pipelines import draining
from beam_pipelines.errors import SinkError, SourceError, SpecError
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.standing import standing
from beam_pipelines.serving.tables import runs_of
from beam_pipelines.sinks.epochs import all_starts, take_epoch
from beam_pipelines.sinks.results import find_run, list_runs
from beam_pipelines.sinks.run import RunInfo, later_id
from beam_pipelines.sources import pubsub
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow

SPEC = """
spec: 1
pipeline: clicks
contract: {{columns: {{id: {{type: int64}}}}}}
sources: {{stream: [{{pubsub: {subscription}, format: json}}]}}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}, {{from: dead_letters, parquet: {{path: lake/dead}}}}]
"""
SENT = [*(json.dumps({"id": n}).encode() for n in range(20)), b"broken"]


class Clicks:
    """A stream over one subscription of a broker."""

    def __init__(self, server: PubsubServer, folder: Path) -> None:
        self.server = server
        self.topic, self.subscription = server.pair(ack_deadline_seconds=10)
        (folder / "spec.yaml").write_text(SPEC.format(subscription=self.subscription), "utf-8")
        self.loaded: LoadedSpec = load_spec(folder / "spec.yaml")

    def once_stored(self, do: Callable[[], object]) -> Callable[[], None]:
        """For `StreamCall.watch`: calls `do` once when all that was pulled is acknowledged."""
        done: list[object] = []

        def watch() -> None:
            seen = pubsub.status()
            if not done and seen and all(s.acked == len(SENT) for s in seen):
                done.append(do())

        return watch

    def delete(self) -> None:
        self.server.subscriber.delete_subscription(subscription=self.subscription)

    def create(self) -> None:
        self.server.subscriber.create_subscription(request={"name": self.subscription, "topic": self.topic, "ack_deadline_seconds": 10})


@pytest.fixture
def clicks(broker: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clicks:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    return Clicks(broker, tmp_path)


def test_an_error_is_on_record_and_the_same_command_goes_on(clicks: Clicks) -> None:
    loaded, state = clicks.loaded, clicks.loaded.state
    clicks.server.publish_all(clicks.topic, SENT)
    with pytest.raises(SourceError) as ended:
        run_stream(loaded, StreamCall(run_id="fixed", max_duration_s=60, watch=clicks.once_stored(clicks.delete)))
    failed = find_run(state, "fixed")
    assert failed is not None
    assert (failed.status, failed.failures) == ("failed", (ended.value.message,))
    assert [(line.read, line.dead, line.written) for line in failed.ledger] == [(21, 1, {"rows": 20})]
    assert failed.dead_letters == {"decode:DECODE": 1}
    assert [o.rows for o in failed.outputs] == [20, 1]
    assert runs_of(state).select(["run_id", "status"]).to_pylist() == [{"run_id": "fixed", "status": "failed"}]
    stream = standing(state).stream
    assert stream is not None
    assert not stream.drained

    clicks.create()
    clicks.server.publish_all(clicks.topic, SENT)
    ends = (clicks.once_stored(draining.request), draining.request)
    done = [run_stream(loaded, StreamCall(run_id="fixed", max_duration_s=60, watch=watch)) for watch in ends]
    assert [r.status for r in done] == ["success", "success"]
    assert [r.metadata.run_id for r in list_runs(state)][::-1] == sorted(["fixed", *(r.metadata.run_id for r in done)])
    assert all(r.metadata.run_id.startswith("fixed.") for r in done)
    assert find_run(state, "fixed") == failed
    assert done[-1].ledger[0].read == 42


def test_whoever_was_taken_over_leaves_no_record(clicks: Clicks) -> None:
    state = clicks.loaded.state
    clicks.server.publish_all(clicks.topic, SENT)

    def taken_over() -> None:
        take_epoch(state, "another")
        clicks.server.publish_all(clicks.topic, SENT)

    with pytest.raises(SinkError, match="taken over by a later start"):
        run_stream(clicks.loaded, StreamCall(run_id="first", max_duration_s=60, watch=clicks.once_stored(taken_over)))
    assert list_runs(state) == []
    assert [start.run_id for start in all_starts(state).values()] == ["first", "another"]


@pytest.mark.parametrize(
    ("error", "sensitive", "said"),
    [
        (ZeroDivisionError("of x"), "", "ZeroDivisionError: of x"), (SpecError("wrong."), "", "wrong."), (KeyboardInterrupt(), "", "interrupted"),
        (KeyError("ann@example.org"), ", sensitive: redact", "KeyError: (hidden: there are sensitive columns)"),
    ],
)  # fmt: skip
def test_an_error_that_is_none_of_ours_is_on_record_too(
    clicks: Clicks, monkeypatch: pytest.MonkeyPatch, error: BaseException, sensitive: str, said: str
) -> None:
    """And raised as it is, with all that led to it."""
    monkeypatch.setenv("RAW_KEY", "00" * 32)
    path = Path(clicks.loaded.path)
    sealed = path.read_text("utf-8").replace("int64}", f"int64{sensitive}}}") + "dead_letters: {raw_key: env:RAW_KEY}\n"
    path.write_text(sealed, "utf-8")

    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run_stream(load_spec(path), StreamCall(run_id="first", max_duration_s=60, watch=fails))
    assert raised.value is error
    assert raised.traceback[-1].name == "fails"
    [record] = list_runs(clicks.loaded.state)
    assert (record.metadata.run_id, record.status, record.failures) == ("first", "failed", (said,))


def test_an_error_of_somebody_taken_over_leaves_no_record(clicks: Clicks) -> None:
    def fails() -> None:
        take_epoch(clicks.loaded.state, "another")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stream(clicks.loaded, StreamCall(run_id="first", max_duration_s=60, watch=fails))
    assert list_runs(clicks.loaded.state) == []


def test_an_id_that_is_none_is_refused_before_it_ends_a_stream_that_runs(clicks: Clicks) -> None:
    with pytest.raises(SpecError, match="run id 'a b': expected letters"):
        run_stream(clicks.loaded, StreamCall(run_id="a b", max_duration_s=1))
    assert all_starts(clicks.loaded.state) == {}


def test_an_id_of_its_own_sorts_after_the_one_asked_for_and_is_never_too_long() -> None:
    for asked in ("fixed", "x" * 128):
        own = later_id(asked)
        assert own > asked[:100]
        assert own.startswith(asked[:100])
        assert RunInfo(own, "p", "s").run_id == own != later_id(asked)
