"""What DuckDB's parser and binder say, as sentences for the author of an expression."""

from __future__ import annotations

import re


def parser_message(message: str) -> str:
    """Why a text does not parse."""
    if message.startswith("Max expression depth"):
        return "the expression is nested too deeply"
    if "without selection list" in message:
        return "expected an expression"
    return message


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
    candidates = [c.strip() for c in re.findall(r"^\t(\S.*?) -> ", text.rsplit("Candidate functions:", maxsplit=1)[-1], re.MULTILINE)]
    takes = f"; it takes {' or '.join(c.replace(', /', '') for c in candidates)}" if 0 < len(candidates) <= 4 else "; cast an argument"
    return f"{name} does not take ({types}){takes}"


def shown(types: str) -> str:
    """Types as a user writes them."""
    return types.replace("INTEGER_LITERAL", "INTEGER").replace("STRING_LITERAL", "VARCHAR").replace('"NULL"', "NULL")
