"""The graph's last transform: everything a run produced comes together under one key, is judged, and becomes visible or does not.

files ─┐
counts ┼─▶ one key ─▶ ledger ─▶ checks, thresholds ─▶ good: commit all outputs    ─▶ record
checks ┘                                           └─▶ bad: outputs as they were  ─▶ record, RunError
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import apache_beam as beam

from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.commit_elements import CheckState, Columns, CommitElement, SourceSpans, Staged
from beam_pipelines.errors import RunError, SinkError, TransientError
from beam_pipelines.sinks.committing import abandon, commit
from beam_pipelines.sinks.failed_letters import forget_letters, forget_older, keep_letters
from beam_pipelines.sinks.inventory import Stock, with_spans
from beam_pipelines.sinks.ledger import Ledger, sources_read, tally
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.results import CheckResult, RunResults, expect_id, failures_of, judge_thresholds, metadata, write_run
from beam_pipelines.sinks.run import Output, RunInfo, check_outputs, utc_now
from beam_pipelines.sinks.text import csv_header
from beam_pipelines.sinks.work import Work
from beam_pipelines.sinks.write import sql_schema
from beam_pipelines.spec.models import Thresholds

_KEY = "run"


class Judge(Protocol):
    """Turns the states of checks over many rows into verdicts. Picklable."""

    def __call__(self, states: Sequence[bytes], ledger: Ledger) -> Sequence[CheckResult]: ...


@dataclass(frozen=True)
class Inbox:
    """What arrived at the commit, sorted."""

    counts: tuple[Count, ...]
    staged: tuple[Staged, ...]
    checks: tuple[bytes, ...]
    schemas: Mapping[str, tuple[tuple[str, str], ...]]
    spans: tuple[SourceSpans, ...]


@dataclass(frozen=True)
class Verdicts:
    """What a run is judged by. `args` are kept in its record; `published` outputs are counted, and are nothing to commit.
    `since`: the run has not read messages that arrived before (microseconds); `stock`: the files it reads."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    judge: Judge | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Output, ...] = ()
    since: int | None = None
    stock: Stock | None = None


class Commit(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Judges the run and commits all its outputs together, or none. Idempotent by run id.

    Takes one PCollection or several of `CommitElement`: ledger counts `(unit, source, outcome, detail, rows)`, and what sinks, `Observe` and `Spans` give.
    `outputs` are the sinks' `output`s. Gives one `RunResults`.

    `published` are outputs whose rows are gone already, as messages: they are in the ledger.

    A run that fails leaves the outputs as they were, writes its record, and raises RunError unless `raise_on_failure` is off.
    """

    def __init__(
        self, run: RunInfo, outputs: Sequence[Output], *, thresholds: Thresholds | None = None, judge: Judge | None = None,
        args: Mapping[str, Any] | None = None, raise_on_failure: bool = True, published: Sequence[Output] = (),
        since: int | None = None, stock: Stock | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_outputs(outputs)
        self._conclude = Conclude(
            run, tuple(outputs), Verdicts(thresholds or Thresholds(), judge, args or {}, tuple(published), since, stock), raise_on_failure
        )

    def expand(self, arriving: Any) -> beam.PCollection:
        collections: tuple[beam.PCollection, ...] = arriving
        always = collections[0].pipeline | "Always" >> beam.Create([None])  # a run without rows commits too
        keyed = (
            (*collections, always) | "Everything" >> beam.Flatten() | "OneKey" >> beam.ParDo(_OneKey()).with_output_types(tuple[str, Any])
        )
        return keyed | "Together" >> beam.GroupByKey() | "Conclude" >> beam.ParDo(self._conclude)

    def _extract_input_pvalues(self, arriving: Any) -> tuple[Any, Any]:
        collections = (arriving,) if isinstance(arriving, beam.PCollection) else tuple(arriving)  # Beam takes a list for values otherwise
        return collections, collections

    def default_label(self) -> str:
        return "Commit"


class _OneKey(beam.DoFn):  # type: ignore[misc]
    def process(self, element: Any) -> Iterator[tuple[str, Any]]:
        yield _KEY, element


class Conclude(beam.DoFn):  # type: ignore[misc]
    """The one element with everything; the commit happens here."""

    def __init__(self, run: RunInfo, outputs: tuple[Output, ...], verdicts: Verdicts, raise_on_failure: bool) -> None:
        self._run, self._outputs, self._verdicts, self._raise = run, outputs, verdicts, raise_on_failure

    def process(self, keyed: tuple[str, Iterable[Any]]) -> Iterator[RunResults]:
        results = conclude(self._run, self._outputs, keyed[1], self._verdicts)
        if results.status == "failed" and self._raise:
            raise RunError(
                f"run '{self._run.run_id}' failed: {'; '.join(results.failures)}.", hint="Nothing was committed: the outputs are as before."
            )
        yield results


def conclude(run: RunInfo, outputs: Sequence[Output], elements: Iterable[CommitElement | None], verdicts: Verdicts) -> RunResults:
    """Judges the run over all it produced, then commits or abandons it; the record, also stored under the state folder.

    Letters that an earlier failure under its id has kept go with the record of that. Raises SpecError where a run of another kind has the id, SinkError where an output refuses.
    """
    before = expect_id(run.state, run.run_id, mode=run.mode)
    inbox = sort_elements(elements)
    ledger = tally(inbox.counts, [*outputs, *verdicts.published])
    checks = tuple(verdicts.judge(inbox.checks, ledger)) if verdicts.judge is not None else ()
    thresholds = judge_thresholds(ledger, dead_letters=verdicts.thresholds.dead_letters, per_check=verdicts.thresholds.per_check)
    failures = failures_of(ledger, checks, thresholds) + _lost_files(inbox, ledger, outputs)
    record = RunResults(
        metadata(run, finished_at=utc_now()), "failed" if failures else "success", failures, dict(verdicts.args), (), ledger.lines,
        ledger.reasons, ledger.failing, checks, thresholds,
    )  # fmt: skip
    if failures:
        return _fail(run, outputs, record, inbox, before)
    known = snapshots(run.state, {o.name: o.path for o in outputs})
    schemas = {o.name: columns for o in outputs if (columns := _columns(o, inbox.schemas.get(o.name, ()), known.get(o.name)))}
    headers = {o.name: csv_header([n for n, _ in schemas[o.name]]) for o in outputs if o.single and o.format == "csv" and o.name in schemas}
    letters = frozenset(line.source for line in ledger.lines if line.dead or line.refused or line.late)
    stock = verdicts.stock and replace(verdicts.stock, read=with_spans(verdicts.stock.read, inbox.spans))
    sources = sources_read(ledger) | set(stock.gone if stock else ())  # nobody will read again what is gone: its letters go with it
    done = commit(Work(run, tuple(outputs), inbox.staged, record, sources, letters, schemas, headers, verdicts.since, stock))
    _forget(before, None)
    return done


def sort_elements(elements: Iterable[CommitElement | None]) -> Inbox:
    """The commit's input by kind; staged files in an order that does not depend on arrival. Raises TypeError for what is no `CommitElement`."""
    counts: list[Count] = []
    staged: list[Staged] = []
    checks: list[bytes] = []
    schemas: dict[str, tuple[tuple[str, str], ...]] = {}
    spans: list[SourceSpans] = []
    for element in elements:
        match element:
            case None:
                pass
            case (_, _, _, _, _):
                counts.append(element)
            case Staged():
                staged.append(element)
            case CheckState():
                checks.append(element.state)
            case SourceSpans():
                spans.append(element)
            case Columns():
                schemas[element.output] = element.columns
            case _:
                raise TypeError(
                    f"Commit: got {element!r:.200}; expected a count (unit, source, outcome, detail, rows), Staged, Columns, CheckState or SourceSpans"
                )
    return Inbox(tuple(counts), tuple(sorted(staged, key=lambda s: (s.output, s.partition, s.path))), tuple(checks), schemas, tuple(spans))


def _fail(run: RunInfo, outputs: Sequence[Output], record: RunResults, inbox: Inbox, before: RunResults | None) -> RunResults:
    if before is not None and (before.status == "success" or before.metadata.started_at == run.started_at):
        abandon(outputs, run)  # an earlier attempt has committed under this id, or this one has failed before: the record stays true
        return record
    try:
        record = replace(record, kept_letters=keep_letters(outputs, inbox.staged, run, header=csv_header(DEAD_LETTERS.names)))
    except (SinkError, TransientError) as error:
        record = replace(record, failures=(*record.failures, f"its dead letters could not be kept: {error.message.rstrip('.')}"))
    write_run(run.state, record)
    _forget(before, record)
    abandon(outputs, run)
    return record


def _forget(before: RunResults | None, record: RunResults | None) -> None:
    """Deletes kept letters that no record names any more: of the record that was replaced, and of old failures. What cannot be deleted goes with later ones."""
    with suppress(SinkError, TransientError):
        if before is not None and before.kept_letters is not None:
            forget_letters(before.kept_letters)
        if record is not None and record.kept_letters is not None:
            forget_older(record.kept_letters)


def _lost_files(inbox: Inbox, ledger: Ledger, outputs: Sequence[Output]) -> tuple[str, ...]:
    """Outputs whose files hold other rows than the ledger counted."""
    held = {o.name: sum(s.rows for s in inbox.staged if s.output == o.name) for o in outputs}
    return tuple(
        f"{name}: its files hold {rows:,} rows, the ledger counts {ledger.written(name):,}"
        for name, rows in held.items()
        if rows != ledger.written(name)
    )


def _columns(output: Output, found: tuple[tuple[str, str], ...], old: Snapshot | None) -> tuple[tuple[str, str], ...]:
    """The output's columns: those written now, else those it had; dead letters have theirs before the first one exists."""
    known = sql_schema(DEAD_LETTERS) if output.of == "dead_letters" else ()
    return found or (old.schema if old is not None and old.path == output.path else ()) or known
