"""What a spec must satisfy beyond its shape: one small wrong thing per case, and where it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.spec.check_outputs import DEAD_LETTER_COLUMNS
from beam_pipelines.spec.load import LoadedSpec, parse_spec
from beam_pipelines.spec.problems import SpecErrors

BASE = {
    "contract": "{key: [id], event_time: ts, columns: {id: {type: int64}, ts: {type: timestamp}, n: {type: int32}, s: {type: string}, "
    "tags: {type: list<string>}}}",
    "sources": "{batch: [{files: in.csv, format: csv}]}",
    "sinks": "[{from: rows, parquet: {path: out}}]",
}


def load(**sections: str) -> LoadedSpec:
    text = "spec: 1\npipeline: p\n" + "".join(f"{k}: {v}\n" for k, v in {**BASE, **sections}.items())
    return parse_spec(text, path="p.yaml")


def problems(**sections: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        load(**sections)
    return [f"{p.path}: {p.message}" for p in caught.value.problems]


def columns(body: str) -> str:
    return "{columns: {n: {type: int32}, d: {type: date}, ts: {type: timestamp}, s: {type: string}, " + body + "}}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x: {type: int8, min: 300}", "columns.x.min: got 300; expected an integer from -128 to 127"),
        ("x: {type: int8, min: 1.5}", "columns.x.min: got 1.5; expected an integer"),
        ("x: {type: int8, min: 5, max: 3}", "columns.x.min: min 5 is larger than max 3"),
        ("x: {type: boolean, min: 1}", "columns.x.min: 'min' needs a type with an order"),
        ("x: {type: date, min: 2013-02-30}", "columns.x.min: '2013-02-30' is no date"),
        ("x: {type: timestamp, max: soon}", "columns.x.max: 'soon' is no timestamp"),
        ("x: {type: 'decimal(4,2)', max: 100}", "columns.x.max: '100' is no decimal(4,2)"),
        ("x: {type: string, in: [a, 1]}", "columns.x.in[1]: got 1; expected a text"),
        ("x: {type: string, in: []}", "columns.x.in: the list is empty"),
        ("x: {type: list<string>, in: [a]}", "columns.x.in: 'in' needs a plain type"),
        ("x: {type: int8, default: '1'}", "columns.x.default: got '1'; expected an integer"),
        ("x: {type: int8, regex: a}", "columns.x.regex: 'regex' is for columns of type string"),
        ("x: {type: string, regex: '['}", "columns.x.regex: not a regular expression RE2 knows"),
        ("x: {type: string, regex: '(?=a)'}", "columns.x.regex: not a regular expression RE2 knows"),
        ("x: {type: string, min_length: 3, max_length: 2}", "columns.x.min_length: min_length 3 is larger"),
        ("x: {type: string, format: '%Y'}", "columns.x.format: 'format' is for columns of type date"),
        ("x: {type: date, format: ['%Y', '%Q']}", "columns.x.format[1]: Failed to parse format specifier %Q"),
        ("x: {type: timestamp, time_zone: Berlin}", "columns.x.time_zone: unknown time zone 'Berlin'; did you mean 'Europe/Berlin'?"),
        ("x: {type: int8, path: 'a..b'}", "columns.x.path: got 'a..b'; expected keys"),
        ("x: {type: int8, expr: n, path: a}", "columns.x.path: 'path' is about reading"),
        ("x: {type: int32, expr: 'nn + 1'}", "columns.x.expr: unknown column 'nn'; did you mean 'n'?"),
        ("x: {type: string, expr: 'n + 1'}", "columns.x.expr: the expression has type INTEGER; expected string (VARCHAR)"),
        ("x: {type: date, expr: ts}", "columns.x.expr: the expression has type TIMESTAMP; expected date"),
        ("x: {type: int32, expr: 'n * 0.5e0'}", "columns.x.expr: the expression has type DOUBLE; expected int32"),
        ("x: {type: int32, expr: 'CAST(n AS DECIMAL(9,2))'}", "has type DECIMAL(9,2); expected int32"),
        ("x: {type: int32, expr: 'x + 1'}", "columns.x.expr: unknown column 'x'; it was meant to be this very column"),
        ("x: {type: int32, expr: 'y + 1'}, y: {type: int32, expr: n}", "unknown column 'y'; it was computed after it; put it before"),
        ("x: {type: integer}", "columns.x.type: type 'integer': unknown type 'integer'; did you mean 'int64'?"),
        ("N: {type: int32}", "columns.N: column 'N' differs from 'n' only in case"),
        ("_x: {type: int32}", "columns._x: column '_x': names that start with '_' are reserved"),
        ("a$: {type: int32}", "must not be empty or contain '$'"),
    ],
)
def test_columns_of_a_contract(body: str, says: str) -> None:
    assert [p for p in problems(contract=columns(body)) if says in p], problems(contract=columns(body))


def test_columns_of_a_contract_may_have_any_name() -> None:
    names = ['"a.b"', '"x y"', "'q\"t'", "🎈", "select", "'it''s'"]
    loaded = load(
        contract="{columns: {" + ", ".join(f"{n}: {{type: int32}}" for n in names) + "}}",
        checks="""[{name: all, expr: '"a.b" + "x y" + "q""t" + "🎈" + "select" + "it''s" > 0'}]""",
    )
    assert list(loaded.columns) == ["a.b", "x y", 'q"t', "🎈", "select", "it's"]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("[{filter: n}]", "transform[0].filter: the expression has type INTEGER; expected BOOLEAN"),
        ("[{set: {a: 'n + 1', b: 'a + aa'}}]", "transform[0].set.b: unknown column 'aa'; did you mean 'a'?"),
        ("[{set: {N: 'n + 1'}}]", "transform[0].set.N: column 'N' differs from 'n' only in case"),
        ("[{set: {_a: n}}]", "transform[0].set._a: column '_a': names that start with '_'"),
        ("[{set: {a: 'ts - ts'}}]", "transform[0].set.a: column 'a' has type INTERVAL, which cannot be stored"),
        ("[{set: {a: 'NULL'}}]", "transform[0].set.a: column 'a' has type NULL, which cannot be stored; write CAST(NULL AS INTEGER)"),
        ("[{rename: {m: nn}}]", "transform[0].rename.m: unknown column 'nn'"),
        ("[{rename: {s: n}}]", "column 's' exists already"),
        ("[{rename: {m: n}}, {filter: 'n > 1'}]", "transform[1].filter: unknown column 'n'; it was renamed to 'm' by a transform step."),
        ("[{drop: [n]}, {filter: 'n > 1'}]", "transform[1].filter: unknown column 'n'; it was dropped by a transform step."),
        ("[{drop: [nn]}]", "transform[0].drop[0]: unknown column 'nn'"),
        ("[{lookup: {from: air, on: s, take: {a: b}}}]", "transform[0].lookup.from: unknown lookup 'air'; did you mean 'airports'?"),
        ("[{lookup: {from: airports, on: q, take: {a: b}}}]", "transform[0].lookup.on: unknown column 'q'"),
        (
            "[{lookup: {from: airports, on: [s, n], take: {a: b}}}]",
            "transform[0].lookup.on: got 2 columns; the key of lookup 'airports' has 1: faa",
        ),
        (
            "[{lookup: {from: airports, on: {s: iata}, take: {a: b}}}]",
            "transform[0].lookup.on: got the lookup's columns iata; expected its key, faa",
        ),
        ("[{lookup: {from: airports, on: s, take: {n: b}}}]", "transform[0].lookup.take.n: column 'n' exists already"),
        ("[{apply: {function: 'm', columns: {}}}]", "transform[0].apply.function: got the text 'm'; expected a text matching"),
        ("[{apply: {function: 'm:f', columns: {w: float}}}]", "transform[0].apply.columns.w: type 'float': unknown type 'float'"),
    ],
)
def test_transform_steps(steps: str, says: str) -> None:
    found = problems(transform=steps, lookups="{airports: {files: a.csv, format: csv, key: faa}}")
    assert [p for p in found if says in p], found


def test_columns_flow_from_step_to_step() -> None:
    loaded = load(
        lookups="{a: {files: a.csv, format: csv, key: k, columns: {lat: float64}}, b: {files: b.parquet, format: parquet, key: k}}",
        transform="[{set: {m: 'n / 2', n: 'CAST(n AS DOUBLE)'}}, {lookup: {from: a, on: s, take: {lat: lat, name: name}}}, "
        "{lookup: {from: b, on: {s: k}, take: {other: o}}}, {set: {later: 'other + 1'}}, {rename: {t: s}}, {drop: [tags]}, "
        "{apply: {function: 'a.b:c', columns: {wind: float32}}}]",
        checks="[{name: c, expr: 'm > 0 AND other > 1 AND later IS NOT NULL AND wind < 1 AND lat > 0'}]",
    )
    assert loaded.columns == {
        "id": "BIGINT", "ts": "TIMESTAMP", "n": "DOUBLE", "t": "VARCHAR", "m": "DOUBLE", "lat": "DOUBLE", "name": "VARCHAR", "other": None,
        "later": None, "wind": "FLOAT",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"time_zone": "America/NewYork"}, "time_zone: unknown time zone 'America/NewYork'; did you mean 'America/New_York'?"),
        ({"checks": "[{name: a, expr: 'n > 1'}, {name: a, expr: 'n > 2'}]"}, "checks[1].name: checks[0] is called 'a' too"),
        ({"checks": "[{name: n, expr: 'n > 1'}]"}, "checks[0].name: 'n' is a column's name"),
        ({"checks": "[{name: a, expr: n}]"}, "checks[0].expr: the expression has type INTEGER; expected BOOLEAN"),
        ({"checks": "[{name: a, expr: 'sum(n) > 1'}]"}, "checks[0].expr: sum aggregates over rows"),
        ({"checks": "[{name: a, unique: [q]}]"}, "checks[0].unique[0]: unknown column 'q'"),
        ({"checks": "[{name: a, unique: []}]"}, "checks[0].unique: the list is empty"),
        ({"checks": "[{name: a, unique: [n], severity: dead_letter}]"}, "checks[0].severity: unique looks at many rows"),
        ({"checks": "[{name: a, null_rate: {column: q, max: 0.1}}]"}, "checks[0].null_rate.column: unknown column 'q'"),
        ({"checks": "[{name: a, null_rate: {column: n, max: 2}}]"}, "checks[0].null_rate.max: got the number 2; expected at most 1"),
        ({"checks": "[{name: a, freshness: {column: n, max_age: 1d}}]"}, "checks[0].freshness.column: column 'n' has type INTEGER"),
        ({"checks": "[{name: a, freshness: {column: ts, max_age: 1x}}]"}, "checks[0].freshness.max_age: duration '1x'"),
        ({"checks": "[{name: a, freshness: {column: ts}}]"}, "checks[0].freshness: needs 'max_age'"),
        ({"checks": "[{name: a, row_count: {min: 3, max: 2}}]"}, "checks[0].row_count: min 3 is larger than max 2"),
        (
            {"checks": "[{name: a, references: {columns: [s], lookup: l}}]"},
            "checks[0].references.lookup: unknown lookup 'l'; the spec has no lookups",
        ),
        ({"checks": "[{name: a, expr: 'n > 1', unique: [n]}]"}, "checks[0]: check 'a' needs exactly one of"),
        ({"thresholds": "{per_check: {q: 0.1}}"}, "thresholds.per_check.q: unknown check 'q'; the spec has no checks"),
        ({"deduplicate": "{order_by: q}"}, "deduplicate.order_by: unknown column 'q'"),
        ({"deduplicate": "{key: [tags]}"}, "deduplicate.key[0]: key column 'tags' has type VARCHAR[]"),
        ({"deduplicate": "{within: 2d}", "transform": "[{drop: [id]}]"}, "deduplicate: unknown column 'id'; it was dropped"),
        (
            {"deduplicate": "{within: 2d}", "contract": "{key: [n], columns: {n: {type: int8}}}"},
            "deduplicate.within: is measured in event time",
        ),
        ({"deduplicate": "{}", "contract": "{columns: {n: {type: int8}}}"}, "deduplicate: needs a key"),
        ({"deduplicate": "{}", "sources": "{stream: [{pubsub: projects/p/subscriptions/s, format: json}]}"}, "deduplicate: needs 'within'"),
        ({"sources": "{stream: [{pubsub: s, format: json}]}"}, "sources.stream[0].pubsub: got 's'; expected projects/PROJECT"),
        ({"sources": "{stream: [{pubsub: projects/p/subscriptions/s, format: parquet}]}"}, "a message holds one record"),
        ({"sources": "{}"}, "sources: sources needs 'batch', 'stream' or both"),
        ({"sources": "{batch: [{files: [], format: csv}]}"}, "sources.batch[0].files: the list is empty"),
        ({"sources": "{batch: [{files: a, format: csv, arrival: {column: q}}]}"}, "sources.batch[0].arrival.column: unknown column 'q'"),
        ({"sources": "{batch: [{files: a, format: csv, arrival: {column: n}}]}"}, "column 'n' has type INTEGER; expected timestamp"),
        (
            {"sources": "{batch: [{files: a, format: csv, arrival: {attribute: q}}]}"},
            "sources.batch[0].arrival.attribute: files have no attributes",
        ),
        ({"sources": "{batch: [{files: a, format: {type: csv, encoding: utf-88}}]}"}, "sources.batch[0].format.encoding: "),
        (
            {"sources": "{batch: [{files: a, format: {type: csv, delimiter: '\"'}}]}"},
            "sources.batch[0].format: quote and delimiter are both",
        ),
        (
            {"sources": "{batch: [{files: a, format: {type: csv, columns: [a]}}]}"},
            "format.columns: 'columns' is for files without a header",
        ),
        ({"sources": "{batch: [{files: a, format: {type: text, pattern: '('}}]}"}, "format.pattern: not a Python regular expression"),
        ({"sources": "{batch: [{files: a, format: {type: text, pattern: 'a'}}]}"}, "format.pattern: names no group"),
        (
            {"sources": "{batch: [{files: a, format: {type: text, pattern: '(?P<idd>a)'}}]}"},
            "no group for the column 'id'; did you mean 'idd'?",
        ),
        ({"sources": "{batch: [{files: a, format: text}]}"}, "sources.batch[0].format: needs 'pattern'"),
        ({"lookups": "{a: {files: a, format: csv, key: []}}"}, "lookups.a.key: the list is empty"),
        ({"lookups": "{a: {files: a, format: csv, key: k, columns: {x: strng}}}"}, "lookups.a.columns.x: type 'strng': unknown type"),
        ({"lookups": "{a b: {files: a, format: csv, key: k}}"}, "lookups['a b']: got the name 'a b'"),
        ({"hmac_key": "s3cret"}, "hmac_key: expected a secret reference, env:NAME"),
        ({"dead_letters": "{raw_key: 'env:1'}"}, "dead_letters.raw_key: expected a secret reference"),
        ({"aggregates": "{rows: {measures: {c: count()}}}"}, "aggregates.rows: an aggregate cannot be called 'rows'"),
        ({"aggregates": "{a: {group_by: [q], measures: {c: count()}}}"}, "aggregates.a.group_by[0]: unknown column 'q'"),
        ({"aggregates": "{a: {group_by: [tags], measures: {c: count()}}}"}, "column 'tags' has type VARCHAR[]"),
        ({"aggregates": "{a: {measures: {c: sum(q)}}}"}, "aggregates.a.measures.c: unknown column 'q'"),
        ({"aggregates": "{a: {measures: {c: sum(s)}}}"}, "sum needs a number"),
        ({"aggregates": "{a: {measures: {c: max(tags)}}}"}, "max needs a type with an order"),
        ({"aggregates": "{a: {measures: {c: count() where n}}}"}, "aggregates.a.measures.c: the expression has type INTEGER"),
        ({"aggregates": "{a: {measures: {c: summ(n)}}}"}, "did you mean 'sum'?"),
        ({"aggregates": "{a: {measures: {c: sum(now())}}}"}, "now is not deterministic"),
        ({"aggregates": "{a: {measures: {c: n}}}"}, "aggregates.a.measures.c: measure 'n'"),
        (
            {"aggregates": "{a: {windowing: {type: fixed, size: 1h}, time: s, measures: {c: count()}}}"},
            "aggregates.a.time: column 's' has type VARCHAR",
        ),
        ({"aggregates": "{a: {time: ts, measures: {c: count()}}}"}, "aggregates.a.time: 'time' is what windows are cut by"),
        (
            {
                "sources": "{stream: [{pubsub: projects/p/subscriptions/s, format: json}]}",
                "deduplicate": "{}",
                "transform": "[{set: {other: ts}}]",
                "aggregates": "{a: {windowing: {type: fixed, size: 1h}, time: other, measures: {c: count()}}}",
            },
            "aggregates.a.time: a stream that deduplicates takes rows back by their event time alone; got 'other', expected contract.event_time ('ts')",
        ),
        (
            {"aggregates": "{a: {windowing: {type: fixed, gap: 1h}, measures: {c: count()}}}"},
            "aggregates.a.windowing.gap: a fixed window takes no 'gap'",
        ),
        (
            {"aggregates": "{a: {windowing: {type: fixed, size: 1h}, measures: {c: count()}}}", "contract": "{columns: {n: {type: int8}}}"},
            "windows need a time",
        ),
        ({"sinks": "[{from: row, csv: {path: a}}]"}, "sinks[0].from: unknown output 'row'; did you mean 'rows'?"),
        (
            {"sinks": "[{from: rows, csv: {path: a}}, {from: rows, jsonl: {path: a/}}]"},
            "sinks[1].jsonl.path: sinks[0] writes to the same place",
        ),
        ({"sinks": "[{from: rows}]"}, "sinks[0]: a sink has exactly one destination"),
        ({"sinks": "[]"}, "sinks: got 0 entries; expected at least 1"),
        (
            {"sinks": "[{from: rows, parquet: {path: a, partition_by: [day(n)]}}]"},
            "partition_by[0]: column 'n' has type INTEGER; expected TIMESTAMP or DATE",
        ),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: [dya(ts)]}}]"}, "did you mean 'day'?"),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: [q]}}]"}, "partition_by[0]: unknown column 'q'"),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: [tags]}}]"}, "column 'tags' has type VARCHAR[]"),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: [day(ts), day(ts)]}}]"}, "partition 'ts_day' stands here twice"),
        (
            {"sinks": "[{from: rows, parquet: {path: a, partition_by: [day(ts)]}}]", "transform": "[{set: {ts_day: n}}]"},
            "the partition would be called 'ts_day'",
        ),
        (
            {"sinks": "[{from: rows, parquet: {path: a, partition_by: ['range(s, 0, 9, 3)']}}]"},
            "column 's' has type VARCHAR; expected an integer",
        ),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: ['range(n, 9, 0, 3)']}}]"}, "start < end and step > 0"),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: ['range(n, 0, 9)']}}]"}, "expected range(column, start, end, step)"),
        ({"sinks": "[{from: rows, parquet: {path: a, partition_by: [day()]}}]"}, "partition_by 'day()': no column"),
        ({"sinks": "[{from: rows, parquet: {path: a, statistics: [q]}}]"}, "statistics[0]: unknown column 'q'"),
        ({"sinks": "[{from: rows, parquet: {path: a, compression_level: 23}}]"}, "compression_level: got 23; expected 1 to 22 for zstd"),
        (
            {"sinks": "[{from: dead_letters, parquet: {path: a, partition_by: [n]}}]"},
            "partition_by[0]: unknown column 'n'; Known: arrival_time",
        ),
    ],
)
def test_everything_else(sections: dict[str, str], says: str) -> None:
    found = problems(**sections)
    assert [p for p in found if says in p], found


def test_outputs_may_be_partitioned_by_their_own_columns() -> None:
    load(
        aggregates="{a: {windowing: {type: fixed, size: 1h}, group_by: [s], measures: {c: count()}}}",
        sinks="[{from: a, parquet: {path: a, partition_by: [day(_window_start), s, c]}}, {from: dead_letters, parquet: {path: d, partition_by: "
        "[day(event_time), reason]}}, {from: rows, parquet: {path: r, partition_by: [hour(_arrival_time), n]}}]",
    )


def test_dead_letters_columns_are_those_that_are_written() -> None:
    from beam_pipelines.arrow.schema import DEAD_LETTERS

    assert list(DEAD_LETTER_COLUMNS) == DEAD_LETTERS.names


def test_notes_say_what_is_valid_and_worth_knowing() -> None:
    contract = "{key: [id], columns: {id: {type: int64, sensitive: redact}}}"
    notes = " ".join(load(contract=contract, dead_letters="{raw_key: 'env:KEY'}", aggregates="{a: {measures: {c: count()}}}").notes)
    for text in (
        "stored encrypted under env:KEY",
        "_unknown",
        "Key columns id are masked",
        "No sink takes dead_letters",
        "No sink takes a:",
    ):
        assert text in notes
    assert load(sinks="[{from: rows, csv: {path: a}}, {from: dead_letters, csv: {path: b}}]").notes == ()


BOTH = "{batch: [{files: in.csv, format: csv}], stream: [{pubsub: projects/p/subscriptions/s, format: json}]}"
BY_HOUR = "{a: {windowing: {type: fixed, size: 1h}, group_by: [s], measures: {c: count()}}}"


@pytest.mark.parametrize(
    ("rows", "panes", "says"),
    [
        ("partition_by: [day(ts)]", "partition_by: [day(_window_start)]", []),
        ("partition_by: [s]", "partition_by: [hour(_window_start)]", ["'rows' partition_by: [day(ts)]"]),
        ("partition_by: [day(ts), s]", "partition_by: [s]", ["'a' partition_by: [day(_window_start)]"]),
    ],
)
def test_a_note_names_outputs_that_batch_and_stream_cannot_share(rows: str, panes: str, says: list[str]) -> None:
    sinks = f"[{{from: rows, parquet: {{path: r, {rows}}}}}, {{from: a, parquet: {{path: a, {panes}}}}}]"
    found = [note for note in load(sources=BOTH, aggregates=BY_HOUR, sinks=sinks).notes if "partitioned by its time" in note]
    assert [f"{note.split()[0]} {note.partition('needs ')[2].rstrip('.')}" for note in found] == says
    assert not any("by its time" in note for note in load(aggregates=BY_HOUR, sinks=sinks).notes)


def test_a_note_names_the_columns_that_a_function_makes_more_sensitive() -> None:
    columns = "{id: {type: int64, sensitive: hmac}, name: {type: string, sensitive: redact}, plain: {type: string}}"
    steps = "[{apply: {function: 'm:f', columns: {id: int64, name: string, made: string, open: string}, sensitive: {open: none}}}]"
    found = load(contract=f"{{columns: {columns}}}", transform=steps, hmac_key="env:KEY").notes
    assert [note.partition(" is masked too: ")[2].partition(";")[0] for note in found if "the function sees" in note] == [
        "id (redact), made (redact)"
    ]


def test_a_quote_in_the_name_of_a_column_that_is_gone() -> None:
    contract = """{columns: {"a'; b": {type: int64}}}"""
    steps = """[{drop: ["a'; b"]}, {filter: '"a''; b" > 1'}]"""
    assert "transform[1].filter: at character 1: unknown column 'a'; b'; it was dropped by a transform step." in " ".join(
        problems(contract=contract, transform=steps)
    )


def test_what_is_masked_is_not_cut_into_ranges() -> None:
    contract = "{key: [id], columns: {id: {type: int64, sensitive: hmac}}}"
    ranges, plain = (f"[{{from: rows, parquet: {{path: r, partition_by: ['{by}']}}}}]" for by in ("range(id, 0, 10, 1)", "id"))
    key = "env:KEY"
    found = problems(contract=contract, sinks=ranges, hmac_key=key)
    assert [p for p in found if "partition_by" in p] == [
        "sinks[0].parquet.partition_by[0]: column 'id' is sensitive (hmac): it cannot name a directory"
    ]
    assert load(contract=contract, sinks=plain, hmac_key=key).spec.hmac_key == key


MADE = "[{apply: {function: 'm:f', columns: {made: string}, sensitive: {made: drop}}}]"


def test_what_a_step_declares_sensitive_is_said_and_names_nothing() -> None:
    batch, both = (" ".join(load(transform=MADE, **more).notes) for more in ({}, {"sources": BOTH}))
    sealed = " ".join(load(transform=MADE, sources=BOTH, dead_letters="{raw_key: 'env:KEY'}").notes)
    assert "There are sensitive columns (made): raw bytes of dead letters are left out" in batch
    assert ["does not start without dead_letters.raw_key" in notes for notes in (batch, both, sealed)] == [False, True, False]
    assert "(made): raw bytes of dead letters and of the archive are stored encrypted under env:KEY." in sealed
    sinks = "[{from: rows, parquet: {path: out, partition_by: [made]}}, {from: rows, pubsub: {topic: projects/p/topics/t, attributes: {a: made}}}]"
    assert [p.partition(": ")[2] for p in problems(transform=MADE, sinks=sinks)] == [
        "column 'made' is sensitive (drop): it cannot name a directory", "column 'made' is sensitive (drop): it is not written",
    ]  # fmt: skip


def test_an_arrival_that_is_sensitive_is_refused() -> None:
    secret = columns("came: {type: timestamp, sensitive: redact}, later: {type: timestamp, expr: 'came + INTERVAL 1 HOUR'}")
    for column in ("came", "later"):
        found = problems(contract=secret, sources=f"{{batch: [{{files: in.csv, format: csv, arrival: {{column: {column}}}}}]}}")
        assert found == [
            f"sources.batch[0].arrival.column: column {column!r} is sensitive: _arrival_time would show it in rows and dead letters"
        ]


def test_problems_in_the_shape_and_in_the_meaning_are_told_together() -> None:
    found = problems(
        checks="[{name: a, expr: 'q > 1'}, {name: b, expr: 'n > 1', severity: worn}]", deduplicate="{keeep: oldest, order_by: q}"
    )
    assert [p.split(":")[0] for p in found] == ["checks[0].expr", "checks[1].severity", "deduplicate", "deduplicate.order_by"]


def test_base_is_valid() -> None:
    assert load().path == "p.yaml"
    assert load().directory == str(Path.cwd())


@pytest.mark.parametrize(
    ("sections", "at"),
    [
        ({"deduplicate": "{within: 3600}"}, "deduplicate.within"),
        ({"retention": "{archive: 3600}"}, "retention.archive"),
        ({"aggregates": "{a: {windowing: {type: fixed, size: 3600}, measures: {n: count()}}}"}, "aggregates.a.windowing.size"),
    ],
)
def test_a_duration_without_a_unit_is_refused_and_not_taken_for_microseconds(sections: dict[str, str], at: str) -> None:
    found = problems(sources=BOTH, **sections)
    assert f"{at}: a duration is text with a unit, such as 3600s or 3600d; got the number 3600" in found


def test_python_code_gives_durations_in_microseconds() -> None:
    assert DeduplicateRule(within=3_600_000_000).within == DeduplicateRule.model_validate({"within": "1h"}).within


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("week(ts)", "unknown function 'week'"),
        ("'day(ts'", "the brackets do not match"),
    ],
)
def test_a_wrong_partition_has_its_place_and_hides_no_other_problem(by: str, says: str) -> None:
    """Also where batch and stream share the output, whose partitions are looked at once more."""
    found = problems(
        sources=BOTH, sinks=f"[{{from: rows, parquet: {{path: out, partition_by: [{by}]}}}}]", transform="[{filter: 'nn > 1'}]"
    )
    assert any(problem.startswith("sinks[0].parquet.partition_by[0]: ") and says in problem for problem in found), found
    assert any("'nn'" in problem for problem in found), found
