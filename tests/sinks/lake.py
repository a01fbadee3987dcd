"""A small lake for tests of the sinks: runs that stage and commit real files without a Beam job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.partition import parse_partition
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE, provenance
from beam_pipelines.commit_elements import Columns, Staged
from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.committing import commit_steps
from beam_pipelines.sinks.files import Files
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.parquet import ParquetEncoder
from beam_pipelines.sinks.results import RunResults, metadata
from beam_pipelines.sinks.run import Output, RunInfo, utc_now
from beam_pipelines.sinks.text import TextEncoder, csv_header
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.sinks.work import Work
from beam_pipelines.sinks.write import layout_of, sql_schema


def rows(*pairs: tuple[int, str | None], source: str = "s") -> pa.RecordBatch:
    """Rows of columns n and k with provenance; n is the position too."""
    numbers = pa.array([n for n, _ in pairs], pa.int64())
    columns = [numbers, pa.array([k for _, k in pairs], pa.string()), *provenance(source, numbers)]
    return pa.RecordBatch.from_arrays(columns, names=["n", "k", SOURCE, POSITION, ARRIVAL])


@dataclass(frozen=True)
class Lake:
    """A state folder and outputs of rows."""

    folder: Path

    @property
    def state(self) -> str:
        return str(self.folder / "state")

    def run(self, run_id: str, attempt: str = "1") -> RunInfo:
        return RunInfo(run_id, "p", self.state, attempt=attempt)

    def output(self, name: str = "out", **more: Any) -> Output:
        return Output(name, "rows", str(self.folder / name), **{"partitions": ("k",), **more})

    def stage(self, run: RunInfo, output: Output, *batches: pa.RecordBatch) -> list[Any]:
        """The elements a sink would send to the commit."""
        text = TextEncoder(output.format, output.gzip, not output.single) if output.format != "parquet" else None  # type: ignore[arg-type]
        files = Files(layout_of(output, run, by=[parse_partition(p) for p in output.partitions]), text or ParquetEncoder())
        for batch in batches:
            assert not files.write(batch)
        elements: list[Any] = []
        for closed in files.close():
            elements.append(Staged(output.name, closed.partition, closed.path, closed.rows, closed.bytes))
            elements += [(closed.path, source, "written", output.name, n) for source, n in closed.sources.items()]
        if files.columns is not None:
            elements.append(Columns(output.name, sql_schema(files.columns)))
        return elements

    def read(self, *batches: pa.RecordBatch) -> list[Any]:
        return [(f"b{i}", "s", "read", "", b.num_rows) for i, b in enumerate(batches)]

    def go(self, run_id: str, output: Output, *batches: pa.RecordBatch, attempt: str = "1") -> RunResults:
        """A whole run."""
        run = self.run(run_id, attempt)
        return conclude(run, [output], [*self.read(*batches), *self.stage(run, output, *batches)], Verdicts())

    def work(self, run: RunInfo, outputs: Sequence[Output], elements: Sequence[Any]) -> Work:
        staged = tuple(e for e in elements if isinstance(e, Staged))
        record = RunResults(metadata(run, finished_at=utc_now()), "success")
        schemas = {e.output: e.columns for e in elements if isinstance(e, Columns)}
        headers = {
            o.name: csv_header([n for n, _ in schemas[o.name]]) for o in outputs if o.single and o.format == "csv" and o.name in schemas
        }
        return Work(run, tuple(outputs), staged, record, ["s"], (), schemas, headers)

    def steps(self, run: RunInfo, output: Output, *batches: pa.RecordBatch) -> Iterator[str]:
        return commit_steps(self.work(run, [output], self.stage(run, output, *batches)))

    def view(self, output: str = "out") -> list[tuple[int, str | None]]:
        """What the manifest says the output holds."""
        found = snapshots(self.state).get(output)
        return [] if found is None else sorted(duckdb.connect().execute(f"SELECT n, k FROM ({select_sql(found)})").fetchall(), key=repr)

    def glob(self, output: str = "out") -> list[tuple[int, str | None]]:
        """What a reader without the manifest finds."""
        found = list((self.folder / output).glob("**/*.parquet"))
        if not found:
            return []
        hive = "hive_partitioning = true, hive_types = {'k': VARCHAR}" if "=" in found[0].parent.name else "hive_partitioning = false"
        sql = f"SELECT n, k FROM read_parquet(? || '/**/*.parquet', {hive})"
        return sorted(duckdb.connect().execute(sql, [str(self.folder / output)]).fetchall(), key=repr)

    def files(self, output: str = "out") -> list[str]:
        """All files in the output's folder, hidden ones too."""
        top = self.folder / output
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())
