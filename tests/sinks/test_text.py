"""CSV and JSON lines: what was written is read back, by Python's own readers and by DuckDB."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import provenance
from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.text import csv_header, csv_lines, json_lines
from beam_pipelines.sinks.views import select_sql
from tests.sinks.lake import Lake, rows

TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=10))
def test_csv_gives_every_text_back(pairs: list[tuple[str | None, str | None]]) -> None:
    batch = pa.record_batch({"a": pa.array([a for a, _ in pairs], pa.string()), 'b "q"': pa.array([b for _, b in pairs], pa.string())})
    content = (csv_header(batch.schema.names) + csv_lines(batch)).decode()
    found = list(csv.reader(io.StringIO(content, newline="")))
    assert found == [["a", 'b "q"'], *([a or "", b or ""] for a, b in pairs)]


def test_csv_tells_null_from_empty_text_and_quotes_only_where_it_must() -> None:
    batch = pa.record_batch({"a": ["x", "", None, "1,2", 'say "hi"', "two\nlines", " edge"], "n": [1, 2, 3, 4, 5, 6, None]})
    assert csv_lines(batch).decode() == 'x,1\n"",2\n,3\n"1,2",4\n"say ""hi""",5\n"two\nlines",6\n" edge",\n'


def typed() -> pa.RecordBatch:
    return pa.record_batch(
        {
            "at": pa.array([datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 1, 1, 5, 0, 0, 120000, tzinfo=UTC)], pa.timestamp("us", "UTC")),
            "civil": pa.array([datetime(2013, 1, 1, 5), None], pa.timestamp("us")),
            "day": [date(2013, 1, 1), None], "flag": [True, None], "fare": pa.array([Decimal("1.50"), None], pa.decimal128(12, 2)),
            "ratio": [float("nan"), float("-inf")], "raw": pa.array([b"text", b"\xff\x00"], pa.binary()),
            "items": [[{"sku": "a", "n": 1}], None], "code": pa.array(["EWR", None]).dictionary_encode(), "big": pa.array([2**63 - 1, None], pa.int64()),
        }
    )  # fmt: skip


def test_json_lines_hold_every_type() -> None:
    one, two = map(json.loads, json_lines(typed()).splitlines())
    assert one == {
        "at": "2013-01-01T05:00:00Z", "civil": "2013-01-01T05:00:00", "day": "2013-01-01", "flag": True, "fare": 1.5, "ratio": "NaN", "raw": "text",
        "items": [{"sku": "a", "n": 1}], "code": "EWR", "big": 2**63 - 1,
    }  # fmt: skip
    assert two == {
        "at": "2013-01-01T05:00:00.120000Z",
        "ratio": "-Infinity",
        "raw": "base64:/wA=",
        **dict.fromkeys(["civil", "day", "flag", "fare", "items", "code", "big"]),
    }
    assert b'"fare":1.50' in json_lines(typed())


def test_csv_holds_every_type() -> None:
    one, two = csv.reader(io.StringIO(csv_lines(typed()).decode()))
    assert one == [
        "2013-01-01T05:00:00Z",
        "2013-01-01T05:00:00",
        "2013-01-01",
        "true",
        "1.50",
        "nan",
        "text",
        '[{"sku":"a","n":1}]',
        "EWR",
        str(2**63 - 1),
    ]
    assert two == ["2013-01-01T05:00:00.120000Z", "", "", "", "", "-inf", "base64:/wA=", "", "", ""]


@given(st.lists(TEXTS, max_size=10))
def test_json_gives_every_text_back(texts: list[str | None]) -> None:
    batch = pa.record_batch({'a "b".c': pa.array(texts, pa.string())})
    assert [json.loads(line) for line in json_lines(batch).split(b"\n")[:-1]] == [{'a "b".c': t} for t in texts]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_a_path_with_an_ending_is_one_file_with_one_header_replaced_at_once(lake: Lake) -> None:
    output = lake.output("out.csv", format="csv", partitions=())
    lake.go("r1", output, rows((1, "a"), (2, None)))
    assert (lake.folder / "out.csv").read_text().splitlines() == [
        "n,k,_source,_position,_arrival_time,_run_id,_contract",
        '1,a,s,1,,r1,""',
        '2,,s,2,,r1,""',
    ]
    assert lake.view("out.csv") == [(1, "a"), (2, None)]
    lake.go("r2", output, rows((3, "b")))
    assert lake.view("out.csv") == [(3, "b")]
    lake.go("r3", output)
    assert (lake.folder / "out.csv").read_text().splitlines() == ["n,k,_source,_position,_arrival_time,_run_id,_contract"]
    assert sorted(p.name for p in lake.folder.iterdir()) == ["out.csv", "state"]


def test_a_zipped_file_of_several_parts_is_one_readable_file(lake: Lake) -> None:
    output = lake.output("out.csv.gz", format="csv", partitions=(), gzip=True)
    run = lake.run("r1")
    elements = [*lake.stage(run, output, rows((1, "a"))), *lake.stage(run, output, rows((2, "b")))]
    from beam_pipelines.sinks.commit import Verdicts, conclude

    conclude(run, [output], [("b", "s", "read", "", 2), *elements], Verdicts())
    lines = gzip.decompress((lake.folder / "out.csv.gz").read_bytes()).decode().splitlines()
    assert sorted(line.split(",")[0] for line in lines) == ["1", "2", "n"]
    assert lake.view("out.csv.gz") == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("more", [{"format": "csv"}, {"format": "jsonl"}, {"format": "jsonl", "gzip": True}])
def test_a_folder_holds_files_that_stand_alone(lake: Lake, more: dict[str, object]) -> None:
    output = lake.output(partitions=(), **more)
    lake.go("r1", output, rows((1, "a"), (2, "")))
    lake.go("r2", output, rows((1, "a"), (2, "")))
    assert lake.view() == [(1, "a"), (2, "")]
    assert len(lake.files()) == 1


def test_a_file_of_somebody_else_is_not_overwritten(lake: Lake) -> None:
    (lake.folder / "out.csv").write_text("mine\n")
    with pytest.raises(SinkError, match="did not write it"):
        lake.go("r1", lake.output("out.csv", format="csv", partitions=()), rows((1, "a")))
    assert (lake.folder / "out.csv").read_text() == "mine\n"


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_merge_stopped_after_any_step_can_be_redone(lake: Lake, stop: int) -> None:
    output = lake.output("out.jsonl", format="jsonl", partitions=())
    lake.go("r1", output, rows((1, "a")))
    from beam_pipelines.sinks.committing import commit_steps

    run = lake.run("r2")
    work = lake.work(run, [output], lake.stage(run, output, rows((2, "b"))))
    steps = commit_steps(work)
    for _ in range(stop):
        next(steps, None)
    assert lake.view("out.jsonl") in ([(1, "a")], [(2, "b")])
    list(commit_steps(work))
    assert lake.view("out.jsonl") == [(2, "b")]


@pytest.mark.parametrize("text_format", ["csv", "jsonl"])
def test_the_view_of_a_text_output_has_the_types_and_values_of_parquet(lake: Lake, text_format: str) -> None:
    own = [n for n in typed().schema.names if n not in ("raw", "items")]
    batch = typed().select(own).append_column("_source", provenance("s", pa.array([0, 1]))[0])
    views = []
    for name, kind in (("one", "parquet"), ("two", text_format)):
        assert lake.go(name, lake.output(name, format=kind, partitions=()), batch).status == "success"
        views.append(select_sql(snapshots(lake.state)[name]))
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    one, two = (connection.sql(f"SELECT * EXCLUDE (_source, _run_id) FROM ({view}) ORDER BY 1").fetchall() for view in views)
    assert str(one) == str(two)  # NaN is not equal to itself
