"""What people send as messages: one record each, whatever it looks like; what is none is a DECODE letter with its bytes, and costs no other."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.schema import provenance
from beam_pipelines.formats.options import CsvFormat, Format, JsonFormat, TextFormat
from beam_pipelines.formats.registry import message_steps

JSON_CONTRACT = Contract(columns={"id": {"type": "int64"}, "name": {"type": "string"}, "tags": {"type": "list<int64>"}})
CSV_CONTRACT = Contract(columns={"id": {"type": "string"}, "name": {"type": "string"}, "x": {"type": "string"}})
TEXT = TextFormat(pattern=r"(?P<id>\w+) (?P<name>.*)")
TEXT_CONTRACT = Contract(columns={"id": {"type": "string"}, "name": {"type": "string"}})
LONG = "x" * 1_000_000


def decode(raw: list[bytes | None], fmt: Format, contract: Contract) -> Split:
    columns = [*provenance("projects/p/subscriptions/s", pa.array(range(len(raw)), pa.int64())), pa.array(raw, pa.binary())]
    batch = pa.RecordBatch.from_arrays(columns, names=["_source", "_position", "_arrival_time", "_raw"])
    split = Program(message_steps(fmt, contract), raw_format=fmt.type)(batch)
    assert split.rows.num_rows + split.dead.num_rows == len(raw), "every message leaves by one door"
    for letter in split.dead.to_pylist():
        sent = raw[letter["position"]]
        assert letter["stage"] == "decode"
        assert letter["reason"] == "DECODE"
        assert letter["raw"] == (None if sent is None else sent.rstrip(b"\r\n"))
    return split


def rows(split: Split) -> dict[int, dict[str, Any]]:
    return {r["_position"]: {k: v for k, v in r.items() if not k.startswith("_")} for r in split.rows.to_pylist()}


def check(good: dict[bytes, dict[str, Any]], bad: dict[bytes, str], fmt: Format, contract: Contract, *, times: int) -> None:
    """Good and bad messages alternate, in a small batch and in one that is read in bulk."""
    sent = [*good, *bad] * times
    split = decode(list(sent), fmt, contract)
    found = rows(split)
    for position, message in enumerate(sent):
        if message in good:
            wanted = good[message]
            assert {k: found[position][k] for k in wanted} == wanted, message[:60]
    for letter in split.dead.to_pylist():
        assert bad[sent[letter["position"]]] in letter["message"]


@pytest.mark.parametrize("times", [1, 30])
def test_json(times: int) -> None:
    good: dict[bytes, dict[str, Any]] = {
        b'{"id":1,"name":"a"}': {"id": "1", "name": "a"},
        b'{\n  "id": 2,\n  "name": "b",\n  "tags": [1,\n 2]\n}\n': {"id": "2", "name": "b", "tags": "[1,2]"},
        b'  \n\t{"id":3}\r\n\r\n ': {"id": "3", "name": None},
        b'\xef\xbb\xbf{"id":4}': {"id": "4"},
        b'{\r"id":5}': {"id": "5"},
        b"{}": {"id": None},
    }  # fmt: skip
    bad = {
        b"": "an empty record",
        b"  ": "an empty record",
        b"\n": "an empty record",
        b"[1,2]": "got array",
        b'[{"id":5}]': "got array",
        b"7": "got number",
        b'"x"': "got string",
        b"null": "got null",
        b'{"id":6}{"id":7}': "something follows the object",
        b'{"id":8}\n{"id":9}\n': "something follows the object",
        b'{"id":10,"name":"a\x00b"}': "a control character",
        b'{"id":11}\x00': "something follows the object",
        b"\x00": "expected a value",
        b'{"id":13,"name":"\xff"}': "not UTF-8",
        b'{"id":14': "expected ','",
        b'{"id":NaN}': "NaN",
        b'{"id":15,"id":16}': "occurs twice",
        b"[" * 100_000: "nested more than",
        b'\x1e{"id":19}': "expected a value",
    }
    check(good, bad, JsonFormat(), JSON_CONTRACT, times=times)


def test_a_message_of_a_megabyte() -> None:
    sent = json.dumps({"id": 1, "name": LONG}).encode()
    assert rows(decode([sent, b"{", sent], JsonFormat(), JSON_CONTRACT))[2]["name"] == LONG
    assert rows(decode([b"1,a," + LONG.encode(), b"1"], CsvFormat(), CSV_CONTRACT))[0]["x"] == LONG
    assert rows(decode([b"1 " + LONG.encode(), b"1"], TEXT, TEXT_CONTRACT))[0]["name"] == LONG


def test_a_message_without_bytes() -> None:
    for fmt, contract in ((JsonFormat(), JSON_CONTRACT), (CsvFormat(), CSV_CONTRACT), (TEXT, TEXT_CONTRACT)):
        assert decode([None, None], fmt, contract).dead.num_rows == 2


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize("multiline", [True, False])
def test_csv(times: int, multiline: bool) -> None:
    good: dict[bytes, dict[str, Any]] = {
        b"1,a,b": {"id": "1", "name": "a", "x": "b"},
        b"2,a,b\n": {"id": "2", "x": "b"},
        b"3,a,b\r\n": {"id": "3", "x": "b"},
        b"4,a,b\n\n": {"id": "4", "x": "b"},
        b"\xef\xbb\xbf5,a,b": {"id": "5"},
        b"6,a\x00,b": {"name": "a\x00"},
        b'7,,""': {"name": None, "x": ""},
        b'8,"a","b"': {"name": "a", "x": "b"},
        b"id,name,x": {"id": "id"},
    }
    bad = {
        b"6,a": "got 2 fields; expected 3",
        b"7,a,b,c": "got 4 fields; expected 3",
        b"": "an empty message",
        b"\r\n": "an empty message",
        b"8,a,b\n9,a,b": "a line break outside quotes",
        b"8,a\nb,c": "a line break outside quotes",
        b"\n8,a,b": "a line break outside quotes",
        b"8,\xff,b": "can't decode",
    }
    if multiline:
        good |= {b'9,"a\nb",c\n': {"name": "a\nb", "x": "c"}, b'10,"a\r\nb",c': {"name": "a\r\nb"}, b'11,a,"\n"': {"x": "\n"}}
        bad[b'12,"a,b'] = "never closed"
    else:
        bad |= {b'9,"a\nb",c\n': "a line break outside quotes"}
    check(good, bad, CsvFormat(multiline=multiline), CSV_CONTRACT, times=times)


@given(st.lists(st.text('ab,"\n\r ', max_size=8), min_size=1, max_size=12))
def test_a_csv_message_is_read_the_same_whatever_comes_with_it(texts: list[str]) -> None:
    together = rows(decode([t.encode() for t in texts], CsvFormat(), CSV_CONTRACT))
    for position, text in enumerate(texts):
        assert rows(decode([text.encode()], CsvFormat(), CSV_CONTRACT)).get(0) == together.get(position)


def test_an_empty_message_is_no_row_of_a_csv_with_one_column() -> None:
    one = Contract(columns={"id": {"type": "string"}})
    assert rows(decode([b"", b"a", b"\n", b'""'], CsvFormat(), one)) == {1: {"id": "a"}, 3: {"id": ""}}


def test_columns_of_a_csv_message_are_those_of_the_format_else_of_the_contract() -> None:
    fmt = CsvFormat(columns=("x", "id", "name"))
    assert rows(decode([b"1,2,3"], fmt, CSV_CONTRACT)) == {0: {"id": "2", "name": "3", "x": "1"}}


@pytest.mark.parametrize("times", [1, 30])
def test_text(times: int) -> None:
    good: dict[bytes, dict[str, Any]] = {
        b"x y": {"id": "x", "name": "y"},
        b"x y\n": {"name": "y"},
        b"x y\r\n": {"name": "y"},
        b"\xef\xbb\xbfx y": {"id": "x"},
        b"x a\x00b": {"name": "a\x00b"},
        b"x ": {"name": None},
    }
    bad = {b"x y\nz w": "does not match", b"": "does not match", b"\n": "does not match", b"x \xff": "can't decode", b"x": "does not match"}
    check(good, bad, TEXT, TEXT_CONTRACT, times=times)


def test_messages_in_other_encodings() -> None:
    latin = decode([b'{"name":"\xff"}', b'\xef\xbb\xbf{"name":"\xc3\xbf"}', b"{"], JsonFormat(encoding="latin-1"), JSON_CONTRACT)
    assert [r["name"] for r in rows(latin).values()] == ["ÿ", "ÿ"]
    wide = decode(["1,ÿ,b".encode("utf-16"), "1,ÿ,b".encode("utf-16-be"), b"1"], CsvFormat(encoding="utf-16"), CSV_CONTRACT)
    assert rows(wide)[0]["name"] == "ÿ"
    assert 2 in wide.dead["position"].to_pylist()
