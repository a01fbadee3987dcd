"""The whole page: first how the run ended and whether every row is accounted for, then what to look at, then all the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import duckdb
import pyarrow as pa

from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.serving.report.agreement import Agreement
from beam_pipelines.serving.report.facts import Facts, Times, Unknown
from beam_pipelines.serving.report.ledger import ledger_section
from beam_pipelines.serving.report.letters import SAMPLES, letters_section
from beam_pipelines.serving.report.markup import Html, counted, cut, duration, instant, moment, number, share, tag
from beam_pipelines.serving.report.sections import (
    agreement_section,
    checks_section,
    metadata_section,
    outputs_section,
    runs_section,
    stale_section,
)
from beam_pipelines.serving.report.style import STYLE
from beam_pipelines.serving.report.tables import note, section
from beam_pipelines.serving.report.times import behind, freshness_section, throughput_section
from beam_pipelines.serving.report.verdict import Balance, balances, dead_of, late_of, level, read_by, sentence, streams, usual
from beam_pipelines.sinks.epochs import job_page
from beam_pipelines.sinks.results import RunResults

T = TypeVar("T")
Compare = Callable[[], Sequence[Agreement]]
_FAILURES, _EQUATIONS = 20, 20
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NAMES = {
    "checks": "Checks", "letters": "Dead letters", "ledger": "Rows", "freshness": "Freshness", "throughput": "Over time",
    "outputs": "Outputs", "agreement": "Batch and stream", "stale": "Since the batch", "runs": "Other runs", "metadata": "The run",
}  # fmt: skip


def report_page(
    state: str, run: RunResults, *, runs: Sequence[RunResults] = (), event_time: str | None = None, places: Mapping[str, str] | None = None,
    compare: Compare | None = None, stale: Callable[[], pa.Table] | None = None, written_at: str = "",
) -> bytes:  # fmt: skip
    """The report of `run` as UTF-8 HTML that needs nothing else.

    `state` is the folder of runs and commits; `runs` are those to compare it with (of any mode, in any order). `event_time` is the contract's
    column, `places` says where outputs lie that the run did not write. `compare` gives what batch and stream agree on, `stale` the
    rows that came too late for the batch (`tables.stale_table`). What cannot be read any more is said where it would stand.
    """
    facts = Facts(state, run, event_time=event_time, places=places)
    times, letters = _known(facts.times), _known(lambda: facts.letters(SAMPLES))
    agreed = _asked(compare, "The layers could not be compared")
    parts = {
        "ledger": ledger_section(run),
        "checks": checks_section(run),
        "letters": letters_section(run, letters),
        **_times(run, times),
        "outputs": outputs_section(run, facts.snapshots),
        "agreement": agreement_section(agreed),
        "stale": stale_section(_asked(stale, "What came too late for the batch is not known")),
        "runs": runs_section(run, runs),
        "metadata": metadata_section(run, job_page(state, run.metadata.run_id)),
    }
    shown = {name: part for name, part in parts.items() if part is not None}
    top = [_verdict(run), _tiles(run, runs, times if isinstance(times, Times) else None), _navigation(shown)]
    foot = [f"Report of run {run.metadata.run_id}", f", written {moment(written_at)}" if written_at else "", ". All times are UTC."]
    body = [tag("header", *top), tag("main", *shown.values()), tag("footer", tag("p", *foot))]
    return f"<!DOCTYPE html>\n{_document(run, body)}\n".encode()


def _known(read: Callable[[], T]) -> T | str:
    try:
        return read()
    except Unknown as why:
        return str(why)


def _asked(ask: Callable[[], T] | None, otherwise: str) -> T | str | None:
    try:
        return ask() if ask is not None else None
    except (BeamPipelinesError, duckdb.Error) as error:
        return f"{otherwise}: {str(error).splitlines()[0]}"


def _times(run: RunResults, times: Times | str) -> dict[str, Html]:
    if isinstance(times, Times):
        return {"freshness": freshness_section(run, times), "throughput": throughput_section(times)}
    return {"freshness": section("freshness", "Freshness and lateness", note(times))}


def _document(run: RunResults, body: Sequence[Html]) -> Html:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{cut(run.metadata.pipeline, 120)}: {level(run)[1]}, {moment(run.metadata.started_at)}"),
        tag("style", Html(STYLE)),
    )
    return tag("html", head, tag("body", *body), lang="en")


def _verdict(run: RunResults) -> Html:
    tone, word = level(run)
    about = run.metadata
    fails = [tag("li", cut(failure, 600)) for failure in run.failures[:_FAILURES]]
    fails += [tag("li", f"… and {len(run.failures) - _FAILURES:,} more")] if len(run.failures) > _FAILURES else []
    ran = f"{about.mode} run {about.run_id}, started {moment(about.started_at)}, took {duration(about.elapsed_s)}"
    ran += f", over [{about.range[0]}, {about.range[1]})" if about.range else ""
    return tag(
        "div",
        tag("h1", cut(about.pipeline, 120)),
        tag("p", ran, class_="soft small"),
        tag("span", word, class_="badge"),
        tag("p", sentence(run), class_="said"),
        tag("ul", *fails, class_="fails") if fails else None,
        tag("ul", *(_equation(b) for b in balances(run)[:_EQUATIONS]), class_="sum"),
        class_=f"verdict {tone}",
    )


def _equation(balance: Balance) -> Html:
    """`336,776 read = 328,485 written + 36 dead + …`, and whether it is true."""
    terms: list[object] = []
    for name, rows, kind in balance.doors():
        terms += [" + " if terms else "", tag("b", tag("span", class_=f"key f-{kind}"), number(rows)), f" {cut(name, 80)}"]
    if balance.balances:
        verdict = tag("span", "✓ balances", class_="badge good")
    else:
        missing = balance.missing
        said = f"✗ {counted(abs(missing), 'row')} {'missing' if missing > 0 else 'too many'}" if missing else "✗ does not balance"
        verdict = tag("span", said, class_="badge bad")
    named = [f"{cut(balance.output, 80)}: "] if balance.output not in ("", "rows") else []
    return tag("li", *named, tag("b", number(balance.read)), " read = ", *terms, " ", verdict)


def _tiles(run: RunResults, runs: Sequence[RunResults], times: Times | None) -> Html:
    read, dead, late, first = read_by(run), dead_of(run), sum(late_of(run).values()), balances(run)[0]
    before = usual(run, runs)
    rate = f"{number(read / run.metadata.elapsed_s)} rows/s" if run.metadata.elapsed_s and not streams(run) else ""
    found = [
        ("Read", number(read), f"usually {number(before.read)}" if before else "", ""),
        (first.word.capitalize(), number(first.good), share(first.good, read), ""),
        (
            "Dead",
            number(dead),
            share(dead, read) + (f", usually {share(before.dead_share, 1)}" if before else ""),
            "warn" if dead else "good",
        ),
        *([("Late", number(late), "per aggregate", "warn")] if late else []),
        ("Duplicate", number(first.duplicate), share(first.duplicate, read), ""),
        ("Filtered", number(first.filtered), share(first.filtered, read), ""),
        (
            "Took",
            duration(run.metadata.elapsed_s),
            rate + (f"{', ' if rate else ''}usually {duration(before.elapsed_s)}" if before else ""),
            "",
        ),
    ]
    fresh = behind(run, times) if times else None
    if fresh and times:
        found.append(("Newest event", fresh[0], f"{fresh[1]}: {instant(times.event.last)}", ""))
    return tag("div", *(_tile(*tile) for tile in found), class_="tiles")


def _tile(name: str, value: str, more: str, tone: str) -> Html:
    return tag("dl", tag("dt", name), tag("dd", value), tag("dd", more, class_="more") if more else None, class_=f"tile {tone}".strip())


def _navigation(shown: Mapping[str, Html]) -> Html:
    return tag("nav", *(tag("a", _NAMES[name], href=f"#{name}") for name in shown), aria_label="Parts of this page")
