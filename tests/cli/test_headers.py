"""A CSV header that does not fit the contract is told by validate, preview and run, before anybody wonders about NULLs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.cli.headers import absent_columns, header_note, header_notes
from beam_pipelines.spec.load import parse_spec
from tests.cli.conftest import Call

SPEC = """spec: 1
pipeline: p
contract: {columns: {id: {type: int64, required: true}, amount: {type: int64}, place: {type: string, path: shop.town}, n: {type: int8, default: 0}}}
sources: {batch: [{files: "FILES", format: FORMAT}]}
sinks: [{from: rows, parquet: {path: out}}, {from: dead_letters, parquet: {path: dead}}]
"""
CONTRACT = Contract.model_validate({"columns": {"id": {"type": "int64", "required": True}, "Amount": {"type": "int64"}}})


def notes(folder: Path, files: str = "*.csv*", fmt: str = "csv") -> list[str]:
    loaded = parse_spec(SPEC.replace("FILES", files).replace("FORMAT", fmt), path=folder / "p.yaml")
    return [note.replace(f"{folder}/", "") for note in header_notes(loaded.spec)]


def test_absent_columns_come_with_the_nearest_name_that_is_free() -> None:
    assert absent_columns(["id", "Amount", "x"], CONTRACT) == {}
    assert absent_columns(["id", "amount "], CONTRACT) == {"Amount": "amount "}
    assert absent_columns(["ID", "id", "zzz"], CONTRACT) == {"Amount": ""}
    assert absent_columns([], CONTRACT) == {"id": "", "Amount": ""}


def test_a_note_says_what_follows_and_what_the_header_has() -> None:
    assert header_note(["Id", "what"], CONTRACT, where="a.csv") == (
        "a.csv: the header lacks id, Amount of the contract: NULL in every row; id is required, so every row is a dead letter. "
        "Did you mean 'Id' for id? It has Id, what."
    )
    assert "one name with ';' in it: is that the delimiter?" in header_note(["id;Amount"], CONTRACT, where="a.csv")
    assert "and 38 more" in header_note([f"c{i}" for i in range(50)], CONTRACT, where="a.csv")


@pytest.mark.parametrize(
    ("content", "fmt"),
    [
        (b"id,amount,shop\n", "csv"),
        ("id,amount,shop\n1,2,ä\n".encode("utf-16"), "csv"),
        (b"\xef\xbb\xbfid,amount,shop\n", "csv"),
        (b'said by nobody\n\n# a comment\n"id";"amount";"sh\xc3\xb6p";shop\n', '{type: csv, delimiter: ";", comment: "#", skip_rows: 1}'),
        (b"id|amount|it's|shop\n", '{type: csv, delimiter: "|", quote: ""}'),
        (b"1,2,x\n", "{type: csv, header: false}"),
        (b"", "csv"),
        (b"\xff" * 100_000, "csv"),
    ],
)
def test_headers_that_fit_and_files_that_cannot_be_read_in_short_are_passed_over(tmp_path: Path, content: bytes, fmt: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    found = notes(tmp_path, fmt=fmt)
    assert found == [] or content.startswith(b"\xff" * 5)


def test_files_of_one_header_share_a_note_and_other_formats_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("id,Amount,shop\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"id;amount;shop\n"))
    (tmp_path / "good.csv").write_text("id,amount,shop\n")
    found = notes(tmp_path)
    assert [note.partition(":")[0] for note in found] == ["a.csv and 1 more", "c.csv.gz"]
    assert "'shop' for place" not in str(found)
    assert notes(tmp_path, fmt="json") == notes(tmp_path, "nothing/*.csv") == notes(tmp_path, "gs://bucket/*.csv") == []
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "d.csv").write_text("id\n")
    assert len(notes(tmp_path, "in/")) == 1


def test_validate_preview_and_run_say_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,Amount,shop\n1,5,x\n")
    spec = tmp_path / "p.yaml"
    spec.write_text(SPEC.replace("FILES", "a.csv").replace("FORMAT", "csv"))
    assert "the header lacks amount of the contract: NULL in every row. Did you mean 'Amount' for amount?" in call("validate", spec).err
    assert any("the header lacks amount" in note for note in json.loads(call("validate", spec, "--json").out)["notes"])
    done = call("preview", spec)
    assert "note: " in done.err
    assert "empty    amount, place: NULL in all 1 rows" in done.out
    assert "warning: " in call("run", spec).err
    spec.write_text(spec.read_text().replace("{columns: {", '{columns: {"Amount ": {type: string}, '))
    (tmp_path / "a.csv").write_text("Amount ,id,amount,shop\nx,1,5,x\n")
    assert "header" not in call("validate", spec).err


def test_a_gzip_with_wrong_bytes_has_no_header_to_tell_of(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"id,amount\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(2000))))
    packed[20:40] = bytes(20)
    (tmp_path / "a.csv.gz").write_bytes(packed)
    assert notes(tmp_path) == []
