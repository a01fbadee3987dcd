"""What `backfill` shows: its steps, each as it ends, and how far it has come; or one JSON object at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.arrow.durations import format_duration
from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.cli.tables import clean, json_text
from beam_pipelines.runners.backfill import BackfillPlan, Ended, counted
from beam_pipelines.runners.backfill_prepare import Ask, Prepared, Stale, committed, committed_in

if TYPE_CHECKING:
    from beam_pipelines.runners.backfill_steps import Step
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec


class Saying:
    """Says what happens: lines on stdout, or, `as_json`, one object on stdout at the end and nothing before."""

    def __init__(self, found: LoadedSpec, ask: Ask, *, as_json: bool) -> None:
        self._found, self._ask, self._as_json = found, ask, as_json
        self._begun = time.monotonic()
        self._warned: set[str] = set()
        self._lines: dict[int, dict[str, Any]] = {}
        self._plan: BackfillPlan | None = None
        self._here = self._todo = 0
        self._notes: tuple[str, ...] = ()

    def steps(self, prepared: Prepared, stale: Sequence[Stale], *, dry_run: bool) -> None:
        """The steps that there are, what is committed of each, and how many rows are stale in it. Nothing is run."""
        outputs = committed(self._found)
        rows = next((name for name, snapshot in outputs.items() if snapshot.of == "rows"), "")
        lines = []
        for number, step in enumerate(prepared.steps, 1):
            whole, known = committed_in(list(outputs.values()), step.range)
            late = sum(line.rows for line in stale if line.output == rows and step.start <= line.start and line.end <= step.end)
            word = "committed" if whole else "partly" if known else "not_committed"
            runs = [{"run_id": r.run_id, "as_of": show_instant(r.as_of), "input": r.input} for r in known]
            done = number in prepared.done
            lines.append({**_about(step), "status": "done" if done else word, "committed_by": runs, "stale": late})
        if self._as_json:
            self._print("dry_run" if dry_run else "success", prepared.id, prepared.plan, lines, prepared.notes, "", prepared.until)
            return
        self._say_notes(prepared)
        if not lines:
            click.echo(f"backfill {self._found.spec.pipeline}: {'nothing is stale' if self._ask.stale else 'there is nothing to compute'}.")
            return
        click.echo(
            f"backfill {self._found.spec.pipeline}: {_steps(len(lines))} of {self._ask.stride}, {self._ask.text}; --dry-run: nothing is run"
        )
        for number, line in enumerate(lines, 1):
            click.echo(f"{_count(number, len(lines))}  {_range(line)}  {_committed(line)}")

    def begin(self, prepared: Prepared, plan: BackfillPlan, todo: Sequence[int], *, jobs: int) -> None:
        """What is about to run."""
        self._plan, self._todo, self._notes = plan, len(todo), prepared.notes
        self.found(prepared.done)
        if self._as_json:
            return
        self._say_notes(prepared)
        at_once = f", {jobs} at once" if jobs > 1 else ""
        inputs = " and ".join(dict.fromkeys("the archive" if s.input == "archive" else "the batch sources" for s in plan.steps))
        click.echo(
            f"backfill {plan.pipeline}: {_steps(len(plan.steps))} of {plan.step}{at_once}, {plan.asked}, from {inputs} ({plan.id}-{plan.attempt})"
        )

    def found(self, done: Mapping[int, RunResults]) -> None:
        """Steps that are done although nobody has told: those of an earlier call, one that had committed when it was ended."""
        assert self._plan is not None
        for number in done.keys() - self._lines.keys():
            self._lines[number] = _done(self._plan, number, done[number], done[number].metadata.elapsed_s)

    def ended(self, ended: Ended) -> None:
        """A step has ended."""
        assert self._plan is not None
        self._here += 1
        step = self._plan.steps[ended.number - 1]
        if ended.record is None:
            line = {
                **_about(step),
                "run_id": self._plan.run_id(ended.number),
                "status": "failed",
                "failure": ended.why,
                "seconds": round(ended.seconds, 1),
            }
        else:
            line = _done(self._plan, ended.number, ended.record, ended.seconds)
        self._lines[ended.number] = line
        for warning in ended.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                click.echo(f"warning: {clean(warning)}", err=True)
        if not self._as_json:
            click.echo(f"{_count(ended.number, len(self._plan.steps))}  {_range(line)}  {_outcome(line)}{self._left()}")

    @property
    def so_far(self) -> str:
        """How many steps are done."""
        done = sum(line["status"] == "success" for line in self._lines.values())
        return f"{done} of {_steps(0 if self._plan is None else len(self._plan.steps))} done"

    def end(self, status: str, resume: str, *, left: int | None = None) -> None:
        """The backfill has ended; `left` rows are stale now."""
        assert self._plan is not None
        seconds = time.monotonic() - self._begun
        lines = [self._lines.get(n) or {**_about(s), "status": "waiting"} for n, s in enumerate(self._plan.steps, 1)]
        if self._as_json:
            self._print(
                status, self._plan.id, self._plan, lines, self._notes, resume, self._plan.until, seconds=round(seconds, 1), stale_left=left
            )
        elif status == "success":
            rows = sum(line.get("rows", 0) for line in lines)
            click.echo(f"done: {_steps(len(lines))}, {rows:,} rows, {_time(seconds)}" + ("" if left is None else f"; {_stale(left)} now"))
            if self._plan.until is not None:
                click.echo(
                    f"The stream's windows were closed up to {show_instant(self._plan.until)}: call it again for what is closed since."
                )

    def _left(self) -> str:
        """How far, and how long at this pace."""
        rest, done = self._todo - self._here, sum(line["status"] == "success" for line in self._lines.values())
        left = f", about {_time((time.monotonic() - self._begun) / self._here * rest)} left" if rest else ""
        return f"   ({done} of {0 if self._plan is None else len(self._plan.steps)} done{left})"

    def _say_notes(self, prepared: Prepared) -> None:
        for note in prepared.notes:
            click.echo(f"{prepared.id}: {note}", err=True)

    def _print(
        self, status: str, id_: str, plan: BackfillPlan | None, lines: Sequence[dict[str, Any]], notes: Sequence[str], resume: str, until: int | None, **more: Any
    ) -> None:  # fmt: skip
        where = self._ask.range
        click.echo(json_text({
            "backfill": id_, "attempt": None if plan is None else plan.attempt, "pipeline": self._found.spec.pipeline, "status": status,
            "range": None if where is None else [show_instant(where.start), show_instant(where.end)], "step": str(self._ask.stride),
            "stale": self._ask.stale, "shortened_to": None if until is None else show_instant(until), "notes": list(notes),
            "resume": resume or None, **more, "steps": list(lines),
        }))  # fmt: skip


def _about(step: Step) -> dict[str, Any]:
    return {"start": show_instant(step.start), "end": show_instant(step.end), "input": step.input}


def _done(plan: BackfillPlan, number: int, record: RunResults, seconds: float) -> dict[str, Any]:
    return {
        **_about(plan.steps[number - 1]),
        "run_id": record.metadata.run_id,
        "status": "success",
        **counted(record),
        "seconds": round(seconds, 1),
    }


def _range(line: dict[str, Any]) -> str:
    return f"[{line['start']}, {line['end']})"


def _outcome(line: dict[str, Any]) -> str:
    if line["status"] == "failed":
        return f"{click.style('failed', fg='red')} after {line['seconds']} s"
    return f"{line['rows']:,} rows, {line['dead']:,} dead, {line['duplicates']:,} duplicate, {line['seconds']} s"


def _committed(line: dict[str, Any]) -> str:
    if line["status"] == "not_committed":
        return "not committed"
    by = line["committed_by"]
    text = "" if not by else f"by {by[0]['run_id']} as of {by[0]['as_of'][:19]}Z" + (f" and {len(by) - 1} more" if len(by) > 1 else "")
    word = {"done": "done,", "committed": "committed", "partly": "partly committed"}[line["status"]]
    return f"{word} {text}".rstrip(", ") + f", {_stale(line['stale'])}"


def _stale(rows: int) -> str:
    return f"{rows:,} stale row{'' if rows == 1 else 's'}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _count(number: int, of: int) -> str:
    return f"{number:>{len(str(of))}}/{of}"


def _time(seconds: float) -> str:
    """Whole seconds, of more than an hour whole minutes."""
    whole = round(seconds) if seconds < 3600 else round(seconds / 60) * 60
    return format_duration(whole * 1_000_000)
