"""A pipeline's graph in words: its steps, what they keep and in which coders. What an update must not change, and what a test may look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

from beam_pipelines.errors import SpecError

MOST_BYTES = 10 << 20
"""Of a graph: what the service takes in one request."""
_SHORT = ("beam:transform:", "beam:coder:", "beam:coders:")


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A transform that is carried out: what it is, the coders of its inputs and outputs, of its states and timers, and how it takes side inputs."""

    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    states: dict[str, str] = {}
    timers: dict[str, str] = {}
    side_inputs: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether there is something of it that outlives a bundle."""
        return bool(self.states or self.timers) or self.kind == "group_by_key"


class Graph(msgspec.Struct, frozen=True):
    """The steps by their names, and the bytes of the graph as it goes to the service; with what the spec says besides (`plan.facts_of`), where it was kept."""

    steps: dict[str, Step]
    size: int = 0
    facts: dict[str, dict[str, str]] = {}


def graph_of(pipeline: Any) -> Graph:
    """The graph of a pipeline, or of Beam's proto of one."""
    proto = pipeline.to_runner_api() if isinstance(pipeline, beam.Pipeline) else pipeline
    context, parts = PipelineContext(proto.components), proto.components
    composite = {child for t in parts.transforms.values() for child in ([t.unique_name] if t.subtransforms else [])}
    leaves = {t.unique_name: t for t in parts.transforms.values() if t.spec.urn and t.unique_name and t.unique_name not in composite}
    return Graph({name: _step(t, parts, context) for name, t in sorted(leaves.items())}, proto.ByteSize())


def check_size(graph: Graph) -> None:
    """Raises SpecError where the service would refuse the graph for its size."""
    if graph.size > MOST_BYTES:
        raise SpecError(
            f"run --runner dataflow: the job's graph has {graph.size >> 20} MB, and the service takes {MOST_BYTES >> 20}.",
            hint="Put long lists of the spec (in, choices) into lookups, and list fewer files: give folders a day each, or compact them.",
        )


def _step(transform: Any, parts: Any, context: PipelineContext) -> Step:
    kind = _short(transform.spec.urn)
    inputs = tuple(_coder(context, parts.pcollections[p].coder_id) for _, p in sorted(transform.inputs.items()))
    outputs = tuple(_coder(context, parts.pcollections[p].coder_id) for _, p in sorted(transform.outputs.items()))
    if kind != "pardo:v1":
        return Step(kind.removesuffix(":v1"), inputs, outputs)
    payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
    states = {name: _state(spec, context) for name, spec in sorted(payload.state_specs.items())}
    domains = beam_runner_api_pb2.TimeDomain.Enum
    timers = {name: domains.Name(spec.time_domain).lower() for name, spec in sorted(payload.timer_family_specs.items())}
    sides = tuple(f"{name}: {_short(side.access_pattern.urn)}" for name, side in sorted(payload.side_inputs.items()))
    return Step("pardo", inputs, outputs, states, timers, sides)


def _state(spec: Any, context: PipelineContext) -> str:
    kind = spec.WhichOneof("spec")
    held = getattr(spec, kind)
    coders = [getattr(held, field.name) for field in held.DESCRIPTOR.fields if field.name.endswith("coder_id")]
    return f"{kind.removesuffix('_spec')} of {', '.join(_coder(context, c) for c in coders if c)}"


def _coder(context: PipelineContext, coder_id: str) -> str:
    return _named(context.coders.get_by_id(coder_id))


def _named(coder: Any) -> str:
    inner = [_named(part) for part in _components(coder)]
    return type(coder).__name__ + (f"[{', '.join(inner)}]" if inner else "")


def _components(coder: Any) -> Iterator[Any]:
    try:
        yield from coder._get_component_coders()
    except NotImplementedError:
        return


def _short(urn: str) -> str:
    for prefix in _SHORT:
        urn = urn.removeprefix(prefix)
    return urn
