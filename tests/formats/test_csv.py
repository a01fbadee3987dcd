"""Laws of CSV: what Python's csv reads, with exact positions; every record is a row or a verdict; blocks and ranges do not matter."""

from __future__ import annotations

import csv
import io
import json
import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.program import Program
from beam_pipelines.errors import RunError
from beam_pipelines.formats.csv import CsvReader, DecodeCsv, decode_steps
from beam_pipelines.formats.options import CsvFormat
from beam_pipelines.formats.quoting import Dialect
from beam_pipelines.formats.reader import DECODE, FILE, TOO_LARGE, Broken, Limits
from tests.laws import share

Row = tuple[int, list[str | None]]
FIELD = st.text(st.sampled_from("ab,;\"'\\\n\r#é😀 \x00"), max_size=5)
BLOCK = st.integers(1, 60)


def contract(*names: str, unknown: str = "drop", kind: str = "string", **columns: Column) -> Contract:
    return Contract(columns={n: Column(type=kind) for n in names} | columns, unknown_columns=unknown)


def read(content: bytes, fmt: CsvFormat, names: Contract, **options: object) -> tuple[list[Row], list[tuple[int, str, str]], list[Broken]]:
    """(position, values) of good rows; (position, reason, message) of rejected rows; what the reader could not read."""
    rows: list[Row] = []
    dead: list[tuple[int, str, str]] = []
    broken: list[Broken] = []
    for item in CsvReader(fmt, names).read(io.BytesIO(content), **options):  # type: ignore[arg-type]
        if isinstance(item, Broken):
            broken.append(item)
            continue
        out, verdicts = DecodeCsv(names, fmt)(item)
        out.validate(full=True)
        assert out.num_rows == item.num_rows
        values = zip(*(out[n].to_pylist() for n in out.schema.names if n not in ("_raw", "_position")), strict=True)
        for row, (position, value) in enumerate(zip(item["_position"].to_pylist(), values, strict=True)):
            if row in verdicts:
                dead.append((position, verdicts[row].reason, verdicts[row].message))
            else:
                rows.append((position, list(value)))
    return rows, dead, broken


def values(rows: list[Row]) -> list[list[str | None]]:
    return [v for _, v in rows]


@st.composite
def tables(draw: st.DrawFn) -> tuple[CsvFormat, list[list[str]], bytes]:
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(FIELD, min_size=width, max_size=width), max_size=12))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    delimiter = draw(st.sampled_from(",;"))
    escape = draw(st.sampled_from(["", "\\"]))
    if quoting == csv.QUOTE_MINIMAL and not escape:  # before Python 3.13 the writer leaves a bare carriage return unquoted
        rows = [[f.replace("\r", "") for f in row] for row in rows]
    text = io.StringIO(newline="")
    if not escape:
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    else:
        for row in rows:
            quoted = ['"' + f.replace("\\", "\\\\").replace('"', '\\"') + '"' for f in row]
            text.write(delimiter.join(quoted) + end)
    return CsvFormat(header=False, delimiter=delimiter, escape=escape), rows, text.getvalue().encode()


@share(40)
@given(tables(), BLOCK)
def test_any_table_that_pythons_csv_writes_is_read_back(table: tuple[CsvFormat, list[list[str]], bytes], block: int) -> None:
    fmt, rows, content = table
    names = contract(*"abcd"[: len(rows[0]) if rows else 1])
    good, dead, broken = read(content, fmt, names, limits=Limits(block_bytes=block))
    assert [[v or "" for v in r] for r in values(good)] == rows
    assert not dead
    assert not broken
    whole = read(content, fmt, names)
    assert (good, dead, broken) == whole


@given(
    st.lists(st.sampled_from(["a", ",", '"', '""', "\n", "\r\n", ',"', '",', "\\", "#", "é"]), max_size=30).map("".join),
    BLOCK,
    st.sampled_from(["", "\\"]),
    st.sampled_from(["", "#"]),
)
def test_no_record_vanishes_and_blocks_do_not_matter(text: str, block: int, escape: str, comment: str) -> None:
    """Any text at all: the same rows, verdicts and broken records whatever the block; all lines accounted for."""
    fmt = CsvFormat(header=False, escape=escape, comment=comment, ragged="pad")
    names = contract("a", "b")
    whole = read(text.encode(), fmt, names)
    assert read(text.encode(), fmt, names, limits=Limits(block_bytes=block)) == whole
    positions = sorted([p for p, *_ in whole[0]] + [p for p, *_ in whole[1]] + [b.position for b in whole[2]])
    assert len(set(positions)) == len(positions)
    if not escape and not comment and not whole[2]:
        expected = [r for r in csv.reader(io.StringIO(text, newline="")) if r]
        mine = {p: [v or "" for v in r] for p, r in whole[0]}
        theirs = [r + [""] * (2 - len(r)) if len(r) <= 2 else None for r in expected]
        assert [mine.get(p) for p in positions] == theirs


@given(
    st.lists(st.sampled_from(["a", ",", '"', '""', "\n", ',"', '",', "é"]), max_size=30).map("".join),
    st.lists(st.integers(0, 60), max_size=3),
    BLOCK,
)
def test_ranges_of_a_file_without_multiline_fields_cover_it(text: str, cuts: list[int], block: int) -> None:
    fmt = CsvFormat(multiline=False, ragged="pad", skip_rows=1)
    content = b"skipped\nh1,h2\n" + text.encode()
    names = contract("h1", "h2")
    edges = [0, *sorted(cuts), None]
    parts = [
        read(content, fmt, names, start=a or 0, end=b, limits=Limits(block_bytes=block)) for a, b in zip(edges, edges[1:], strict=False)
    ]
    assert sum((p[0] for p in parts), []) == read(content, fmt, names)[0]
    assert sum((p[1] for p in parts), []) == read(content, fmt, names)[1]
    assert CsvReader(fmt, names).splittable()
    assert not CsvReader(CsvFormat(), names).splittable()
    assert not CsvReader(CsvFormat(multiline=False, encoding="latin-1"), names).splittable()


@given(st.text(st.sampled_from('a,"\n'), max_size=12))
def test_one_line_is_read_the_same_alone_and_among_others(line: str) -> None:
    """multiline: false. An unclosed quote costs its own line."""
    line = line.replace("\n", "")
    fmt = CsvFormat(header=False, multiline=False, ragged="pad")
    names = contract("a", "b")
    alone = read(line.encode(), fmt, names)
    among = read(b"x,y\n" + line.encode() + b"\nz,w\n", fmt, names)
    assert values(among[0]) == [["x", "y"], *values(alone[0]), ["z", "w"]]
    assert [d[1:] for d in among[1]] == [d[1:] for d in alone[1]]


def test_positions_are_byte_offsets_of_records() -> None:
    content = b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n\r\n\xc3\xa9,2\n3,4'
    rows, _, _ = read(content, CsvFormat(), contract("a", "b"))
    assert rows == [(8, ["1", "x\ny"]), (19, ["é", "2"]), (24, ["3", "4"])]
    assert [content[p : p + 1] for p, _ in rows] == [b"1", b"\xc3", b"3"]


def test_columns_are_found_by_header_and_path_and_missing_ones_are_null() -> None:
    names = contract("b", "gone", c=Column(type="string", path="user.id"), d=Column(type="string", path=("x", "y")))
    assert values(read(b"user.id,b,x.y\n1,2,3\n", CsvFormat(), names)[0]) == [["2", None, "1", "3"]]


def test_empty_is_null_and_quoted_empty_is_a_text() -> None:
    names = contract("s", n=Column(type="int32"), j=Column(type="json"))
    assert values(read(b's,n,j\n,,\n"","",""\n', CsvFormat(), names)[0]) == [[None, None, None], ["", None, ""]]
    assert values(read(b's,n,j\n,,\n"","",""\n"\r",1,\n', CsvFormat(), names)[0]) == [[None, None, None], ["", None, ""], ["\r", "1", None]]


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"a,b", b"\n\n", b"\xef\xbb\xbf", b"a,b\r\n\r\n"])
def test_an_empty_file_and_a_lone_header_have_no_rows(content: bytes) -> None:
    assert read(content, CsvFormat(), contract("a", "b")) == ([], [], [])


def test_ragged_records_are_dead_letters_or_padded() -> None:
    content = b"a,b,c\n1,2,3\n4,5\n6,7,8,9\n\n10,11,12\n"
    names = contract("a", "b", "c")
    rows, dead, _ = read(content, CsvFormat(), names)
    assert values(rows) == [["1", "2", "3"], ["10", "11", "12"]]
    assert dead == [(12, DECODE, "got 2 fields; expected 3"), (16, DECODE, "got 4 fields; expected 3")]
    rows, dead, _ = read(content, CsvFormat(ragged="pad"), names)
    assert values(rows) == [["1", "2", "3"], ["4", "5", None], ["10", "11", "12"]]
    assert dead == [(16, DECODE, "got 4 fields; expected 3")]


def test_invalid_utf8_costs_its_own_record() -> None:
    rows, dead, _ = read(b"a,b\n1,2\n3,\xff\n4,\xc3\xa9\n", CsvFormat(), contract("a", "b"))
    assert values(rows) == [["1", "2"], ["4", "é"]]
    assert [(p, r) for p, r, _ in dead] == [(8, DECODE)]
    assert "utf-8" in dead[0][2]
    # whether or not the contract reads the field
    assert read(b"a,b\n1,2\n3,\xff\n4,\xc3\xa9\n", CsvFormat(), contract("a"))[1] == dead


def test_nul_bytes_and_bare_carriage_returns_are_characters() -> None:
    assert values(read(b"a,b\n\x00,1\x002\nx\ry,\r\nz,w\r", CsvFormat(), contract("a", "b"))[0]) == [
        ["\0", "1\x002"],
        ["x\ry", None],
        ["z", "w"],
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp1252", "utf-32"])
def test_encodings(encoding: str) -> None:
    content = 'name,b\né,"1\n2"\nü,3\n'.encode(encoding)
    assert values(read(content, CsvFormat(encoding=encoding), contract("name", "b"))[0]) == [["é", "1\n2"], ["ü", "3"]]


def test_a_mark_wins_over_the_encoding() -> None:
    content = "a,b\né,1\n".encode("utf-16")
    assert values(read(content, CsvFormat(), contract("a", "b"))[0]) == [["é", "1"]]


def test_skipped_lines_and_comments() -> None:
    content = b'made by "x\n2020\n# c,"\n\na,b\n# it\'s "open\n1,2\n"#3",4\n"5\n#6",7\n#8,9\n'
    assert values(read(content, CsvFormat(skip_rows=2, comment="#"), contract("a", "b"))[0]) == [["1", "2"], ["#3", "4"], ["5\n#6", "7"]]


def test_files_without_header() -> None:
    assert values(read(b"1,2\n", CsvFormat(header=False), contract("a", "b"))[0]) == [["1", "2"]]
    assert values(read(b"1,2\n", CsvFormat(header=False, columns=("b", "a")), contract("a", "b"))[0]) == [["2", "1"]]


def test_other_delimiters_and_no_quotes() -> None:
    assert values(read(b"a\tb\n'1\t2'\tx\n", CsvFormat(delimiter="\t", quote="'"), contract("a", "b"))[0]) == [["1\t2", "x"]]
    assert values(read(b'a|b\n"1|2"\n', CsvFormat(delimiter="|", quote=""), contract("a", "b"))[0]) == [['"1', '2"']]


def test_escapes() -> None:
    fmt = CsvFormat(escape="\\")
    assert values(read(b'a,b\n"1\\"2",3\\,4\n"\\\\",x\\\ny\n', fmt, contract("a", "b"))[0]) == [['1"2', "3,4"], ["\\", "x\ny"]]


def test_a_quote_never_closed_costs_its_line() -> None:
    rows, dead, broken = read(b'a,b\n1,2\n3,"x\n4,5\n6,7\n', CsvFormat(), contract("a", "b"))
    assert values(rows) == [["1", "2"], ["4", "5"], ["6", "7"]]
    assert not dead
    assert broken == [Broken(8, DECODE, "a quoted field is opened and never closed", b'3,"x')]


def test_a_quote_never_closed_in_a_large_file_costs_its_line() -> None:
    content = b'a,b\n3,"x\n' + b"4,5\n" * 1000
    rows, _, broken = read(content, CsvFormat(), contract("a", "b"), limits=Limits(max_record_bytes=100, block_bytes=50))
    assert len(rows) == 1000
    assert [b.position for b in broken] == [4]


def test_records_beyond_the_limit_are_broken() -> None:
    content = b'a,b\n1,2\n"' + b"x" * 500 + b'",3\n4,5\n'
    rows, _, broken = read(content, CsvFormat(), contract("a", "b"), limits=Limits(max_record_bytes=100, block_bytes=64))
    assert values(rows) == [["1", "2"], ["4", "5"]]
    assert [(b.position, b.reason) for b in broken] == [(8, TOO_LARGE)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", "got the column 'a' twice"),
        (b"a,\xff\n1,2\n", "utf-8"),
        (b'a,"b\n1,2\n', "its quotes never close"),
        (b"a,b\r1,2\r", "bare carriage return"),
    ],
)
def test_a_bad_header_costs_its_file(content: bytes, message: str) -> None:
    [broken] = read(content, CsvFormat(), contract("a", "b"))[2]
    assert (broken.position, broken.reason) == (0, FILE)
    assert message in broken.message
    assert read(content, CsvFormat(), contract("a", "b"), start=2) == ([], [], [])


def test_a_header_beyond_the_limit_costs_its_file() -> None:
    limits = Limits(max_record_bytes=1000, block_bytes=1000)
    [broken] = read(b"a," * 200_000, CsvFormat(), contract("a"), limits=limits)[2]
    assert broken.reason == FILE


def test_unnamed_columns_have_their_number() -> None:
    assert values(read(b",b,\n1,2,3\n", CsvFormat(), contract("column_1", "b", "column_3"))[0]) == [["1", "2", "3"]]


NAMES = ['quo"te', "dot.ted", "sp ace", "😀", "select", "it's", "A", "a"]


def test_unknown_columns_by_policy() -> None:
    content = (",".join(['"' + n.replace('"', '""') + '"' for n in NAMES]) + ",known\n" + '1,2,3,,"",6,7,8,9\n').encode()
    [row] = values(read(content, CsvFormat(), contract("known", unknown="keep"))[0])
    assert row[0] == "9"
    assert json.loads(row[1] or "") == dict(zip(NAMES, ["1", "2", "3", None, "", "6", "7", "8"], strict=True))
    assert values(read(content, CsvFormat(), contract("known"))[0]) == [["9"]]
    [(_, reason, message)] = read(content, CsvFormat(), contract("known", unknown="dead_letter"))[1]
    assert reason == "UNKNOWN_COLUMN"
    assert "dot.ted" in message
    with pytest.raises(RunError, match="is not in the contract"):
        read(content, CsvFormat(), contract("known", unknown="fail"))
    assert values(read(b"known\n9\n", CsvFormat(), contract("known", unknown="keep"))[0]) == [["9", None]]
    assert values(read(b"known\n9\n", CsvFormat(), contract("known", unknown="fail"))[0]) == [["9"]]


def test_column_names_of_all_kinds() -> None:
    content = (",".join(['"' + n.replace('"', '""') + '"' for n in NAMES]) + "\n" + ",".join("12345678") + "\n").encode()
    names = Contract(columns={n: Column(type="string") for n in NAMES[:-1]} | {"lower": Column(type="string", path=("a",))})
    assert values(read(content, CsvFormat(), names)[0]) == [[*"12345678", None]]


def test_a_batch_decodes_without_its_file_but_not_without_its_header() -> None:
    [batch] = CsvReader(CsvFormat(), contract("a")).read(io.BytesIO(b"b,a\n1,2\n3,4\n5,6\n"))
    assert isinstance(batch, pa.RecordBatch)
    kernel = pickle.loads(pickle.dumps(DecodeCsv(contract("a"), CsvFormat())))
    assert kernel(batch.slice(1, 1))[0]["a"].to_pylist() == ["4"]
    with pytest.raises(RunError, match="no column names"):
        kernel(batch.replace_schema_metadata(None))


def test_records_that_came_as_messages_need_no_line_feed() -> None:
    raw = pa.record_batch({"_raw": pa.array([b"1,2", None, b"3,4\r\n", b"", b"5,6"], pa.binary())})
    out, verdicts = DecodeCsv(contract("a", "b"), CsvFormat(header=False))(raw)
    assert out["a"].to_pylist() == ["1", None, "3", None, "5"]
    assert set(verdicts) == {1, 3}


def test_dead_letters_show_the_record_without_its_terminator() -> None:
    names = contract("a", "b")
    [batch] = CsvReader(CsvFormat(), names).read(io.BytesIO(b"a,b\n1\r\n\r\n2,3\n"))
    split = Program(decode_steps(names, CsvFormat()), raw_format="csv")(batch)
    assert split.dead["raw"].to_pylist() == [b"1"]
    assert split.rows["a"].to_pylist() == ["2"]


def test_long_fields_are_read() -> None:
    """Python's csv refuses fields beyond 128 KiB."""
    content = b"a,b\n" + b"x" * 200_000 + b',2\n3,\xff\n"' + b"y" * 200_000 + b'\r",4\n'
    rows, dead, _ = read(content, CsvFormat(), contract("a", "b"))
    assert [len(r[0] or "") for r in values(rows)] == [200_000, 200_001]
    assert len(dead) == 1


@given(st.text(st.sampled_from('ab,"\\'), max_size=12), st.sampled_from(["", "\\"]))
def test_one_record_splits_as_pythons_csv_splits_it(text: str, escape: str) -> None:
    try:
        mine = [f or "" for f in Dialect(escape=escape).fields(text)]
    except ValueError:
        mine = None
    if mine is not None and text and not text.endswith("\\"):
        options = {"escapechar": escape, "doublequote": False} if escape else {}
        assert [mine] == list(csv.reader([text], **options))
