"""Before a job starts: what is good and what is not. Nothing is changed, and no service is asked for more than a look.

The functions are those with which a run starts; what a run would only find out later (a topic that is not there, a folder that refuses) is looked at, too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PrismRunnerOptions
from apache_beam.version import __version__ as BEAM_VERSION  # noqa: N812  (a constant)

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.edges import archives_of
from beam_pipelines.errors import BeamPipelinesError, RunError, SinkError, SpecError, TransientError
from beam_pipelines.formats.columnar import roots
from beam_pipelines.places import exists, is_local, local
from beam_pipelines.pubsub_service import Topic, code, is_transient, where
from beam_pipelines.runners import stream
from beam_pipelines.runners.beam_options import temp_location
from beam_pipelines.runners.dataflow.doctor import dataflow_checks
from beam_pipelines.runners.dataflow.settings import Dataflow
from beam_pipelines.runners.direct import importable
from beam_pipelines.runners.findings import DoctorCheck, Finding, State, checks_of, look_at
from beam_pipelines.runners.flink.checks import look_at_flink
from beam_pipelines.runners.flink.jars import find_java, java_version
from beam_pipelines.runners.options import BEAM, Flink
from beam_pipelines.runners.prism_binary import VARIABLE, builder, prism_at_hand
from beam_pipelines.runners.writable import expect_writable, nearest_folder
from beam_pipelines.sinks import manifest
from beam_pipelines.sinks.changes import check_layout
from beam_pipelines.sinks.claims import holders, stale
from beam_pipelines.sinks.deletions import expect_archived
from beam_pipelines.sinks.epochs import handed_in, newest_start, runs_here
from beam_pipelines.sinks.labels import labels_of
from beam_pipelines.sinks.load_jobs import reach
from beam_pipelines.sinks.loads import Table
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.publishing import Publisher
from beam_pipelines.sinks.results import find_run
from beam_pipelines.sinks.run import Output, RunInfo, new_run_id
from beam_pipelines.sources.archive import hour_folders, written_files
from beam_pipelines.sources.bigquery import open_source
from beam_pipelines.sources.bigquery_session import Asked, check_columns, check_query, open_session
from beam_pipelines.sources.database import open_database
from beam_pipelines.sources.database_whole import open_whole
from beam_pipelines.sources.files import list_files
from beam_pipelines.sources.lookups import FileLookup, lookups_of
from beam_pipelines.sources.pubsub import check_subscription
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import expect_keys, secrets_of
from beam_pipelines.spec.sinks import PubsubSink
from beam_pipelines.spec.sources import (
    ArchiveSource,
    BatchSource,
    BigQueryLookup,
    BigQuerySource,
    DatabaseLookup,
    DatabaseSource,
    PubsubSource,
    TableSource,
)
from beam_pipelines.transforms.prepare import row_program

PYTHON = ((3, 11), (3, 14))
"""From, and before: pyproject.toml."""
_SERVICE_S = 5.0
_TAKES_OVER = "A new start takes the stream over."
_LITTLE, _TOO_LITTLE = 2_000_000_000, 200_000_000  # bytes


@dataclass(frozen=True)
class Examination:
    """What is to be examined: this machine, and a spec, where there is one, or what is wrong with it. `mode`: None: all of the spec. `flink`: the cluster, `dataflow`: the job on the service; both None: local runners."""

    spec: LoadedSpec | SpecError | None = None
    mode: str | None = None
    flink: Flink | None = None
    flags: tuple[str, ...] = ()
    dataflow: Dataflow | None = None


def examine(asked: Examination) -> list[Finding]:
    """All findings: of this machine, of the spec, of its places and services, of the cluster. Takes some seconds at most."""
    loaded = asked.spec
    if not isinstance(loaded, LoadedSpec):
        wrong = [] if loaded is None else [Finding("spec", "bad", loaded.message, loaded.hint)]
        return [*look_at(_machine(asked, None, (asked.mode,) if asked.mode else ("batch", "stream"))), *wrong]
    modes = modes_of(loaded.spec, asked.mode)
    with importable(loaded.directory):
        return look_at([*_machine(asked, loaded, modes), DoctorCheck("spec", partial(_spec, loaded)), *_places(asked, loaded, modes)])


def modes_of(spec: PipelineSpec, mode: str | None) -> tuple[str, ...]:
    """Those that are looked at: `mode`, or all that have sources."""
    if mode is not None:
        return (mode,)
    return tuple(m for m, sources in (("batch", spec.sources.batch), ("stream", spec.sources.stream)) if sources)


def _machine(asked: Examination, loaded: LoadedSpec | None, modes: Sequence[str]) -> list[DoctorCheck]:
    checks = [
        DoctorCheck("Python", _python),
        DoctorCheck("Beam", _beam),
        DoctorCheck("Java", partial(_java, needed=asked.flink is not None)),
        DoctorCheck("space", partial(_space, asked.flags, loaded)),
    ]
    if asked.flink is not None:
        return [*checks, DoctorCheck("Flink", partial(look_at_flink, asked.flink, asked.flags, modes, loaded))]
    if asked.dataflow is not None:
        return [*checks, *dataflow_checks(loaded, asked.dataflow, asked.flags, modes)]
    return [*checks, DoctorCheck("Prism", partial(_prism, asked.flags))] if "stream" in modes else checks


def _python() -> Iterator[Finding]:
    first, after = PYTHON
    version, good = ".".join(map(str, sys.version_info[:3])), first <= sys.version_info[:2] < after
    expected = f"Use {first[0]}.{first[1]} or newer, before {after[0]}.{after[1]}."
    yield Finding("Python", "good" if good else "warning", version, "" if good else expected)


def _beam() -> Iterator[Finding]:
    good = BEAM_VERSION.startswith(f"{BEAM}.")
    yield Finding(
        "Beam", "good" if good else "warning", BEAM_VERSION, "" if good else f"This version of beam-pipelines is tested with {BEAM}."
    )


def _java(*, needed: bool) -> Iterator[Finding]:
    try:
        java = find_java()
    except RunError as error:
        if needed:
            raise
        yield Finding("Java", "not looked at", f"only --runner flink needs it: {error.message}")
        return
    yield Finding("Java", "good", f"{java_version(java)} at {java}")


def _prism(flags: Sequence[str]) -> Iterator[Finding]:
    location = PipelineOptions(list(flags)).view_as(PrismRunnerOptions).prism_location
    found = prism_at_hand(location)
    if found is not None:
        yield Finding("Prism", "good", str(found))
    elif builder() is not None:
        yield Finding("Prism", "warning", "not here yet; the first stream builds it with Go, which takes some minutes", "Let it, once.")
    else:
        yield Finding(
            "Prism", "warning", "not here, and there is no Go to build it; the first stream fetches it from GitHub",
            f"Without a way there, install Go, or name the program by --prism_location or {VARIABLE}.",
        )  # fmt: skip


def _space(flags: Sequence[str], loaded: LoadedSpec | None) -> Iterator[Finding]:
    temporary = temp_location(flags) or tempfile.gettempdir()
    for what, folder in (("temporary files", temporary), *((("state", loaded.state),) if loaded is not None else ())):
        if not is_local(folder):
            continue
        free = shutil.disk_usage(nearest_folder(local(folder))).free
        do = "" if free >= _LITTLE else "Delete something, or choose another place: " + (
            "TMPDIR, or -- --temp_location=." if what == "temporary files" else "state in the spec."
        )  # fmt: skip
        state: State = "good" if free >= _LITTLE else "warning" if free >= _TOO_LITTLE else "bad"
        yield Finding(f"space for {what}", state, f"{free / 1e9:,.1f} GB free at {folder}", do)


def _spec(loaded: LoadedSpec) -> Iterator[Finding]:
    spec = loaded.spec
    yield Finding("spec", "good", f"pipeline {spec.pipeline}, contract {spec.contract.fingerprint}, {len(spec.sinks)} sinks")
    yield from (Finding("note", "warning", note) for note in loaded.notes)


def _places(asked: Examination, loaded: LoadedSpec, modes: Sequence[str]) -> list[DoctorCheck]:
    """Those of a spec. On Dataflow the service reads subscriptions and workers read keys, of which `dataflow_checks` tells, and no stream archives."""
    spec, here = loaded.spec, asked.dataflow is None
    run = RunInfo(new_run_id(), spec.pipeline, loaded.state)
    return [
        *([DoctorCheck("keys", partial(_keys, spec, modes))] if here else []),
        DoctorCheck("state", partial(_state, loaded.state, modes, service_is_asked=not here)),
        *checks_of("sources", partial(_sources, loaded, modes if here else [mode for mode in modes if mode == "batch"])),
        *checks_of("lookups", partial(_lookups, spec, modes)),
        *(checks_of("outputs, batch", partial(_batch_sinks, spec, run)) if "batch" in modes else ()),
        *(checks_of("outputs, stream", partial(_stream_sinks, spec, run, archives=here)) if "stream" in modes else ()),
        *checks_of("topics", partial(_topics, spec)),
    ]


def _keys(spec: PipelineSpec, modes: Sequence[str]) -> Iterator[Finding]:
    if "stream" in modes:
        stream.expect_sealed(spec)
    expect_keys(spec)
    named = secrets_of(spec)
    if named:
        yield Finding("keys", "good", ", ".join(named.values()))


def _state(folder: str, modes: Sequence[str], *, service_is_asked: bool = False) -> Iterator[Finding]:
    expect_writable(folder)
    yield Finding("state", "good", f"{folder}: can be written, and of two who make one file one succeeds")
    newest = newest_start(folder) if "stream" in modes else None
    if newest is None or (service_is_asked and exists(handed_in(folder, newest[1].run_id))):
        return
    epoch, last = newest
    runs = runs_here(folder, last)
    if runs is None and find_run(folder, last.run_id) is None:
        at = "Dataflow" if exists(handed_in(folder, last.run_id)) else last.host
        found = f"start {epoch} of the stream ran on {at}, since {last.started_at}; whether it still runs cannot be seen from here"
        yield Finding("state", "warning", found, _TAKES_OVER)
    elif runs:
        found = f"start {epoch} of the stream runs: process {last.pid} on {last.host}, since {last.started_at}"
        yield Finding("state", "warning", found, _TAKES_OVER)


def _sources(loaded: LoadedSpec, modes: Sequence[str]) -> Iterator[DoctorCheck]:
    spec = loaded.spec
    if "batch" in modes:
        sources: Sequence[BatchSource] = spec.sources.batch or archives_of(spec, loaded.state)
        for number, source in enumerate(sources):
            name = f"sources.batch[{number}]" if spec.sources.batch else f"sources.stream[{number}], archived"
            yield DoctorCheck(
                name,
                partial(_batch_source, name, source, loaded, number),
                late="bad" if isinstance(source, TableSource) else "not looked at",
            )
    if "stream" in modes:
        for number, subscription in enumerate(spec.sources.stream):
            name = f"sources.stream[{number}]"
            yield DoctorCheck(name, partial(_subscription, name, subscription))


def _batch_source(name: str, source: BatchSource, loaded: LoadedSpec, number: int) -> Iterator[Finding]:
    if isinstance(source, ArchiveSource):
        if not loaded.spec.sources.batch:
            expect_archived(loaded.state, None)
        files = written_files(source)
        found = f"{len(files)} files" if files else f"{len(hour_folders(source))} hours"
        yield Finding(name, "good", f"{found} in {source.archive}")
    elif isinstance(source, BigQuerySource):
        if source.query is not None:
            check_query(source, f"{name}: {source.name}", patience_s=_SERVICE_S)
            yield Finding(name, "good", f"{source.name}: BigQuery understands the query")
        else:
            session = open_source(
                source, loaded.spec.contract, number=number, run_id=uuid.uuid4().hex, streams=1, patience_s=_SERVICE_S
            ).session
            yield Finding(name, "good", f"{source.name}: a table of {len(session.schema.names)} columns")
    elif isinstance(source, DatabaseSource):
        yield from _database(name, source, loaded.spec.contract, number)
    else:
        sizes = [size for _, size in list_files(source.patterns)]
        yield Finding(name, "good", f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {sum(sizes) / 1e6:,.1f} MB: {', '.join(source.patterns)}")


def _database(name: str, source: DatabaseSource, contract: Contract, number: int) -> Iterator[Finding]:
    opened = open_database(source, contract, number=number, splits=1)
    columns = {column.name for column in opened.shown}
    yield Finding(name, "good", f"{source.name}: {opened.server}, {len(columns)} columns are read")
    missing = sorted(roots(contract) - columns)
    if missing:
        yield Finding(name, "warning", f"{source.name}: no column {', '.join(missing)}, which the contract names: NULL in every row")


def _subscription(name: str, source: PubsubSource) -> Iterator[Finding]:
    deadline_s = check_subscription(source, patience_s=_SERVICE_S)
    own = "may be pulled, not looked at" if deadline_s is None else f"ack deadline {deadline_s} s"
    yield Finding(name, "good", f"{source.pubsub}: {own}; the stream leases messages for {source.ack_deadline / 1e6:g} s at a time")


def _lookups(spec: PipelineSpec, modes: Sequence[str]) -> Iterator[DoctorCheck]:
    lookups = lookups_of(spec)
    for name, lookup in lookups.items():
        in_service = isinstance(lookup.source, BigQueryLookup)
        yield DoctorCheck(f"lookups.{name}", partial(_lookup, lookup), late="bad" if in_service else "not looked at")
    if "stream" in modes:
        yield DoctorCheck("steps", partial(_steps, spec, lookups), late="not looked at")


def _lookup(lookup: FileLookup) -> Iterator[Finding]:
    name, source = f"lookups.{lookup.name}", lookup.source
    if not isinstance(source, BigQueryLookup):
        server = ""
        if isinstance(source, DatabaseLookup):
            server = f"{source.name}: {open_whole(source, f'{name}: {source.name}').server}, "  # whose refusal is told at once
        yield Finding(name, "good", f"{server}{lookup().rows.num_rows:,} rows by {', '.join(source.keys)}")
    elif source.query is not None:
        check_query(source, f"{name}: {source.name}", patience_s=_SERVICE_S)
        yield Finding(name, "good", f"{source.name}: BigQuery understands the query")
    else:  # to read it costs
        session = open_session(source, Asked(streams=1), who=f"lookup '{lookup.name}'", job=uuid.uuid4().hex, patience_s=_SERVICE_S)
        check_columns(session.schema, (*source.keys, *(source.columns or ())), session.who)
        yield Finding(name, "good", f"{source.name}: a table of {len(session.schema.names)} columns")


def _steps(spec: PipelineSpec, lookups: Mapping[str, FileLookup]) -> Iterator[Finding]:
    """As at the start of a stream: expressions are compiled against the lookups' columns, functions of `apply` are imported."""
    if any(isinstance(lookup.source, BigQueryLookup) for lookup in lookups.values()):
        yield Finding("steps", "not looked at", "a lookup lies in BigQuery, which is not read for this")
        return
    try:
        for lookup in lookups.values():
            lookup()
    except BeamPipelinesError:
        yield Finding("steps", "not looked at", "a lookup cannot be read")
        return
    for source in spec.sources.stream:
        row_program(spec, source, lookups)
    yield Finding("steps", "good", f"transforms: {len(spec.transform)}, checks: {len(spec.checks)}")


def _batch_sinks(spec: PipelineSpec, run: RunInfo) -> Iterator[DoctorCheck]:
    for output in outputs_of(spec, run):
        yield DoctorCheck(f"output {output.name}, batch", partial(_output, output, run.state))


def _output(output: Output, state: str) -> Iterator[Finding]:
    check_layout(output, manifest.snapshots(state, {output.name: output.path}).get(output.name))
    into = _reached(output.table)
    expect_writable(output.staging)
    for held in holders(output):
        if not stale(held):
            yield Finding(
                f"output {output.name}, batch", "warning", f"run {held.run_id} writes it: {held.owner.text}", "Wait until it has ended."
            )
    yield Finding(f"output {output.name}, batch", "good", f"{output.path}{into}")


def _stream_sinks(spec: PipelineSpec, run: RunInfo, *, archives: bool) -> Iterator[DoctorCheck]:
    found = stream.stream_outputs_of(spec, run)
    tables = {output.name: output.table for output in outputs_of(spec, run)}
    for output in found.outputs:
        name = f"output {output.name}, stream"
        yield DoctorCheck(name, partial(_folder, name, output.folder, tables.get(output.name)))
    for number, archive in enumerate(found.archive if archives else ()):
        yield DoctorCheck(f"archive of sources.stream[{number}]", partial(_folder, f"archive of sources.stream[{number}]", archive))


def _folder(name: str, folder: str, table: Table | None = None) -> Iterator[Finding]:
    into = _reached(table)
    expect_writable(folder)
    yield Finding(name, "good", f"{folder}{into}")


def _reached(table: Table | None) -> str:
    """What is said of the table of an output, whose dataset is there."""
    if table is None:
        return ""
    reach(table, patience_s=_SERVICE_S)
    return f", and dataset of {table.name}"


def _topics(spec: PipelineSpec) -> Iterator[DoctorCheck]:
    for sink, label in zip(spec.sinks, labels_of(spec), strict=True):
        if sink.pubsub is not None:
            yield DoctorCheck(f"output {label}", partial(_topic, f"output {label}", sink.pubsub))


def _topic(name: str, sink: PubsubSink) -> Iterator[Finding]:
    topic = Topic(sink.topic, where(sink.endpoint), who=name, error=SinkError)
    try:
        topic.describe(timeout_s=_SERVICE_S)
        yield Finding(name, "good", sink.topic)
    except grpc.RpcError as error:
        if code(error) == "PERMISSION_DENIED":
            yield Finding(
                name, "not looked at", f"{sink.topic}: this account may not look at it", "It needs roles/pubsub.publisher to publish."
            )
        elif is_transient(error):
            raise TransientError(
                f"{sink.topic}: {topic.endpoint} does not answer: {error.details()}.",
                hint="Check the network, the endpoint and PUBSUB_EMULATOR_HOST.",
            ) from None
        else:
            raise Publisher(topic).refusal(error) from None
    finally:
        topic.close()
