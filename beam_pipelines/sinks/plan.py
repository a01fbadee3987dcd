"""From a spec's sinks to the transforms that stage them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from beam_pipelines.arrow.sensitive import sensitive_columns, sensitive_panes
from beam_pipelines.sinks.dead_letters import LABEL, WriteDeadLetters
from beam_pipelines.sinks.parquet import WriteParquet
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.text import WriteText
from beam_pipelines.sinks.write import Masking, Write
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import resolve_secret
from beam_pipelines.spec.sinks import ParquetSink, Sink


def labels_of(spec: PipelineSpec) -> tuple[str, ...]:
    """The name of each sink, in order: what it takes (`rows`); where several take the same, the later ones say how (`rows_csv`, `rows_csv_2`)."""
    labels: list[str] = []
    for sink in spec.sinks:
        label = sink.from_ if sink.from_ not in labels else f"{sink.from_}_{_kind(sink)}"
        number = 2
        while label in labels:
            label, number = f"{sink.from_}_{_kind(sink)}_{number}", number + 1
        labels.append(label)
    return tuple(labels)


def writes_of(spec: PipelineSpec, run: RunInfo) -> list[Write]:
    """A staging transform for every sink of rows and panes; `output.of` says which."""
    return [_write(spec, sink, label, run) for sink, label in zip(spec.sinks, labels_of(spec), strict=True) if sink.from_ != LABEL]


def letter_writes_of(spec: PipelineSpec, run: RunInfo) -> list[WriteDeadLetters]:
    """A staging transform for every sink of dead letters; one under the state folder where the spec has none."""
    key = partial(resolve_secret, spec.dead_letters.raw_key) if spec.dead_letters.raw_key else None
    found = [
        WriteDeadLetters(sink.destination, run=run, contract=spec.contract, raw_key=key, text_format=_text_format(sink), label=label)
        for sink, label in zip(spec.sinks, labels_of(spec), strict=True)
        if sink.from_ == LABEL
    ]
    return found or [WriteDeadLetters(run=run, contract=spec.contract, raw_key=key)]


def outputs_of(spec: PipelineSpec, run: RunInfo) -> list[Output]:
    """Every place the run will write to, dead letters included."""
    return [w.output for w in writes_of(spec, run)] + [w.output for w in letter_writes_of(spec, run)]


def _write(spec: PipelineSpec, sink: Sink, label: str, run: RunInfo) -> Write:
    rows = sink.from_ == "rows"
    provenance = rows and (sink.provenance or spec.provenance) == "on"
    masking = _masking(spec, sink)
    destination = sink.destination
    if isinstance(destination, ParquetSink):
        key = spec.contract.key if rows else spec.aggregates[sink.from_].group_by
        event_time = spec.contract.event_time if rows else "_window_start"
        return WriteParquet(
            destination, label=label, run=run, provenance=provenance, event_time=event_time, key=key, masking=masking, of=sink.from_
        )
    return WriteText(
        destination, text_format=_text_format(sink), label=label, run=run, provenance=provenance, masking=masking, of=sink.from_
    )


def _masking(spec: PipelineSpec, sink: Sink) -> Masking | None:
    """Sensitive columns of what the sink takes, also under new names and in what is computed from them."""
    how = sensitive_columns(spec.contract, spec.transform)
    if sink.from_ != "rows":
        how = sensitive_panes(spec.aggregates[sink.from_], how)
    return Masking(how, _hmac_key(spec)) if how else None


def _hmac_key(spec: PipelineSpec) -> Callable[[], bytes] | None:
    """What gives the key of `sensitive: hmac` on a worker; None where no column needs one."""
    return partial(resolve_secret, spec.hmac_reference) if spec.hmac_reference else None


def _kind(sink: Sink) -> str:
    return "parquet" if sink.parquet else _text_format(sink)


def _text_format(sink: Sink) -> Literal["csv", "jsonl"]:
    return "csv" if sink.csv else "jsonl"
