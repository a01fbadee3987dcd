"""`dlq`: what was refused, and why; through the repaired graph again, or put aside for good."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import SpecError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from beam_pipelines.serving.dead_letters import Group, Inspection, Past, Sample
    from beam_pipelines.spec.load import LoadedSpec

F = TypeVar("F", bound=Callable[..., Any])


@click.group(short_help="Look into the rows that runs refused; replay or discard them.")
def dlq() -> None:
    """Look into dead letters, the rows that a run refused; replay them, or discard them."""


def _chosen(function: F) -> F:
    """--where and --reason."""
    function = click.option("--reason", metavar="CODE", help="Only letters with this reason: DECODE, TYPE, CAST, CHECK, ...")(function)
    return click.option("--where", metavar="SQL", help="Only letters for which this holds, for example \"source LIKE '%2013-06%'\".")(
        function
    )


@dlq.command(short_help="Group dead letters by reason, with samples.")
@spec_options
@_chosen
@click.option("--samples", type=click.IntRange(min=0), default=2, show_default=True, help="Letters shown of each reason.")
@click.option("--run", "run_id", metavar="ID", help="Only letters of this run; also of a batch that failed, whose letters no table has.")
@click.option("--history", "--all", "history", is_flag=True, help="Also letters that were replayed or discarded: by which run, whom, why.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@log_options
def inspect(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, where: str | None, reason: str | None, samples: int, run_id: str | None,
    history: bool, as_json: bool,
) -> int:  # fmt: skip
    """Group SPEC's open dead letters by stage, reason and check, with samples of the records as they were read.

    Of all runs, of batch and stream; with --run of one. A batch that failed has committed nothing, its letters neither: they are kept apart, of the newest five,
    and --run shows them. Which batches these are is said where no later one over the same range has succeeded.

    Counted are records (source and position), each once. A record that failed several checks is in the line of each.
    """
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving.dead_letters import OPEN, inspect_letters, past_letters

    connection, place, condition = _of_run(found, run_id, where)
    past = past_letters(connection, where=condition, reason=reason) if history else ()
    inspection = inspect_letters(
        connection, where=condition, reason=reason, samples=samples, table=OPEN, known=tuple(p.reason for p in past)
    )
    if as_json:
        import msgspec

        content = {"path": place, "rows": inspection.rows, "groups": inspection.groups} | ({"history": past} if history else {})
        click.echo(msgspec.json.encode(content).decode())
        return 0
    for line in (*_lines(inspection, place, only=bool(condition or reason)), *(_past(past) if history else ())):
        click.echo(line, file=sys.stdout)
    if run_id is None and (failed := _apart(found)):
        click.echo(failed, err=True)
    return 0


@dlq.command(short_help="Take letters through the repaired graph again.")
@spec_options
@_chosen
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records.")
@click.option("--into", type=click.Choice(["batch", "stream"]), default="batch", show_default=True,
              help="Compute the partitions they touch anew, or send their messages to the running stream.")  # fmt: skip
@click.option("--topic", metavar="PATH", help="With --into stream: projects/P/topics/T, where the subscription does not tell it.")
@click.option("--ignore-stream", is_flag=True, help="Compute partitions although windows of the stream in them are still open.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@log_options
def replay(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, where: str | None, reason: str | None, limit: int | None, into: str,
    topic: str | None, ignore_stream: bool, dry_run: bool, as_json: bool,
) -> int:  # fmt: skip
    """Take SPEC's open dead letters through the whole graph again, as the spec is now, each in the place where it belongs.

    \b
    beam-pipelines dlq replay flights.yaml --where "reason = 'CAST'" --dry-run
    beam-pipelines dlq replay flights.yaml --where "reason = 'CAST'"

    Each record is tried alone first. Into the batch: the partitions that the good ones touch are computed anew, whole, so that nothing comes twice.
    Into the stream: the messages are sent again, and known as what they were. A letter is resolved once it is seen to be through.
    """
    if into == "batch" and topic is not None:
        raise SpecError("--topic: is for --into stream.", hint="Leave it out, or say --into stream.")
    if into == "stream" and ignore_stream:
        raise SpecError("--ignore-stream: is for --into batch.", hint="Leave it out.")
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving.dead_letters import select_letters

    connection = _opened(found)
    letters = select_letters(connection, where=where, reason=reason, limit=limit)
    if not letters.num_rows:
        return _nothing(found, as_json=as_json)
    from beam_pipelines.cli import dlq_replay
    from beam_pipelines.spec.secrets import expect_keys

    expect_keys(found.spec)
    asked = dlq_replay.Asked(topic, ignore_stream, dry_run, as_json)
    if into == "stream":
        return dlq_replay.into_stream(found, letters, asked)
    return dlq_replay.into_batch(found, letters, select_letters(connection, where="reason = 'CRASH'"), asked)


@dlq.command(short_help="Put letters aside for good, and say why.")
@spec_options
@_chosen
@click.option("--why", required=True, metavar="TEXT", help="Why nobody needs these records; kept with them.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@log_options
def discard(
    spec: str,
    set_: tuple[str, ...],
    parameters_file: str | None,
    where: str | None,
    reason: str | None,
    why: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Mark SPEC's open dead letters that fit as discarded. Nothing is deleted: `inspect --history` shows them, and ledgers count them as dead.

    A discarded record stays so when a later run refuses it for the same reason again.
    """
    if where is None and reason is None:
        raise SpecError("dlq discard: which letters?", hint="Say --where or --reason; --where TRUE means all.")
    if not why.strip():
        raise SpecError("--why: is empty; expected the reason.", hint="Whoever asks later reads it there.")
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving.dead_letters import select_letters

    letters = select_letters(_opened(found), where=where, reason=reason)
    if not letters.num_rows:
        return _nothing(found, as_json=as_json)
    if not dry_run:
        from beam_pipelines.sinks.resolutions import new_name, resolve

        resolve(found.state, new_name("discard"), letters, how="discarded", why=why.strip())
    done = {"discarded": _records(letters), "dry_run": dry_run, "reasons": _by_reason(letters), "why": why.strip()}
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(done).decode())
        return 0
    click.echo(f"{'would discard' if dry_run else 'discarded'} {counted(_records(letters))}: {_listed(_by_reason(letters))}")
    return 0


def _of_run(found: LoadedSpec, run_id: str | None, where: str | None) -> tuple[duckdb.DuckDBPyConnection, str, str | None]:
    """The letters to look into, where they lie, and which of them. Raises SpecError for a run that has none left, RunError where there is no such run."""
    if run_id is None:
        try:
            return _opened(found), _place(found), where
        except SpecError as error:
            raise SpecError(error.message, hint=_apart(found) or error.hint) from None
    from beam_pipelines.arrow.engine import literal
    from beam_pipelines.cli.tables import clean
    from beam_pipelines.serving.dead_letters import failed_letters, has_letters
    from beam_pipelines.sinks.epochs import all_starts
    from beam_pipelines.sinks.results import find_run, no_such_run

    run = find_run(found.state, run_id)
    if run is not None and run.status == "failed" and run.metadata.mode == "batch":
        return failed_letters(run), clean(run.kept_letters.folder) if run.kept_letters is not None else "", where
    known = run is not None or any(start.run_id == run_id for start in all_starts(found.state).values())
    mine = f"run_id = {literal(run_id)}"
    try:
        connection = _opened(found)
    except SpecError:
        if known:
            raise
        raise no_such_run(found.state, run_id) from None
    if not known and not has_letters(connection, where=mine):
        raise no_such_run(found.state, run_id)
    return connection, _place(found), mine if where is None else f"({where}\n) AND {mine}"


def _apart(found: LoadedSpec) -> str:
    """Which batches failed whose letters are in no table, the newest first, without those that a later one over the same range has made good; "" where none did."""
    from beam_pipelines.sinks.failed_letters import kept_there
    from beam_pipelines.sinks.results import list_runs

    good: set[tuple[str, str] | None] = set()
    said = []
    for run in list_runs(found.state):
        about, kept = run.metadata, run.kept_letters
        if about.mode != "batch" or good & {about.range, None}:
            continue
        if run.status == "success":
            good.add(about.range)
        elif kept is not None and kept_there(kept):
            said.append(f"Batch {about.run_id} failed; its {kept.rows:,} letters are apart: say --run {about.run_id}.")
    return " ".join(said)


def _opened(found: LoadedSpec) -> duckdb.DuckDBPyConnection:
    """The letters, once it is known which of those that were replayed are through."""
    from beam_pipelines.serving.dead_letters import open_letters
    from beam_pipelines.sinks.labels import places_of
    from beam_pipelines.sinks.replays import resolve_replayed

    places = places_of(found.spec)
    resolve_replayed(found.state, places)
    return open_letters(found.state, places)


def _nothing(found: LoadedSpec, *, as_json: bool) -> int:
    click.echo('{"letters":0}' if as_json else f"no open dead letter fits in {_place(found)}")
    return 0


def _place(found: LoadedSpec) -> str:
    """Where letters lie."""
    from beam_pipelines.cli.tables import clean
    from beam_pipelines.sinks.labels import places_of
    from beam_pipelines.sinks.manifest import snapshots
    from beam_pipelines.sinks.outputs import read_outputs

    stream = read_outputs(found.state)
    stored = [o.folder for o in (stream.outputs if stream else ()) if o.of == "dead_letters"]
    known = snapshots(found.state, places_of(found.spec)).values()
    return clean(next((s.path for s in known if s.of == "dead_letters"), (stored or [""])[0]))


def _records(letters: pa.Table) -> int:
    return len(set(zip(letters.column("source").to_pylist(), letters.column("position").to_pylist(), strict=True)))


def _by_reason(letters: pa.Table) -> dict[str, int]:
    stages, reasons = letters.column("stage").to_pylist(), letters.column("reason").to_pylist()
    return dict(sorted(Counter(f"{s}:{r}" for s, r in zip(stages, reasons, strict=True)).items()))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def counted(records: int) -> str:
    """`1 record`, `2,000 records`."""
    return f"{records:,} record{'' if records == 1 else 's'}"


def _lines(inspection: Inspection, place: str, *, only: bool) -> Iterator[str]:
    from beam_pipelines.cli.tables import grid

    if not inspection.rows:
        yield f"no dead letters{' fit' if only else ''} in {place}"
        return
    yield f"{inspection.rows:,} record{'s' * (inspection.rows != 1)} refused{', of those that fit' if only else ''}; letters in {place}"
    yield ""
    rows = [row for group in inspection.groups for row in _rows(group, inspection.rows)]
    yield from grid(["stage", "reason", "check", "records", "share"], rows, right=[False, False, False, True, True])
    for group in inspection.groups:
        if group.samples:
            yield ""
            yield click.style(f"{group.stage}:{group.reason}", bold=True)
        for sample in group.samples:
            yield from _sample(sample)


def _rows(group: Group, total: int) -> Iterator[tuple[str, ...]]:
    from beam_pipelines.cli.tables import clean

    if list(group.checks.values()) == [group.rows]:
        yield group.stage, group.reason, clean(next(iter(group.checks))), f"{group.rows:,}", f"{group.share:.1%}"
        return
    yield group.stage, group.reason, "", f"{group.rows:,}", f"{group.share:.1%}"
    for name, count in group.checks.items():
        yield "", "", clean(name), f"{count:,}", f"{count / total:.1%}"


def _sample(sample: Sample) -> Iterator[str]:
    from beam_pipelines.cli.tables import cell, clean

    yield f"  {clean(sample.source)} at {sample.position}"
    yield f"    {cell(sample.message, 300)}"
    yield f"    | {cell(sample.raw, 300)}" if sample.raw is not None else "    | (record not kept)"


def _past(past: Sequence[Past]) -> Iterator[str]:
    from beam_pipelines.cli.tables import cell, grid

    yield ""
    if not past:
        yield "nothing was replayed or discarded"
        return
    rows = [
        (p.how, p.stage, p.reason, f"{p.rows:,}", p.run, p.who, "" if p.at is None else f"{p.at:%Y-%m-%dT%H:%M:%SZ}", cell(p.why, 80))
        for p in past
    ]
    yield from grid(["became", "stage", "reason", "records", "by run", "by", "at", "why"], rows, right=[False, False, False, True])
