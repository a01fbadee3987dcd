"""`verify` of what a real stream and real batch runs have stored, and as a command."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.cli.main import command, run_command
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.verify import verify
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.pubsub_servers import PubsubServer
from tests.serving.two_layers import HOUR, Pane, Row, Twin

SPEC = """
spec: 1
pipeline: clicks
contract:
  key: [id]
  event_time: at
  columns: {{id: {{type: int64}}, at: {{type: timestamp, required: true}}, v: {{type: int64, min: 0}}, shop: {{type: string}}}}
sources:
  batch: [{{files: "in/*.jsonl", format: json}}]
  stream: [{{pubsub: {subscription}, format: json, arrival: {{attribute: came}}}}]
deduplicate: {{within: 1h}}
aggregates:
  hourly:
    windowing: {{type: fixed, size: 1h, allowed_lateness: 1h}}
    group_by: [shop]
    measures: {{n: count(), total: sum(v), mean: avg(v)}}
sinks:
  - {{from: rows, parquet: {{path: lake/rows, partition_by: [day(at)]}}}}
  - {{from: hourly, parquet: {{path: lake/hourly, partition_by: [day(_window_start)]}}}}
  - {{from: dead_letters, parquet: {{path: lake/dead_letters}}}}
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
ZERO, DAY = int(START.timestamp()) * 1_000_000, 24 * HOUR
Click = tuple[int, int, int, int]


def at(minutes: int) -> str:
    return (START + timedelta(minutes=minutes)).isoformat()


def record(click: Click) -> dict[str, Any]:
    """(id, event time, arrival: minutes; v)."""
    return {"id": click[0], "at": at(click[1]), "v": click[3], "shop": "north" if click[0] % 2 else "south"}


@pytest.fixture
def loaded(tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch, without_prism: None) -> LoadedSpec:
    """A stream that has ended: three days of clicks, a late one, a broken one, one that breaks a rule, a repeated one, a newer copy."""
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair()
    clicks = [(hour, hour * 60 + 5, hour * 60 + 5, hour) for hour in range(72)]
    late, wrong, again, newer = (1000, 30 * 60, 33 * 60, 7), (1002, 31 * 60, 31 * 60, -1), clicks[3], (6, 6 * 60 + 10, 6 * 60 + 20, 60)
    messages = [{"data": json.dumps(record(c)).encode(), "attributes": {"came": at(c[2])}} for c in (*clicks, late, wrong, again, newer)]
    broker.publish_all(topic, [*messages, {"data": b"nonsense", "attributes": {"came": at(0)}}])
    (tmp_path / "spec.yaml").write_text(SPEC.format(subscription=subscription), "utf-8")
    found = load_spec(tmp_path / "spec.yaml")
    done = run_stream(found, StreamCall(until_idle_s=1.0))
    assert done.status == "success", done.failures
    return found


def batch(loaded: LoadedSpec, first: int, last: int, **call: Any) -> None:
    done = run_batch(loaded, Call(range=Range(ZERO + first * DAY, ZERO + last * DAY), **call))
    assert done.status == "success", done.failures


@pytest.mark.slow
def test_a_stream_and_the_batch_over_its_archive(loaded: LoadedSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """They differ where a row came too late for its window, and nowhere else; a batch that judges lateness does not differ."""
    batch(loaded, 0, 2, input="archive")
    done = verify(loaded.spec, loaded.state)
    assert done.causes == {"late": 1}
    rows, hourly = done.outputs
    assert (rows.equal, rows.differ, hourly.equal) == (49, 0, 47)
    assert hourly.samples[0].batch == {"n": 2, "total": 37, "mean": 18.5}
    assert run_command(command, ["verify", loaded.path]) == 0
    assert "2 outputs over everything a batch run has committed: 96 rows equal, 1 differ: 1 late; 0 unexplained" in capsys.readouterr().out
    batch(loaded, 0, 2, input="archive", apply_lateness=True)
    assert verify(loaded.spec, loaded.state).differ == 0

    (file, *_) = sorted((Path(loaded.directory) / "lake" / "rows.speed" / "at_day=2026-01-02").glob("*.parquet"))
    table = pq.read_table(file, partitioning=None)
    values = table.column("v").to_pylist()
    pq.write_table(table.set_column(table.schema.get_field_index("v"), table.schema.field("v"), [[values[0] + 1, *values[1:]]]), file)
    done = verify(loaded.spec, loaded.state)
    assert done.causes == {"unexplained": 1}
    assert done.outputs[0].samples[0].speed == {"v": values[0] + 1}
    assert run_command(command, ["verify", loaded.path]) == 1
    assert run_command(command, ["verify", loaded.path, "--from", "2026-01-01", "--to", "2026-01-02"]) == 0


@pytest.mark.slow
def test_a_stream_and_a_batch_over_files(loaded: LoadedSpec) -> None:
    """The files have a row that was never published, lack one that was, have the broken ones mended, and the older copy of another."""
    folder = Path(loaded.directory) / "in"
    folder.mkdir()
    clicks = [(hour, hour * 60 + 5, 0, hour) for hour in range(72) if hour != 20]
    mended = [(1000, 30 * 60, 0, 7), (1002, 31 * 60, 0, 1), (5000, 50, 0, 0)]
    (folder / "a.jsonl").write_text("".join(json.dumps(record(c)) + "\n" for c in (*clicks, *mended)))
    batch(loaded, 0, 3)
    done = verify(loaded.spec, loaded.state)
    rows, hourly = done.outputs
    assert rows.causes == {"dead letter": 1, "superseded": 2, "not read": 2}
    assert done.unexplained == 0
    assert {(s.key["_window_start"].day, s.key["_window_start"].hour, s.cause) for s in hourly.samples} == {
        (1, 0, "not read"), (1, 6, "superseded"), (1, 20, "not read"), (2, 6, "late"), (2, 7, "dead letter")
    }  # fmt: skip


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    """A dead letter, and a value that was changed by hand."""
    made = Twin(tmp_path)
    made.know()
    made.stream(Row(1, 1, 0), Row(3, 3, HOUR, v=7))
    made.panes(Pane(1))
    made.commit(Row(1, 1, 0), Row(2, 2, HOUR), Row(3, 3, HOUR), Pane(1))
    made.letter(2, HOUR)
    return made


def call(twin: Twin, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command(command, ["verify", twin.loaded.path, *more])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table_says_the_verdict_first(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(twin, capsys)
    first, _, names, unexplained, letter = out.splitlines()
    assert code == 1
    assert first == "twin: 2 outputs over everything a batch run has committed: 2 rows equal, 2 differ: 1 dead letter; 1 unexplained"
    assert names.split() == ["output", "cause", "found", "row", "values", "evidence"]
    assert unexplained.split() == "rows unexplained other values id=3 at=2024-10-04 01:00:00Z v 1 → 7".split()
    assert "dead letter  only batch" in letter
    assert letter.endswith("stream validate:CHECK")
    code, out, _ = call(twin, capsys, "--limit", "1")
    assert out.splitlines()[-1] == "... 1 more differing rows; --limit shows more"


def test_json_and_csv(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(twin, capsys, "--json")
    found = json.loads(out)
    assert code == 1
    assert {k: found[k] for k in ("range", "equal", "differ", "unexplained", "causes")} == {
        "range": None, "equal": 2, "differ": 2, "unexplained": 1, "causes": {"dead letter": 1, "unexplained": 1}
    }  # fmt: skip
    rows = found["outputs"][0]
    assert rows["parts"] == [
        {
            "start": "2024-10-04T00:00:00Z",
            "end": "2024-10-05T00:00:00Z",
            "run_id": "b1",
            "equal": 1,
            "causes": {"dead letter": 1, "unexplained": 1},
        }
    ]
    assert rows["samples"][0] == {
        "kind": "other values", "cause": "unexplained", "evidence": "", "key": {"id": 3, "at": "2024-10-04T01:00:00Z"}, "columns": ["v"],
        "batch": {"v": 1}, "speed": {"v": 7},
    }  # fmt: skip
    assert call(twin, capsys, "--format", "json")[1] == out
    code, out, _ = call(twin, capsys, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [(line["cause"], line["found"], json.loads(line["key"])["id"]) for line in lines] == [
        ("unexplained", "other values", 3), ("dead letter", "only batch", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--from", "2024-10-04"], "--from is given alone; expected both"),
        (["--from", "2024-10-04", "--to", "2024-10-04"], "the range is empty"),
        (["--from", "2024-10-04T06:00Z", "--to", "2024-10-05"], "The nearest range that does: --from 2024-10-04T00:00:00Z"),
        (["--from", "2025-10-04", "--to", "2025-10-05"], "no batch run has committed anything of this range"),
        (["--memory", "much"], "memory 'much' is no size"),
        (["--tolerance", "2"], "2.0 is not in the range 0<=x<=1"),
    ],
)
def test_a_wrong_call_is_one_sentence(twin: Twin, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    code, out, err = call(twin, capsys, *more)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
