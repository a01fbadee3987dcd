"""Printing: results of queries, runs, ledgers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

import click
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import COLUMN_RULES
from beam_pipelines.cli.tables import clean, grid, json_text, table_lines, values, width_of
from beam_pipelines.sinks.results import RunResults

_COLORS = {"dead": "yellow", "pass": "green", "success": "green", "warn": "yellow", "fail": "red", "failed": "red"}


def show_table(table: pa.Table, *, style: str, limit: int, out: TextIO, wide: bool = False) -> None:
    """A result as a table for people, as CSV, or as one JSON array; `wide`: the table shows every value and column whole."""
    if style == "csv":
        _write_csv(table, out)
    elif style == "json":
        columns = [values(column) for column in table.columns]
        rows = (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))
        out.write("[" + ",\n ".join(map(json_text, rows)) + "]\n")
    else:
        lines = table_lines(table, width=width_of(out), limit=limit, wide=wide)
        out.write("\n".join(lines) + "\n")
        if table.num_rows > limit:
            out.write(f"... {table.num_rows - limit:,} more rows; --limit shows more\n")


def _write_csv(table: pa.Table, out: TextIO) -> None:
    """CSV with NULL as an empty field and an empty text as "" (DuckDB writes it so); nested values as JSON, instants as ISO 8601 in UTC."""
    import tempfile

    import duckdb

    plain = pa.Table.from_arrays([_flat(column) for column in table.columns], names=table.column_names)
    with tempfile.NamedTemporaryFile(suffix=".csv") as file, duckdb.connect(":memory:") as connection:
        connection.register("answer", plain)
        connection.execute(f"COPY answer TO '{file.name}' (FORMAT csv, HEADER)")
        with open(file.name, encoding="utf-8", newline="") as written:
            shutil.copyfileobj(written, out)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as types that CSV can hold without a second thought."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        texts = pc.strftime(column.cast(pa.timestamp(kind.unit, "UTC")), format="%Y-%m-%dT%H:%M:%SZ")
        return pc.replace_substring_regex(texts, r"\.?0*Z$", "Z") if kind.unit != "s" else texts
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_interval(kind):
        return pa.chunked_array([pa.array([None if v is None else _as_text(v) for v in values(column)], pa.string())])
    return column


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else json_text(value)


def show_run(run: RunResults, *, state: str, out: TextIO | None = None) -> None:
    """A run for people: how it ended, where the results lie, what became of every row, what the checks found."""
    about = run.metadata
    read = sum(line.read for line in run.ledger)
    rate = (
        f", {read / about.elapsed_s:,.0f} rows/s" if about.elapsed_s and not _streams(run) else ""
    )  # a stream's ledger is of all its starts
    say = _Printer(out)
    say(f"{click.style(about.pipeline, bold=True)}: {_colored(run.status)} in {about.elapsed_s:.1f} s{rate}")
    for failure in run.failures:
        say(f"  {click.style('failed', fg='red')}: {clean_lines(failure)}")
    if run.failures:
        say(
            "What is stored stays; the next start goes on from there."
            if _streams(run)
            else "Nothing was committed: the outputs are as they were."
        )
    if run.kept_letters is not None:
        say(
            f"Its {run.kept_letters.rows:,} dead letters are kept in {clean(run.kept_letters.folder)}: "
            f"beam-pipelines dlq inspect {clean(about.spec)} --run {about.run_id}"
        )
    say.lines(_outputs(run))
    say.lines(_ledger(run))
    say.lines(_checks(run))
    say("")
    if about.range is not None:
        say(f"range [{about.range[0]}, {about.range[1]}), from the {'archive' if about.input == 'archive' else 'batch sources'}")
    say(f"run {about.run_id}, contract {about.contract}, record {state}/runs/{about.run_id}.json")


class _Printer:
    """Writes lines; colors only where they are seen."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out

    def __call__(self, line: str) -> None:
        click.echo(line, file=self._out)

    def lines(self, lines: Sequence[str]) -> None:
        if lines:
            self("")
        for line in lines:
            self(line)


def clean_lines(text: str) -> str:
    """A sentence of several lines, each safe to print."""
    return "\n  ".join(clean(line) for line in text.splitlines())


def _colored(word: str) -> str:
    return click.style(word, fg=_COLORS.get(word))


def _outputs(run: RunResults) -> list[str]:
    rows = [
        (o.name, f"{o.rows:,}", f"{o.files:,}", f"{o.bytes / 1e6:,.1f}", f"{len(o.partitions):,}" if o.partitions else "-", clean(o.path))
        for o in run.outputs
    ]
    return grid(["output", "rows", "files", "MB", "partitions", "path"], rows, right=[False, True, True, True, True]) if rows else []


def _ledger(run: RunResults) -> list[str]:
    """What became of the rows, as counted at each door: one line for each output of rows."""
    lines = run.ledger
    read, filtered, dead = sum(i.read for i in lines), sum(i.filtered for i in lines), sum(i.dead for i in lines)
    duplicate, outside = sum(i.duplicate for i in lines), sum(i.outside for i in lines)
    balance = "DOES NOT BALANCE" if any("balance" in f for f in run.failures) else "balances"
    word = "passed" if run.status == "failed" and not _streams(run) else "good"
    rest = f"{dead:,} dead + {duplicate:,} duplicate + {filtered:,} filtered" + (f" + {outside:,} outside" if outside else "")
    found = []
    for name in _outputs_of_rows(run) or [""]:
        good = (
            sum(i.written.get(name, 0) for i in lines) if name else read - filtered - dead - duplicate - outside
        )  # without a sink of rows nothing counts them
        refused = sum(i.refused.get(name, 0) for i in lines)
        opened = read - good - refused - dead - duplicate - filtered if _streams(run) else 0
        still = f" + {opened:,} open" if opened > 0 else ""
        found.append(
            f"ledger   {read:,} read = {good:,} {word} + {f'{refused:,} refused by {name} + ' if refused else ''}{rest}{still}   ({balance})"
        )
    reasons = sorted(run.dead_letters.items(), key=lambda e: -e[1])
    return found + ([f"dead     {', '.join(f'{n:,} {reason}' for reason, n in reasons)}"] if reasons else [])


def _streams(run: RunResults) -> bool:
    return run.metadata.mode == "stream"


def _outputs_of_rows(run: RunResults) -> list[str]:
    """Names of the outputs of rows; in a failed run, which committed nothing, those that were staged."""
    names = {name for line in run.ledger for name in (*line.written, *line.refused)}
    return sorted(n for n in names if n == "rows" or n.startswith("rows_"))


def _checks(run: RunResults) -> list[str]:
    rows = []
    for check in run.checks:
        detail = check.message or (
            f"{check.failing:,} of {check.rows:,} rows read {'fails' if check.failing == 1 else 'fail'} it"
            if check.failing and check.rows
            else check.observed
        )
        word = "dead" if check.failing and check.severity == "dead_letter" else check.status  # its rows are gone, not only warned of
        rows.append((_colored(word), check.name, detail))
    judged = {c.name for c in run.checks}
    rules = [(n, c) for n, c in sorted(run.failing_rows.items()) if n not in judged and n.rpartition(".")[2] in COLUMN_RULES]
    rows += [(_colored("dead"), n, f"{c:,} {'row fails' if c == 1 else 'rows fail'} it") for n, c in rules]
    rows += [(_colored(t.status), t.name, f"{t.share:.2%} of the rows read; at most {t.most:.2%} allowed") for t in run.thresholds]
    size = max((len(name) for _, name, _ in rows), default=0)
    return [f"{word}  {name.ljust(size)}  {detail}".rstrip() for word, name, detail in rows]
