"""Parquet: settings that suit the rows, and a sink whose rows, letters and counts add up under Beam."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.schema import provenance
from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.committing import prepare
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.parquet import ParquetEncoder, WriteParquet, repeating_columns
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.sinks.write import Masking
from beam_pipelines.spec.sinks import ParquetSink
from tests.runs import read_run

CONTRACT = Contract(columns={"id": Column(type="string")})
START = datetime(2013, 1, 1, 22, tzinfo=UTC)


def flights(count: int, *, first: int = 0, source: str = "a.csv") -> pa.RecordBatch:
    numbers = range(first, first + count)
    columns = {
        "at": pa.array([START + timedelta(hours=i) for i in numbers], pa.timestamp("us", "UTC")),
        "origin": pa.array([["EWR", "J/K", None][i % 3] for i in numbers], pa.string()),
        "id": pa.array([f"{i * 7919:08x}" for i in numbers], pa.string()),
        "fare": pa.array([Decimal(i) / 100 for i in numbers], pa.decimal128(12, 2)),
        **dict(zip(["_source", "_position", "_arrival_time"], provenance(source, pa.array(numbers, pa.int64())), strict=True)),
        "_raw": pa.array([b"raw"] * count, pa.binary()),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def key() -> bytes:
    return b"secret"


def job(state: Path, sink: ParquetSink, batches: list[pa.RecordBatch], *, run_id: str = "r1", **more: Any) -> RunInfo:
    run = RunInfo(run_id, "p", str(state), contract="c0ffee")
    write = WriteParquet(sink, label="flights", run=run, event_time="at", **more)
    with beam.Pipeline("FnApiRunner") as pipeline:
        written = pipeline | beam.Create(batches, reshuffle=False) | "Write" >> write
        read = pipeline | "Read" >> beam.Create(
            [(f"b{i}", b.column("_source")[0].as_py(), "read", "", b.num_rows) for i, b in enumerate(batches)]
        )
        letters = written.dead | "Letters" >> (write_letters := WriteDeadLetters(run=run, contract=CONTRACT))
        [written.files, written.counts, letters.files, letters.counts, read] | Commit(run, [write.output, write_letters.output])
    return run


def test_duckdb_pyarrow_and_polars_read_what_the_manifest_says(tmp_path: Path) -> None:
    path = str(tmp_path / "flights")
    run = job(
        tmp_path / "state", ParquetSink(path=path, partition_by=("day(at)", "origin")), [flights(60), flights(40, first=60, source="b.csv")]
    )
    expected = {(r["id"], r["at"].date(), r["origin"]) for b in (flights(60), flights(40, first=60)) for r in b.to_pylist()}
    glob, view = f"{path}/**/*.parquet", select_sql(snapshots(run.state)["flights"])
    for source in (f"read_parquet('{glob}', hive_partitioning = true)", f"({view})"):
        assert set(duckdb.connect().execute(f"SELECT id, at_day, origin FROM {source}").fetchall()) == expected
    scheme = ds.partitioning(pa.schema([("at_day", pa.date32()), ("origin", pa.string())]), flavor="hive")
    assert {(r["id"], r["at_day"], r["origin"]) for r in ds.dataset(path, partitioning=scheme).to_table().to_pylist()} == expected
    assert set(pl.read_parquet(glob, hive_partitioning=True).select("id", "at_day", "origin").iter_rows()) == expected
    results = read_run(run.state, "r1")
    assert [(line.source, line.read, line.written) for line in results.ledger] == [
        ("a.csv", 60, {"flights": 60}),
        ("b.csv", 40, {"flights": 40}),
    ]


def test_written_rows_keep_their_provenance_unless_it_is_off(tmp_path: Path) -> None:
    job(tmp_path / "s1", ParquetSink(path=str(tmp_path / "on")), [flights(3)])
    job(tmp_path / "s2", ParquetSink(path=str(tmp_path / "off")), [flights(3)], provenance=False)
    on, off = (pl.read_parquet(str(tmp_path / name / "*.parquet")) for name in ("on", "off"))
    assert on.columns == ["at", "origin", "id", "fare", "_source", "_position", "_arrival_time", "_run_id", "_contract"]
    assert on.select("_source", "_position", "_run_id", "_contract").row(2) == ("a.csv", 2, "r1", "c0ffee")
    assert off.columns == ["at", "origin", "id", "fare"]


def test_ranges_of_numbers_are_partitions_that_any_reader_finds(tmp_path: Path) -> None:
    path = str(tmp_path / "flights")
    run = job(tmp_path / "state", ParquetSink(path=path, partition_by=("range(_position, 10, 30, 10)",)), [flights(31)])
    expected = {n: str(n // 10 * 10) if 10 <= n < 30 else "__UNPARTITIONED__" for n in range(31)}
    view = select_sql(snapshots(run.state)["flights"])
    for source in (f"read_parquet('{path}/**/*.parquet', hive_partitioning = true)", f"({view})"):
        assert dict(duckdb.connect().execute(f"SELECT _position, position_range_10_30_10 FROM {source}").fetchall()) == expected


def test_other_ranges_are_another_layout(tmp_path: Path) -> None:
    """Folders of the old ones would hold rows of the new."""
    path, run = str(tmp_path / "flights"), RunInfo("r2", "p", str(tmp_path / "state"))
    job(tmp_path / "state", ParquetSink(path=path, partition_by=("range(_position, 0, 30, 10)",)), [flights(31)])
    other = WriteParquet(ParquetSink(path=path, partition_by=("range(_position, 0, 40, 20)",)), label="flights", run=run)
    with pytest.raises(SinkError, match=r"by position_range_0_30_10; the spec now says parquet partitioned by position_range_0_40_20"):
        prepare([other.output], run)


def test_running_twice_changes_nothing(tmp_path: Path) -> None:
    sink = ParquetSink(path=str(tmp_path / "out"), partition_by=("day(at)",))
    counts = []
    for run_id in ("r1", "r2"):
        job(tmp_path / "state", sink, [flights(50)], run_id=run_id)
        counts.append(
            (
                duckdb.connect().execute(f"SELECT count(*), count(DISTINCT id) FROM '{tmp_path}/out/**/*.parquet'").fetchone(),
                len(list(Path(sink.path).rglob("*.*"))),
            )
        )
    assert counts[0] == counts[1]
    assert counts[0][0] == (50, 50)


def test_a_row_that_cannot_be_written_is_a_dead_letter_and_the_ledger_balances(tmp_path: Path) -> None:
    batch = flights(3)
    long = batch.set_column(1, "origin", pa.array(["EWR", "x" * 300, None]))
    run = job(tmp_path / "state", ParquetSink(path=str(tmp_path / "out"), partition_by=("origin",)), [long])
    (letter,) = duckdb.connect().sql(select_sql(snapshots(run.state)["dead_letters"])).to_arrow_table().to_pylist()
    assert (letter["stage"], letter["reason"], letter["position"], letter["raw_format"]) == ("write", "SINK", 1, "row")
    assert (letter["run_id"], letter["contract"], letter["pipeline"]) == ("r1", "c0ffee", "p")
    assert letter["event_time"] == START + timedelta(hours=1)
    assert "too long" in letter["message"]
    assert b"x" * 300 in letter["raw"]
    results = read_run(run.state, "r1")
    assert (results.status, results.dead_letters, results.outputs[0].rows) == ("success", {"write:SINK": 1}, 2)


def test_sensitive_columns_are_masked_before_they_reach_a_path_or_file(tmp_path: Path) -> None:
    rules = Contract(
        columns={
            "origin": Column(type="string", sensitive="hmac"),
            "id": Column(type="string", sensitive="drop"),
            "at": Column(type="timestamp"),
        }
    )
    job(
        tmp_path / "state",
        ParquetSink(path=str(tmp_path / "out"), partition_by=("origin",)),
        [flights(6)],
        masking=Masking(rules.sensitive, key),
    )
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert len(names) == 3
    assert not any("EWR" in n or "K" in n.removeprefix("origin=__HIVE") for n in names if "HIVE" not in n)
    assert "id" not in pl.read_parquet(str(tmp_path / "out/**/*.parquet")).columns


def test_a_run_without_rows_commits_and_keeps_partitions(tmp_path: Path) -> None:
    sink = ParquetSink(path=str(tmp_path / "out"), partition_by=("day(at)",))
    job(tmp_path / "state", sink, [flights(5)])
    run = job(tmp_path / "state", sink, [], run_id="r2")
    assert read_run(run.state, "r2").status == "success"
    assert duckdb.connect().sql(select_sql(snapshots(run.state)["flights"])).to_arrow_table().num_rows == 5


def test_a_partition_of_no_column_stops_the_run_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="did you mean 'origin'"):
        job(tmp_path / "state", ParquetSink(path=str(tmp_path / "out"), partition_by=("orign",)), [flights(5)])


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_columns_that_repeat_get_a_dictionary_also_inside_structs_and_lists() -> None:
    many = list(range(1000))
    found = repeating_columns(
        table(
            few=[f"c{i % 3}" for i in many], many=[f"c{i}" for i in many], sorted=[f"c{i // 10}" for i in many], flag=[i % 2 == 0 for i in many],
            user=[{"id": i, "country": "SE"} for i in many], items=[[{"sku": "a", "n": i}] for i in many], code=pa.array(["x"] * 1000).dictionary_encode(),
            none=pa.nulls(1000),
        )
    )  # fmt: skip
    assert found == ["few", "sorted", "user.country", "items.list.element.sku", "code"]


def test_statistics_are_kept_where_a_reader_can_skip_by_them(tmp_path: Path) -> None:
    batch = flights(50)
    encoder = ParquetEncoder(useful=("at", "id", "origin"))
    writer = encoder.open(str(tmp_path / "x.parquet"), pa.Table.from_batches([batch]))
    writer.write(pa.Table.from_batches([batch]))
    writer.close()
    group = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {n for n, c in columns.items() if c.is_stats_set} == {"at", "origin", "fare"}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert "RLE_DICTIONARY" in columns["origin"].encodings
    assert "RLE_DICTIONARY" not in columns["id"].encodings
    assert columns["fare"].physical_type == "INT64"


def test_what_the_user_set_wins() -> None:
    settings = ParquetEncoder("gzip", 3, ("id",), ("fare",)).settings(pa.Table.from_batches([flights(5)]))
    assert (settings["compression"], settings["compression_level"], settings["write_statistics"]) == ("gzip", 3, ["fare"])
    assert settings["use_dictionary"] == ["id", "_source"]


def test_an_unknown_partition_function_is_refused_when_the_sink_is_made(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="week"):
        WriteParquet(ParquetSink(path=str(tmp_path), partition_by=("week(at)",)), label="x", run=RunInfo("r", "p", str(tmp_path)))
