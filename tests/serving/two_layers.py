"""A batch layer and a speed layer of one spec, written as a test says, without a Beam job: rows, panes, letters, doors, archived messages."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.formats.archive import source_folder, write_messages
from beam_pipelines.formats.named_files import new_name
from beam_pipelines.serving.verify import Verification, verify
from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.epochs import doors_folder, take_epoch
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_columns, write_outputs
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.sinks.results import RunResults, metadata, write_run
from beam_pipelines.sinks.run import Clock, Output, RunInfo, utc_now
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.formats.archived import messages
from tests.sinks.lake import Lake

SOURCE = "projects/p/subscriptions/s"
UTC = pa.timestamp("us", "UTC")
HOUR = 3_600_000_000
DAY = 24 * HOUR
ZERO = 20_000 * DAY
NOW = ZERO + 1_000 * DAY
"""By the machine's clock, when streams and batches of these tests are at work; far from one another where nothing else is said."""
SPEC = """
spec: 1
pipeline: twin
contract:
  key: [id]
  event_time: at
  columns: {id: {type: int64}, at: {type: timestamp}, g: {type: string}, v: {type: int64}, x: {type: float64}}
sources:
  batch: [{files: "in/*.jsonl", format: json}]
  stream: [{pubsub: projects/p/subscriptions/s, format: json}]
deduplicate: {within: 1h}
lookups: {places: {files: places.csv, format: csv, key: g, columns: {g: string, town: string}}}
transform:
  - {lookup: {from: places, on: g, take: {town: town}}}
  - {set: {label: "town || '!'"}}
aggregates:
  hourly: {windowing: {type: fixed, size: 1h}, group_by: [g], measures: {n: count(), total: sum(v)}}
sinks:
  - {from: rows, parquet: {path: lake/rows, partition_by: [day(at)]}}
  - {from: hourly, parquet: {path: lake/hourly, partition_by: [day(_window_start)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""
KINDS: dict[str, pa.DataType] = {
    "id": pa.int64(), "at": UTC, "g": pa.string(), "v": pa.int64(), "x": pa.float64(), "town": pa.string(), "label": pa.string(),
    "n": pa.int64(), "total": pa.int64(), "_window_start": UTC, "_window_end": UTC, "_pane": pa.string(), "_pane_index": pa.int32(), "_epoch": pa.int64(),
}  # fmt: skip


class Row(NamedTuple):
    """A record: its message (or place in a file), and what it says. `at` in microseconds after ZERO."""

    n: int
    id: int
    at: int | None
    g: str = "a"
    v: int | None = 1
    x: float | None = 0.5
    town: str = "Ulm"

    def columns(self) -> dict[str, Any]:
        when = None if self.at is None else ZERO + self.at
        return {"id": self.id, "at": when, "g": self.g, "v": self.v, "x": self.x, "town": self.town, "label": f"{self.town}!"}


class Pane(NamedTuple):
    """A group's window of an hour, `hour` after ZERO."""

    hour: int
    g: str = "a"
    n: int = 1
    total: int = 1
    pane: str = "on_time"

    def columns(self) -> dict[str, Any]:
        start = ZERO + self.hour * HOUR
        return {"g": self.g, "n": self.n, "total": self.total, "_window_start": start, "_window_end": start + HOUR, "_pane": self.pane,
                "_pane_index": 0, "_epoch": 1}  # fmt: skip


@dataclass
class Twin:
    """A folder with a spec and both layers."""

    folder: Path
    text: str = SPEC
    placings: tuple[str, ...] = ("one",)
    files: int = 0
    loaded: LoadedSpec = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "places.csv").write_text("g,town\na,Ulm\n")
        (self.folder / "pipeline.yaml").write_text(self.text)
        self.loaded = load_spec(self.folder / "pipeline.yaml")

    @property
    def state(self) -> str:
        return self.loaded.state

    def verify(self, first: int | None = None, last: int | None = None, **more: Any) -> Verification:
        where = None if first is None or last is None else Range(ZERO + first * DAY, ZERO + last * DAY)
        return verify(self.loaded.spec, self.state, where, **more)

    # ── stream ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def know(self, *, open_micros: int = 0, partitioned: bool = True) -> None:
        """The stream says what it stores."""
        place = ("at", "at_day") if partitioned else ("at",)
        lake = self.folder / "lake"
        outputs = (
            SpeedOutput("rows", "rows", f"{lake}/rows.speed", (), True, 0, 0, place, self.placings),
            SpeedOutput("hourly", "hourly", f"{lake}/hourly.speed", ("g",), True, 0, open_micros, ("window_start_day",)),
            SpeedOutput("dead_letters", "dead_letters", f"{lake}/dead_letters.speed"),
        )
        write_outputs(self.state, StreamOutputs(outputs, (source_folder(f"{self.state}/archive", SOURCE),)))
        if partitioned:
            write_columns(outputs[0].folder, {"at_day": "DATE"})
        write_columns(outputs[1].folder, {"window_start_day": "DATE"})

    def stream(
        self, *rows: Row, stored: int = NOW - DAY, run_id: str = "s1", contract: str | None = None, arrival: int | None = None,
        drop: Sequence[str] = (), kinds: Mapping[str, pa.DataType] | None = None,
    ) -> None:  # fmt: skip
        """Stores rows; `arrival` (after ZERO) in place of their own times."""
        for row in rows:
            came = [ZERO + (arrival if arrival is not None else row.at or 0)]
            own = {
                "_source": pa.array([SOURCE]), "_position": pa.array([row.n], pa.int64()), "_arrival_time": pa.array(came, UTC), "_run_id": [run_id],
                "_contract": [contract or self.loaded.spec.contract.fingerprint], "_stored_at": pa.array([stored], UTC),
            }  # fmt: skip
            columns = {n: pa.array([v], (kinds or KINDS).get(n, KINDS[n])) for n, v in row.columns().items() if n not in drop}
            self.put("rows.speed", None if row.at is None else f"at_day={_day(row.at)}", {**columns, **own})

    def panes(self, *panes: Pane, epoch: int = 1) -> None:
        for pane in panes:
            columns = {**pane.columns(), "_epoch": epoch}
            self.put("hourly.speed", f"window_start_day={_day(pane.hour * HOUR)}", {n: pa.array([v], KINDS[n]) for n, v in columns.items()})

    def letter(
        self,
        n: int,
        at: int | None,
        *,
        stage: str = "validate",
        reason: str = "CHECK",
        name: str = "v.min",
        raw: object = None,
        layer: str = "stream",
    ) -> dict[str, Any]:
        """A dead letter; the stream stores its own at once."""
        letter = {
            "source": SOURCE if layer == "stream" else str(self.folder / "in.jsonl"), "position": n, "stage": stage, "reason": reason, "message": "no",
            "failures": [{"name": name, "column": "", "message": "no"}], "raw": None if raw is None else json.dumps(raw).encode(), "raw_format": "json",
            "event_time": None if at is None else ZERO + at, "arrival_time": ZERO + (at or 0), "pipeline": "twin", "run_id": "s1",
        }  # fmt: skip
        if layer == "stream":
            table = pa.Table.from_pylist([letter], schema=DEAD_LETTERS)
            columns = {**{n: table.column(n) for n in table.column_names}, "_stored_at": pa.array([NOW - DAY], UTC)}
            self.put("dead_letters.speed", None, columns)
        return letter

    def duplicate(self, *numbers: int, stored: int = NOW - DAY) -> None:
        for n in numbers:
            columns = {
                "source": [SOURCE],
                "position": pa.array([n], pa.int64()),
                "door": ["duplicate"],
                "_stored_at": pa.array([stored], UTC),
            }
            self._write(Path(doors_folder(self.state)), columns)

    def reached(self, watermark: int | None, *, ended: bool) -> None:
        """How far the stream has come, on the arrival clock after ZERO."""
        write_progress(self.state, 1, Reached(None if watermark is None else ZERO + watermark, None, None, ended))

    def archive(self, *records: tuple[int, object]) -> None:
        """Messages."""
        batch = messages([(n, ZERO) for n, _ in records], SOURCE)
        raw = pa.array([json.dumps(record).encode() for _, record in records], pa.binary())
        write_messages(batch.set_column(batch.schema.get_field_index("_raw"), "_raw", raw), f"{self.state}/archive", epoch=1)

    def started(
        self,
        run_id: str = "s1",
        *,
        contract: str | None = None,
        version: str = "0",
        lookups: Mapping[str, str] | None = None,
        ended: bool = True,
    ) -> None:
        """A start of the stream."""
        take_epoch(self.state, run_id, lookups)
        if not ended:
            return
        run = RunInfo(run_id, "twin", self.state, version, contract or self.loaded.spec.contract.fingerprint, mode="stream")
        write_run(self.state, RunResults(metadata(run, finished_at=utc_now()), "success"))

    def put(self, output: str, partition: str | None, columns: Mapping[str, Any]) -> None:
        folder = self.folder / "lake" / output
        self._write(folder / (partition or "at_day=__HIVE_DEFAULT_PARTITION__") if output != "dead_letters.speed" else folder, columns)

    def _write(self, folder: Path, columns: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files += 1
        pq.write_table(pa.table(dict(columns)), folder / new_name(1, now=lambda: NOW / 1e6 + self.files))

    # ── batch ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(
        self, *found: Row | Pane, where: tuple[int, int] | None = (0, 4), as_of: int = NOW, read: Literal["batch", "archive"] = "archive", run_id: str = "b1",
        letters: Sequence[Mapping[str, Any]] = (), contract: str | None = None, version: str = "0", kinds: Mapping[str, pa.DataType] | None = None,
        drop: Sequence[str] = (), partitioned: bool = True, arrival: int | None = None, lookups: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """A run over days after ZERO, whose answer this is."""
        over = None if where is None else Range(ZERO + where[0] * DAY, ZERO + where[1] * DAY)
        mine = contract or self.loaded.spec.contract.fingerprint
        run = RunInfo(
            run_id, "twin", self.state, version, mine, _iso(as_of), range=over, input=read, lookups=tuple((lookups or {}).items())
        )
        source = SOURCE if read == "archive" else str(self.folder / "in.jsonl")
        lake = self.folder / "lake"
        rows, panes = [r for r in found if isinstance(r, Row)], [p for p in found if isinstance(p, Pane)]
        outputs = [_output("rows", lake, "at", partitioned), _output("hourly", lake, "_window_start", partitioned)]
        refused = Output("dead_letters", "dead_letters", f"{lake}/dead_letters", partitions=("run_id",), replace="runs")
        late = [letter for letter in letters if letter["stage"] == "aggregate"]
        elements: list[Any] = [
            ("u", source, "read", "", len(rows) + len(letters) - len(late)),
            ("u", source, "aggregated", "hourly", len(rows) - len(late)),
        ]
        elements += [(f"u{i}", source, "dead", f"{x['stage']}:{x['reason']}", 1) for i, x in enumerate(letters) if x not in late]
        elements += [("u", source, "late", "hourly", len(late))] if late else []
        if rows:
            table = pa.table(
                {n: pa.array([r.columns()[n] for r in rows], (kinds or KINDS).get(n, KINDS[n])) for n in rows[0].columns() if n not in drop}
            )
            came = pa.array([None if arrival is None else ZERO + arrival] * len(rows), UTC)
            own = {"_source": pa.array([source] * len(rows)), "_position": pa.array([r.n for r in rows], pa.int64()), "_arrival_time": came,
                   "_run_id": pa.array([run_id] * len(rows)), "_contract": pa.array([mine] * len(rows))}  # fmt: skip
            elements += self._staged(
                run, outputs[0], "day(at)", {**dict(zip(table.column_names, table.columns, strict=True)), **own}, partitioned
            )
        if panes:
            columns = {
                n: pa.array([{**p.columns(), "_pane": "batch", "_epoch": 0}[n] for p in panes], KINDS[n]) for n in panes[0].columns()
            }
            elements += self._staged(run, outputs[1], "day(_window_start)", columns, partitioned)
        if letters:
            table = pa.Table.from_pylist([{**letter, "run_id": run_id} for letter in letters], schema=DEAD_LETTERS)
            elements += Lake(self.folder).stage(run, refused, *table.to_batches())
        done = conclude(run, [*outputs, refused], elements, Verdicts())
        assert done.status == "success", done.failures

    def _staged(self, run: RunInfo, output: Output, by: str, columns: Mapping[str, Any], partitioned: bool) -> list[Any]:
        (batch,) = pa.table(dict(columns)).combine_chunks().to_batches()
        return Lake(self.folder).stage(run, replace(output, partitions=(by,) if partitioned else ()), batch)


def _output(name: str, lake: Path, column: str, partitioned: bool) -> Output:
    level = f"{column.lstrip('_')}_day"
    clock = Clock(column, level, "day") if partitioned else None
    return Output(name, name, f"{lake}/{name}", partitions=(level,) if partitioned else (), clock=clock)


def _day(at: int) -> str:
    return _iso(ZERO + at)[:10]


def _iso(at: int) -> str:
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")
