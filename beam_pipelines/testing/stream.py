"""A spec as a stream, on a timeline: the production graph from its messages to what readers see, in this process, with a clock turned by hand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import duckdb
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines import draining
from beam_pipelines.arrow.engine import quote
from beam_pipelines.back_pressure import MOST_BYTES
from beam_pipelines.edges import Job, Resume
from beam_pipelines.errors import SpecError
from beam_pipelines.pipeline import build
from beam_pipelines.runners.direct import importable
from beam_pipelines.runners.failures import run_to_end
from beam_pipelines.runners.prism import expect_no_other
from beam_pipelines.runners.process_state import begin_anew
from beam_pipelines.runners.stream import stream_outputs_of
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.outputs import read_outputs, write_outputs
from beam_pipelines.sinks.run import RunInfo, new_run_id
from beam_pipelines.sinks.speed_views import scan
from beam_pipelines.sinks.stream_ledger import StreamLedger, stream_ledger
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sinks import LETTERS, ROWS
from beam_pipelines.spec.sources import PubsubSource, Sources
from beam_pipelines.testing.quick import quick
from beam_pipelines.testing.run import Spec, loaded_spec, redirected, shown, unjudged
from beam_pipelines.testing.timeline import Step, Timeline, played

_RUNNER = "BundleBasedDirectRunner"


@dataclass(frozen=True)
class StreamResult:
    """What a spec made of a timeline, as readers see it in the end: `rows` without provenance columns, dead letters whole, of every aggregate the
    final pane of each group and window. `panes` are all that were shown, in order (`_pane`: early, on_time, late, retracted).

    `ledger` has a line for the subscription; `ledger.explain()` says where it does not balance, "" if it does.
    """

    rows: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]
    aggregates: dict[str, list[dict[str, Any]]]
    panes: dict[str, list[dict[str, Any]]]
    ledger: StreamLedger

    @property
    def reasons(self) -> dict[str, int]:
        """Dead letters by `stage:REASON`."""
        return dict(self.ledger.reasons)

    @property
    def filtered(self) -> int:
        """Rows that a `filter` step took out."""
        return sum(line.filtered for line in self.ledger.lines)

    @property
    def duplicates(self) -> int:
        """Rows that were duplicates of better ones."""
        return sum(line.duplicate for line in self.ledger.lines)


def run_spec_stream(spec: Spec, timeline: Timeline, *, source: int = 0, set_: Mapping[str, str] | None = None) -> StreamResult:
    """Runs `spec` as a stream on `timeline` instead of its subscription number `source`, until every window has closed.

    Records stand as messages in the subscription's format: mappings or texts of JSON, texts, bytes of any format. No message is pulled and no
    topic published to; files lie in a temporary folder. Raises SpecError for a wrong spec or call, RunError where the job breaks.

    >>> result = run_spec_stream(
    ...     {'spec': 1, 'pipeline': 'shop',
    ...      'contract': {'key': ['id'], 'event_time': 'at', 'columns': {'id': {'type': 'int64'}, 'at': {'type': 'timestamp'}}},
    ...      'sources': {'stream': [{'pubsub': 'projects/p/subscriptions/orders', 'format': 'json'}]},
    ...      'aggregates': {'hourly': {'windowing': {'size': '1h', 'allowed_lateness': '2h'}, 'measures': {'n': 'count()'}}},
    ...      'sinks': [{'from': 'rows', 'parquet': {'path': 'out'}}]},
    ...     Timeline().arrive('2024-05-01T10:01Z', {'id': 1, 'at': '2024-05-01T10:00Z'})
    ...               .arrive('2024-05-01T11:05Z', {'id': 2, 'at': '2024-05-01T10:59Z'}))
    >>> [(pane['_pane'], pane['n']) for pane in result.panes['hourly']], result.aggregates['hourly'][0]['n']
    ([('on_time', 1), ('late', 2)], 2)
    """
    if not isinstance(timeline, Timeline):
        raise SpecError(
            f"run_spec_stream: the timeline: got {type(timeline).__name__}; expected a Timeline.", hint="Timeline().arrive(when, *records)"
        )
    found = loaded_spec(spec, set_, where="run_spec_stream")
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-test-") as folder:
        tried = streaming(found, source, folder, where="run_spec_stream")
        ledger = play(tried, timeline.steps(tried.spec.sources.stream[0].format, tried.spec.contract))
        return _result(tried, ledger)


def streaming(found: LoadedSpec, source: int, folder: str, *, where: str) -> LoadedSpec:
    """The spec with this subscription alone, its archive and everything it writes in `folder`."""
    subscriptions = found.spec.sources.stream
    if not 0 <= source < len(subscriptions):
        raise SpecError(
            f"{where}: source {source}: the spec has {len(subscriptions)} stream sources.",
            hint="sources: {stream: [{pubsub: ..., format: ...}]}",
        )
    mine = subscriptions[source].model_copy(update={"archive": os.path.join(folder, "archive")})
    return replace(found, spec=redirected(unjudged(found.spec), Sources(stream=(mine,)), folder))


def play(loaded: LoadedSpec, steps: Sequence[Step]) -> StreamLedger:
    """Runs the stream of `loaded` on the steps in place of its one subscription; what it stores lies where its spec says. Gives its ledger.

    Everything that a stream holds per process begins anew, so there is one at a time: another thread's waits. Raises RunError where a stream on Prism runs in
    this process.
    """
    with importable(loaded.directory), quick():
        return _played(loaded, steps)


def _played(loaded: LoadedSpec, steps: Sequence[Step]) -> StreamLedger:
    expect_no_other()
    draining.reset()
    begin_anew(most_waiting_bytes=MOST_BYTES)
    spec, run_id = loaded.spec, new_run_id()
    run = RunInfo(
        run_id, spec.pipeline, loaded.state, contract=spec.contract.fingerprint, mode="stream", epoch=take_epoch(loaded.state, run_id)
    )
    outputs = stream_outputs_of(spec, run)
    write_outputs(run.state, outputs)

    def make(source: PubsubSource, number: int) -> beam.PTransform:
        return played(steps, source.pubsub)

    pipeline = beam.Pipeline(_RUNNER, options=PipelineOptions(["--streaming"]))
    build(pipeline, Job(spec, run, os.path.join(loaded.state, "tmp"), resume=Resume(make=make)))
    run_to_end(pipeline)
    return stream_ledger(run.state, outputs)


def stored(loaded: LoadedSpec, *, layer: str) -> dict[str, list[dict[str, Any]]]:
    """Rows, dead letters and each aggregate of a layer (`batch`, `speed`), as readers see them. What has nothing in it has no table: then there is
    nothing."""
    with open_tables(loaded.state) as tables:
        known = {name for (name,) in tables.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
        return {name: _rows(tables, f"{name}_{layer}") if f"{name}_{layer}" in known else [] for name in _outputs(loaded)}


def _outputs(loaded: LoadedSpec) -> list[str]:
    return [ROWS, LETTERS, *loaded.spec.aggregates]


def _rows(tables: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables.sql(f"SELECT * FROM {quote(name)}").to_arrow_table().to_pylist()
    return [] if found and "nothing" in found[0] else found


def _result(tried: LoadedSpec, ledger: StreamLedger) -> StreamResult:
    found = stored(tried, layer="speed")
    aggregates = {name: found[name] for name in tried.spec.aggregates}
    return StreamResult(shown(found["rows"]), found["dead_letters"], aggregates, _panes(tried), ledger)


def _panes(tried: LoadedSpec) -> dict[str, list[dict[str, Any]]]:
    """Every pane that was stored, in the order of windows and then of panes."""
    outputs = read_outputs(tried.state)
    folders = {} if outputs is None else {output.of: output.folder for output in outputs.outputs}
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return {name: _all_panes(connection, scan(folders[name])) for name in tried.spec.aggregates}


def _all_panes(connection: duckdb.DuckDBPyConnection, files: str | None) -> list[dict[str, Any]]:
    if files is None:
        return []
    sql = f"SELECT DISTINCT * FROM {files} ORDER BY _window_start, _window_end, _epoch, _pane_index"
    found: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return found
