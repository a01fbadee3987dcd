"""Lookup tables from files of every format."""

from __future__ import annotations

import gzip
from pathlib import Path

import fastavro
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest

from beam_pipelines.errors import RunError, SourceError, SpecError
from beam_pipelines.sources.lookups import FileLookup
from beam_pipelines.spec.sources import LookupSource

ROWS = [{"code": "JFK", "name": "Kennedy"}, {"code": "LGA", "name": "La Guardia"}]


def write(path: Path, kind: str) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if kind == "csv":
        path.write_text("code,name\nJFK,Kennedy\nLGA,La Guardia\n")
    elif kind == "json":
        path.write_text('{"code": "JFK", "name": "Kennedy"}\n{"code": "LGA", "name": "La Guardia"}\n')
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "orc":
        pyarrow.orc.write_table(table, path)
    else:
        schema = {"type": "record", "name": "r", "fields": [{"name": n, "type": "string"} for n in ("code", "name")]}
        with path.open("wb") as out:
            fastavro.writer(out, schema, ROWS)
    return path


def lookup(path: Path, kind: str, **options: object) -> FileLookup:
    return FileLookup("airports", LookupSource.model_validate({"files": str(path), "format": kind, "key": "code", **options}))


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "orc", "avro"])
def test_every_format_gives_the_same_table(tmp_path: Path, kind: str) -> None:
    table = lookup(write(tmp_path / f"airports.{kind}", kind), kind)()
    assert sorted(table.rows.to_pylist(), key=lambda r: r["code"]) == ROWS


def test_csv_values_stay_texts_and_empty_is_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code,number\n007,\n008,5\n")
    assert lookup(path, "csv")().rows.to_pylist() == [{"code": "007", "number": None}, {"code": "008", "number": "5"}]


def test_columns_can_be_typed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code,number\nA,4\n")
    assert lookup(path, "csv", columns={"number": "int32"})().rows.schema.field("number").type == pa.int32()


def test_a_value_that_does_not_fit_its_type_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code,number\nA,four\n")
    with pytest.raises(RunError, match=r"airports.*number: got 'four'; expected int32"):
        lookup(path, "csv", columns={"number": "int32"})()


def test_a_key_that_occurs_twice_is_an_error_unless_one_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code,name\nA,one\nA,two\n")
    with pytest.raises(RunError, match="must be unique"):
        lookup(path, "csv")()
    assert lookup(path, "csv", duplicates="last")().rows["name"].to_pylist() == ["two"]


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match=r"a\.parquet: is no valid parquet file"):
        lookup(path, "parquet")()


@pytest.mark.parametrize("kind", ["csv", "json", "avro"])
def test_a_gzip_with_wrong_bytes_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    packed = bytearray(gzip.compress(write(tmp_path / f"a.{kind}", kind).read_bytes()))
    packed[-8] ^= 1  # of the checksum
    path = tmp_path / f"a.{kind}.gz"
    path.write_bytes(packed)
    with pytest.raises(RunError, match=rf"lookup 'airports': .*a\.{kind}\.gz: corrupt gzip file"):
        lookup(path, kind)()


def test_no_file_and_no_column(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="matches no file"):
        lookup(tmp_path / "none.csv", "csv")()
    path = write(tmp_path / "airports.csv", "csv")
    with pytest.raises(SpecError, match="no column 'number'"):
        lookup(path, "csv", columns={"number": "int32"})()


def test_a_worker_reads_a_lookup_once(tmp_path: Path) -> None:
    found = lookup(write(tmp_path / "airports.csv", "csv"), "csv")
    assert found() is found()


def test_another_job_in_the_same_process_sees_changed_files(tmp_path: Path) -> None:
    path = write(tmp_path / "airports.csv", "csv")
    assert lookup(path, "csv")().rows.num_rows == 2
    path.write_text("code,name\nJFK,Kennedy\n")
    assert lookup(path, "csv")().rows.num_rows == 1
