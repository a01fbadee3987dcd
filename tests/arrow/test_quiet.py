"""Messages about records with secrets: the kind of error and the place stay, what was in the record does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.quiet import HIDDEN, quiet
from beam_pipelines.arrow.schema import Rejected
from beam_pipelines.formats.json_strict import parse

SECRET = "Sécr3t"
CONTRACT = Contract(columns={"id": Column(type="int64"), "name": Column(type="string", sensitive="redact")})


def said(message: str, reason: str = "DECODE", column: str = "") -> str:
    return quiet(message, reason=reason, column=column, contract=CONTRACT)


def of_json(raw: bytes) -> str:
    verdict = parse(raw)
    assert isinstance(verdict, Rejected), verdict
    return said(verdict.failures[0].message)


@given(st.binary(max_size=6), st.integers(0, 60), st.integers(0, 6))
def test_no_message_of_a_broken_json_record_holds_its_content(junk: bytes, at: int, cut: int) -> None:
    good = json.dumps({"id": 1, "name": SECRET, SECRET: [SECRET]}, ensure_ascii=False).encode()
    verdict = parse(good[:at] + junk + good[at + cut :])
    if isinstance(verdict, Rejected):
        assert SECRET[-3:] not in said(verdict.failures[0].message)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"name" "Ann"}', "not a JSON record: expected ':' at character 8"),
        (b'{"name": "Ann', "not a JSON record: a string without end at character 9"),
        (b'{"name": "Ann"} {}', "not a JSON record: something follows the object at character 16"),
        (b'{"name": "A\xff"}', "not a JSON record: not UTF-8: invalid start byte at byte 11"),
        (b'{"name": NaN}', "not a JSON record: NaN is no JSON value"),
        (b"[" * 5000, "not a JSON record: nested more than"),
        (b'{"Ann": 1, "Ann": 2}', "not a JSON record: a name occurs twice in one object"),
        (b'"Ann"', "not a JSON record: got string; expected a JSON object"),
    ],
)
def test_a_broken_json_record_says_what_and_where(raw: bytes, says: str) -> None:
    assert of_json(raw).startswith(says)
    assert "Ann" not in of_json(raw)


@pytest.mark.parametrize(
    ("reason", "message", "says"),
    [
        ("DECODE", "got 3 fields; expected 5", "got 3 fields; expected 5"),
        ("DECODE", "a quoted field is opened and never closed", "a quoted field is opened and never closed"),
        ("DECODE", "'utf-8' codec can't decode byte 0xff in position 12: invalid start byte", "not UTF-8 at byte 12"),
        ("DECODE", "name: got a text that is not UTF-8 (byte 3); expected UTF-8", "got a text that is not UTF-8 (byte 3)"),
        ("DECODE", "a value does not fit its column: 'Ann'", f"a value does not fit its column {HIDDEN}"),
        ("DECODE", "Ann", f"the record cannot be read {HIDDEN}"),
        ("FILE", "truncated gzip file: it ends in mid-data after 812 bytes", "truncated gzip file: it ends in mid-data after 812 bytes"),
        ("FILE", "corrupt zstd file near byte 7: Ann", f"corrupt zstd file near byte 7 {HIDDEN}"),
        (
            "FILE",
            "corrupt gzip file near byte 7: Ann; of what it unpacks to, nothing from byte 9 on was read, because it is not what was packed",
            "corrupt gzip file near byte 7; of what it unpacks to, nothing from byte 9 on was read",
        ),
        ("FILE", "row group 3: rows 10 to 19 cannot be read: Ann", f"row group 3: rows 10 to 19 cannot be read {HIDDEN}"),
        ("FILE", "Ann", f"the file cannot be read from here on {HIDDEN}"),
        ("APPLY", "got 3 fields; expected 5", f"the function raises on the row {HIDDEN}"),
        ("REQUIRED", "name is NULL", "name is NULL"),
    ],
)
def test_fixed_sentences_stay_and_all_others_become_what_the_reason_says(reason: str, message: str, says: str) -> None:
    assert said(message, reason) == says


def test_a_column_that_is_secret_is_named_with_its_type_and_one_that_is_not_says_all() -> None:
    assert said("name: got 5; expected string", "TYPE", "name") == f"name: the value is no string {HIDDEN}"
    assert said("id: got 'x'; expected int64", "CAST", "id") == "id: got 'x'; expected int64"
