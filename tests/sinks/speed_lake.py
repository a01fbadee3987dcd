"""A small speed layer for tests: bundles that store real rows, panes, letters, doors and messages, without a Beam job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.doors import doors_of
from beam_pipelines.arrow.schema import DEAD_LETTERS, Failure, Rejected, dead_letters, provenance
from beam_pipelines.formats.archive import source_folder, write_messages
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_outputs
from beam_pipelines.sinks.parquet import WriteParquet
from beam_pipelines.sinks.resolutions import write_no_resolutions
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.speed import StoreFiles, WriteDoors, WriteSpeed, WriteSpeedLetters, write_no_doors
from beam_pipelines.sinks.write import WriteSettings
from beam_pipelines.spec.sinks import ParquetSink
from tests.formats.archived import NOON, messages

SOURCE = "projects/demo-project/subscriptions/flights"
UTC = pa.timestamp("us", "UTC")


def rows(
    positions: Iterable[int], *, change: int | None = None, source: str = SOURCE, more: dict[str, pa.Array] | None = None
) -> pa.RecordBatch:
    """Rows of n and k, both made of the position."""
    numbers = list(positions)
    arrival = pa.array([NOON + n for n in numbers], UTC)
    columns: dict[str, Any] = {"n": pa.array(numbers, pa.int32()), "k": pa.array([f"0{n % 3}" for n in numbers], pa.string())}
    columns |= dict(zip(["_source", "_position", "_arrival_time"], provenance(source, pa.array(numbers, pa.int64()), arrival), strict=True))
    columns |= more or {}
    if change is not None:
        columns["_change"] = pa.array([change] * len(numbers), pa.int8())
    return pa.RecordBatch.from_pydict(columns)


def letters(
    positions: Iterable[int], stage: str = "prepare", reason: str = "TYPE", name: str = "n", source: str = SOURCE
) -> pa.RecordBatch:
    numbers = list(positions)
    if not numbers:
        return pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS)
    return dead_letters(rows(numbers, source=source), [Rejected(stage, reason, (Failure(name, "", f"{name}: wrong"),))] * len(numbers))


def panes(*found: tuple[str | None, int, int, str, int, int]) -> pa.RecordBatch:
    """Panes of (group, window in hours, value, kind, epoch, index)."""
    group, hour, value, kind, epoch, index = (list(c) for c in zip(*found, strict=True))
    start, end = ([(h + more) * 3_600_000_000 for h in hour] for more in (0, 1))
    return pa.RecordBatch.from_pydict(
        {
            "g": pa.array(group, pa.string()), "total": pa.array(value, pa.int64()), "_window_start": pa.array(start, UTC),
            "_window_end": pa.array(end, UTC), "_pane": pa.array(kind, pa.string()), "_pane_index": pa.array(index, pa.int32()),
            "_epoch": pa.array(epoch, pa.int64()),
        }
    )  # fmt: skip


@dataclass
class Speed:
    """A state folder with a stream's outputs: those that were stored to, by name."""

    folder: Path
    run_id: str = "r1"
    epoch: int = 1
    known: dict[str, SpeedOutput] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return str(self.folder / "state")

    @property
    def run(self) -> RunInfo:
        return RunInfo(self.run_id, "p", self.state, contract="c1", mode="stream", epoch=self.epoch)

    def restart(self, run_id: str) -> None:
        self.run_id, self.epoch = run_id, self.epoch + 1

    def writing(
        self, name: str = "rows", *, of: str = "rows", by: Sequence[str] = (), provenance: bool = True, **sink: Any
    ) -> WriteSettings:
        """What stores to an output; from now on the stream has it."""
        parquet = ParquetSink(path=str(self.folder / name), partition_by=tuple(by), **sink)
        write = WriteParquet(parquet, label=name, run=self.run, provenance=provenance, of=of)
        self._know(
            name,
            of,
            write.output.speed,
            ("g",) if of not in ("rows", "dead_letters") else (),
            provenance,
            tuple(p.name for p in write.writing.layout.by),
        )
        return WriteSpeed(write, self.run).writing

    def letter_writing(self, name: str = "dead_letters") -> WriteSettings:
        write = WriteSpeedLetters(
            WriteDeadLetters(
                ParquetSink(path=str(self.folder / name)), run=self.run, contract=Contract(columns={"n": {"type": "int32"}}), label=name
            ),
            self.run,
        )
        self._know(name, "dead_letters", write.output.speed, (), True)
        return write.writing

    def _know(self, name: str, of: str, folder: str, groups: tuple[str, ...], provenance: bool, placed: tuple[str, ...] = ()) -> None:
        self.known[name] = SpeedOutput(name, of, folder, groups, provenance, placed=placed, placings=("one",))
        write_no_doors(self.state)  # as every start does
        write_no_resolutions(self.state)
        write_outputs(self.state, self.outputs)

    @property
    def outputs(self) -> StreamOutputs:
        return StreamOutputs(tuple(self.known.values()), (source_folder(str(self.folder / "archive"), SOURCE),), (SOURCE,))

    def store(self, writing: WriteSettings, *batches: pa.RecordBatch) -> list[str]:
        """A bundle; paths of its files. Duplicates go to the doors."""
        do = StoreFiles(writing)
        do.setup()
        do.start_bundle()
        for batch in batches:
            for output in do.process(batch, MIN_TIMESTAMP):
                if output.tag == "doors":
                    self.store(WriteDoors(self.run).writing, output.value)
                else:
                    self.letter(output.value)
        return [done.value for done in do.finish_bundle()]

    def letter(self, batch: pa.RecordBatch, name: str = "dead_letters") -> None:
        """Stores letters as this run's."""
        at = DEAD_LETTERS.get_field_index("run_id")
        batch = batch.set_column(at, DEAD_LETTERS.field("run_id"), pa.array([self.run_id] * batch.num_rows, pa.string()))
        self.store(self.letter_writing(name), batch)

    def door(self, positions: Iterable[int], door: str, source: str = SOURCE) -> None:
        batch = doors_of(rows(positions, source=source), door)
        if batch.num_rows:
            self.store(WriteDoors(self.run).writing, batch)

    def read(self, positions: Iterable[int]) -> None:
        """Messages in the archive."""
        found = [(n, NOON) for n in positions]
        if found:
            write_messages(messages(found, SOURCE), str(self.folder / "archive"), epoch=self.epoch)

    def ask(self, sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(open_tables(self.state), sql).to_pylist()
        return found
