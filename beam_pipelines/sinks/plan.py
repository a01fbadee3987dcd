"""From a spec's sinks to the transforms that stage them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from beam_pipelines.arrow.partition import table_partition
from beam_pipelines.arrow.sensitive import for_letters, sensitive_columns, sensitive_panes
from beam_pipelines.sinks.bigquery_append import AppendDeadLettersToBigQuery, AppendToBigQuery
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.labels import labels_of, text_format
from beam_pipelines.sinks.loads import Table
from beam_pipelines.sinks.parquet import WriteParquet
from beam_pipelines.sinks.pubsub import Publish, PublishDeadLetters
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.text import WriteText
from beam_pipelines.sinks.tombstones import tombstones_of
from beam_pipelines.sinks.write import Masking, Write
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import resolve_secret
from beam_pipelines.spec.sinks import LETTERS, ROWS, ParquetSink, Sink


def writes_of(spec: PipelineSpec, run: RunInfo) -> list[Write]:
    """A staging transform for every sink of rows and panes; `output.of` says which."""
    return [
        _write(spec, sink, label, run)
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ != LETTERS and sink.pubsub is None
    ]


def publishes_of(spec: PipelineSpec, run: RunInfo) -> list[Publish]:
    """A publishing transform for every sink of rows and panes that is a topic."""
    return [
        Publish(
            sink.pubsub, label=label, of=sink.from_, run=run, masking=_masking(spec, sink),
            event_time=spec.contract.event_time if sink.from_ == ROWS else "_window_start", key=spec.contract.key,
        )
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ != LETTERS and sink.pubsub is not None
    ]  # fmt: skip


def letter_publishes_of(spec: PipelineSpec, run: RunInfo) -> list[PublishDeadLetters]:
    """A publishing transform for every sink of dead letters that is a topic."""
    key = partial(resolve_secret, spec.dead_letters.raw_key) if spec.dead_letters.raw_key else None
    return [
        PublishDeadLetters(sink.pubsub, run=run, contract=for_letters(spec.contract, spec.transform), raw_key=key, label=label)
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ == LETTERS and sink.pubsub is not None
    ]


def appends_of(spec: PipelineSpec, run: RunInfo) -> dict[str, AppendToBigQuery]:
    """What a stream appends to tables besides the files it stores: a transform by output of rows and panes."""
    return {
        label: AppendToBigQuery(
            sink.bigquery, label=label, of=sink.from_, run=run, masking=_masking(spec, sink),
            event_time=spec.contract.event_time if sink.from_ == ROWS else "_window_start",
            key=spec.contract.key if sink.from_ == ROWS else spec.aggregates[sink.from_].group_by, versions=spec.deduplicate,
            required=table.required, descriptions=table.descriptions,
        )
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ != LETTERS and sink.bigquery is not None and (table := _table(spec, sink)) is not None
    }  # fmt: skip


def letter_appends_of(spec: PipelineSpec, run: RunInfo) -> dict[str, AppendDeadLettersToBigQuery]:
    """The same for outputs of dead letters."""
    key = partial(resolve_secret, spec.dead_letters.raw_key) if spec.dead_letters.raw_key else None
    return {
        label: AppendDeadLettersToBigQuery(
            sink.bigquery, run=run, contract=for_letters(spec.contract, spec.transform), raw_key=key, label=label
        )
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ == LETTERS and sink.bigquery is not None
    }


def published_of(spec: PipelineSpec, run: RunInfo) -> list[Output]:
    """Every topic the run publishes to: outputs that are counted, and that no commit can take back."""
    return [p.output for p in publishes_of(spec, run)] + [p.output for p in letter_publishes_of(spec, run)]


def letter_writes_of(spec: PipelineSpec, run: RunInfo) -> list[WriteDeadLetters]:
    """A staging transform for every sink of dead letters; one under the state folder where the spec has none."""
    key = partial(resolve_secret, spec.dead_letters.raw_key) if spec.dead_letters.raw_key else None
    contract = for_letters(spec.contract, spec.transform)
    found = [
        WriteDeadLetters(
            sink.destination,
            run=run,
            contract=contract,
            raw_key=key,
            text_format=text_format(sink),
            label=label,
            table=_table(spec, sink),
        )
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ == LETTERS and sink.pubsub is None
    ]
    return found or [WriteDeadLetters(run=run, contract=contract, raw_key=key)]


def outputs_of(spec: PipelineSpec, run: RunInfo) -> list[Output]:
    """Every place the run will write files to, dead letters included, and of a run over a range tombstones."""
    buried = [tombstones_of(run)] if buries(spec, run) else []
    return [w.output for w in writes_of(spec, run)] + [w.output for w in letter_writes_of(spec, run)] + buried


def buries(spec: PipelineSpec, run: RunInfo) -> bool:
    """Whether the run may find duplicates in partitions it does not write."""
    return run.range is not None and spec.deduplicate is not None


def _write(spec: PipelineSpec, sink: Sink, label: str, run: RunInfo) -> Write:
    rows = sink.from_ == ROWS
    provenance = rows and (sink.provenance or spec.provenance) == "on"
    masking = _masking(spec, sink)
    destination = sink.destination
    if isinstance(destination, ParquetSink):
        key = spec.contract.key if rows else spec.aggregates[sink.from_].group_by
        event_time = spec.contract.event_time if rows else "_window_start"
        return WriteParquet(
            destination,
            label=label,
            run=run,
            provenance=provenance,
            event_time=event_time,
            key=key,
            masking=masking,
            of=sink.from_,
            table=_table(spec, sink),
        )
    return WriteText(
        destination, text_format=text_format(sink), label=label, run=run, provenance=provenance, masking=masking, of=sink.from_
    )


def _table(spec: PipelineSpec, sink: Sink) -> Table | None:
    """The table that an output's files are loaded into."""
    bigquery = sink.bigquery
    if bigquery is None:
        return None
    by = table_partition(bigquery.partition_by)
    columns = spec.contract.columns if sink.from_ == ROWS else {}
    return Table(
        bigquery.table, column=by.column, unit=by.transform, bounds=by.bounds, cluster_by=bigquery.cluster_by,
        required=tuple(name for name, column in columns.items() if column.required and name in _as_conformed(spec)),
        descriptions={name: column.description for name, column in columns.items() if column.description},
        expiration=bigquery.partition_expiration, require_partition_filter=bigquery.require_partition_filter, location=bigquery.location,
        endpoint=bigquery.endpoint, folders=(by.name,) if by.column else (),
    )  # fmt: skip


def _as_conformed(spec: PipelineSpec) -> set[str]:
    """Columns that no later step computes anew: what the contract requires of these is true of the rows that are written."""
    kept = {name for name, column in spec.contract.columns.items() if column.sensitive not in ("drop", "redact")}
    for step in spec.transform:
        if step.apply is not None:
            return set()
        kept -= {*(step.set or ()), *(step.rename or ()), *(step.rename or {}).values(), *(step.drop or ())}
        kept -= set() if step.lookup is None else set(step.lookup.take)
    return kept


def _masking(spec: PipelineSpec, sink: Sink) -> Masking | None:
    """Sensitive columns of what the sink takes, also under new names and in what is computed from them."""
    how = sensitive_columns(spec.contract, spec.transform)
    if sink.from_ != ROWS:
        how = sensitive_panes(spec.aggregates[sink.from_], how)
    return Masking(how, _hmac_key(spec)) if how else None


def _hmac_key(spec: PipelineSpec) -> Callable[[], bytes] | None:
    """What gives the key of `sensitive: hmac` on a worker; None where no column needs one."""
    return partial(resolve_secret, spec.hmac_reference) if spec.hmac_reference else None
