"""`init`: whatever the file, the proposal validates, and runs on that very file."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from beam_pipelines.cli.choose import choose
from beam_pipelines.cli.look import look_at
from beam_pipelines.cli.propose import propose
from beam_pipelines.sources.files import list_files
from beam_pipelines.spec.load import load_spec
from tests.cli.conftest import Call
from tests.conftest import ROOT

UTC = dt.UTC
ODD = {
    'a"b': [1, 2, 3], "a.b": ["x", "y", None], "with space": [1.5, 2.5, 3.5], "😀": ["u", "v", "w"], "select": [True, False, True],
    "Id": [1, 2, 3], "ID": ["a", "b", "c"], "_x": [1, 1, 1], "$m": [1, 2, 3], "it's": [decimal.Decimal("1.10")] * 3, "a:b": [1, 2, 3],
    "x,y": [1, 2, 3], "#h": [1, 2, 3], "true": [1, 2, 3], "${p}": [1, 2, 3], "tab\tname": [1, 2, 3], "nl\nname": [1, 2, 3], "": [1, 2, 3],
    "at": [dt.datetime(2024, 1, 1, tzinfo=UTC)] * 3, "d": [dt.date(2024, 1, i) for i in (1, 2, 3)], "st": [{"x": 1, "y.z": [1]}] * 3,
    "st2": [{"x": 1, "y": [{"q": "s"}]}] * 3, "b": [b"\0", b"a", b"b"],
}  # fmt: skip


def odd_parquet(path: Path) -> None:
    table = pa.table({**ODD, "null": pa.nulls(3), "map": pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64()))})
    table = table.append_column("ns", pa.array([1_700_000_000_000_000_000] * 3, pa.timestamp("ns")))
    pq.write_table(table.append_column("took", pa.array([1, 2, 3], pa.duration("s"))), path)


def avro(path: Path) -> None:
    fields = [
        {"name": "id", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ]
    with path.open("wb") as out:
        rows = [{"id": i, "at": dt.datetime(2024, 1, i, tzinfo=UTC), "tags": ["a"]} for i in (1, 2, 3)]
        fastavro.writer(out, fastavro.parse_schema({"type": "record", "name": "r", "fields": fields}), rows)


def semicolons(path: Path) -> None:
    with gzip.open(path, "wt") as out:
        out.write("id;when;amount;note\n" + "".join(f"{i};{i:02d}.03.2024 10:00;{i}.50;-\n" for i in range(1, 20)))


def nested_array(path: Path) -> None:
    rows = [{"id": i, "n": {"a": i, "b": [1, 2]}, "big": 2**64 + i, "x": None, "mixed": [1, "a"], "a.b": 1.25} for i in range(5)]
    path.write_text(json.dumps(rows))


def named_oddly(path: Path) -> None:
    path.write_text('"select","a ""b""","x.y","when it was"\n1,2,3,2024-01-01\n4,5,6,2024-01-02\n')


def text(content: str | bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


FILES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "odd.parquet": (odd_parquet, 3),
    "x.orc": (lambda path: pyarrow.orc.write_table(pa.table({"id": [1, 2], "n": ["a", "b"]}), path), 2),
    "x.avro": (avro, 3),
    "x.csv.gz": (semicolons, 19),
    "array.json": (nested_array, 5),
    "weird'[x]*.csv": (named_oddly, 2),
    "header.csv": (text("id,name\n"), 0),
    "no_header.csv": (text("1,2024-01-01,x\n2,2024-01-02,y\n"), 2),
    "index.csv": (text(",a\n0,x\n1,y\n"), 2),  # as pandas writes it
    "utf16.csv": (text("id,näme\n1,ä\n2,ö\n".encode("utf-16")), 2),
    "latin.csv": (text(b"id,name\n1,\xe4\n2,\xf6\n"), 2),
    "tabs.tsv": (text("id\tv\n1\t2.50\n2\t3.75\n"), 2),
    "squeezed": (text(bz2.compress(b'{"id": 1}\n{"id": 2}\n')), 2),  # no ending says so
    "broken.jsonl": (text('{"id": 1, "😀": "2024-01-01T00:00:00Z"}\nnope\n{"id": 2, "😀": null}\n'), 2),
}


@pytest.mark.parametrize("name", FILES)
def test_a_proposal_validates_and_runs_on_its_file(call: Call, tmp_path: Path, name: str) -> None:
    make, good = FILES[name]
    make(tmp_path / name)
    out = tmp_path / "made"
    assert "It is a proposal, and it validates." in call("init", "--from", tmp_path / name, "--out", out).err
    record = json.loads(call("run", out / "pipeline.yaml", "--json").out)
    assert sum(line["read"] for line in record["ledger"]) == good + (name == "broken.jsonl")
    assert record["outputs"][0]["rows"] == good
    assert f"{good:,} record" in (out / "pipeline.yaml").read_text().splitlines()[0]
    if (out / "pipeline_tests.yaml").exists():
        call("test", out / "pipeline.yaml")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("white.csv", b" \n\n", "nothing but white space"),
        ("twice.csv", b"a,a\n1,2\n", "names 'a' twice"),
        ("bad.parquet", b"PAR1garbage", "is no parquet file that can be read"),
        ("x.parquet", b"id\n1\n", "is no parquet file"),
        ("x.avro", b"Obj\x01rest", "x.avro"),
        ("x.bin", bytes(range(256)), "it is no text"),
        ("README.md", b"# Notes\nThis has, as texts have,\nlines of all lengths, and more, of course\n", "does not look like a table"),
        ("run.py", b"#!/usr/bin/env python\nimport os\n", "it has one column, called '#!/usr/bin/env python'"),
        ("page.html", b"<html><body>x</body></html>\n", "does not look like a table"),
        ("cut.csv.gz", gzip.compress(b"id\n1\n", mtime=0)[:12], "cut.csv.gz"),
    ],
)
def test_a_file_that_teaches_nothing_is_a_clear_error(call: Call, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = call("init", "--from", tmp_path / name, code=None)
    assert (done.code in (1, 2), done.out) == (True, "")
    assert says in done.err


def test_no_file_and_a_file_in_the_way_are_clear_errors(call: Call, tmp_path: Path) -> None:
    assert "there is no such file" in call("init", "--from", tmp_path / "no.csv", code=1).err
    assert "local files" in call("init", "--from", "gs://bucket/x.csv", code=2).err
    (tmp_path / "x.csv").write_text("id\n1\n")
    call("init", "--from", tmp_path / "x.csv", "--out", tmp_path)
    assert "--force" in call("init", "--from", tmp_path / "x.csv", "--out", tmp_path, code=2).err
    call("init", "--from", tmp_path / "x.csv", "--out", tmp_path, "--force")
    assert "got the text 'No Name'" in call("init", "--from", tmp_path / "x.csv", "--name", "No Name", code=2).err


def test_without_out_the_spec_is_all_that_is_printed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.csv").write_text("id\n1\n2\n")
    (tmp_path / "made.yaml").write_text(call("init", "--from", "shop").out)
    spec = load_spec("made.yaml").spec
    assert (spec.pipeline, spec.sources.batch[0].files) == ("shop", f"{tmp_path}/shop/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.yaml", "shop"]


def proposed(tmp_path: Path, content: str, name: str = "x.csv") -> tuple[dict[str, dict[str, Any]], tuple[str, ...], str | None]:
    (tmp_path / name).write_text(content)
    proposal = propose(look_at(str(tmp_path / name)))
    return {c.name: c.rules or {} for c in proposal.columns}, proposal.key, proposal.event_time


def test_types_are_those_of_almost_all_values(tmp_path: Path) -> None:
    rows = "".join(
        f"{i},{i / 7},{i}.50,{i % 2 == 0},2024-01-{i:02d},2024-01-{i:02d}T10:00:00Z,{i:02d}:30,{i:05d},{'NA' if i == 3 else i},{'abc' if i == 4 else i}, x \n"
        for i in range(1, 21)
    )
    found, key, event_time = proposed(tmp_path, "id,ratio,paid,yes,day,at,clock,zip,n,odd,padded\n" + rows)
    assert {n: r["type"] for n, r in found.items()} == {
        "id": "int64", "ratio": "float64", "paid": "decimal(12,2)", "yes": "boolean", "day": "date", "at": "timestamp", "clock": "time",
        "zip": "string", "n": "int64", "odd": "int64", "padded": "string",
    }  # fmt: skip
    assert found["n"]["null_values"] == ["NA"]
    assert ("required" in found["n"], "required" in found["id"]) == (False, True)
    assert (key, event_time) == (("id",), "at")


def test_dates_that_fit_two_formats_say_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("d\n01/02/2024\n03/04/2024\n")
    (column,) = propose(look_at(str(tmp_path / "x.csv"))).columns
    assert (column.rules or {})["format"] == "%m/%d/%Y"
    assert "%d/%m/%Y" in column.notes[0]


def test_a_key_may_take_several_columns_and_repeated_records_do_not_hide_it(tmp_path: Path) -> None:
    _, key, _ = proposed(
        tmp_path, "shop,day,sold\n" + "".join(f"s{i % 3},2024-01-{1 + i // 3:02d},{i % 2}\n" for i in range(12)) + "s0,2024-01-01,0\n"
    )
    assert key == ("shop", "day")
    assert proposed(tmp_path, "a,b\n1,1\n1,2\n2,1\n")[1] == ("a", "b")
    assert proposed(tmp_path, "a,b\n1.5,\n1.5,2\n")[1] == ()


def test_json_keeps_its_nesting_and_says_where_kinds_differ(tmp_path: Path) -> None:
    rows = [
        {"id": i, "user": {"name": "x", "tags": ["a"]}, "price": 1.25, "far": 1.123456, "any": [1, "a"], "when": 1_700_000_000_000 + i}
        for i in range(30)
    ]
    rows[3]["id"] = "three"
    found, _, _ = proposed(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl")
    assert {n: r["type"] for n, r in found.items()} == {
        "id": "int64", "user": "struct<name: string, tags: list<string>>", "price": "decimal(12,2)", "far": "float64", "any": "json", "when": "int64",
    }  # fmt: skip


def test_a_directory_of_several_kinds_is_narrowed_to_one_and_says_so(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    (folder / "a.csv").write_text("id,name\n" + "".join(f"{i},x\n" for i in range(99)))
    (folder / "below" / "b.csv.gz").write_bytes(gzip.compress(b"id,name\n1000,z\n", mtime=0))
    (folder / "c.jsonl").write_text('{"x": 1}\n')
    (folder / "README.md").write_text("# What\nis this, then?\n" * 500)
    done = call("init", "--from", folder, "--out", tmp_path)
    assert "It is the largest of 2 files, which are taken to be alike." in done.err
    assert "(1 .md, 1 jsonl): the proposal fits none of them and reads" in done.err
    assert load_spec(tmp_path / "pipeline.yaml").spec.sources.batch[0].patterns == (f"{folder}/**.csv", f"{folder}/**.csv.gz")
    record = json.loads(call("run", tmp_path / "pipeline.yaml", "--json").out)
    assert (record["outputs"][0]["rows"], record["dead_letters"]) == (100, {})


OURS = f"part-{'0' * 32}.csv"


@pytest.mark.parametrize(
    ("names", "ours", "patterns"),
    [
        (["ORDERS.CSV", "more/B.CSV"], "out/" + OURS, ("*.CSV", "more/**.CSV")),
        (["ORDERS.CSV", "more/B.csv.gz"], "more/" + OURS, ("*.CSV", "more/*.csv.gz")),
        (["a.csv", "in/b.csv", "in/deep/c.csv"], "in/" + OURS, ("*.csv", "in/b.csv", "in/deep/*.csv")),
        (["a.gz", "in/b.gz", "in/c.txt"], "in/" + OURS + ".gz", ("*.gz", "in/b.gz")),
        (["data[1]", "in/data"], "in/" + OURS, ("data[[]1]", "in/data")),
    ],
)
def test_what_is_proposed_beside_files_that_pipelines_wrote_reads_all_that_are_alike_and_none_of_those(
    tmp_path: Path, names: list[str], ours: str, patterns: tuple[str, ...]
) -> None:
    for name in (*names, ours):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x" if name.endswith("txt") else "longer")
    chosen = choose(str(tmp_path), spec_folder=str(tmp_path / "elsewhere"))
    assert {os.path.relpath(pattern, tmp_path) for pattern in chosen.patterns} == set(patterns)
    alike = {str(tmp_path / name) for name in names if not name.endswith("txt")}
    assert {path for path, _ in list_files(chosen.patterns)} == alike


@pytest.mark.parametrize(("alike", "other"), [("A.CSV", "b.txt"), ("a.TXT", "b"), ("a", "b.md")])
def test_a_directory_is_narrowed_to_an_ending_as_it_is_written(tmp_path: Path, alike: str, other: str) -> None:
    (tmp_path / alike).write_text("longer")
    (tmp_path / other).write_text("")
    patterns = choose(str(tmp_path), spec_folder=str(tmp_path / "elsewhere")).patterns
    assert [path for path, _ in list_files(patterns)] == [str(tmp_path / alike)]


def test_what_pipelines_wrote_is_no_data_of_the_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.csv").write_text("id,at\n" + "".join(f"{n},2024-05-01T10:00:{n:02}Z\n" for n in range(20)))
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "b.csv").write_text("id,at\n100,2024-05-01T10:00:00Z\n")
    told = call("init", "--from", ".", "--out", ".", "--name", "orders").err
    assert "Left out" not in told
    spec = load_spec(tmp_path / "pipeline.yaml").spec
    assert set(spec.sources.batch[0].patterns) == {f"{tmp_path}/*.csv", f"{tmp_path}/more/**.csv"}
    text = (tmp_path / "pipeline.yaml").read_text().replace('"*.csv"', "orders.csv")
    (tmp_path / "pipeline.yaml").write_text(text + "  - {from: rows, csv: {path: copy.csv}}\n")
    call("run", "pipeline.yaml")
    assert (tmp_path / "copy.csv").stat().st_size > (tmp_path / "orders.csv").stat().st_size, "the larger one would be looked at"

    done = call("init", "--from", ".", "--name", "orders")
    assert "Left out: 2 files that pipelines wrote (outputs, state, archive). The proposal reads ./more/**.csv, ./orders.csv." in done.err
    assert "orders.csv" in done.out
    (tmp_path / "orders.csv").unlink()
    (tmp_path / "more" / "deep" / "b.csv").unlink()
    only = call("init", "--from", "lake", "--out", "next")
    assert "What lies there was written by pipelines: the proposal reads their output." in only.err


def test_the_check_proposed_as_an_example_is_right_when_it_is_taken(call: Call, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,group\na,1\nb,1\n")
    text = call("init", "--from", tmp_path / "x.csv").out
    (tmp_path / "p.yaml").write_text(text.replace("  # - {name: not_negative", "  - {name: not_negative"))
    call("validate", tmp_path / "p.yaml")


def test_a_list_of_plain_values_without_an_ending_is_a_table(call: Call, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("id\n1\n2\n")
    assert "id: {type: int64, required: true}" in call("init", "--from", tmp_path / "ids").out


@pytest.mark.parametrize(
    ("odd", "kind", "note", "dead"),
    [
        ("5.0", "int64", "1 of 41 are no integers, such as 5.0: dead letters", 1),
        ("5.0", "decimal(38,0)", "", 0),
        ("1e30", "decimal(38,0)", "", 0),
        ("1.5", "decimal(38,0)", "1 of 41 are no integers, such as 1.5: dead letters", 1),
        ("1" * 60, "json", "integers of more than 38 digits: kept as JSON text", 0),
    ],
)
def test_what_is_said_of_numbers_that_are_no_integers_is_so(call: Call, tmp_path: Path, odd: str, kind: str, note: str, dead: int) -> None:
    start = 10**20 if kind != "int64" else 1
    (tmp_path / "x.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in [*range(start, start + 40), odd]))
    (column,) = propose(look_at(str(tmp_path / "x.jsonl"))).columns
    assert (column.kind, "; ".join(column.notes)) == (kind, note)
    call("init", "--from", tmp_path / "x.jsonl", "--out", tmp_path)
    record = json.loads(call("run", tmp_path / "pipeline.yaml", "--json").out)
    assert sum(record["dead_letters"].values()) == dead


@pytest.mark.slow
def test_the_flights_get_a_spec_that_runs(call: Call, tmp_path: Path) -> None:
    source = ROOT / "examples" / "flights" / "data" / "flights-2013-01.csv"
    if not source.exists():
        pytest.fail("run examples/flights/prepare.py first")
    call("init", "--from", source, "--out", tmp_path)
    record = json.loads(call("run", tmp_path / "pipeline.yaml", "--json").out)
    assert (record["outputs"][0]["rows"], record["dead_letters"]) == (27_004, {})
