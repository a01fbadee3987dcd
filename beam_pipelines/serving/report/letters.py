"""The part of the page about what was refused: by reason and check, with samples as `dlq inspect` shows them, sensitive values masked."""

from __future__ import annotations

from collections.abc import Mapping

from beam_pipelines.serving.dead_letters import Group, Inspection, Sample
from beam_pipelines.serving.report.charts import meter
from beam_pipelines.serving.report.markup import Html, counted, cut, cut_front, number, share, tag
from beam_pipelines.serving.report.tables import note, rest, section, table
from beam_pipelines.serving.report.verdict import streams
from beam_pipelines.sinks.results import RunResults

SAMPLES = 2
_GROUPS, _CHECKS, _SAMPLED = 30, 10, 12
_TITLE = "Dead letters"


def letters_section(run: RunResults, found: Inspection | str) -> Html:
    """By reason, with samples; where the letters cannot be read (a sentence says why), the counts of the run's record."""
    if isinstance(found, str):
        return section("letters", _TITLE, *_counted(run.dead_letters), note(found) if run.dead_letters else None)
    if not found.rows:
        failed = run.status == "failed" and not streams(run)
        why = (
            "A run that fails commits nothing, and its letters are not kept any more."
            if failed
            else "The letters themselves are not there any more."
        )
        gone = note(why, " These counts are from the run's record.") if run.dead_letters else None
        return section("letters", _TITLE, *_counted(run.dead_letters), gone)
    rows = [row for group in found.groups[:_GROUPS] for row in _rows(group, found.rows)]
    return section(
        "letters", _TITLE,
        tag("p", f"{counted(found.rows, 'record')} in dead letters", ", of all starts of the stream." if streams(run) else "."),
        table(["stage", "reason", "check", "records", "share", ""], rows, right=("records", "share"), grow=""),
        rest(len(found.groups), _GROUPS, "reasons"),
        tag("h3", "Samples"),
        *(sample for group in found.groups[:_SAMPLED] for sample in _samples(group)),
        note("Each record counts once per reason. All of them: ", tag("code", f"beam-pipelines dlq inspect {cut(run.metadata.spec or 'SPEC', 200)}{_of(run)}")),
    )  # fmt: skip


def _of(run: RunResults) -> str:
    """Letters of a run that failed are in no table."""
    return "" if run.kept_letters is None else f" --run {run.metadata.run_id}"


def _counted(reasons: Mapping[str, int]) -> list[Html]:
    if not reasons:
        return [tag("p", "No row was refused.")]
    total = sum(reasons.values())
    most = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))[:_GROUPS]
    rows = [(cut(name, 100), number(n), share(n, total), meter(n, total, "bad")) for name, n in most]
    shown = table(["stage:REASON", "rows", "share", ""], rows, right=("rows", "share"), grow="")
    return [shown, *filter(None, [rest(len(reasons), len(most), "reasons")])]


def _rows(group: Group, total: int) -> list[tuple[object, ...]]:
    """One line for the group, and one for each check where there are several."""
    alone = list(group.checks.values()) == [group.rows]
    first = cut(next(iter(group.checks)), 80) if alone else ""
    rows: list[tuple[object, ...]] = [(cut(group.stage, 40), cut(group.reason, 60), first, *_figures(group.rows, total, "bad"))]
    if alone:
        return rows
    rows += [("", "", cut(name, 80), *_figures(n, total, "plain")) for name, n in list(group.checks.items())[:_CHECKS]]
    more = len(group.checks) - _CHECKS
    return [*rows, ("", "", f"… and {more:,} more", "", "", "")] if more > 0 else rows


def _figures(rows: int, total: int, tone: str) -> tuple[str, str, Html]:
    return number(rows), share(rows, total), meter(rows, total, tone)


def _samples(group: Group) -> list[Html]:
    return [_sample(cut(f"{group.stage}:{group.reason}", 100), sample) for sample in group.samples]


def _sample(reason: str, sample: Sample) -> Html:
    raw = tag("pre", cut(sample.raw, 500)) if sample.raw is not None else tag("p", "(record not kept)", class_="soft small")
    place = cut_front(sample.source, 160) + ("" if sample.position is None else f" at {sample.position}")
    return tag(
        "div",
        tag("div", tag("b", reason), " ", tag("code", place), class_="small"),
        tag("div", cut(sample.message, 300)),
        raw,
        class_="sample",
    )
