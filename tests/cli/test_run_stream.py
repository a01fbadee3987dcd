"""`run --mode stream`: what is printed where, how it ends, and that a wrong call is one sentence before anything is touched."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.prism_binary import VARIABLE
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.sinks.epochs import latest_epoch
from beam_pipelines.sinks.results import RunResults, metadata, write_run
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.spec.load import load_spec
from tests.cli.conftest import Call, Start
from tests.pubsub_servers import PubsubServer
from tests.runs import read_run

SPEC = """spec: 1
pipeline: readings
contract:
  key: [id]
  event_time: at
  columns:
    id:     {type: int64, required: true}
    sensor: {type: string, required: true}
    at:     {type: timestamp, required: true}
sources:
  stream: [{pubsub: SUBSCRIPTION, format: json, arrival: {attribute: arrived}}]
deduplicate: {within: 1h}
aggregates:
  by_week: {windowing: {type: fixed, size: 1w}, group_by: [sensor], measures: {n: count()}}
sinks:
  - {from: rows, parquet: {path: lake/readings}}
  - {from: by_week, parquet: {path: lake/by_week}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""
# Nobody is asked about it: what is wrong must be found before.
NOWHERE = "projects/demo-project/subscriptions/nowhere"
AT = "2024-05-01T10:00:00Z"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec that reads a subscription which does not exist."""
    return written(tmp_path, NOWHERE)


def written(folder: Path, subscription: str) -> Path:
    path = folder / "readings.yaml"
    path.write_text(SPEC.replace("SUBSCRIPTION", subscription))
    return path


def publish(server: PubsubServer, *, rows: int, broken: int) -> str:
    """Rows and messages that are none, all of one moment, whose week stays open; gives the subscription that has them."""
    topic, subscription = server.pair()
    texts = [json.dumps({"id": n, "sensor": f"s{n % 3}", "at": AT}) for n in range(rows)] + [f"broken {n}" for n in range(broken)]
    server.publish_all(topic, [{"data": text.encode(), "attributes": {"arrived": AT}} for text in texts])
    return subscription


@pytest.mark.slow
def test_until_idle_ends_by_itself_and_json_is_all_that_is_printed(server: PubsubServer, start: Start, tmp_path: Path, call: Call) -> None:
    spec = written(tmp_path, publish(server, rows=200, broken=3))
    words = ("--mode", "stream", "--until-idle", "2s", "--json", "--results", "record.json", "--run-id", "first")
    out, err = start("run", spec, *words).communicate(timeout=60)

    assert err == ""
    record = json.loads(out)
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert (record["status"], record["metadata"]["mode"], record["metadata"]["run_id"]) == ("success", "stream", "first")
    (line,) = record["ledger"]
    assert (line["read"], line["dead"], line["written"]["rows"]) == (203, 3, 200)

    assert call("query", spec, "SELECT count(*) FROM rows", "--format", "csv").out.split() == ["count_star()", "200"]
    assert call("runs", spec, "--format", "csv").out.splitlines()[1].startswith("first,success,")
    assert f"3 records refused; letters in {tmp_path / 'lake' / 'dead_letters.speed'}" in call("dlq", "inspect", spec).out


def test_an_id_of_a_batch_is_refused_to_a_stream_and_that_of_a_stream_to_a_batch(tmp_path: Path, call: Call) -> None:
    spec = written(tmp_path, "projects/p/subscriptions/s")
    text = spec.read_text().replace("stream:", 'batch: [{files: "*.jsonl", format: json}]\n  stream:', 1)
    spec.write_text(text)
    state = str(tmp_path / ".beam_pipelines" / "readings")
    for mode in ("batch", "stream"):
        about = RunInfo(mode, "readings", state, mode=mode, started_at="2024-01-01T00:00:00Z")
        write_run(state, RunResults(metadata(about, finished_at="2024-01-01T00:00:01Z"), "success"))
    before = read_run(state, "stream"), read_run(state, "batch")
    for mode, taken in (("stream", "batch"), ("batch", "stream")):
        err = call("run", spec, "--mode", mode, "--run-id", taken, code=2).err
        assert f"error: --run-id {taken}: is taken by a {taken} run that began 2024-01-01T00:00:00Z" in err
    with pytest.raises(SpecError, match="is taken by a batch run"):
        run_stream(load_spec(spec), StreamCall(run_id="batch"))
    assert latest_epoch(state) == 0
    assert (read_run(state, "stream"), read_run(state, "batch")) == before


def test_sigterm_drains_and_exits_with_0(server: PubsubServer, start: Start, tmp_path: Path, call: Call) -> None:
    spec = written(tmp_path, publish(server, rows=200, broken=0))
    process = start("run", spec, "--mode", "stream")
    assert process.stderr is not None
    said = [next(process.stderr)]
    while "200 pulled" not in said[-1]:
        said.append(next(process.stderr))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert said[:2] == ["engine: Beam's PrismRunner on this machine (--runner direct)\n", "stream readings: start 1\n"]
    last = err.splitlines()
    assert last[0] == "draining: what was pulled is stored and acknowledged; once more ends at once"
    assert "200 pulled, 200 acknowledged, 200 written, 3 by_week panes" in last[-1]
    assert last[-1].endswith("; ended")
    assert "ledger   200 read = 200 good + 0 dead + 0 duplicate + 0 filtered   (balances)" in out
    panes = call("query", spec, "SELECT _pane, sum(n)::INT AS n FROM by_week GROUP BY ALL", "--format", "csv").out
    assert panes.split() == ["_pane,n", "drained,200"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_second_signal_ends_it_where_it_stands_and_the_exit_code_says_which(
    server: PubsubServer, start: Start, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    spec = written(tmp_path, publish(server, rows=10, broken=0))
    process = start("run", spec, "--mode", "stream")
    assert process.stderr is not None
    while "start 1" not in next(process.stderr):
        pass
    process.send_signal(number)
    while "once more ends at once" not in next(process.stderr):
        pass
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"{word}: what is stored stays, and what is not comes again with the next start." in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--until-idle", "soon"], "--until-idle: duration 'soon' is not a number with a unit. Write 30s"),
        (["--until-idle", "0s"], "--until-idle 0s: the stream would end before it has begun; expected more than 0."),
        (["--max-duration", "2x"], "--max-duration: duration '2x' is not a number with a unit."),
        (
            ["--runner", "dataflow", "--keep-logs"],
            "--keep-logs: a stream on Dataflow runs until it is cancelled, and the service keeps its log.",
        ),
        (["--apply-lateness"], "--apply-lateness: is for --mode batch; a stream always applies its lateness."),
        (["--mode", "batch", "--input", "batch"], "--input batch: the spec declares no batch sources."),
        (["--from", "2013-12-01"], "--from: is for --mode batch; a stream takes what comes."),
        (["--", "--runner=FlinkRunner"], "run: --runner=FlinkRunner after --: the engine is not a Beam option here."),
        (["--", "--prism_log_level=loud"], "Beam option: argument --prism_log_level"),
    ],
)
def test_a_wrong_call_is_one_sentence(call: Call, spec: Path, words: list[str], says: str) -> None:
    told(call, spec, *words, says=says)


@pytest.mark.parametrize(
    ("text", "instead", "says"),
    [
        ("windowing: {type: fixed, size: 1w}, ", "", "needs 'windowing': without windows a stream would never give an answer"),
        ("deduplicate: {within: 1h}", "deduplicate: {}", "needs 'within': a stream cannot remember every key for ever"),
        ("sensor: {type: string,", "sensor: {type: string, sensitive: redact,", "Name a key they are sealed with"),
        ("sensor: {type: string,", "sensor: {type: string, sensitive: hmac,", "Name a key they are sealed with"),
        (
            "sources:",
            "transform: [{apply: {function: 'm:f', columns: {made: string}, sensitive: {made: hmac}}}]\nsources:",
            "Name a key they are sealed with",
        ),
    ],
)
def test_a_spec_that_cannot_be_a_stream_is_one_sentence(call: Call, spec: Path, text: str, instead: str, says: str) -> None:
    assert text in SPEC
    spec.write_text(spec.read_text().replace(text, instead))
    told(call, spec, says=says)


def test_a_key_that_is_none_is_found_before_anything_is_touched(call: Call, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAW_KEY", "short")
    sealed = "dead_letters: {raw_key: env:RAW_KEY}\nsources:"
    spec.write_text(
        spec.read_text().replace("sources:", sealed).replace("sensor: {type: string,", "sensor: {type: string, sensitive: drop,")
    )
    told(call, spec, says="raw_key: a key of 32 bytes is needed; got 5 bytes that are no such key.")


@pytest.mark.parametrize("words", [["--until-idle", "1s"], ["--max-duration", "1s"], ["--keep-logs"]])
def test_a_batch_refuses_what_only_a_stream_understands(call: Call, orders: Path, words: list[str]) -> None:
    assert f"{words[0]}: is for --mode stream and does nothing in a batch run." in call("run", orders, *words, code=2).err


def test_without_the_pubsub_client_it_says_what_to_install(call: Call, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.pubsub_v1", None)  # how Python itself marks a module that cannot be imported
    told(call, spec, says="Run: pip install 'beam-pipelines[gcp]'")


def test_a_subscription_that_does_not_exist_is_one_sentence(
    call: Call, spec: Path, server: PubsubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    told(call, spec, says=f"{NOWHERE}: there is no such subscription", code=1)


def test_a_prism_that_is_none_is_one_sentence(call: Call, server: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    done = call("run", written(tmp_path, publish(server, rows=1, broken=0)), "--until-idle", "1s", code=2)
    assert done.err.splitlines()[-1].startswith(f"error: {VARIABLE}: {tmp_path} is a directory; expected the Prism program of Beam ")


def told(call: Call, spec: Path, *words: str, says: str, code: int = 2) -> None:
    """The call fails with one line that has `says` in it, and leaves nothing behind."""
    done = call("run", spec, *words, code=code)
    assert says in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert [p.name for p in spec.parent.iterdir()] == [spec.name]
