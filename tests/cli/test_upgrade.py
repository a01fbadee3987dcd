"""`upgrade`: what is said, what is refused with which exit code, and that a stream goes on under a new spec, or stays as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from beam_pipelines.runners.versions import versions_here
from beam_pipelines.sinks.epochs import Ran, all_starts, latest_epoch, take_epoch
from beam_pipelines.sinks.outputs import StreamOutputs, write_outputs
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.spec.load import load_spec
from tests.cli.conftest import Call, Start
from tests.faults.stream_jobs import Job
from tests.formats.archived import HOUR, NOON, SOURCE
from tests.pubsub_servers import PubsubServer
from tests.runners.test_upgrade import archived

SPEC = """spec: 1
pipeline: readings
parameters:
  most: {type: int, default: 100}
contract:
  key: [id]
  event_time: at
  columns:
    id:     {type: int64, required: true}
    sensor: {type: string, required: true}
    value:  {type: int32}
    at:     {type: timestamp, required: true}
sources:
  stream: [{pubsub: SUBSCRIPTION, format: json, arrival: {attribute: arrived}, ack_deadline: 10s}]
checks:
  - {name: plausible, expr: "value <= ${most}"}
deduplicate: {within: 1h}
sinks:
  - {from: rows, parquet: {path: lake/readings, partition_by: [day(at)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""
AT = "2024-05-01T10:00:00Z"


def written(folder: Path, subscription: str = SOURCE, *changes: tuple[str, str]) -> Path:
    text = SPEC.replace("SUBSCRIPTION", subscription)
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    (folder / "readings.yaml").write_text(text)
    return folder / "readings.yaml"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec whose stream has run up to noon."""
    path = written(tmp_path)
    found = load_spec(path)
    archived(found, NOON - 30 * HOUR, NOON)
    epoch = take_epoch(found.state, "first", ran=Ran.of(found), versions={**versions_here(), "Beam": "2.1.0", "Flink": "1.19.0"})
    write_progress(found.state, epoch, Reached(NOON))
    write_outputs(found.state, StreamOutputs(()))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_says_what_a_change_does_and_what_it_costs(call: Call, spec: Path) -> None:
    before = tree(spec.parent)
    lines = call("upgrade", spec, "--set", "most=50", "--dry-run").out.splitlines()
    assert lines[0].startswith("upgrade readings: against start 1, run first, since 20")
    assert [line.split() for line in lines[1:3]] == [
        ["effect", "change", "before", "after"],
        ["from", "now", "on", "checks.plausible.expr", "value", "<=", "100", "value", "<=", "50"],
    ]
    assert re.fullmatch(r"read again from the archive: what arrived since 2013-11-30T10:00:00Z, [\d,]+ bytes", lines[3])
    assert lines[4] == (
        "closed windows and rows from before stay as they are; to compute them anew: "
        f"beam-pipelines backfill {spec} --set most=50 --input archive --from 2013-11-30T00:00:00Z --to 2013-12-01T00:00:00Z"
    )
    assert lines[5].startswith("versions: ")
    assert f"Beam 2.1.0 → {versions_here()['Beam']}" in lines[5]
    assert lines[5].endswith("Flink 1.19.0")
    assert tree(spec.parent) == before


def test_the_command_that_computes_anew_is_one(call: Call, spec: Path) -> None:
    said = call("upgrade", spec, "--set", "most=50", "--dry-run").out
    words = next(line for line in said.splitlines() if "backfill" in line).partition("beam-pipelines ")[2].split()
    assert "1 steps of 1d" in call(*words, "--dry-run").out.replace("1 step ", "1 steps ")


def test_the_same_spec_differs_in_nothing(call: Call, spec: Path) -> None:
    assert call("upgrade", spec, "--dry-run").out.splitlines()[1] == "nothing differs"


def test_a_refused_change_is_exit_code_1_and_says_why_and_what_to_do(call: Call, spec: Path) -> None:
    written(spec.parent, SOURCE, ("key: [id]", "key: [id, sensor]"), ("value <= ", "value < "))
    before = tree(spec.parent)
    done = call("upgrade", spec, code=1)
    lines = done.out.splitlines()
    assert lines[2].split() == ["refused", "contract.key", '["id"]', '["id","sensor"]']
    assert lines[3].startswith("  what was a duplicate by the old key stays one")
    assert lines[4].startswith("  → Accept it")
    assert lines[5].split()[:4] == ["from", "now", "on", "checks.plausible.expr"]
    assert done.err == (
        "error: upgrade: 1 of 2 changes is refused; nothing was changed. To take the effect all the same: --accept contract.key\n"
    )
    assert tree(spec.parent) == before
    for accepted in ("contract.key", "contract"):
        assert call("upgrade", spec, "--accept", accepted, "--dry-run").out.splitlines()[2].split()[0] == "accepted"
    call("upgrade", spec, "--accept", "contract.ke", "--accept", "checks", "--dry-run", code=1)


def test_the_same_as_json(call: Call, spec: Path) -> None:
    written(spec.parent, SOURCE, ("key: [id]", "key: [id, sensor]"), ("value <= ", "value < "))
    done = call("upgrade", spec, "--json", code=1)
    said = json.loads(done.out)
    assert (said["start"], said["run_id"], said["read_again_since_micros"]) == (1, "first", NOON - 26 * HOUR)
    assert [(c["name"], c["effect"], c["accepted"]) for c in said["changes"]] == [
        ("contract.key", "refused", False),
        ("checks.plausible.expr", "from now on", False),
    ]
    assert said["compute_anew"].startswith("beam-pipelines backfill ")
    assert said["versions"]["now"] == versions_here()
    again = json.loads(call("upgrade", spec, "--json", "--dry-run", "--accept", "contract.key").out)
    assert [c["accepted"] for c in again["changes"]] == [True, False]


def test_what_was_never_compared_goes_on_only_when_it_is_accepted(call: Call, tmp_path: Path) -> None:
    path = written(tmp_path)
    assert "has ever started; this is its first start" in call("upgrade", path, "--dry-run").out
    take_epoch(load_spec(path).state, "old")
    assert "--accept unknown" in call("upgrade", path, code=1).err
    assert "versions: of that start are not known" in call("upgrade", path, "--accept", "unknown", "--dry-run").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--runner", "dataflow"], "--region is missing."),
        (["--project", "p"], "--project: is for --runner dataflow and does nothing with --runner direct"),
        (["--runner", "spark"], "does not run streams in this version"),
        (["--flink-master", "h:1"], "does nothing with --runner direct"),
        (["--until-idle", "soon"], "--until-idle: duration 'soon'"),
        (["--", "word"], "upgrade: unexpected argument 'word'"),
        (["--set", "least=1"], "unknown parameter 'least'"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_changes_nothing(call: Call, spec: Path, words: list[str], says: str) -> None:
    before = tree(spec.parent)
    assert says in call("upgrade", spec, *words, code=2).err
    assert tree(spec.parent) == before


def test_a_spec_without_a_stream_has_nothing_to_upgrade(call: Call, orders: Path) -> None:
    assert "declares no stream sources" in call("upgrade", orders, code=2).err


# ── a stream that runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def publish(server: PubsubServer, topic: str, first: int, at: str, *, value: int) -> None:
    """Fifty rows of that moment."""
    rows = [{"id": n, "sensor": f"s{n % 2}", "value": value, "at": at} for n in range(first, first + 50)]
    server.publish_all(topic, [{"data": json.dumps(row).encode(), "attributes": {"arrived": at}} for row in rows])


@pytest.mark.slow
def test_a_stream_goes_on_under_a_changed_check_and_not_under_a_changed_key_until_that_is_accepted(
    server: PubsubServer, start: Start, tmp_path: Path, call: Call
) -> None:
    topic, subscription = server.pair(ack_deadline_seconds=10)
    publish(server, topic, 0, AT, value=50)
    path = written(tmp_path, subscription)
    state = load_spec(path).state
    first = Job(start("upgrade", path))  # no stream has ever started: this starts it
    first.hears("50 acknowledged")
    written(tmp_path, subscription, ("value <= ", "value < "))
    second = Job(start("upgrade", path, "--set", "most=10"))
    second.hears("stream readings: start 2")
    publish(server, topic, 100, AT, value=5)  # the older one ends at its next message
    second.hears("50 acknowledged")
    assert first.ended() == 1
    assert "this stream was taken over by a later start" in first.text
    written(tmp_path, subscription, ("value <= ", "value < "), ("key: [id]", "key: [sensor]"))
    refused = Job(start("upgrade", path, "--set", "most=10"))
    assert refused.ended() == 1
    assert "1 of 1 changes is refused; nothing was changed." in refused.text
    assert latest_epoch(state) == 2
    publish(server, topic, 200, AT, value=5)
    second.hears("100 acknowledged")
    assert second.process.poll() is None
    third = Job(start("upgrade", path, "--set", "most=10", "--accept", "contract.key", "--until-idle", "2s"))
    third.hears("stream readings: start 3")
    publish(server, topic, 300, AT, value=5)
    assert second.ended() == 1
    assert third.ended(90) == 0, third.text
    assert [start.versions["engine"] for start in all_starts(state).values()] == ["PrismRunner"] * 3
    assert call("query", path, "SELECT count(*) AS n FROM rows_speed", "--format", "csv").out.split() == ["n", "2"]  # by the new key
    refused_rows = "SELECT count(DISTINCT position) AS n FROM dead_letters_speed WHERE reason = 'CHECK'"
    assert call("query", path, refused_rows, "--format", "csv").out.split() == ["n", "50"]  # that were read again


@pytest.mark.slow
def test_rows_that_were_stored_before_what_is_read_again_stay_under_the_new_check(
    server: PubsubServer, start: Start, tmp_path: Path, call: Call
) -> None:
    """Rows of both versions are in the table: the old ones arrived before what windows and copies need."""
    topic, subscription = server.pair(ack_deadline_seconds=10)
    apart = (("within: 1h", "within: 1s"), ("event_time: at\n", "event_time: at\n  allowed_skew: 0s\n"))
    path = written(tmp_path, subscription, *apart)
    publish(server, topic, 0, AT, value=50)
    publish(server, topic, 50, "2024-05-01T11:00:00Z", value=50)
    first = Job(start("upgrade", path, "--until-idle", "2s"))
    assert first.ended(60) == 0, first.text
    publish(server, topic, 100, "2024-05-01T11:00:01Z", value=50)
    publish(server, topic, 150, "2024-05-01T11:00:01Z", value=5)
    second = Job(start("upgrade", path, "--set", "most=10", "--until-idle", "2s"))
    assert second.ended(60) == 0, second.text
    old = call("query", path, "SELECT min(id) AS low, max(id) < 100 AS before FROM rows_speed WHERE value > 10", "--format", "csv").out
    assert old.split() == ["low,before", "0,true"]
    assert call("query", path, "SELECT count(*) AS n FROM rows_speed WHERE value <= 10", "--format", "csv").out.split() == ["n", "50"]
