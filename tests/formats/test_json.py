"""JSON decoding by example: what is JSON, what fits a contract, what happens to the rest, and where records begin in a file."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Program
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.formats.json import JsonReader, decode_batch, decode_steps
from beam_pipelines.formats.json_plan import MAX_DEPTH
from beam_pipelines.formats.options import JsonFormat
from beam_pipelines.formats.reader import Broken, DamagedStream, Limits
from tests.laws import share

ONE = Contract(columns={"a": {"type": "json"}})

# The cases of JSONTestSuite (nst/JSONTestSuite, MIT) that concern one object, rewritten as the value of "a" where they were bare.
ACCEPTED = [
    b"{}", b'{"a":[]}', b'{"a":[[] ]}', b'{"a":[ ]}', b'{"a":[1\n]}', b'{"a": [1,null,null,null,2]}', b'{"a":123e65}', b'{"a":0e+1}', b'{"a":0e1}',
    b'{"a": 4}', b'{"a":-0.000000000000000000000000000000000000000000000000000000000000000000000000000001}', b'{"a":20e1}', b'{"a":-0}',
    b'{"a":-123}', b'{"a":-1}', b'{"a":1E22}', b'{"a":1E-2}', b'{"a":1E+2}', b'{"a":123.456e78}', b'{"asd":"sdf"}', b'{"":0}', b'{"foo\\u0000bar": 42}',
    b'{"min": -1.0e+28, "max": 1.0e+28 }', b'{"a":"\\u0060\\u012a\\u12AB"}', b'{"a":"\\uD801\\udc37"}', b'{"a":"\\ud83d\\ude39\\ud83d\\udc8d"}',
    b'{"a":"\\"\\\\\\/\\b\\f\\n\\r\\t"}', b'{"a":"\\\\u0000"}', b'{"a":"\\""}', b'{"a":"a/*b*/c/*d//e"}', b'{"a":"\\\\a"}', b'{"a":"\\u0012"}',
    b'{"a":"\\uFFFF"}', b'{"a":"\xef\xbf\xbf"}', b'{"a":"\xf4\x8f\xbf\xbf"}', b'{"a":"\x7f"}', b'{"a":"\xe2\x80\xa8"}', b'{"a":"\\u0000"}', b'{"a":"\\uDBFF\\uDFFE"}',
    b'{"a":false}', b' {"a":null} ', b'{"a":true}\n', b'{"a":{"b":1}}\r\n', b'\t{\n"a"\r:\t1 }', b'{"a":1e400}', b'{"a":123456789012345678901234567890}', b'{"a":1e-400}',
    b'{"a":"\xed\x9f\xbf"}',
]  # fmt: skip
REJECTED = [
    b"", b" ", b"[]", b"null", b"1", b'"a"', b'{"a":[1 true]}', b'{"a":[a\xe5]}', b'{"a":["": 1]}', b'{"a":[""],}', b'{"a":[,1]}', b'{"a":[1,,2]}', b'{"a":["x",,]}',
    b'{"a":["x"]]}', b'{"a":["",]}', b'{"a":["x"', b'{"a":[x', b'{"a":[3[4]]}', b'{"a":[\xff]}', b'{"a":[1:2]}', b'{"a":[,]}', b'{"a":[-]}', b'{"a":[   , ""]}',
    b'{"a":["a",\n4\n,1,', b'{"a":[1,]}', b'{"a":["\x0ba"\\f]}', b'{"a":[*]}', b'{"a":[1,', b'{"a":[{}', b'{"a":[fals]}', b'{"a":[nul]}', b'{"a":[tru]}', b'{"a":++1234}',
    b'{"a":+1}', b'{"a":+Inf}', b'{"a":-01}', b'{"a":-1.0.}', b'{"a":-2.}', b'{"a":-NaN}', b'{"a":.-1}', b'{"a":.2e-3}', b'{"a":0.1.2}', b'{"a":0.3e+}', b'{"a":0.e1}',
    b'{"a":0E}', b'{"a":1.0e-}', b'{"a":1 000.0}', b'{"a":1eE2}', b'{"a":2.e3}', b'{"a":9.e+}', b'{"a":Inf}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":nan}',
    b'{"a":\xef\xbc\x91}', b'{"a":1+2}', b'{"a":0x1}', b'{"a":0x42}', b'{"a":-foo}', b'{"a":- 1}', b'{"a":-012}', b'{"a":-.123}', b'{"a":-1x}', b'{"a":1ea}', b'{"a":1\xe5}', b'{"a":1.}',
    b'{"a":.123}', b'{"a":1.2a-3}', b'{"a":1.8011670033376514H-308}', b'{"a":012}', b'["x", truth]', b'{[: "x"}', b'{"x", null}', b'{"x"::"b"}', b'{\xf0\x9f\x87\xa8\xf0\x9f\x87\xad}',
    b'{"a":"a" 123}', b'{key: "value"}', b'{"a" b}', b'{:"b"}', b'{"a":"b"', b'{"a":', b'{"a"', b'{1:1}', b'{9999E9999:1}', b'{null:null}', b'{"id":0,,,,,}', b"{'a':0}", b'{"id":0,}',
    b'{"a":"b"}/**/', b'{"a":"b"}/**//', b'{"a":"b"}//', b'{"a":"b"}/', b'{"a":"b",,"c":"d"}', b'{a: "b"}', b'{"a":"a', b'{ "foo" : "bar", "a" }', b'{"a":"b"}#', b'{"a":"\\uD800\\"}',
    b'{"a":"\\uD800\\u"}', b'{"a":"\\uD800\\u1"}', b'{"a":"\\uD800\\u1x"}', b'{"a":\xc3\xa9}', b'{"a":"\\x00"}', b'{"a":"\\\\\\"}', b'{"a":"\\\t"}', b'{"a":"\\\xf0\x9f\x8c\x80"}', b'{"a":"\\"}',
    b'{"a":"\\u00A"}', b'{"a":"\\uD834\\uDd"}', b'{"a":"\\uD800\\uD800\\x"}', b'{"a":"\\u\xe5"}', b'{"a":"\\a"}', b'{"a":"\\uqqqq"}', b'{"a":"\\\xe5"}', b'{"a":\\u0020"asd"}', b'{"a":\\n}',
    b'{"a":"', b"{\"a\":'x'}", b'{"a":abc}', b'{"a":"\\', b'{"a":"x\x00y"}', b'{"a":"new\nline"}', b'{"a":"\t"}', b'{"a":"\\UA66D"}', b'{"a":""x}', b"<.>", b"[<null>]", b"[1]x", b"[1]]",
    b'{"a":{}}}', b'{"":', b'{"a":/*comment*/"b"}', b'{"a": true} "x"', b'{"a":{]}', b'{"a":[}', b"{,", b"{[", b'{"a', b"{'a'", b'{"a":True}', b"]", b"}", b'{"x": true,', b"\xef\xbb\xbf{}",
    b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\xaf"}', b'{"a":"\xff"}', b'{"a":"\xf4\xbf\xbf\xbf"}', b'{"a":"\x81"}', b'{"a":"\xe6\x97\xa5\xd1\x88\xfa"}', b'{"a":"\xfc\x83\xbf\xbf\xbf\xbf"}', b"\xff\xfe{\x00}\x00",
    b'{"a":"\\uDADA"}', b'{"a":"\\uDd1ea"}', b'{"a":"\\ud800abc"}', b'{"a":"\\uD888\\u1234"}', b'{"\\ud800":1}', b'{"a":1}{"a":2}', b'{"a":1} {"a":2}', b'{"a":1}\n{"a":2}', b'{"a":1,"a":1}',
    b'{"a":{"b":1,"b":1}}', b'{"x":[{"b":1,"c":2,"b":null}]}', b'{"a":1,"\\u0061":2}', b'{"a":1,"x":{"":0,"":0}}', b'{"a":\xa0 1}', b"{}\x0c", b'{"a":\x0b1}', b"{\xe2\x81\xa0}",
]  # fmt: skip


def batch(*raw: bytes) -> pa.RecordBatch:
    return pa.record_batch({"_position": pa.array(range(len(raw)), pa.int64()), "_raw": pa.array(raw, pa.binary())})


def rows(contract: Contract, *raw: bytes) -> list[dict[str, Any]]:
    split = decode_batch(batch(*raw), contract)
    assert split.dead.num_rows == 0, split.dead.to_pylist()
    return [
        {k: v for k, v in row.items() if not k.startswith("_") or k == "_unknown"}
        for row in sorted(split.rows.to_pylist(), key=lambda r: r["_position"])
    ]


def dead(contract: Contract, *raw: bytes) -> list[tuple[str, str]]:
    split = decode_batch(batch(*raw), contract)
    assert split.rows.num_rows == 0, split.rows.to_pylist()
    return [(d["reason"], d["message"]) for d in sorted(split.dead.to_pylist(), key=lambda d: d["position"])]


def test_every_record_that_is_json_is_accepted() -> None:
    split = decode_batch(batch(*ACCEPTED), ONE)
    assert [ACCEPTED[d["position"]] for d in split.dead.to_pylist()] == []


def test_every_record_that_is_not_json_is_rejected_with_its_bytes() -> None:
    split = decode_batch(batch(*REJECTED), ONE)
    assert [REJECTED[r["_position"]] for r in split.rows.to_pylist()] == []
    assert {d["reason"] for d in split.dead.to_pylist()} == {"DECODE"}
    assert [d["raw"] for d in split.dead.to_pylist()] == [r.rstrip(b"\r\n") for r in REJECTED]


@pytest.mark.parametrize("terminator", [b"", b"\n", b"\r\n"])
def test_neighbours_do_not_change_a_verdict(terminator: bytes) -> None:
    mixed = [record + terminator for pair in zip(REJECTED, ACCEPTED * 5, strict=False) for record in pair]
    split = decode_batch(batch(*mixed), ONE)
    assert {p % 2 for p in split.rows["_position"].to_pylist()} == {1}
    assert split.rows.num_rows * 2 == len(mixed)


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a":', b"1}"],
        [b'{"a":[{}', b"]}"],
        [b'{"a":{"a":1}', b"}"],
        [b'{"a":', b'{"b":1}}', b"{}{}"],  # as many objects as lines
        [b'{"a":{}', b',"b":{}}', b"{} {}"],
        [b'{"a":"{}', b'{}"}', b"{}{}"],
        [b"{}{}", b'{"a":NaN}'],
    ],
)
@pytest.mark.parametrize("between", [0, 1, 3])
def test_lines_that_are_json_together_are_not_json_apart(lines: list[bytes], between: int) -> None:
    good = [b"{}\n"] * between
    spread = [*good, *(part for line in lines for part in (line + b"\n", *good))]
    split = decode_batch(batch(*spread), ONE)
    assert [d["raw"] for d in split.dead.to_pylist()] == lines
    assert split.rows.num_rows == len(spread) - len(lines)


def test_deep_nesting_is_a_dead_letter_and_never_a_crash() -> None:
    def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
        return b'{"a":' + opening * depth + closing * depth + b"}\n"

    assert len(rows(ONE, nested(MAX_DEPTH - 1))) == 1
    for depth in (MAX_DEPTH, 1_000, 100_000):
        [(reason, message)] = dead(ONE, nested(depth))
        assert (reason, message) == ("DECODE", "not a JSON record: nested more than 100 deep")
    [(reason, _)] = dead(ONE, b'{"x":' * 100_000 + b"1" + b"}" * 100_000)
    assert reason == "DECODE"
    [(reason, _)] = dead(ONE, b'{"x":' * 100_000)
    assert reason == "DECODE"


def test_brackets_in_strings_are_no_nesting() -> None:
    assert rows(ONE, b'{"a":"%s"}' % (b"[{" * 500))[0]["a"] == '"' + "[{" * 500 + '"'


def test_kinds_fit_types_strictly_and_every_failing_column_is_named() -> None:
    contract = Contract(
        columns={
            n: {"type": t}
            for n, t in {"s": "string", "i": "int64", "b": "boolean", "d": "date", "l": "list<int32>", "o": "struct<x: string>"}.items()
        }
    )
    [(reason, message)] = dead(contract, b'{"s":1,"i":"three","b":0,"d":20260101,"l":{},"o":[],"x":1}')
    assert reason == "TYPE"
    assert message == (
        's: got number 1; expected string; i: got string "three"; expected int64; b: got number 0; expected boolean; '
        "d: got number 20260101; expected date; l: got object; expected list<int32>; o: got array; expected struct<x: string>"
    )
    assert dead(contract, b'{"i":true}') == [("TYPE", "i: got boolean true; expected int64")]
    assert dead(contract, b'{"s":["x"]}') == [("TYPE", "s: got array; expected string")]
    assert dead(contract, b'{"s":{}}') == [("TYPE", "s: got object; expected string")]


def test_an_array_of_one_string_is_no_string() -> None:
    contract = Contract(columns={"s": {"type": "string"}, "i": {"type": "int64"}})
    assert dead(contract, b'{"s":["x"]}', b'{"i":[7]}', b'{"s":["x"],"i":7}') == [
        ("TYPE", "s: got array; expected string"), ("TYPE", "i: got array; expected int64"), ("TYPE", "s: got array; expected string"),
    ]  # fmt: skip
    assert rows(contract, b'{"s":"[\\"x\\"]"}')[0]["s"] == '["x"]'


def test_failures_name_their_columns() -> None:
    split = decode_batch(batch(b'{"a":1,"b":true}'), Contract(columns={"a": {"type": "string"}, "b": {"type": "int8"}}))
    assert [f["column"] for f in split.dead["failures"][0].as_py()] == ["a", "b"]


def test_nested_values_are_strict_all_the_way_down() -> None:
    contract = Contract(columns={"items": {"type": "list<struct<sku: string, price: decimal(12,2)>>"}})
    assert dead(contract, b'{"items":[{"sku":"a","price":1},{"sku":"b","price":"2"}]}') == [
        ("TYPE", 'items[1].price: got string "2"; expected decimal(12,2)')
    ]
    assert dead(contract, b'{"items":[1]}') == [("TYPE", "items[0]: got number 1; expected struct<sku: string, price: decimal(12,2)>")]
    assert rows(contract, b'{"items":[ null, {"price" : 1.50} ]}') == [{"items": '[null,{"price":1.5}]', "_unknown": None}]


def test_a_sensitive_value_is_not_repeated_in_its_message() -> None:
    assert dead(Contract(columns={"pin": {"type": "int32", "sensitive": "redact"}}), b'{"pin":"1234"}') == [
        ("TYPE", "pin: got string; expected int32")
    ]


def test_numbers_keep_what_a_double_would_lose() -> None:
    contract = Contract(columns={"n": {"type": "int64"}, "d": {"type": "decimal(38,20)"}, "f": {"type": "float64"}})
    [row] = rows(contract, b'{"n":123456789012345678901234567890,"d":0.12345678901234567891,"f":1e400}')
    assert row == {"n": "123456789012345678901234567890", "d": "0.12345678901234567891", "f": "1e400", "_unknown": None}
    assert [r["d"] for r in rows(contract, b'{"d":0.1000000000000000055511151231257827}', b'{"d":1e-400}')] == [
        "0.1000000000000000055511151231257827",
        "1e-400",
    ]
    assert [r["n"] for r in rows(contract, b'{"n":3.7}', b'{"n":1e2}')] == ["3.7", "100.0"], "conform rejects them by their text"


def test_a_timestamp_with_a_unit_is_a_number_or_a_text() -> None:
    contract = Contract(columns={"t": {"type": "timestamp", "unit": "ms"}})
    assert [r["t"] for r in rows(contract, b'{"t":1700000000000}', b'{"t":"2026-01-01T00:00:00Z"}')] == [
        "1700000000000",
        "2026-01-01T00:00:00Z",
    ]
    assert dead(contract, b'{"t":true}') == [("TYPE", "t: got boolean true; expected timestamp or a number of ms")]


def test_coerce_takes_any_scalar_by_its_text() -> None:
    contract = Contract(columns={"i": {"type": "int64", "coerce": True}, "s": {"type": "string", "coerce": True}})
    assert rows(contract, b'{"i":"5","s":1.10}', b'{"i":true,"s":false}', b'{"i":5,"s":"x"}') == [
        {"i": "5", "s": "1.10", "_unknown": None}, {"i": "true", "s": "false", "_unknown": None}, {"i": "5", "s": "x", "_unknown": None},
    ]  # fmt: skip
    assert dead(contract, b'{"i":[5]}') == [("TYPE", "i: got array; expected int64")]


def test_a_wrong_kind_does_not_hide_behind_another() -> None:
    contract = Contract(columns={"i": {"type": "int64", "coerce": True}, "s": {"type": "string"}, "t": {"type": "timestamp", "unit": "s"}})
    assert dead(contract, b'{"i":"5","s":5}', b'{"t":"5","s":5}') == [("TYPE", "s: got number 5; expected string")] * 2


@pytest.mark.parametrize("path", ["user.id", "user.more.id"])
def test_what_stands_in_the_place_of_an_object_is_an_object_or_null(path: str) -> None:
    contract = Contract(
        columns={"s": {"type": "string"}, "n": {"type": "int64"}, "t": {"type": "string"}, "id": {"type": "string", "path": path}}
    )
    for value, found in ((b"5", "number 5"), (b'"x"', 'string "x"'), (b"true", "boolean true"), (b"[]", "array")):
        assert dead(contract, b'{"user":%b}' % value) == [("TYPE", f"id: got {found} at user; expected object")]
        for balance in (b"{}", b'"{}"', b"5", b'"x"', b"null"):  # what makes the counts right again must not make the record right
            assert all(reason == "TYPE" for reason, _ in dead(contract, b'{"s":%b,"t":{},"user":%b}' % (balance, value)))
    assert [r["id"] for r in rows(contract, b'{"user":null}', b'{"user":{}}', b'{"s":"{}","user":{}}')] == [None] * 3


UNKNOWN = b'{"id":"a","x":1.50,"user":{"name":"n","age":7},"y":null,"z":[{"k":"\xc3\xa9"}]}'


def test_unknown_members_are_kept_as_json() -> None:
    contract = Contract(columns={"id": {"type": "string"}, "name": {"type": "string", "path": "user.name"}})
    [row] = rows(contract, UNKNOWN)
    assert json.loads(row["_unknown"]) == {"x": 1.5, "user": {"age": 7}, "y": None, "z": [{"k": "é"}]}
    assert (
        rows(contract, b'{"id":"a", "x" : 12345678901234567890.10 , "z": [1, 2] }')[0]["_unknown"]
        == '{"x" : 12345678901234567890.10 , "z": [1, 2]}'
    )
    assert rows(contract, b'{"id":"a"}')[0]["_unknown"] is None


def test_a_member_that_a_struct_does_not_name_is_kept_with_its_value() -> None:
    contract = Contract(columns={"o": {"type": "struct<x: int32>"}})
    assert rows(contract, b'{"o":{"x":1,"y":2}}') == [{"o": '{"x":1,"y":2}', "_unknown": '{"o":{"x":1,"y":2}}'}]


def test_unknown_members_are_dropped_rejected_or_fail_the_run() -> None:
    def contract(policy: str) -> Contract:
        return Contract(columns={"id": {"type": "string"}, "name": {"type": "string", "path": "user.name"}}, unknown_columns=policy)

    assert rows(contract("drop"), UNKNOWN) == [{"id": "a", "name": "n"}]
    message = "'x', 'user.age', 'y', 'z': not in the contract; expected its columns only (unknown_columns: dead_letter)"
    assert dead(contract("dead_letter"), UNKNOWN) == [("UNKNOWN_COLUMN", message)]
    with pytest.raises(RunError, match=r"'x', 'user\.age', 'y', 'z': not in the contract"):
        decode_batch(batch(b'{"id":"b"}', UNKNOWN), contract("fail"))


def test_names_that_differ_in_case_only_are_different_columns() -> None:
    contract = Contract(
        columns={
            "a": {"type": "int64", "path": ["n"]},
            "b": {"type": "int64", "path": ["N"]},
            "c": {"type": "json", "path": ["o", "K"]},
            "d": {"type": "string", "path": ["O", "k"]},
        }
    )
    assert rows(contract, b'{"N":2,"n":1,"o":{"K":[1]},"O":{"k":"x"}}')[0] == {"a": "1", "b": "2", "c": "[1]", "d": "x", "_unknown": None}


def test_paths_that_run_through_each_other_are_refused() -> None:
    for first, second in (("user", "user.id"), ("user.id", "user")):
        contract = Contract(columns={"a": {"type": "json", "path": first}, "b": {"type": "json", "path": second}})
        with pytest.raises(SpecError, match="run through each other"):
            decode_steps(contract, JsonFormat())


def test_two_columns_may_read_one_member() -> None:
    contract = Contract(columns={"a": {"type": "string", "path": "x"}, "b": {"type": "date", "path": "x"}})
    assert rows(contract, b'{"x":"2026-01-01"}') == [{"a": "2026-01-01", "b": "2026-01-01", "_unknown": None}]
    assert dead(contract, b'{"x":1}') == [("TYPE", "a: got number 1; expected string; b: got number 1; expected date")]


def test_steps_survive_pickling_and_are_quick_to_learn_again() -> None:
    program = Program(decode_steps(ONE, JsonFormat()), raw_format="json")
    program(batch(b"{}"))
    again = pickle.loads(pickle.dumps(program))  # our own bytes
    assert again(batch(b'{"a":1}')).rows["a"].to_pylist() == ["1"]


def test_empty_batches_null_records_and_nothing_but_bad_ones() -> None:
    assert decode_batch(batch(), ONE).rows.num_rows == 0
    nothing = pa.record_batch({"_position": pa.array([0, 1], pa.int64()), "_raw": pa.array([None, b"{}"], pa.binary())})
    split = decode_batch(nothing, ONE)
    assert (split.rows["_position"].to_pylist(), split.dead["position"].to_pylist()) == ([1], [0])
    assert len(dead(ONE, b"\xff", b"", b"{")) == 3


def test_the_mood_changes_the_way_and_not_the_answer() -> None:
    contract = Contract(columns={"id": {"type": "string"}, "n": {"type": "int64"}})
    program = Program(decode_steps(contract, JsonFormat()), raw_format="json", keep_raw=True)
    odd = batch(*[b'{"id":null,"x":%d}\n' % i for i in range(50)])
    even = batch(*[b'{"id":"i","n":%d}\n' % i for i in range(49)], b'{"id":1}\n')
    before = program(even)
    for _ in range(3):
        assert program(odd).rows["_unknown"].to_pylist() == [f'{{"x":{i}}}' for i in range(50)]
    after = program(even)
    assert (after.rows, after.dead) == (before.rows, before.dead)


def read(raw: bytes, layout: str = "array", **limits: int) -> list[Any]:
    out: list[Any] = []
    for part in JsonReader(JsonFormat(layout=layout)).read(io.BytesIO(raw), limits=Limits(**limits)):
        if isinstance(part, Broken):
            out.append((part.position, part.reason))
        else:
            out += [(p, r.strip(b" \t\r\n")) for p, r in zip(part["_position"].to_pylist(), part["_raw"].to_pylist(), strict=True)]
    return out


elements = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(['],"', "[{", '\\"', "\\"]), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3), max_leaves=6)  # fmt: skip


@share(40)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=4), elements, max_size=4), max_size=8),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    block=st.integers(1, 64),
)
def test_array_elements_come_whole_and_in_place_whatever_the_block_size(
    values: list[Any], indent: int | None, ascii_only: bool, block: int
) -> None:
    raw = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode() + b"\n"
    found = read(raw, block_bytes=block, max_record_bytes=2**20)
    assert [json.loads(r) for _, r in found] == values
    assert all(raw[p : p + len(r)] == r for p, r in found), "positions are byte offsets"


def test_a_bad_element_costs_itself() -> None:
    raw = b'[{"a":1},{"a":NaN}, 7, ,{"a":2},]'
    found = sorted(read(raw), key=lambda f: f[0])
    assert found == [(1, b'{"a":1}'), (9, b'{"a":NaN}'), (20, b"7"), (23, "DECODE"), (24, b'{"a":2}'), (32, "DECODE")]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b" \n ", []),
        (b"[]", []),
        (b" [ ] \n", []),
        (b'{"a":1}\n', [(0, "FILE")]),
        (b"[", [(1, "FILE")]),
        (b'[{"a":1}', [(1, "FILE")]),
        (b'[{"a":1},{"a":', [(1, b'{"a":1}'), (9, "FILE")]),
        (b'[{"a":1}] x', [(1, b'{"a":1}'), (10, "FILE")]),
        (b"\xef\xbb\xbf[{}]", [(4, b"{}")]),
        ('[{"a":"é"}]'.encode("utf-16"), [(1, '{"a":"é"}'.encode())]),
    ],
)
def test_what_is_no_array_of_records_is_said_once(raw: bytes, expected: list[Any]) -> None:
    assert read(raw) == expected


def test_a_hundred_megabyte_element_is_skipped_and_never_held() -> None:
    class Big(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = iter([b'[{"a":1},{"a":"', *[b"x\\\\" * 349_525] * 100, b'"},{"a":2}]'])
            self.held = b""

        def readable(self) -> bool:
            return True

        def readinto(self, view: Any) -> int:
            self.held = self.held or next(self.parts, b"")
            taken, self.held = self.held[: len(view)], self.held[len(view) :]
            view[: len(taken)] = taken
            return len(taken)

    found: list[Any] = []
    for part in JsonReader(JsonFormat(layout="array")).read(Big(), limits=Limits(max_record_bytes=2**20, block_bytes=2**20)):  # type: ignore[arg-type]  # a RawIOBase reads like a BinaryIO
        found += [(part.reason, part.position)] if isinstance(part, Broken) else part["_raw"].to_pylist()
    assert [f if isinstance(f, tuple) else f.strip() for f in found] == [b'{"a":1}', ("TOO_LARGE", 9), b'{"a":2}']


def test_a_long_element_among_others_is_too_large() -> None:
    assert sorted(read(b'[{"a":"%s"},{"a":2}]' % (b"x" * 90), max_record_bytes=50, block_bytes=1000), key=lambda f: f[0]) == [
        (1, "TOO_LARGE"),
        (100, b'{"a":2}'),
    ]


def test_a_stream_that_breaks_keeps_what_came_before() -> None:
    class Breaking(io.BytesIO):
        def readinto(self, view: Any) -> int:
            got = super().readinto(view)
            if not got:
                raise DamagedStream("gzip: ends before its time")
            return got

    found = list(JsonReader(JsonFormat(layout="array")).read(Breaking(b'[{"a":1},{"a"')))
    assert found[0]["_raw"].to_pylist() == [b'{"a":1}\n']  # type: ignore[index]  # a batch
    assert isinstance(found[1], Broken)
    assert (found[1].reason, found[1].message) == ("FILE", "gzip: ends before its time")


def test_lines_are_read_by_ranges_and_arrays_are_not() -> None:
    assert JsonReader(JsonFormat()).splittable()
    assert not JsonReader(JsonFormat(layout="array")).splittable()
    assert read(b'{"a":1}\n{"a":2}\n', layout="lines") == [(0, b'{"a":1}'), (8, b'{"a":2}')]
    assert list(JsonReader(JsonFormat(layout="array")).read(io.BytesIO(b"[{}]"), start=2)) == []
