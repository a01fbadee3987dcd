"""The names of a spec's outputs, and where each lies. Loads no Beam."""

from __future__ import annotations

from typing import Literal

from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import Sink


def labels_of(spec: PipelineSpec) -> tuple[str, ...]:
    """The name of each sink, in order: what it takes (`rows`); where several take the same, the later ones say how (`rows_csv`, `rows_csv_2`).

    Messages always say how (`rows_pubsub`): the plain name is that of what can be asked.
    """
    labels: list[str] = []
    for sink in spec.sinks:
        label = sink.from_ if sink.from_ not in labels and sink.pubsub is None else f"{sink.from_}_{kind_of(sink)}"
        number = 2
        while label in labels:
            label, number = f"{sink.from_}_{kind_of(sink)}_{number}", number + 1
        labels.append(label)
    return tuple(labels)


def places_of(spec: PipelineSpec) -> dict[str, str]:
    """The path of each output of files, by its name."""
    return {label: sink.destination.path for label, sink in zip(labels_of(spec), spec.sinks, strict=True) if sink.pubsub is None}


def kind_of(sink: Sink) -> str:
    """What a sink writes: parquet, csv, jsonl or pubsub."""
    return sink.kind


def text_format(sink: Sink) -> Literal["csv", "jsonl"]:
    """What a sink for people writes."""
    return "csv" if sink.csv else "jsonl"
