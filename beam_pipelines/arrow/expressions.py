"""One SQL expression over one row: parsed by DuckDB's own parser, resolved against columns, and type-checked.

An expression names columns that exist, calls pure functions only, and gives one value. It is refused, with the character where
it goes wrong, if it is more than one expression, a subquery, a star, a window or aggregate function, not deterministic, or
reaches files, network or settings. Nothing here touches a row; DuckDB is imported on first use.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from beam_pipelines.arrow.functions import CLOCK_WORDS, LAMBDA_TAKERS, refused
from beam_pipelines.arrow.sql_messages import binder_message, first_line, lone_fault, parser_message, shown
from beam_pipelines.errors import SpecError, nearest

if TYPE_CHECKING:
    import duckdb

Kind = Literal["row", "boolean", "aggregate-arg"]
Node = dict[str, Any]
_SELECT = "SELECT "
_NOWHERE = 2**63
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Expression:
    """A checked expression. `type` is its DuckDB type, None if a column of unknown type takes part; `references` are the columns it
    names, as they were declared, in order of first use."""

    sql: str
    type: str | None
    references: tuple[str, ...]


class Fault(NamedTuple):
    """What is wrong with a text at the character `offset` (from 0); the `column` that it names and nobody knows, if that is what is wrong."""

    offset: int
    message: str
    column: str | None = None


class ExpressionError(SpecError):
    """An expression is wrong; `faults` says where and why, all of it that could be found."""

    def __init__(self, message: str, *, hint: str = "", sql: str = "", faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.sql = sql
        self.faults = faults

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.message, self.hint, self.sql, self.faults))


def check_expression(sql: str, columns: Mapping[str, str | None], *, kind: Kind = "row") -> Expression:
    """`sql` checked against `columns` (name to DuckDB type, None where the type is unknown until the run).

    `kind` is what the expression is for: any value of a `row`, a `boolean` condition, or the argument of a measure
    (`aggregate-arg`). Raises ExpressionError.

    >>> check_expression('distance / (air_time / 60.0)', {'distance': 'INTEGER', 'air_time': 'SMALLINT'})
    Expression(sql='distance / (air_time / 60.0)', type='DOUBLE', references=('distance', 'air_time'))
    """
    with _LOCK:
        walk = _Walk(sql, columns)
        root = walk.parse()
        if root is not None:
            walk.visit(root, frozenset())
        found = None if walk.faults else walk.type()
    if not walk.faults and kind == "boolean" and found not in (None, "BOOLEAN"):
        walk.fault(0, f"the expression has type {shown(str(found))}; expected BOOLEAN, a condition such as x > 0")
    if walk.faults:
        faults = tuple(dict.fromkeys(sorted(walk.faults)))
        text = "; ".join(f"at character {f.offset + 1}: {f.message}" for f in faults)
        end = "" if text.endswith("?") else "."
        raise ExpressionError(f"expression {_short(sql)}: {text}{end}", sql=sql, faults=faults)
    return Expression(sql, found, tuple(walk.references))


def converts(value: object, sql_type: str) -> bool:
    """Whether DuckDB converts the text of `value` to `sql_type`."""
    with _LOCK:
        row = connection().execute(f"SELECT TRY_CAST(? AS {sql_type}) IS NOT NULL", [str(value)]).fetchone()
    return bool(row and row[0])


def regex_fault(pattern: str) -> str | None:
    """Why RE2 refuses `pattern`; None where it takes it."""
    return _tried("SELECT regexp_full_match('', ?)", pattern)


def strptime_fault(pattern: str) -> str | None:
    """Why DuckDB's strptime refuses `pattern`; None where it takes it."""
    return _tried("SELECT try_strptime('', ?)", pattern)


@lru_cache(maxsize=1)
def connection() -> duckdb.DuckDBPyConnection:
    """The process's one DuckDB connection for validation: one thread, no files, no network, locked."""
    import duckdb

    settings: dict[str, Any] = {"threads": 1, "enable_external_access": False, "autoload_known_extensions": False,
                                "autoinstall_known_extensions": False}  # fmt: skip
    opened = duckdb.connect(":memory:", config=settings)
    opened.execute("SET TimeZone = 'UTC'; SET lock_configuration = true")
    return opened


def _tried(sql: str, value: str) -> str | None:
    import duckdb

    try:
        with _LOCK:
            connection().execute(sql, [value]).fetchall()
    except duckdb.Error as error:
        return first_line(error)
    return None


@dataclass
class _Walk:
    """One expression on its way through the checks."""

    sql: str
    columns: Mapping[str, str | None]
    faults: list[Fault] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)
    calls: dict[str, list[int]] = field(default_factory=dict)
    typed: bool = True
    folded: dict[str, str] = field(init=False)
    encoded: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        self.folded = {name.lower(): name for name in self.columns}
        self.encoded = None if self.sql.isascii() else self.sql.encode()

    def fault(self, offset: int, message: str, column: str | None = None) -> None:
        self.faults.append(Fault(offset, message, column))

    def at(self, node: Node) -> int:
        """The character at which `node` starts."""
        location = node.get("query_location", _NOWHERE)
        return 0 if location >= _NOWHERE else self.character(location - len(_SELECT))

    def character(self, byte: int) -> int:
        byte = min(max(byte, 0), len(self.encoded or self.sql))
        return byte if self.encoded is None else len(self.encoded[:byte].decode(errors="ignore"))

    def parse(self) -> Node | None:
        """The expression's tree; None, and a fault, if the text is not exactly one expression."""
        if not self.sql.strip():
            self.fault(0, "the expression is empty")
            return None
        row = connection().execute("SELECT json_serialize_sql(?)", [_SELECT + self.sql]).fetchone()
        assert row is not None
        try:
            tree = json.loads(row[0])
        except RecursionError:
            self.fault(0, "the expression is nested too deeply")
            return None
        if tree["error"]:
            offset = self.character(int(tree.get("position", 0)) - len(_SELECT))
            lone = lone_fault(self.sql)
            if lone is not None and ";" in lone[1]:
                self.fault(*lone)
            else:
                self.fault(offset, parser_message(tree["error_message"], self.sql, offset) + self.keyword_hint(offset))
            return None
        return self.only(tree["statements"])

    def keyword_hint(self, offset: int) -> str:
        """What to do if the text fails to parse next to a column whose name is a keyword."""
        before, after = re.search(r"(\w+)\s*$", self.sql[:offset]), re.match(r"\w+", self.sql[offset:])
        for word in (m.group(0).strip() for m in (before, after) if m):
            if word.lower() in self.folded and _is_keyword(word):
                return f'; a column named like a SQL keyword is written in double quotes: "{self.folded[word.lower()]}"'
        return ""

    def only(self, statements: list[Node]) -> Node | None:
        lone = lone_fault(self.sql)
        if lone is not None:
            self.fault(*lone)
            return None
        if len(statements) != 1:
            self.fault(0, "got more than one statement; expected one expression")
            return None
        node = statements[0]["node"]
        plain = node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY" and not _clauses(node)
        if not plain:
            self.fault(0, "got a query; expected one expression over the row's columns")
            return None
        items = node["select_list"]
        if len(items) != 1:
            self.fault(self.at(items[1]), f"got {len(items)} expressions; expected one")
            return None
        if self.sql.rstrip().endswith(",") or items[0].get("alias"):
            self.fault(0, "got a comma or a name after the expression; expected the expression alone")
            return None
        root: Node = items[0]
        return root

    def visit(self, node: Any, scope: frozenset[str]) -> None:
        """Checks `node` and everything below; `scope` holds the parameters of the lambdas around it."""
        if isinstance(node, list):
            for item in node:
                self.visit(item, scope)
        elif isinstance(node, dict):
            visitor = getattr(self, f"visit_{str(node.get('class', '')).lower()}", self.below)
            visitor(node, scope)

    def below(self, node: Node, scope: frozenset[str]) -> None:
        for value in node.values():
            if isinstance(value, (dict, list)):
                self.visit(value, scope)

    def visit_type(self, node: Node, scope: frozenset[str]) -> None:
        """A type's own parts are no expressions."""

    def visit_constant(self, node: Node, scope: frozenset[str]) -> None:
        """A constant is always fine."""

    def visit_subquery(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(
            self.at(node),
            "a subquery (or ANY/ALL/EXISTS) is refused: an expression sees one row. For a list use list_contains; for a table a lookup",
        )

    def visit_star(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(self.at(node), "a star is refused: name the columns")

    def visit_window(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(self.at(node), f"{node.get('function_name') or 'OVER'}: a window function is refused: an expression sees one row")

    def visit_parameter(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(self.at(node), "a placeholder ($1, ?) is refused: use ${parameter} of the spec")

    def visit_positional_reference(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(self.at(node), "a positional reference (#1) is refused: name the column")

    def visit_default(self, node: Node, scope: frozenset[str]) -> None:
        self.fault(self.at(node), "DEFAULT is a keyword; quote it if it is a column's name")

    def visit_column_ref(self, node: Node, scope: frozenset[str]) -> None:
        names: list[str] = node["column_names"]
        first = names[0].lower()
        if first in scope:
            return
        declared = self.folded.get(first)
        if declared is not None:
            self.references[declared] = None
            self.typed &= self.columns[declared] is not None
            return
        if first in CLOCK_WORDS:
            self.fault(self.at(node), f"{names[0]} is not deterministic: the same row must always give the same answer")
        else:
            self.fault(self.at(node), self.unknown(names), names[0])

    def unknown(self, names: list[str]) -> str:
        first, dotted = names[0], ".".join(names)
        if dotted.lower() in self.folded:
            return f"unknown column '{first}'; a name with a dot is written in double quotes: \"{self.folded[dotted.lower()]}\""
        if "$" in first:
            return f"unknown column '{first}': names with '$' are internal"
        if first.startswith("_"):
            return f"unknown column '{first}': expressions see declared and computed columns, not provenance. {_known(first, self.columns)}"
        return f"unknown column '{first}'; {_known(first, self.columns)}"

    def visit_function(self, node: Node, scope: frozenset[str]) -> None:
        name: str = node["function_name"]
        arguments: list[Node] = node.get("arguments") or []
        self.calls.setdefault(name.lower(), []).append(self.at(node))
        why = refused(name, len(arguments), connection())
        if node.get("schema") or node.get("catalog"):
            why = why or f"{node['schema']}.{name}: write the function's name alone"
        if why is not None:
            self.fault(self.at(node), why)
        elif node.get("distinct") or node.get("filter") or node.get("order_bys", {}).get("orders"):
            self.fault(self.at(node), f"{name}: DISTINCT, FILTER and ORDER BY belong to aggregates; a row expression sees one row")
        for argument in arguments:
            inner = argument.get("expression", argument)
            if inner.get("class") == "LAMBDA" and inner.get("syntax_type") == "SINGLE_ARROW" and name.lower() in LAMBDA_TAKERS:
                self.fault(self.at(inner), "write a lambda as: lambda x: x + 1")
            else:
                self.visit(inner, scope)
        self.regex_constant(name, arguments)
        if name in _ARITHMETIC and len(arguments) > 1:
            self.arithmetic([a.get("expression", a) for a in arguments], scope)

    def arithmetic(self, sides: list[Node], scope: frozenset[str]) -> None:
        """Refuses a text beside a number: it would be read as a number on every row, and is none."""
        kinds = [self.simple(side, scope) for side in sides]
        for side, kind, other in zip(sides, kinds, reversed(kinds), strict=True):
            number = other is not None and family(other) == "number"
            if number and kind == "VARCHAR" and side.get("class") == "CONSTANT" and not converts(side["literal"]["text"], "DOUBLE"):
                self.fault(self.at(side), f"'{side['literal']['text']}' is no number")

    def regex_constant(self, name: str, arguments: list[Node]) -> None:
        if name.lower().startswith("regexp_") and name.lower() != "regexp_escape" and len(arguments) > 1:
            pattern = arguments[1].get("expression", arguments[1])
            if pattern.get("class") == "CONSTANT" and pattern["literal"]["kind"] == "STRING":
                why = regex_fault(pattern["literal"]["text"])
                if why is not None:
                    self.fault(self.at(pattern), f"not a regular expression RE2 knows: {why}")

    def visit_lambda(self, node: Node, scope: frozenset[str]) -> None:
        if node.get("syntax_type") == "SINGLE_ARROW":  # json -> '$.path'
            self.below(node, scope)
            return
        self.visit(node["expr"], scope | frozenset(_parameters(node["lhs"])))

    def visit_conjunction(self, node: Node, scope: frozenset[str]) -> None:
        for child in node.get("children", []):
            self.condition(child, scope)
        self.below(node, scope)

    def visit_operator(self, node: Node, scope: frozenset[str]) -> None:
        children = node.get("children", [])
        if node["type"] in ("GROUPING_FUNCTION", "OPERATOR_UNPACK"):
            self.fault(self.at(node), "grouping and unpacking need many rows or columns; an expression sees one row")
            return
        if node["type"] == "OPERATOR_NOT":
            self.condition(children[0], scope)
        if node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
            self.comparable(children[0], children[1:], scope)
        self.below(node, scope)

    def visit_comparison(self, node: Node, scope: frozenset[str]) -> None:
        self.comparable(node["left"], [node["right"]], scope)
        self.below(node, scope)

    def visit_between(self, node: Node, scope: frozenset[str]) -> None:
        self.comparable(node["input"], [node["lower"], node["upper"]], scope)
        self.below(node, scope)

    def visit_cast(self, node: Node, scope: frozenset[str]) -> None:
        child, kind = node["child"], self.simple(node, scope)
        constant = child.get("class") == "CONSTANT" and child["literal"]["kind"] == "STRING" and not node["try_cast"]
        if constant and kind is not None and not converts(child["literal"]["text"], kind):
            self.fault(self.at(node), f"'{child['literal']['text']}' is no {kind}")
        self.below(node, scope)

    def condition(self, node: Node, scope: frozenset[str]) -> None:
        """Refuses what DuckDB would silently read as a truth value."""
        kind = self.simple(node, scope)
        if kind is not None and kind not in ("BOOLEAN", "NULL"):
            self.fault(self.at(node), f"got {kind} where a condition is expected; compare it, such as x <> 0")

    def comparable(self, left: Node, others: list[Node], scope: frozenset[str]) -> None:
        """Refuses comparisons that DuckDB would settle by casting one side on every row."""
        for right in others:
            a, b = self.simple(left, scope), self.simple(right, scope)
            if a is None or b is None or not _clash(a, b):
                continue
            text, other = (left, b) if a == "VARCHAR" else (right, a)
            if "VARCHAR" in (a, b) and text.get("class") == "CONSTANT":
                value = text["literal"]["text"]
                if not converts(value, other):
                    self.fault(self.at(text), f"'{value}' is no {other}, the type it is compared with")
            else:
                self.fault(self.at(right), f"compares {a} with {b}; cast one side, such as CAST(x AS {b if a == 'VARCHAR' else a})")

    def simple(self, node: Node, scope: frozenset[str]) -> str | None:
        """The type of a column, a constant or a cast; None for anything else."""
        if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1 and node["column_names"][0].lower() not in scope:
            return self.columns.get(self.folded.get(node["column_names"][0].lower(), ""))
        if node.get("class") == "CONSTANT":
            return _LITERALS.get(node["literal"]["kind"])
        if node.get("class") == "CAST" and not node["type_expr"].get("children"):
            return str(node["type_expr"]["type_name"])
        return None

    def type(self) -> str | None:
        """The expression's type by DuckDB's binder; None, and perhaps a fault, where it has none."""
        import duckdb

        if not self.typed:
            return None
        slots = ", ".join(f'NULL::{self.columns[n]} AS "{n.replace(chr(34), chr(34) * 2)}"' for n in self.references) or '1 AS "_"'
        try:
            rows = connection().execute(f"DESCRIBE SELECT ({self.sql}) AS v FROM (SELECT {slots})").fetchall()
        except duckdb.ParserException:
            self.fault(0, "the expression does not stand in parentheses; end it without a comment")
            return None
        except duckdb.Error as error:
            self.fault(self.located(str(error)), binder_message(error))
            return None
        return str(rows[0][1])

    def located(self, message: str) -> int:
        """Where the function that a binder's message names stands in the text."""
        named = re.search(r"argument types '(.+?)\(", message)
        places = self.calls.get(named.group(1).lower(), []) if named else []
        return places[0] if len(places) == 1 else 0


_ARITHMETIC = frozenset("+ - * / // % **".split())
_LITERALS = {"INTEGER": "INTEGER", "NUMERIC": "DOUBLE", "STRING": "VARCHAR", "BOOLEAN": "BOOLEAN", "NULL_LITERAL": "NULL"}


def family(sql_type: str) -> str:
    """What values of a DuckDB type compare with: text, number, boolean, date, time, interval, binary or nested."""
    word = sql_type.split("(", maxsplit=1)[0]
    if sql_type.endswith("]") or word in ("STRUCT", "MAP", "TUPLE", "UNION", "list"):
        return "nested"
    if word in ("VARCHAR", "JSON", "UUID"):
        return "text"
    if word.startswith("TIMESTAMP") or word == "DATE":
        return "date"
    words = {"BOOLEAN": "boolean", "TIME": "time", "TIME WITH TIME ZONE": "time", "INTERVAL": "interval", "BLOB": "binary", "BIT": "binary"}
    return words.get(word, "null" if "NULL" in word else "number")


def _clash(a: str, b: str) -> bool:
    families = {family(a), family(b)}
    return len(families) > 1 and not families & {"null", "nested", "binary", "interval"}


def _is_keyword(word: str) -> bool:
    sql = "SELECT 1 FROM duckdb_keywords() WHERE keyword_name = ? AND keyword_category <> 'unreserved'"
    return connection().execute(sql, [word.lower()]).fetchone() is not None


def _clauses(node: Node) -> bool:
    several = node.get("modifiers") or node.get("group_expressions") or node["cte_map"]["map"]
    return bool(several or any(node.get(k) for k in ("where_clause", "having", "qualify", "sample")))


def _parameters(lhs: Node) -> Iterator[str]:
    if lhs.get("class") == "COLUMN_REF":
        yield lhs["column_names"][0].lower()
    for argument in lhs.get("arguments", []):
        yield from _parameters(argument["expression"])


def _known(name: str, columns: Mapping[str, object]) -> str:
    return nearest(name, columns).rstrip(".") if columns else "no column is there yet"


def _short(sql: str) -> str:
    text = " ".join(sql.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _rebuild(message: str, hint: str, sql: str, faults: tuple[Fault, ...]) -> ExpressionError:
    return ExpressionError(message, hint=hint, sql=sql, faults=faults)
