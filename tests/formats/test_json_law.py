"""The law of JSON decoding: for a batch of any records, the fast path says of each what the strict decoder says of it alone."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.types import DataType, parse_type
from beam_pipelines.formats.json import decode_batch
from beam_pipelines.formats.json_members import Members
from beam_pipelines.formats.json_plan import plan
from beam_pipelines.formats.json_strict import Decoded, decode_record, parse
from beam_pipelines.formats.json_syntax import text_of
from tests.laws import share

FLAT = {
    "id": {"type": "string"},
    "n": {"type": "int64"},
    "f": {"type": "float64"},
    "ok": {"type": "boolean"},
    "at": {"type": "timestamp"},
    "user_id": {"type": "string", "path": "user.id"},
    "age": {"type": "uint8", "path": "user.age"},
    "deep": {"type": "string", "path": ["user", "more", "x y"]},
}
CONTRACTS = {
    "flat": Contract(columns=FLAT),
    "flat, drop": Contract(columns=FLAT, unknown_columns="drop"),
    "flat, dead letters": Contract(columns=FLAT, unknown_columns="dead_letter"),
    "decimal": Contract(columns={"id": {"type": "string"}, "n": {"type": "decimal(38,20)"}, "f": {"type": "decimal(10,2)"}}),
    "soft": Contract(
        columns={
            "id": {"type": "string", "coerce": True},
            "n": {"type": "int64", "coerce": True},
            "f": {"type": "string"},
            "ok": {"type": "boolean", "coerce": True},
            "at": {"type": "timestamp", "unit": "ms"},
            "again": {"type": "string", "path": "f"},
        }
    ),
    "nested": Contract(
        columns={
            "id": {"type": "string"},
            "user": {"type": "struct<id: string, age: uint8, more: struct<a: float64>>"},
            "n": {"type": "list<int64>"},
            "f": {"type": "list<struct<id: string, n: decimal(38,20), ok: boolean>>"},
            "at": {"type": "json"},
            "ok": {"type": "list<list<string>>"},
        }
    ),
    "awkward names": Contract(
        columns={
            "a": {"type": "string", "path": ["id"]},
            "b": {"type": "string", "path": ["ID"]},
            "c": {"type": "int64", "path": ["n"]},
            "d": {"type": "int64", "path": ["N"]},
            "g": {"type": "boolean", "path": ["user", "a.b"]},
            "h": {"type": "string", "path": ["user", 'qu"o\\te~/']},
            "i": {"type": "string", "path": ["é😀"]},
            "j": {"type": "int64", "path": ["user", "x" * 200]},
        }
    ),
}
NAMES = [
    "id",
    "n",
    "f",
    "ok",
    "at",
    "user",
    "age",
    "more",
    "x y",
    "a",
    "ID",
    "N",
    "",
    "a.b",
    'qu"o\\te~/',
    "é😀",
    "x" * 200,
    "zzzzzzzz",
    "zzzzzzzzz",
    "other",
    "0",
]

numbers = st.sampled_from(
    ["0", "-0", "7", "-1", "3.0", "1e5", "1E+2", "-0.0", "2e-3", "12345678901234567", "9007199254740993", "18446744073709551616", "1e400", "1e-400",
     "0.1000000000000000055511151231257827", "1234567890123.4567", "9007199254740993e1", "1.10", "123456789012345678901234567890.5"]
) | st.integers(-(2**70), 2**70).map(str) | st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str)  # fmt: skip
texts = st.text(max_size=12) | st.sampled_from(
    ['a":"b', "{}", "[", "x:y", ':"', "\\", "\\\\", '"', "e-5", "null", "5", "true", "\x7f", "\0", "é", "😀", " , "]
)
quoted = texts.map(json.dumps) | texts.map(lambda t: json.dumps(t, ensure_ascii=False))
scalars = quoted | numbers | st.sampled_from(["true", "false", "null", "null"])
names = st.sampled_from(NAMES).map(json.dumps) | st.sampled_from(NAMES).map(lambda n: json.dumps(n, ensure_ascii=False)) | quoted
spaces = st.sampled_from(["", "", "", " ", "\t", "  "])


def _object(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(names, spaces, spaces, value, spaces).map(lambda m: f"{m[0]}{m[1]}:{m[2]}{m[3]}{m[4]}")
    return st.tuples(st.lists(member, max_size=5), spaces).map(lambda o: "{" + o[1] + ("," + o[1]).join(o[0]) + "}")


values = st.recursive(
    scalars,
    lambda inner: _object(inner) | st.tuples(st.lists(inner, max_size=3), spaces).map(lambda a: "[" + f",{a[1]}".join(a[0]) + a[1] + "]"),
    max_leaves=8,
)
wild = _object(values)


def _typed(dtype: DataType) -> st.SearchStrategy[str]:
    """JSON that fits a type, or is null."""
    if dtype.item is not None:
        return st.lists(_typed(dtype.item), max_size=3).map(lambda a: "[" + ", ".join(a) + "]")
    if dtype.kind == "struct":
        member = st.tuples(*(st.tuples(st.just(json.dumps(n)), _typed(t)) for n, t in dtype.fields))
        return member.map(lambda ms: "{" + ", ".join(f"{k}: {v}" for k, v in ms if v != "null") + "}")
    fits = (
        numbers
        if dtype.numeric
        else st.sampled_from(["true", "false"])
        if dtype.kind == "boolean"
        else values
        if dtype.kind == "json"
        else quoted
    )
    return fits | st.just("null") if dtype.kind != "json" else fits


def _fitting(contract: Contract) -> st.SearchStrategy[str]:
    """Records that mostly fit: every column in its place, some left out, the members in any order, now and then a wrong value."""
    root = plan(contract).root
    odd = st.sampled_from(["0", '"x"', "{}", "[]", "true", '["x"]', '{"a": 1}', "null"])

    def member(at: Any) -> st.SearchStrategy[str]:
        if at.columns:
            return often(_typed(at.type))
        parts = st.tuples(*(st.tuples(st.just(json.dumps(k, ensure_ascii=len(k) % 2 == 0)), member(c)) for k, c in at.children.items()))
        members = parts.flatmap(st.permutations).flatmap(
            lambda ms: st.integers(0, 3).map(
                lambda drop: "{" + ", ".join(f"{k}: {v}" for k, v in list(ms)[(1 if drop == 0 else 0) :]) + "}"
            )
        )
        return often(members) if at.path else members

    def often(right: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.integers(0, 15).flatmap(lambda n: odd if n == 7 else right)

    return member(root)


@st.composite
def _damaged(draw: st.DrawFn, records: st.SearchStrategy[str]) -> bytes:
    raw = bytearray(draw(records).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "byte", "drop", "insert", "repeat"]))
        if kind == "cut":
            del raw[at:]
        elif kind == "byte" and raw:
            raw[at] = draw(st.sampled_from([*b'{}[]:,"\\ntf0-.e \n\r\x00\xff\xc3\x80u']))
        elif kind == "drop" and raw:
            del raw[at]
        elif kind == "insert":
            raw[at:at] = draw(
                st.sampled_from(
                    [b",", b"}", b"{", b"]", b'"', b"\\", b"NaN", b"\\ud800", b"\xed\xa0\x80", b"//", b' "id":1,', b"01", b"null", b"\n"]
                )
            )
        else:
            raw += raw[at:]
    return bytes(raw)


def _batches(contract: Contract) -> st.SearchStrategy[list[bytes]]:
    fitting = _fitting(contract)
    encoded = (fitting | wild).map(lambda t: t.encode("utf-8", "surrogatepass"))
    record = fitting.map(lambda t: t.encode("utf-8", "surrogatepass")) | encoded | _damaged(fitting | wild)
    end = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"", b"\n\n \n"])
    return st.lists(st.tuples(record, end).map(b"".join), max_size=12)


def _same(fast: str | None, strict: str | None, dtype: DataType) -> bool:
    if fast is None or strict is None:
        return fast is strict
    if dtype.nested or dtype.kind == "json":
        return bool(_value(fast) == _value(strict))
    if fast == strict:
        return True
    if dtype.numeric or dtype.temporal:
        whole = strict.lstrip("-").isdigit()
        if whole or dtype.kind == "decimal":
            return Decimal(fast) == Decimal(strict) and fast.lstrip("-").isdigit() == whole
        return float(fast) == float(strict) and not fast.lstrip("-").isdigit()
    return False


def _value(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=lambda t: ("int", int(t)))


def _check(raw: list[bytes], contract: Contract, batch: pa.RecordBatch | None = None) -> None:
    if batch is None:
        batch = pa.record_batch({"_position": pa.array(range(len(raw)), pa.int64()), "_raw": pa.array(raw, pa.binary())})
    split = decode_batch(batch, contract)
    rows = {r["_position"]: r for r in split.rows.to_pylist()}
    dead = {d["position"]: d for d in split.dead.to_pylist()}
    assert len(rows) == split.rows.num_rows
    assert sorted([*rows, *dead]) == list(range(len(raw))), "every record leaves by one door"
    for i, record in enumerate(raw):
        expected = decode_record(record, plan(contract))
        if not isinstance(expected, Decoded):
            assert i in dead, (record, expected)
            assert (dead[i]["reason"], dead[i]["message"], dead[i]["stage"]) == (expected.reason, expected.message, "decode")
            continue
        assert i in rows, (record, dead[i])
        for name, column in contract.read.items():
            assert _same(rows[i][name], expected.values[name], column.dtype), (record, name, rows[i][name], expected.values[name])
        if contract.unknown_columns == "keep":
            assert _same(rows[i]["_unknown"], expected.unknown, parse_type("json")), (record, rows[i]["_unknown"], expected.unknown)
        else:
            assert "_unknown" not in rows[i]


@pytest.mark.parametrize("name", list(CONTRACTS))
@share(10)
@given(data=st.data())
def test_fast_path_says_what_the_strict_decoder_says(name: str, data: st.DataObject) -> None:
    _check(data.draw(_batches(CONTRACTS[name])), CONTRACTS[name])


@share(8)
@given(data=st.data(), before=st.integers(0, 3), after=st.integers(0, 3))
def test_slices_and_taken_rows_decode_like_their_records(data: st.DataObject, before: int, after: int) -> None:
    raw = data.draw(_batches(CONTRACTS["flat"]))
    padded = pa.array([b"junk\n"] * before + raw + [b"{}"] * after, pa.binary()).slice(before, len(raw))
    positions = pa.array(range(-before, len(raw) + after), pa.int64()).slice(before, len(raw))
    _check(raw, CONTRACTS["flat"], pa.record_batch({"_position": positions, "_raw": padded}))
    backwards = list(range(len(raw)))[::-1]
    taken = pa.record_batch({"_position": pa.array(range(len(raw)), pa.int64()), "_raw": padded.take(pa.array(backwards, pa.int64()))})
    _check([raw[i] for i in backwards], CONTRACTS["flat"], taken)


@share(6)
@given(data=st.data())
def test_many_alike_records_around_a_few_odd_ones(data: st.DataObject) -> None:
    odd = data.draw(_batches(CONTRACTS["flat"]))
    plain = [b'{"id": "a", "n": %d, "user": {"id": "u", "age": 3}}\n' % i for i in range(300)]
    for i, record in enumerate(odd):
        plain.insert((i * 37 + 5) % len(plain), record)
    _check(plain, CONTRACTS["flat"])


@pytest.mark.parametrize("name", list(CONTRACTS))
@share(8)
@given(data=st.data())
def test_what_is_proven_in_bulk_is_what_the_strict_decoder_accepts(name: str, data: st.DataObject) -> None:
    """The prover may leave a record open; what it proves is good, by its shape (here: of every record) as by its members."""
    contract = CONTRACTS[name]
    drawn = data.draw(st.lists((_fitting(contract) | wild).map(lambda t: t.encode("utf-8", "surrogatepass")), min_size=1, max_size=6))
    records = [r + b"\n" for r in drawn * 2 if isinstance(parse(r), dict)]
    text = text_of(pa.array(records, pa.binary()))
    for prover in (Members(plan(contract), least_rows=1), Members(plan(contract))):
        for _ in range(2):  # with and without known shapes
            good, unknown = prover.prove(text.data, text.offsets)
            for record, proven, extra in zip(records, good.tolist(), unknown.to_pylist(), strict=True):
                strict = decode_record(record, plan(contract))
                assert not proven or isinstance(strict, Decoded), record
                if proven and isinstance(strict, Decoded):
                    assert _same(extra, strict.unknown, parse_type("json")), (record, extra)


def test_regular_records_are_proven_in_bulk() -> None:
    """Speed rests on this: values, nulls, unknown members and the lengths of lists leave nothing to the strict decoder."""
    contract = CONTRACTS["nested"]
    records = [
        b'{"id": "i%d", "user": {"id": null, "age": 3}, "n": [%s], "f": [%s], "new": {"a": [1, {}]}, "ok": [["a"], []]}\n'
        % (i, b", ".join([b"-1"] * (i % 5)), b", ".join([b'{"id": "x", "n": 1.5, "ok": true}'] * (i % 3)))
        for i in range(200)
    ]
    text = text_of(pa.array(records, pa.binary()))
    good, unknown = Members(plan(contract)).prove(text.data, text.offsets)
    assert good.all()
    assert set(unknown.to_pylist()) == {'{"new": {"a": [1, {}]}}'}


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        (b'{"id": "a"}', b'{"x\\"id": "a"}'),
        (b'{"n": [1, 2]}', b'{"n": [1, "x"]}'),
        (b'{"n": [1, 2]}', b'{"n": [1, true]}'),
        (b'{"n": []}', b'{"n": [false]}'),
        (b'{"ok": [["a"]]}', b'{"ok": [["a", 1]]}'),
        (b'{"ok": [["a"]]}', b'{"ok": [[], "a"]}'),
        (b'{"ok": [[], ["a"]]}', b'{"ok": [[], 1, ["a"]]}'),
        (b'{"f": [{"ok": true}]}', b'{"f": [{"ok": true}, 1]}'),
        (b'{"f": [{"ok": true}]}', b'{"f": [1, {"ok": true}]}'),
        (b'{"f": [{"ok": true}, {}]}', b'{"f": [{"ok": true}, "x", {}]}'),
        (b'{"f": [{"ok": true}]}', b'{"f": [{"ok": "true"}]}'),
        (b'{"user": {"more": {}}}', b'{"user": {"mor3": {}}}'),
        (b'{"user": {"id": "a"}, "at": 1}', b'{"user": {"id": "a", "id": 1}}'),
        (b'{"user": null}', b'{"user": [null]}'),
    ],
)
def test_a_record_that_only_looks_like_the_others_is_judged_for_itself(usual: bytes, odd: bytes) -> None:
    records = [usual + b"\n"] * 20 + [odd + b"\n"] + [usual + b"\n"] * 20
    _check(records, CONTRACTS["nested"])
    text = text_of(pa.array(records, pa.binary()))
    prover = Members(plan(CONTRACTS["nested"]))
    for _ in range(2):
        assert prover.prove(text.data, text.offsets).good.tolist() == [True] * 20 + [False] + [True] * 20


def test_padding_and_long_numbers_cost_no_more_than_their_bytes() -> None:
    space = b" " * 300_000
    _check(
        [b'{"id"%b:%b"a"%b,%b"x":1}%b\n' % ((space,) * 5), b'{"n":%b}\n' % (b"7" * 300_000), b'{"f":0.%b1}' % (b"0" * 300_000)],
        CONTRACTS["flat"],
    )
    mixed = Contract(columns={"n": {"type": "decimal(38,2)"}, "f": {"type": "float64"}})
    _check([b'{"f":1.5,"x":[%b]}' % b",".join([b"0.12345678901234567"] * 20_000), b'{"f":0.12345678901234567}'], mixed)
    _check([b'{"n":0.%b1,"f":1}' % (b"0" * 3000), b'{"n":%b}\n' % (b"7" * 3000)], CONTRACTS["decimal"])
