"""What may still be said of a rejected record whose values are secret: the kind of error, the place, the column, and nothing of its content.

A message is kept as far as it is one of the fixed sentences of the decoders, which hold numbers and no values; of all others only what
the reason code says anyway is left.
"""

from __future__ import annotations

import re

from beam_pipelines.arrow.contract import Contract

HIDDEN = "(hidden: there are sensitive columns)"
_WITHOUT_VALUES = frozenset({"REQUIRED", "LATE", "TOO_LARGE", "SINK"})  # reasons whose messages never quote the row
_SENTENCES = {
    "DECODE": "the record cannot be read",
    "TYPE": "the value has the wrong type",
    "CAST": "the value does not convert",
    "TIME": "the local time does not exist, or exists twice",
    "FUTURE": "the time lies too far after the arrival",
    "UNKNOWN_COLUMN": "the record holds what the contract does not name",
    "EXPRESSION": "an expression fails on the row",
    "APPLY": "the function raises on the row",
    "CHECK": "the row fails",
    "FILE": "the file cannot be read from here on",
}
_FIXED = tuple(
    (re.compile(pattern, re.DOTALL), template)
    for pattern, template in (
        (r"not a JSON record: nested more than \d+ deep", r"\g<0>"),
        (r"not a JSON record: not UTF-8: [a-z ]+ at byte \d+", r"\g<0>"),
        (r"not a JSON record: [A-Za-z ,':\\]+ at character \d+", r"\g<0>"),
        (r"not a JSON record: -?(?:NaN|Infinity) is no JSON value", r"\g<0>"),
        (r"not a JSON record: the name \".*\" occurs twice in one object", "not a JSON record: a name occurs twice in one object"),
        (r"not a JSON record: got (\w+)\b.*; expected a JSON object", r"not a JSON record: got \1; expected a JSON object"),
        (r"an empty element; expected an object", r"\g<0>"),
        (r"got \d+ fields; expected \d+", r"\g<0>"),
        (r"a quoted field is opened and never closed", r"\g<0>"),
        (r"the line does not match the pattern .*", r"\g<0>"),
        (r".*: got a text that is not UTF-8 \(byte (\d+)\); expected UTF-8", r"got a text that is not UTF-8 (byte \1)"),
        (r"'utf-8' codec can't decode bytes? .* in position (\d+)(?:-\d+)?: [a-z ]+", r"not UTF-8 at byte \1"),
        (r"a value does not fit its column\b", r"\g<0>"),
        (r"a value is not valid\b", r"\g<0>"),
        (r"(corrupt \w+ file near byte \d+): .*(; of what it unpacks to, nothing from byte \d+ on was read), because .*", r"\1\2"),
        (r"(?:truncated|corrupt) \w+ file(?:: it ends in mid-data after \d+ bytes| near byte \d+)", r"\g<0>"),
        (r"truncated: the block at byte \d+ ends in mid-data at byte \d+", r"\g<0>"),
        (r"corrupt block at byte \d+", r"\g<0>"),
        (r"block at byte \d+ too large", r"\g<0>"),
        (r"(?:row group|stripe) \d+: rows \d+ to \d+ cannot be read", r"\g<0>"),
        (r"rows \d+ to \d+ cannot be read", r"\g<0>"),
        (r"not a(?:n Avro| readable Parquet| readable ORC) file", r"\g<0>"),
        (r"(?:header|the header cannot be read|the schema cannot be read)\b", r"\g<0>"),
    )
)


def quiet(message: str, *, reason: str, column: str, contract: Contract) -> str:
    """`message` without what it may quote of the row: a fixed sentence, else what the reason code says, with the column and its type.

    >>> quiet("got 3 fields; expected 5", reason="DECODE", column="", contract=Contract(columns={"a": {"type": "int32"}}))
    'got 3 fields; expected 5'
    """
    if reason in _WITHOUT_VALUES or column in contract.columns.keys() - contract.sensitive.keys():
        return message
    for pattern, template in _FIXED if reason in ("DECODE", "FILE") else ():
        found = pattern.match(message)
        if found is not None:
            said = found.expand(template)
            return said if found.end() == len(message) else f"{said} {HIDDEN}"
    known = contract.columns.get(column)
    sentence = _SENTENCES.get(reason, "the row was refused")
    if known is not None and reason in ("TYPE", "CAST"):
        sentence = f"the value is no {known.type}"
    return f"{column}: {sentence} {HIDDEN}" if known is not None else f"{sentence} {HIDDEN}"
