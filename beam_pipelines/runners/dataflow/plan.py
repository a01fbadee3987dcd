"""What a new version of a spec changes: what it writes, and whether the state of the running stream survives an update.

Dataflow moves the state of a step to the step of the same name, and reads it with the coder of the new one. Inside our own state nobody but us can look: a log of window
inputs, slices of rows. So besides names, coders and states, everything that decides what those bytes mean must stay as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import msgspec

from beam_pipelines.edges import Job, Resume
from beam_pipelines.pipeline import build
from beam_pipelines.runners.dataflow.graph import Graph, Step, graph_of
from beam_pipelines.runners.dataflow.starts import of_trial
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.sources.pubsub_native import ReadPubsubNative
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec

STATE = ("deduplicate", "aggregates", "sources", "state")
"""Facts on which the state of a running job depends."""
_WHY = {
    "deduplicate": "rows that it remembers were kept by the old rule",
    "aggregates": "open windows were cut, grouped and measured the old way",
    "sources": "messages that are under way come from the old one",
    "state": "what is kept of a row would be looked for where it is not",
}


class GraphChange(NamedTuple):
    """One difference. `breaks`: the state of the running job does not survive it, and why."""

    what: str
    why: str = ""
    breaks: bool = False


def planned(loaded: LoadedSpec) -> Graph:
    """The graph of the spec's stream, without steps where it has none, and its facts. No service is asked."""
    facts = facts_of(loaded)
    if not loaded.spec.sources.stream:
        return Graph({}, 0, facts)
    spec = loaded.spec
    run = of_trial(spec, loaded.state, "plan").run
    resume = Resume(make=ReadPubsubNative)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, Job(spec, run, "gs://plan/temp", resume=resume, lookups=lookups_of(spec, endless=True)))
    return msgspec.structs.replace(graph_of(pipeline), facts=facts)


def facts_of(loaded: LoadedSpec) -> dict[str, dict[str, str]]:
    """What a spec says of outputs, columns, checks and of all that state depends on, as texts that can be compared."""
    spec = loaded.spec
    return {
        "outputs": dict(_outputs(spec)),
        "columns of rows": {name: kind or "known in the run" for name, kind in loaded.columns.items()},
        "checks": {check.name: _text(check) for check in spec.checks},
        "sources": {f"sources.stream[{n}]": f"{s.pubsub}, arrival {_text(s.arrival)}" for n, s in enumerate(spec.sources.stream)},
        "deduplicate": _deduplicate(loaded),
        "aggregates": {name: _aggregate(spec, name, loaded.columns) for name in spec.aggregates},
        "state": {"shards": str(spec.state_shards or "default")},
        "lookups": {name: _text(source) for name, source in spec.lookups.items()},
    }


def _outputs(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    for number, sink in enumerate(spec.sinks):
        where = getattr(sink, sink.kind)
        yield f"sinks[{number}]", f"{sink.from_} to {sink.kind} {_text(where)}"


def _deduplicate(loaded: LoadedSpec) -> dict[str, str]:
    spec = loaded.spec
    if spec.deduplicate is None:
        return {"redelivered messages": f"remembered for {horizon(spec)} us"}
    kinds = {name: loaded.columns.get(name) or "?" for name in spec.contract.key}
    rows = ", ".join(f"{name} {kind}" for name, kind in loaded.columns.items())
    return {
        "key": ", ".join(f"{name} {kind}" for name, kind in kinds.items()), "event_time": str(spec.contract.event_time), "rule": _text(spec.deduplicate),
        "horizon": f"{horizon(spec)} us", "columns of the rows that are kept": rows,
    }  # fmt: skip


def _aggregate(spec: PipelineSpec, name: str, columns: Mapping[str, str | None]) -> str:
    aggregate = spec.aggregates[name]
    groups = ", ".join(f"{group} {columns.get(group) or '?'}" for group in aggregate.group_by)
    said = aggregate.model_dump(mode="json", exclude={"trigger"}, exclude_defaults=True)
    measured = {
        text: {n: columns[n] or "?" for n in sorted(columns) if re.search(rf"\b{re.escape(n)}\b", text)}
        for text in aggregate.measures.values()
    }
    return f"{_json(said)}; measured: {_json(measured)}; groups: {groups}; event time: {spec.contract.event_time}; zone: {spec.time_zone}; compared: {spec.deduplicate is not None}"


def _text(model: Any) -> str:
    return "none" if model is None else _json(model.model_dump(mode="json", exclude_defaults=True, by_alias=True))


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def compare(old: Graph, new: Graph) -> list[GraphChange]:
    """Every difference, those that break the running job first."""
    found = [*_steps(old.steps, new.steps), *_facts(old.facts, new.facts, streams=bool(old.steps and new.steps))]
    return sorted(dict.fromkeys(found), key=lambda change: not change.breaks)


def _steps(old: Mapping[str, Step], new: Mapping[str, Step]) -> Iterator[GraphChange]:
    if old and not new:
        yield GraphChange("the stream has no sources any more", "nothing is there to go on", breaks=True)
        return
    for name, step in old.items():
        if name not in new:
            why = "its state has nowhere to go, and Dataflow refuses the update" if step.keeps else ""
            yield GraphChange(f"step {name} is gone", why, breaks=step.keeps)
        elif step.keeps or new[name].keeps or step.side_inputs != new[name].side_inputs:
            yield from _kept(name, step, new[name])
    for name, step in new.items() if old else ():
        if name not in old:
            yield GraphChange(f"step {name} is new", "it begins with nothing" if step.keeps else "")


def _kept(name: str, old: Step, new: Step) -> Iterator[GraphChange]:
    parts: tuple[tuple[str, Any, Any, Literal["names", "coders"] | str], ...] = (
        ("kind", old.kind, new.kind, "a step of another kind keeps other things"), ("coder of its input", old.inputs, new.inputs, "what is under way to it cannot be read"),
        ("states", old.states, new.states, "what it keeps cannot be read"), ("timers", old.timers, new.timers, "timers that are set have nobody to wake"),
        ("side inputs", old.side_inputs, new.side_inputs, "Dataflow refuses other side inputs"),
    )  # fmt: skip
    for what, before, after, why in parts:
        if before != after:
            yield GraphChange(f"step {name}: {what}: {_shown(before)} becomes {_shown(after)}", why, breaks=True)


def _facts(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]], *, streams: bool) -> Iterator[GraphChange]:
    for kind in [*new, *(k for k in old if k not in new)] if old else ():
        before, after = old.get(kind, {}), new.get(kind, {})
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                breaks = streams and kind in STATE and name in before and name in after
                yield GraphChange(
                    f"{kind}: {_difference(name, before.get(name), after.get(name))}", _WHY[kind] if breaks else "", breaks=breaks
                )


def _difference(name: str, before: str | None, after: str | None) -> str:
    if before is None:
        return f"{name} is new: {after}"
    return f"{name} is gone: {before}" if after is None else f"{name}: {before} becomes {after}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {kind}" for name, kind in value.items()) or "none"
    return value if isinstance(value, str) else ", ".join(value) or "none"
