"""A timeline through the product's own graph: as a batch on FnApiRunner over an archive, as a stream by TestStream; what both stored, as readers see it.

bundles ──▶ TestStream ──▶ the graph ──▶ lake/*.speed, archive ──▶ views        stream
                                                    └──▶ the graph ──▶ lake     batch, over what the stream archived
shuffled ──────────▶ archive ──▶ the graph ──▶ lake                             batch, over the same messages in another order
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Played
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import arrival_clock, back_pressure, draining, durable, edges, metrics
from beam_pipelines.arrow.schema import ARRIVAL, MESSAGES, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.edges import Job, Resume
from beam_pipelines.formats.archive import write_messages
from beam_pipelines.pipeline import build
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import outputs_of
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.outputs import write_outputs
from beam_pipelines.sinks.run import RunInfo, new_run_id
from beam_pipelines.sinks.stream_ledger import stream_ledger
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.transforms import keyed_state
from tests.parity.outcomes import Ledger, Outcome, Pane
from tests.parity.specs import MEASURES, NAME, SUBSCRIPTION, Setting
from tests.parity.timelines import Message, Timeline, micros

FAR = 100_000
"""Minutes after which every window has closed."""
LETTER = ("position", "stage", "reason", "message")
"""What tells dead letters apart."""
_ROW = ("id", "at", "kind", "price", "n", "m", "version", "share")
_COUNTED: list[tuple[Any, ...]] = []


def spec_in(folder: Path, setting: Setting) -> LoadedSpec:
    """The setting's spec in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(setting.yaml, "utf-8")
    return load_spec(folder / "pipeline.yaml")


def messages_batch(messages: Sequence[Message]) -> pa.RecordBatch:
    """Messages as a pull gives them (MESSAGES)."""
    arrival = pa.array([micros(m.arrival) for m in messages], pa.int64()).cast(UTC_MICROS)
    numbers, n = pa.array([m.number for m in messages], pa.int64()), len(messages)
    columns = [*provenance(SUBSCRIPTION, numbers, arrival), pa.array([m.data for m in messages], pa.binary()), numbers.cast(pa.string())]
    columns += [pa.nulls(n, pa.string()), arrival, pa.nulls(n, MESSAGES.field("_attributes").type)]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


# ── batch ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_batch(loaded: LoadedSpec) -> Outcome:
    """What `run --mode batch --apply-lateness` makes of the archive beside the spec."""
    record = run_batch(loaded, Call(apply_lateness=True))
    found = _stored(loaded, NAME, _ledger(record.ledger, record.dead_letters))
    return _with(found, *record.failures, *([] if record.status == "success" else [f"the run is {record.status}"]))


def archive(folder: Path, batches: Sequence[Sequence[Message]]) -> None:
    """Puts messages where a batch finds them."""
    for messages in batches:
        write_messages(messages_batch(messages), str(folder / "archive"), epoch=1)


# ── stream ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_stream(loaded: LoadedSpec, timeline: Timeline) -> Outcome:
    """What the stream makes of the timeline, in the end."""
    for module in (draining, arrival_clock, durable, metrics):
        module.reset()
    keyed_state.forget()
    back_pressure.limit(back_pressure.MOST_BYTES)
    _COUNTED.clear()
    run_id = new_run_id()
    spec, epoch = loaded.spec, take_epoch(loaded.state, run_id)
    run = RunInfo(run_id, spec.pipeline, loaded.state, contract=spec.contract.fingerprint, mode="stream", epoch=epoch)
    outputs = outputs_of(spec, run)
    write_outputs(run.state, outputs)
    with _watched(), beam.Pipeline("BundleBasedDirectRunner", options=PipelineOptions(["--streaming"])) as pipeline:
        build(pipeline, Job(spec, run, str(Path(loaded.directory) / "tmp"), resume=Resume(make=lambda source, number: played(timeline))))
    ledger = stream_ledger(run.state, outputs)
    found = _stored(loaded, NAME, _ledger(ledger.lines, ledger.reasons), speed=True)
    for start, n in (_stale(count) for count in _COUNTED if count[2] == "stale"):
        found.stale[start] += n
    return _with(found, *ledger.explain().splitlines())


def played(timeline: Timeline) -> Played:
    """The timeline as a source; this runner fires no timers at infinity, so that time goes far on before it ends."""
    stream, mark = Played(coder=RecordBatchCoder()), None
    for bundle in timeline.bundles:
        if bundle.watermark != mark:
            stream.advance_watermark_to(Timestamp(micros=micros(bundle.watermark)))
        mark = bundle.watermark
        batches = [messages_batch(part) for part in bundle.batches]
        stream.add_elements([TimestampedValue(b, Timestamp(micros=min(b.column(ARRIVAL).cast(pa.int64()).to_pylist()))) for b in batches])
    return stream.advance_watermark_to(Timestamp(micros=micros(FAR))).advance_watermark_to_infinity()


@contextmanager
def _watched() -> Iterator[None]:
    """Hears what aggregates count, which a stream keeps to itself."""
    left = edges.Stream.left

    def heard(self: edges.Stream, stage: Any) -> None:
        left(self, stage)
        if hasattr(stage, "panes"):
            _ = stage.counts | "Heard" >> beam.Map(_hear)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges.Stream, "left", heard)
        yield


def _hear(count: tuple[Any, ...]) -> None:
    _COUNTED.append(count)


def _stale(count: tuple[Any, ...]) -> tuple[int, int]:
    """(window start, rows) of a count of stale rows."""
    start = dt.datetime.fromisoformat(count[3].partition("@")[2])
    return round(start.timestamp() * 1_000_000), count[4]


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ledger(lines: Sequence[Line], reasons: Mapping[str, int]) -> Ledger:
    mine = [line for line in lines if line.source]
    late = sum(sum(line.late.values()) for line in mine)
    total = [sum(getattr(line, door) for line in mine) for door in ("read", "dead", "duplicate", "filtered")]
    return Ledger(total[0], sum(line.written.get("rows", 0) for line in mine), *total[1:], late, dict(reasons))


def _stored(loaded: LoadedSpec, aggregate: str, ledger: Ledger, *, speed: bool = False) -> Outcome:
    """Everything readers see. Whatever has nothing in it has no table: then there is nothing."""
    tables = open_tables(loaded.state)
    ending = "_speed" if speed else "_batch"
    known = {name for (name,) in tables.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}

    def read(name: str) -> list[dict[str, Any]]:
        found = tables.sql(f'SELECT * FROM "{name}{ending}"').to_arrow_table().to_pylist() if name + ending in known else []
        return [] if found and "nothing" in found[0] else found

    rows, letters, panes = read("rows"), read("dead_letters"), read(aggregate)
    spoken, shown = letters_of(letters), panes_of(panes)
    keys = Counter(f"message {r['_position']} is in rows" for r in rows)
    keys += Counter(f"the pane {(p['_window_start'], p['_window_end'], p['kind'])} is there" for p in panes)
    doors = {number: tuple(s[0] for s in said) for number, said in spoken.items()}
    return Outcome(rows_of(rows), doors, shown, ledger, spoken, [f"{what} {n} times" for what, n in keys.items() if n > 1])


def rows_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """Stored rows by their number."""
    return {r["_position"]: tuple(_micros(r[n]) if n == "at" else r[n] for n in _ROW) for r in rows}


def letters_of(letters: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """What dead letters say of each message: `stage:REASON`, message, failures, raw bytes."""
    spoken: dict[int, list[tuple[Any, ...]]] = {}
    for letter in sorted(letters, key=lambda x: tuple(str(x[n]) for n in LETTER)):
        failures = tuple((f["name"], f["message"]) for f in letter["failures"])
        spoken.setdefault(letter["position"], []).append(
            (f"{letter['stage']}:{letter['reason']}", letter["message"], failures, _raw(letter))
        )
    return {number: tuple(said) for number, said in spoken.items()}


def panes_of(panes: Sequence[Mapping[str, Any]]) -> dict[Pane, dict[str, Any]]:
    """Measures of each pane."""
    return {((_at(p["_window_start"]), _at(p["_window_end"])), p["kind"]): {n: p[n] for n in MEASURES} for p in panes}


def _raw(letter: Mapping[str, Any]) -> Any:
    """Its bytes; of a row that had been read, its columns, whatever their order."""
    raw = letter["raw"]
    return raw if raw is None or letter["raw_format"] != "row" else json.dumps(json.loads(raw), sort_keys=True)


def _micros(at: dt.datetime | None) -> int | None:
    return None if at is None else _at(at)


def _at(at: dt.datetime) -> int:
    return round(at.timestamp()) * 1_000_000


def _with(outcome: Outcome, *wrong: str) -> Outcome:
    outcome.wrong += wrong
    return outcome


def forget(folder: Path) -> None:
    """Removes an example's files."""
    shutil.rmtree(folder, ignore_errors=True)
