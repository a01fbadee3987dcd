"""The smaller parts of the page: checks, outputs, the layers compared, runs before, and what the run was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import msgspec
import pyarrow as pa

from beam_pipelines.arrow.contract import COLUMN_RULES
from beam_pipelines.places import exists, is_local
from beam_pipelines.serving.report.agreement import Agreement
from beam_pipelines.serving.report.charts import meter
from beam_pipelines.serving.report.markup import Html, counted, cut, cut_front, duration, instant, moment, number, share, size, tag
from beam_pipelines.serving.report.tables import badge, facts, note, rest, section, table
from beam_pipelines.serving.report.verdict import dead_of, read_by, streams
from beam_pipelines.sinks.manifest import Snapshot
from beam_pipelines.sinks.results import CheckResult, OutputResult, RunResults

_CHECKS, _OUTPUTS, _RANGES, _RUNS, _LOOKED_FOR = 100, 50, 100, 12, 2_000
_TONES = {"pass": "good", "warn": "warn", "fail": "bad", "dead": "warn", "success": "good", "failed": "bad"}
_STALE = """SELECT output, run_id, sum("rows")::BIGINT AS n, count(*), min(epoch_us(start)), max(epoch_us("end")), min(epoch_us(first_stored_at)),
    max(epoch_us(last_stored_at)) FROM stale GROUP BY ALL ORDER BY n DESC, output, run_id"""
_WORST_FIRST = ("fail", "dead", "warn", "pass")


def checks_section(run: RunResults) -> Html:
    """What was judged, the worst first, with the share of rows that pass; then thresholds."""
    judged = {c.name for c in run.checks}
    read = read_by(run)
    found = [(_word(c), c.name, _passing(c.failing, c.rows), c.expected, _observed(c)) for c in run.checks]
    rules = [(n, rows) for n, rows in sorted(run.failing_rows.items()) if n not in judged and n.rpartition(".")[2] in COLUMN_RULES]
    found += [
        ("dead", name, _passing(rows, read), "a rule of the column", f"{counted(rows, 'row')} of {number(read)} fail it")
        for name, rows in rules
    ]
    found += [
        (t.status, t.name, "", f"at most {share(t.most, 1)} of the rows read", f"{share(t.share, 1)} of the rows read")
        for t in run.thresholds
    ]
    if not found:
        return section("checks", "Checks", tag("p", "The run judged no check."))
    found.sort(key=lambda row: (_WORST_FIRST.index(row[0]), 0))
    rows = [
        (
            badge(word, _TONES[word]),
            tag("b", cut(name, 80)),
            passing,
            tag("code", cut(expected, 200)) if expected else "",
            cut(observed, 300),
        )
        for word, name, passing, expected, observed in found[:_CHECKS]
    ]
    why = note(
        "Rows that fail a check of severity dead_letter are dead letters (",
        tag("b", "dead"),
        "); of severity warn they are written and counted.",
    )
    return section(
        "checks",
        "Checks",
        table(["status", "check", "rows that pass", "expected", "found"], rows),
        rest(len(found), _CHECKS, "checks"),
        why,
    )


def _word(check: CheckResult) -> str:
    return "dead" if check.failing and check.severity == "dead_letter" else check.status


def _passing(failing: int, rows: int) -> Html | str:
    return _share_shown(rows - failing, rows) if rows else ""


def _share_shown(part: int, whole: int) -> Html:
    """A share and its meter."""
    return tag("div", share(part, whole), meter(part, whole, "good" if part == whole else "warn"))


def _observed(check: CheckResult) -> str:
    return check.message or check.observed or ("no row fails it" if check.rows and not check.failing else "")


def outputs_section(run: RunResults, snapshots: Mapping[str, Snapshot]) -> Html:
    """What was committed where, and how much of it is still so."""
    if not run.outputs:
        failed = "What is stored was not counted." if streams(run) else "A run that fails commits nothing: the outputs are as they were."
        why = failed if run.status == "failed" else "The run has no output."
        return section("outputs", "Outputs", tag("p", why))
    rows = [
        (tag("div", tag("b", cut(o.name, 80)), tag("br"), tag("code", cut_front(o.path, 200))), o.status, number(o.rows), number(o.files), size(o.bytes), _partitions(o.partitions), _now(o, run, snapshots.get(o.name)))
        for o in run.outputs[:_OUTPUTS]
    ]  # fmt: skip
    names = ["output", "status", "rows", "files", "size", "partitions", "now"]
    all_starts = note("Of all starts of the stream together.") if streams(run) else None
    return section(
        "outputs", "Outputs", table(names, rows, right=("rows", "files", "size")), rest(len(run.outputs), _OUTPUTS, "outputs"), all_starts
    )


def _partitions(names: Sequence[str]) -> str:
    if not names:
        return "–"
    return (
        cut(names[0], 80)
        if len(names) == 1
        else f"{len(names):,}: {cut(names[0], 80)} … {cut(names[-1].rpartition('/')[2].rpartition('=')[2], 40)}"
    )


def _now(output: OutputResult, run: RunResults, snapshot: Snapshot | None) -> str:
    """What is left of the files that the run committed: later runs replace some, and somebody may have deleted others."""
    if output.status != "committed" or snapshot is None:
        return ""
    mine = [path for file, path in zip(snapshot.files, snapshot.paths, strict=True) if file.run_id == run.metadata.run_id]
    gone = sum(not exists(path) for path in mine[:_LOOKED_FOR] if is_local(path))
    if gone:
        return f"{number(gone)} of {counted(len(mine), 'file')} gone"
    if len(mine) >= output.files:
        return "all there"
    return (
        f"{number(len(mine))} of {counted(output.files, 'file')} live; later runs replaced the others" if mine else "replaced by later runs"
    )


def agreement_section(found: Sequence[Agreement] | str | None) -> Html | None:
    """Batch against stream, where the two disagree first; nothing where there is nothing to compare."""
    if isinstance(found, str):
        return section("agreement", "Batch and stream", note(found))
    if not found:
        return None
    ordered = sorted(found, key=lambda a: -a.apart)
    apart, equal = sum(a.apart for a in found), sum(a.equal for a in found)
    rows = [
        (_agrees(a), tag("b", cut(a.output, 80)), cut(a.range.replace("T00:00:00Z", ""), 120), number(a.equal), number(a.differing),
         number(a.only_batch), number(a.only_speed), _share_shown(a.equal, a.equal + a.apart) if a.equal + a.apart else "", cut(a.note, 300))
        for a in ordered[:_RANGES]
    ]  # fmt: skip
    names = ["", "output", "range", "equal", "differing", "only batch", "only stream", "agreement", "note"]
    said = f"The batch's answer and the stream's agree on {share(equal, equal + apart)} of {counted(equal + apart, 'row')}, in times that both have answered."
    shown = table(names, rows, right=("equal", "differing", "only batch", "only stream"))
    return section("agreement", "Batch and stream", tag("p", said), shown, rest(len(found), _RANGES, "ranges"))


def _agrees(one: Agreement) -> Html:
    if one.apart:
        return badge("differs", "warn")
    return badge("equal", "good") if one.equal else tag("span", "no rows", class_="soft")


def stale_section(found: pa.Table | str | None) -> Html | None:
    """Rows that arrived in committed ranges after their run had read, by output and run; nothing where nobody asked."""
    if found is None or isinstance(found, str):
        return None if found is None else section("stale", "Since the batch", note(found))
    if not found.num_rows:
        return section(
            "stale", "Since the batch", tag("p", "Nothing has arrived for the times that the batch has answered since it read its input.")
        )
    with duckdb.connect() as connection:
        connection.register("stale", found)
        summed = connection.execute(_STALE).fetchall()
    names = ["output", "rows", "partitions", "times", "first stored", "last stored", "batch run"]
    rows = [
        (tag("b", cut(output, 80)), number(n), number(parts), f"[{instant(start, seconds=False)}, {instant(end, seconds=False)})", instant(first), instant(last), tag("code", run_id))
        for output, run_id, n, parts, start, end, first, last in summed
    ]  # fmt: skip
    said = "Rows that arrived for times that the batch has answered, after it had read its input, or within two minutes before where it cannot be told."
    shown = table(names, rows[:_RANGES], right=("rows", "partitions"))
    cure = note(
        tag("code", "backfill --stale"),
        " computes these times anew. Rows of an aggregate are counted in every window that they may change.",
    )
    return section("stale", "Since the batch", tag("p", said), shown, rest(len(rows), _RANGES, "runs"), cure)


def runs_section(run: RunResults, runs: Sequence[RunResults]) -> Html | None:
    """This run among those of its mode around it: is what it did usual?"""
    same = sorted((r for r in runs if r.metadata.mode == run.metadata.mode), key=lambda r: r.metadata.started_at)
    at = next((i for i, r in enumerate(same) if r.metadata.run_id == run.metadata.run_id), len(same) - 1)
    end = min(len(same), at + 3)
    shown = list(reversed(same[max(0, end - _RUNS) : end]))
    if len(shown) < 2:
        return None
    longest = max(r.metadata.elapsed_s for r in shown)
    rows = [
        (moment(r.metadata.started_at), badge(r.status, _TONES[r.status]), number(read_by(r)), number(sum(o.rows for o in r.outputs if o.name == "rows")),
         number(dead_of(r)), share(dead_of(r), read_by(r)), tag("div", duration(r.metadata.elapsed_s), meter(r.metadata.elapsed_s, longest)), tag("code", r.metadata.run_id))
        for r in shown
    ]  # fmt: skip
    names = ["started", "status", "read", "written", "dead", "dead share", "took", "run"]
    here = next((i for i, r in enumerate(shown) if r.metadata.run_id == run.metadata.run_id), -1)
    title = f"Runs around this one ({counted(len(same), run.metadata.mode + ' run')} in all)"
    return section("runs", title, table(names, rows, right=("read", "written", "dead", "dead share"), here=here))


def metadata_section(run: RunResults, job_page: str) -> Html:
    """Which program did what, when; with a link to the job, where a service ran it."""
    about = run.metadata
    pairs = [
        ("Pipeline", f"{about.pipeline}, version {about.pipeline_version}"), ("Spec", tag("code", about.spec)), ("Run", tag("code", about.run_id)),
        ("Mode", about.mode), ("Engine", about.engine), ("Job", tag("a", "its page at the service", href=job_page) if job_page.startswith("https://") else ""), ("Contract", tag("code", about.contract)), ("Range", f"[{about.range[0]}, {about.range[1]})" if about.range else ""), ("Input", "the archive" if about.input == "archive" else ""), ("Started", moment(about.started_at)),
        ("Ended", moment(about.finished_at)), ("Took", duration(about.elapsed_s)), ("beam_pipelines", about.beam_pipelines_version),
        ("Call", _call(run.args)),
    ]  # fmt: skip
    return section("metadata", "The run", facts(pairs))


def _call(args: Mapping[str, object]) -> Html | str:
    """The call, a line for each word; secrets are in it by reference only."""
    said = {k: v for k, v in args.items() if v not in (None, False, "", [], {})}
    lines = [f"{key}: {v if isinstance(v, str) else msgspec.json.encode(v, enc_hook=str).decode()}" for key, v in said.items()]
    return tag("pre", *(tag("div", cut(line, 1_000)) for line in lines[:50])) if lines else ""
