"""A proposal as YAML for people: the spec with its reasons as comments, and a first test."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from beam_pipelines.cli.look import Look, Number
from beam_pipelines.cli.propose import Proposal, Proposed

_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_COMMENT_AT = 48


def pipeline_name(path: str) -> str:
    """A name for a pipeline from the name of a file."""
    stem = os.path.basename(path.rstrip("/")).split(".")[0].lower()
    name = re.sub(r"[^a-z0-9_-]+", "_", stem).strip("_-")
    return (name if name[:1].isalpha() and name[:1].isascii() else f"p_{name}" if name else "pipeline")[:63]


def spec_yaml(proposal: Proposal, *, name: str, source: str) -> str:
    """The spec; `source` is the one it reads, as YAML."""
    look = proposal.look
    partition = f", partition_by: [{_day(proposal.event_time)}]" if proposal.event_time else ""
    lines = [
        f"# Proposed by `beam-pipelines init` from {_sample(look)}.",
        f"# It knows what the {'table' if look.format['type'] == 'database' else 'file'} shows, not what it means: look at key, event_time and required before anything else.",
        "spec: 1",
        f"pipeline: {name}",
        "# time_zone: Europe/Berlin              # zone of times without an offset; default UTC",
        "parameters:",
        "  lake: {type: path, default: lake, description: where outputs go}",
        "contract:",
        *_identity(proposal),
        "  unknown_columns: keep                 # keep (as JSON in _unknown) | drop | dead_letter | fail",
        "  columns:",
        *_columns(proposal.columns),
        "sources:",
        f"  batch: [{source}]",
        *_checks(proposal),
        *_deduplicate(proposal),
        "sinks:",
        f'  - {{from: rows, parquet: {{path: "${{lake}}/{name}"{partition}}}}}',
        '  - {from: dead_letters, parquet: {path: "${lake}/dead_letters"}}',
    ]
    return "\n".join(lines) + "\n"


def files_source(look: Look, files: Sequence[str]) -> str:
    """The source of files like the one looked at; `files` are the patterns as they stand in the spec."""
    return f"{{files: {_patterns(files)}, format: {_format(look.format)}{_compression(look)}}}"


def _day(column: str) -> str:
    entry = f"day({column})"
    return entry if re.fullmatch(r"\w+", column) else json.dumps(entry, ensure_ascii=False)


def _sample(look: Look) -> str:
    parts = (
        f"{'all' if look.whole else 'the first'} {look.rows:,} record{'s' * (look.rows != 1)} of {_one_line(os.path.basename(look.path))}"
    )
    return parts + (f" ({look.broken:,} more could not be read: dead letters)" if look.broken else "")


def _identity(proposal: Proposal) -> list[str]:
    lines = []
    if proposal.key:
        several = "these columns tell" if len(proposal.key) > 1 else "it tells"
        why = "the primary key" if proposal.primary else f"in the sample {several} all records apart"
        lines.append(_commented(f"  key: [{', '.join(map(quoted, proposal.key))}]", why))
    else:
        lines.append("  # key: [...]                          # what identifies a thing; `deduplicate` needs it")
    if proposal.event_time:
        lines.append(f"  event_time: {quoted(proposal.event_time)}")
    else:
        lines.append("  # event_time: ...                     # when a thing happened; windows and days need it")
    return lines


def _columns(columns: Sequence[Proposed]) -> list[str]:
    usable = [c for c in columns if c.rules is not None]
    size = max((len(quoted(c.name)) for c in usable), default=0)
    lines = []
    for column in columns:
        if column.rules is None:
            lines.append(f"    # {_one_line(column.name)}: {'; '.join(column.notes)}; it is kept as JSON in _unknown")
            continue
        text = f"    {quoted(column.name)}:{' ' * (size - len(quoted(column.name)))} {flow(column.rules)}"
        lines.append(_commented(text, "; ".join(map(_one_line, column.notes))) if column.notes else text)
    return lines


def _checks(proposal: Proposal) -> list[str]:
    numbers = [c for c in proposal.good if re.match(r"u?int|decimal|float", c.kind) and c.name not in proposal.key]
    number = next((c.name for c in sorted(numbers, key=lambda c: "int" in c.kind)), None)
    expr = json.dumps(f"{_sql_name(number)} >= 0", ensure_ascii=False) if number else '"amount >= 0"'
    example = f"  # - {{name: not_negative, expr: {expr}}}   # any SQL over a row; NULL passes"
    if proposal.look.rows:
        return ["checks:", "  - {name: some_rows, row_count: {min: 1}}", example]
    return ["# checks:", example]


def _deduplicate(proposal: Proposal) -> list[str]:
    if not proposal.key:
        return []
    if proposal.repeated_rows:
        return [_commented("deduplicate: {}", _repeats(proposal.repeated_rows))]
    return (
        ["# deduplicate: {within: 2d}             # copies of a key within two days of event time are one"] if proposal.event_time else []
    )


def _repeats(rows: int) -> str:
    return f"{rows:,} records of the sample repeat another" if rows > 1 else "one record of the sample repeats another"


def _sql_name(name: str) -> str:
    from beam_pipelines.arrow.expressions import ExpressionError, check_expression

    quoted_name = '"' + name.replace('"', '""') + '"'
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return quoted_name
    try:
        check_expression(f"{name} >= 0", {name: "BIGINT"})
    except ExpressionError:  # a keyword
        return quoted_name
    return name


def _patterns(files: Sequence[str]) -> str:
    return quoted(files[0]) if len(files) == 1 else f"[{', '.join(map(quoted, files))}]"


def _format(fmt: Mapping[str, Any]) -> str:
    return str(fmt["type"]) if len(fmt) == 1 else flow(fmt)


def _compression(look: Look) -> str:
    from beam_pipelines.formats.compression import codec_of

    return f", compression: {look.compression}" if look.compression and codec_of(look.path) != look.compression else ""


def _commented(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_AT)}  # {comment}"


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def flow(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(str(k))}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, str):
        return (
            value
            if _PLAIN_KEY.fullmatch(value) and value.lower() not in _WORDS
            else json.dumps(value.replace("${", "$${"), ensure_ascii=False)
        )
    return json.dumps(value, ensure_ascii=False)


def quoted(text: str) -> str:
    """A text as a YAML key or value, in quotes where it needs them; `${` is no parameter."""
    return text if _PLAIN_KEY.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)


def tests_yaml(proposal: Proposal, *, spec: str) -> str | None:
    """One test from the first record: it comes out, and nothing is refused. None where the format holds no texts."""
    if not proposal.look.first:
        return None
    record = proposal.look.first[0]
    shown = {c.name: c.values[0] for c in proposal.good if c.kind in ("string", "int64") and c.values and c.values[0] is not None}
    named = {n: _expected(v, proposal, n) for n, v in list(shown.items())[:3]}
    return "\n".join(
        [
            f"# Given these records, expect those rows: `beam-pipelines test {spec}`.",
            "tests:",
            "  - name: the first record of the sample comes out",
            "    given:",
            f"      - {flow(record)}",
            "    expect:",
            f"      rows: [{flow(named)}]",
            "      dead_letters: []",
            "",
        ]
    )


def _expected(value: Any, proposal: Proposal, name: str) -> Any:
    kind = next(c.kind for c in proposal.good if c.name == name)
    return int(str(value)) if kind == "int64" else value
