"""Expressions: what is refused and where, what type the rest has, which columns it names."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.expressions import ExpressionError, Fault, check_expression, connection
from beam_pipelines.arrow.functions import PURE

COLUMNS = {
    "n": "INTEGER", "text": "VARCHAR", "ts": "TIMESTAMP", "day": "DATE", "flag": "BOOLEAN", "items": "INTEGER[]",
    "person": 'STRUCT("name" VARCHAR, "age" INTEGER)', "a.b": "INTEGER", "x y": "DOUBLE", "🎈": "INTEGER", "select": "INTEGER", "at": "DATE",
    'q"t': "INTEGER", "later": None,
}  # fmt: skip


def refusal(sql: str, kind: str = "row") -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        check_expression(sql, COLUMNS, kind=kind)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("sql", "kind", "references"),
    [
        ("n + 1", "INTEGER", ("n",)),
        ("N + 1", "INTEGER", ("n",)),
        ("n / 60.0", "DOUBLE", ("n",)),
        ("make_timestamp(n, n, n, n, n, 0)", "TIMESTAMP", ("n",)),
        ("ts > '2013-01-01' AND n IN (1, 2)", "BOOLEAN", ("ts", "n")),
        ("CASE WHEN flag THEN n ELSE 0 END", "INTEGER", ("flag", "n")),
        ("list_transform(items, lambda x: x + n)", "INTEGER[]", ("items", "n")),
        ("[x * 2 for x in items if x > n]", "INTEGER[]", ("items", "n")),
        ("person.name", "VARCHAR", ("person",)),
        ("text ->> '$.a'", "VARCHAR", ("text",)),
        ("text -> '$.a'", "JSON", ("text",)),
        ("nullif(n, 0)", "INTEGER", ("n",)),
        ("date_add(ts, INTERVAL 1 DAY)", "TIMESTAMP", ("ts",)),
        ("ts AT TIME ZONE 'America/New_York'", "TIMESTAMP WITH TIME ZONE", ("ts",)),
        ("n -- a comment in the middle; of it\n + 1", "INTEGER", ("n",)),
        ("text || E'\\';--' || ';' /* ; */ || $$;$$", "VARCHAR", ("text",)),
        ('"a.b" + "x y" + "🎈" + "select" + "q""t"', "DOUBLE", ("a.b", "x y", "🎈", "select", 'q"t')),
        ("TRY_CAST('x' AS INTEGER)", "INTEGER", ()),
        ("later + n", None, ("later", "n")),
    ],
)
def test_expression_has_the_type_duckdb_gives_it_and_names_its_columns(sql: str, kind: str | None, references: tuple[str, ...]) -> None:
    checked = check_expression(sql, COLUMNS)
    assert (checked.sql, checked.type, checked.references) == (sql, kind, references)


@pytest.mark.parametrize(
    ("sql", "offset", "says"),
    [
        ("", 0, "empty"),
        ("n, text", 3, "expected one"),
        ("n,", 0, "comma"),
        ("n total", 0, "name after the expression"),
        ("n; n", 1, "got ';', which ends a statement"),
        ("n;", 1, "got ';', which ends a statement"),
        ("later;", 5, "got ';', which ends a statement"),
        ("text || ';' || E'\\';' ;", 22, "got ';', which ends a statement"),
        ("1; SELECT 2", 1, "got ';', which ends a statement"),
        ("text ||", 5, "the expression ends after ||; expected a value there, such as x || y"),
        ("|| text", 0, "|| stands between two values, such as x || y; got one, VARCHAR"),
        ("flag AND", 5, "the expression ends after AND; expected a value there"),
        ("text LIKE", 5, "the expression ends after LIKE; expected more"),
        ("n::", 1, "the expression ends after ::; expected a type"),
        ("(n + 1", 5, "a '(' has no ')'"),
        ("n + 1)", 5, "a ')' has no '('"),
        ("flag && flag", 0, "two conditions are joined by AND"),
        ("n FROM t", 0, "a query"),
        ("n UNION SELECT 1", 0, "a query"),
        ("n ORDER BY 1", 0, "a query"),
        ("(SELECT 1)", 0, "subquery"),
        ("n IN (SELECT 1)", 5, "subquery"),
        ("n = ANY(items)", 0, "ANY"),
        ("*", 0, "star"),
        ("text.*", 0, "star"),
        ("COLUMNS('n')", 0, "star"),
        ("sum(n)", 0, "aggregates.<name>.measures"),
        ("1 + count(*)", 4, "count aggregates"),
        ("sum(n) OVER ()", 0, "window"),
        ("row_number() OVER ()", 0, "window"),
        ("now()", 0, "not deterministic"),
        ("random() < 0.5", 0, "not deterministic"),
        ("uuid()", 0, "not deterministic"),
        ("nextval('s')", 0, "not deterministic"),
        ("current_timestamp", 0, "not deterministic"),
        ("current_date - day", 0, "not deterministic"),
        ("age(ts)", 0, "reads the clock"),
        ("ago(INTERVAL 1 DAY)", 0, "depends on more than its row"),
        ("current_setting('x')", 0, "not deterministic"),
        ("getvariable('x')", 0, "not deterministic"),
        ("getenv('HOME')", 0, "depends on more"),
        ("current_user", 0, "not deterministic"),
        ("read_csv('x.csv')", 0, "no file or network"),
        ("read_text('x')", 0, "depends on more"),
        ("glob('*')", 0, "no file or network"),
        ("unnest(items)", 0, "gives rows"),
        ("json_serialize_sql('SELECT 1')", 0, "depends on more"),
        ("main.upper(text)", 0, "name alone"),
        ("$1", 0, "placeholder"),
        ("n + ?", 4, "placeholder"),
        ("#1", 0, "positional"),
        ("n$", 0, "internal"),
        ("_source", 0, "not provenance"),
        ("textt", 0, "did you mean 'text'"),
        ("uper(text)", 0, "did you mean 'upper'"),
        ("a.b", 0, 'in double quotes: "a.b"'),
        ("select + 1", 0, "double quotes"),
        ("at > 1", 3, 'in double quotes: "at"'),
        ("n +", 2, "the expression ends after +; expected a value there, such as x + y"),
        ("n n n", 4, "syntax error"),
        ("'abc", 0, "unterminated"),
        ("text + 1", 5, "does not take (VARCHAR, INTEGER)"),
        ("1 + upper(n)", 4, "it takes upper("),
        ("n + 'x'", 4, "no number"),
        ("person.height", 0, 'known: "'),
        ("n = 'late'", 4, "'late' is no INTEGER"),
        ("n BETWEEN 'a' AND 3", 10, "'a' is no INTEGER"),
        ("day IN ('2013-02-30')", 8, "is no DATE"),
        ("ts > '31.02.2013'", 5, "is no TIMESTAMP"),
        ("n = text", 4, "compares INTEGER with VARCHAR"),
        ("ts = 5", 5, "compares TIMESTAMP with INTEGER"),
        ("flag AND n", 9, "got INTEGER where a condition"),
        ("NOT text", 4, "got VARCHAR where a condition"),
        ("'now'::TIMESTAMP", 5, "'now' is no TIMESTAMP"),
        ("regexp_matches(text, '[')", 21, "RE2"),
        ("strptime(text, '%Q')", 0, "%Q"),
        ("list_transform(items, x -> x + 1)", 22, "lambda x: x + 1"),
        ("n -- and no more", 2, "ends in a comment"),
        ("later -- and no more", 6, "ends in a comment"),
        ("'🎈🎈' || textt", 8, "unknown column 'textt'"),
        ("(" * 1500 + "n" + ")" * 1500, 0, "nested too deeply"),
        ("||".join(["text"] * 900), 0, "nested too deeply"),
    ],
)
def test_expression_is_refused_at_the_character_where_it_goes_wrong(sql: str, offset: int, says: str) -> None:
    error = refusal(sql)
    assert [f for f in error.faults if f.offset == offset and says in f.message], error


def test_a_fault_has_the_column_that_nobody_knows() -> None:
    faults = refusal("""nn + "a'; b" + current_date + _position + nope(n) + xx$y""").faults
    assert [fault.column for fault in faults] == ["nn", "a'; b", None, "_position", None, "xx$y"], faults


def test_all_faults_of_an_expression_are_told_at_once() -> None:
    assert [f.offset for f in refusal("f(nn, now(), other)").faults] == [0, 2, 6, 13]


def test_a_condition_must_be_boolean() -> None:
    assert check_expression("n > 1", COLUMNS, kind="boolean").type == "BOOLEAN"
    assert "expected BOOLEAN" in str(refusal("n", "boolean"))


def test_errors_travel_between_processes() -> None:
    error = refusal("textt")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.faults, again.sql) == (str(error), error.faults, "textt")


def test_words_taken_as_pure_are_pure_by_the_engines_own_catalog() -> None:
    rows = connection().execute("SELECT DISTINCT lower(function_name), function_type, stability FROM duckdb_functions()").fetchall()
    kinds: dict[str, set[str]] = {}
    for name, kind, stability in rows:
        kinds.setdefault(name, set()).add(stability if kind == "scalar" else kind)
    assert [word for word in sorted(PURE) if "CONSISTENT" not in kinds.get(word, set()) or kinds[word] & {"VOLATILE", "aggregate"}] == []


def test_checking_reaches_no_file(tmp_path: object) -> None:
    settings = dict(
        connection()
        .execute("SELECT name, value FROM duckdb_settings() WHERE name IN ('enable_external_access', 'lock_configuration', 'threads')")
        .fetchall()
    )
    assert settings == {"enable_external_access": "false", "lock_configuration": "true", "threads": "1"}


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_an_expression_error(text: str) -> None:
    faults: tuple[Fault, ...] = (Fault(0, "none"),)
    references: tuple[str, ...] = ()
    try:
        references = check_expression(text, COLUMNS).references
    except ExpressionError as error:
        faults = error.faults
    assert faults
    assert all(0 <= f.offset <= len(text) for f in faults)
    assert set(references) <= set(COLUMNS)


@given(st.text(min_size=1, max_size=20).filter(lambda s: "\0" not in s and s.isprintable()))
def test_a_column_of_any_name_works_when_quoted(name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    assert check_expression(f"{quoted} + 1", {name: "BIGINT"}).references == (name,)
