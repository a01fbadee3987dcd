"""YAML as values with places: strict words, duplicate keys, alias bombs, and every text that is no YAML."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.spec.document import MAX_BYTES, Document, read_document
from beam_pipelines.spec.problems import SpecErrors


def read(text: str | bytes) -> Document:
    document = read_document(text, file="x.yaml")
    document.fail()
    return document


def refusal(text: str | bytes) -> str:
    with pytest.raises(SpecErrors) as caught:
        read(text)
    return str(caught.value)


def test_words_mean_what_yaml_1_2_says() -> None:
    text = "{a: NO, b: yes, on: 1e3, d: 2013-01-01, e: 12:30:45, f: 0x1F, g: 0o17, h: 010, i: true, j: ~, k: '1', l: [1, 2.5]}"
    assert read(text).value == {"a": "NO", "b": "yes", "on": 1000.0, "d": "2013-01-01", "e": "12:30:45", "f": 31, "g": 15, "h": 10,
                                "i": True, "j": None, "k": "1", "l": (1, 2.5)}  # fmt: skip


def test_yaml_1_1_directive_does_not_bring_back_its_booleans() -> None:
    assert read("%YAML 1.1\n---\na: NO").value == {"a": "NO"}


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    assert read(b"\xef\xbb\xbfa: 1").value == {"a": 1}


def test_aliases_and_merge_keys_work() -> None:
    assert read("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}").value == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1, "q": 3},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "x.yaml:1:1: the file is empty"),
        ("# only a comment", "the file is empty"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "x.yaml:4:3: b: the key 'c' stands here twice (first in line 3)"),
        (
            "a:\n\tb: 1",
            "x.yaml:2:1: not YAML: while scanning for the next token found character '\\t' that cannot start any token; indent with spaces",
        ),
        (
            "a: {path: ${lake}/rows}",
            "x.yaml:1:12: not YAML: while parsing a flow mapping expected ',' or '}', but got '{'; inside { } quote texts with ${",
        ),
        ("a: b: c", "x.yaml:1:5: not YAML: mapping values are not allowed here; quote a text that holds ': '"),
        ("a: @x", "x.yaml:1:4"),
        ("a: [1", "x.yaml:1:6"),
        ("--- 1\n--- 2", "x.yaml:2:1: not YAML: expected a single document"),
        ("a: *zz", "undefined alias"),
        ("a: 'x", "unexpected end of stream"),
        ("a: x\0", "x.yaml:1:5: character 0x0"),
        ("a: !!python/object:os.system x", "x.yaml:1:4: a: the tag 'python/object:os.system' means nothing here"),
        ("1: x", 'x.yaml:1:1: the key 1 is a number; quote it: "1"'),
        ("true: x", 'the key true is a truth value; quote it: "true"'),
        ("? [a]\n: x", "a key must be a text"),
        ("a: .nan", "x.yaml:1:4: a: .nan is not a finite number"),
        ("a: &a [*a]", "x.yaml:1:4: a[0]: an alias (*name) names something it is inside of"),
        ("[" * 1000, "nested too deeply"),
        ("a: " + "[" * 80 + "]" * 80, "nested deeper than 60 levels"),
        (b"a: 1\nb: \xff", "x.yaml:2:4: byte 0xff is not UTF-8"),
        ("a".encode("utf-16"), "is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "bytes; at most"),
        ("a: " + "9" * 5000, "is not a number that can be read"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(text: str | bytes, says: str) -> None:
    assert says in refusal(text)


def test_alias_bomb_is_refused_before_it_goes_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "aliases (*name) multiply what they name" in refusal("\n".join(lines))


def test_every_value_knows_its_line_and_column() -> None:
    document = read("a:\n  b: [x, {c: 1}]\n  'd e':\n")
    assert document.position(("a", "b", 1, "c"))[:3] == ("x.yaml", 2, 14)
    assert document.position(("a", "b", 1, "c"), key=True)[:3] == ("x.yaml", 2, 11)
    assert document.position(("a", "d e"))[:3] == ("x.yaml", 3, 3)  # an empty value stands where its key does
    assert document.position(("a", "b", 7, "q"))[:3] == ("x.yaml", 2, 6)  # the nearest thing around


def test_a_merged_value_stands_where_it_was_written_unless_it_is_written_here() -> None:
    document = read("a: &x {p: 1, q: 2}\nc:\n  q: 3\n  <<: *x\n")
    assert document.value["c"] == {"p": 1, "q": 3}
    assert (document.position(("c", "q"))[1], document.position(("c", "p"))[1], document.position(("c",))[1]) == (3, 1, 3)


def test_a_character_of_a_one_line_text_is_found_in_the_file() -> None:
    document = read('a: "x + yy"\nb: x + yy\nc: >\n  x +\n  yy\n')
    for path in (("a",), ("b",), ("c",)):
        document.problem(path, "here", offset=4)
    assert [(p.line, p.column, p.message) for p in sorted(document.problems)] == [
        (1, 9, "here"),
        (2, 8, "here"),
        (3, 4, "at character 5: here"),
    ]


@given(st.text(max_size=80))
def test_any_text_is_a_document_or_spec_errors(text: str) -> None:
    with contextlib.suppress(SpecErrors):
        read(text)
