"""Laws of text: a line matches as a whole or is a dead letter; RE2 and Python give the same groups."""

from __future__ import annotations

import io
import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.errors import RunError
from beam_pipelines.formats.options import TextFormat
from beam_pipelines.formats.reader import DECODE
from beam_pipelines.formats.text import DecodeText, TextReader

LOG = r"(?P<host>\S+) \[(?P<at>[^\]]*)\](?: (?P<status>\d{3}))?"


def contract(*names: str, unknown: str = "drop") -> Contract:
    return Contract(columns={n: Column(type="string") for n in names}, unknown_columns=unknown)


def decode(content: bytes, pattern: str, names: Contract) -> tuple[list[dict[str, str | None]], dict[int, str]]:
    fmt = TextFormat(pattern=pattern)
    [batch] = TextReader(fmt).read(io.BytesIO(content))
    assert isinstance(batch, pa.RecordBatch)
    out, verdicts = pickle.loads(pickle.dumps(DecodeText(names, fmt)))(batch)
    out.validate(full=True)
    assert out.num_rows == batch.num_rows
    assert all(v.reason in (DECODE, "UNKNOWN_COLUMN") for v in verdicts.values())
    rows = out.drop_columns(["_raw", "_position"]).to_pylist()
    return [r for i, r in enumerate(rows) if i not in verdicts], {i: v.message for i, v in verdicts.items()}


def test_groups_are_columns_and_a_line_that_does_not_match_is_a_dead_letter() -> None:
    rows, dead = decode(b"h [t] 200\r\n\nbad\nh2 []\nh [t] 200 \n", LOG, contract("status", "host", "at", "gone"))
    assert rows == [{"status": "200", "host": "h", "at": "t", "gone": None}, {"status": None, "host": "h2", "at": None, "gone": None}]
    assert set(dead) == {1, 3}
    assert "does not match the pattern" in dead[1]


@given(st.lists(st.text(st.sampled_from("h[] 2é"), min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=8))
def test_re2_and_python_agree(lines: list[str]) -> None:
    content = "\n".join(lines).encode()
    names = contract("host", "at", "status")
    assert decode(content, LOG, names)[0] == decode(content, LOG + "(?=)", names)[0]
    assert decode(content, LOG, names)[1].keys() == decode(content, LOG + "(?=)", names)[1].keys()


def test_invalid_utf8_costs_its_own_line() -> None:
    rows, dead = decode(b"h [t] 200\nh [\xff]\n\x00 [t]\n", LOG, contract("host"))
    assert rows == [{"host": "h"}, {"host": "\0"}]
    assert "utf-8" in dead[1]


def test_groups_that_the_contract_does_not_name() -> None:
    assert decode(b"h [t]\n", LOG, contract("host", unknown="keep"))[0] == [{"host": "h", "_unknown": '{"at":"t","status":null}'}]
    assert "'at', 'status'" in decode(b"h [t]\n", LOG, contract("host", unknown="dead_letter"))[1][0]
    with pytest.raises(RunError, match="'at' is not in the contract"):
        decode(b"h [t]\n", LOG, contract("host", unknown="fail"))


def test_text_is_splittable_in_utf8() -> None:
    assert TextReader(TextFormat(pattern=LOG)).splittable()
    assert not TextReader(TextFormat(pattern=LOG, encoding="utf-16")).splittable()
