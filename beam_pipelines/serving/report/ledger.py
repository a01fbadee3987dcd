"""The part of the page that says what became of every row: the picture, aggregates, sources."""

from __future__ import annotations

import os.path
from collections.abc import Sequence

from beam_pipelines.serving.report.charts import meter
from beam_pipelines.serving.report.flow import Node, flow
from beam_pipelines.serving.report.markup import Html, cut, cut_front, number, share, tag
from beam_pipelines.serving.report.tables import note, rest, section, table
from beam_pipelines.serving.report.verdict import Balance, balances, late_of, read_by, reasons_before_outputs, streams
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.results import RunResults

_SOURCES_DRAWN, _SOURCES_LISTED, _REASONS_DRAWN, _AGGREGATES = 12, 40, 6, 40


def ledger_section(run: RunResults) -> Html:
    """From the sources to the doors."""
    read = read_by(run)
    if not read:
        return section(
            "ledger", "What became of the rows", tag("p", "Nothing was counted: no row was read, or the run failed before it could count.")
        )
    first = balances(run)[0]
    lines = [line for line in run.ledger if line.read or line.source]
    return section(
        "ledger", "What became of the rows", flow(read, _sources(lines), _doors(run, first)), *_aggregates(run, read), *_by_source(run, lines, first)
    )  # fmt: skip


def _sources(lines: Sequence[Line]) -> list[Node]:
    common = os.path.commonprefix([line.source for line in lines]).rpartition("/")[0]  # noqa: RUF071  # up to a slash, also in URLs
    found = [Node(cut_front(line.source[len(common) :].lstrip("/"), 80) or "(no source)", line.read, "read") for line in lines if line.read]
    if len(found) <= _SOURCES_DRAWN:
        return found
    largest = sorted(found, key=lambda node: -node.rows)
    kept, others = largest[: _SOURCES_DRAWN - 1], largest[_SOURCES_DRAWN - 1 :]
    return [*sorted(kept, key=lambda node: node.name), Node(f"{len(others):,} other sources", sum(n.rows for n in others), "read")]


def _doors(run: RunResults, balance: Balance) -> list[Node]:
    """The doors; `dead` by reason where the reasons are of as many rows. A row may have letters of several reasons in a stream."""
    reasons = reasons_before_outputs(run)
    nodes: list[Node] = []
    for name, rows, kind in balance.doors():
        if kind == "dead" and sum(reasons.values()) == rows:
            drawn = list(reasons.items())
            few = drawn if len(drawn) <= _REASONS_DRAWN else drawn[: _REASONS_DRAWN - 1]
            nodes += [Node(f"dead: {cut(reason, 80)}", n, kind) for reason, n in few]
            nodes += (
                [Node(f"dead: {len(drawn) - len(few)} other reasons", sum(n for _, n in drawn[len(few) :]), kind)]
                if len(drawn) > len(few)
                else []
            )
        else:
            nodes.append(Node(cut(name, 80), rows, kind))
    return nodes


def _aggregates(run: RunResults, read: int) -> list[Html]:
    late = late_of(run)
    names = sorted({name for line in run.ledger for name in line.aggregated} | set(late))
    if not names:
        return []
    rows = []
    for name in names[:_AGGREGATES]:
        within, behind = sum(line.aggregated.get(name, 0) for line in run.ledger), late.get(name, 0)
        whole = within + behind if within else read
        rows.append(
            (
                cut(name, 80),
                number(within) if within else "–",
                number(behind),
                share(behind, whole),
                meter(behind, whole, "f-late bad") if behind else "",
            )
        )
    why = "Rows that came too late for an aggregate are letters of it; in the output of rows they are all the same."
    if streams(run):
        why += " A stream counts late rows only; shares are of the rows read."
    return [
        tag("h3", "Aggregates"),
        table(["aggregate", "aggregated", "late", "share", ""], rows, right=("aggregated", "late", "share"), grow=""),
        *filter(None, [rest(len(names), len(rows), "aggregates")]),
        note(why),
    ]


def _by_source(run: RunResults, lines: Sequence[Line], balance: Balance) -> list[Html]:
    """The ledger per source, those with most dead rows first."""
    if len(lines) < 2:
        return [note("Source: ", tag("code", cut_front(lines[0].source, 300)))] if lines and lines[0].source else []
    worst = sorted(lines, key=lambda line: (-_dead(line, balance), line.source))[:_SOURCES_LISTED]
    names = ["source", "read", balance.word, "dead", "dead share", "duplicate", "filtered"]
    rows = [
        (tag("code", cut_front(line.source or "(no source)", 120)), number(line.read), number(line.written.get(balance.output, 0)) if balance.output else "", number(_dead(line, balance)),
         share(_dead(line, balance), line.read), number(line.duplicate), number(line.filtered))
        for line in worst
    ]  # fmt: skip
    shown = tag(
        "details",
        tag("summary", f"By source ({len(lines):,}), most dead rows first"),
        table(names, rows, right=names[1:], class_="dense"),
        open="" if len(lines) <= 4 else None,
    )
    return [shown, *filter(None, [rest(len(lines), len(worst), "sources")])]


def _dead(line: Line, balance: Balance) -> int:
    return line.dead + line.refused.get(balance.output, 0)
