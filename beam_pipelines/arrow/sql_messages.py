"""What DuckDB's parser and binder say, as sentences for the author of an expression."""

from __future__ import annotations

import re

_QUOTED = re.compile(
    r"""[eE]'(?:\\.|[^'\\]|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$ | (?P<comment>--[^\n]*|/\*.*?\*/)""",
    re.DOTALL | re.VERBOSE,
)
_OPEN_WORDS = frozenset("AND OR NOT LIKE ILIKE IS IN BETWEEN CASE WHEN THEN ELSE AS SIMILAR".split())


def parser_message(message: str, sql: str = "", offset: int = 0) -> str:
    """Why the text `sql` does not parse at the character `offset`, from what the parser says."""
    if message.startswith("Max expression depth"):
        return "the expression is nested too deeply"
    if "without selection list" in message:
        return "expected an expression"
    token = re.search(r'syntax error at or near "(.*)"$', message, re.DOTALL)
    if token is None:
        return message
    text = plain_text(sql)
    if text.count("(") != text.count(")"):
        few, many = ("(", ")") if text.count("(") > text.count(")") else (")", "(")
        return f"a {few!r} has no {many!r}"
    if offset + len(token[1]) >= len(text.rstrip()) and _goes_on(token[1]):
        example = f"a value there, such as x {token[1]} y" if not token[1].isalpha() or token[1].upper() in ("AND", "OR") else "more"
        return f"the expression ends after {token[1]}; expected {'a type' if token[1] == '::' else example}"
    return message


def _goes_on(token: str) -> bool:
    """Whether something must follow the word or sign."""
    return token.upper() in _OPEN_WORDS or not re.search(r"[\w()\[\]?$'\"]", token)


def plain_text(sql: str) -> str:
    """`sql` of the same length, with x for what is in quotes and blanks for comments: what is left are words and signs."""
    return _QUOTED.sub(lambda m: (" " if m["comment"] else "x") * len(m[0]), sql)


def lone_fault(sql: str) -> tuple[int, str] | None:
    """Where and why `sql` cannot stand inside a longer statement: a semicolon, or a comment that would swallow what follows."""
    semicolon = plain_text(sql).find(";")
    if semicolon >= 0:
        return semicolon, "got ';', which ends a statement; expected one expression, without it"
    comments = [m for m in _QUOTED.finditer(sql) if (m["comment"] or "").startswith("--") and m.end() == len(sql)]
    if comments:
        return comments[0].start(), "the expression ends in a comment; write it without, or a line break after it"
    return None


def first_line(error: Exception) -> str:
    """The first line of an engine's message, without the kind of error."""
    text = str(error).split("\n", 1)[0]
    return re.sub(r"^[A-Z][A-Za-z ]+ Error: ", "", text).rstrip(".")


def binder_message(error: Exception) -> str:
    """Why a parsed expression has no type: a function that does not take these arguments, a struct without this field."""
    text = str(error)
    wrong = re.search(r"argument types '(.+?)\((.*?)\)'\.", text)
    if wrong is None:
        entries = re.search(r"Candidate Entries: (.+)", text)
        return first_line(error) + (f"; known: {entries.group(1)}" if entries else "")
    name, types = wrong.group(1), shown(wrong.group(2))
    if not re.search(r"\w", name) and ", " not in types:
        return f"{name} stands between two values, such as x {name} y; got one, {types}"
    if name == "&&":
        return f"&& does not take ({types}); two conditions are joined by AND"
    candidates = [c.strip() for c in re.findall(r"^\t(\S.*?) -> ", text.rsplit("Candidate functions:", maxsplit=1)[-1], re.MULTILINE)]
    takes = f"; it takes {' or '.join(c.replace(', /', '') for c in candidates)}" if 0 < len(candidates) <= 4 else "; cast an argument"
    return f"{name} does not take ({types}){takes}"


def shown(types: str) -> str:
    """Types as a user writes them."""
    return types.replace("INTEGER_LITERAL", "INTEGER").replace("STRING_LITERAL", "VARCHAR").replace('"NULL"', "NULL")
