"""Aggregates and sinks against the final columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.expressions import family
from beam_pipelines.arrow.measures import parse_measure, result_type
from beam_pipelines.arrow.partition import Partition, by_ingestion, check_name, parse_partition
from beam_pipelines.arrow.sensitive import sensitive_columns
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.spec.check_contract import check_zone
from beam_pipelines.spec.check_places import check_places
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.scope import PROVENANCE, Scope
from beam_pipelines.spec.sinks import LETTERS, ROWS, BigQuerySink, ParquetSink, PubsubSink, Sink

DEAD_LETTER_COLUMNS: dict[str, str | None] = {
    "source": "VARCHAR", "position": "BIGINT", "stage": "VARCHAR", "reason": "VARCHAR", "message": "VARCHAR",
    "failures": 'STRUCT("name" VARCHAR, "column" VARCHAR, "message" VARCHAR)[]', "raw": "BLOB", "raw_format": "VARCHAR",
    "event_time": "TIMESTAMP", "arrival_time": "TIMESTAMP", "pipeline": "VARCHAR", "pipeline_version": "VARCHAR",
    "contract": "VARCHAR", "run_id": "VARCHAR",
}  # fmt: skip
PANE_COLUMNS: dict[str, str | None] = {
    "_window_start": "TIMESTAMP", "_window_end": "TIMESTAMP", "_pane": "VARCHAR", "_pane_index": "BIGINT", "_epoch": "BIGINT",
}  # fmt: skip
ATTRIBUTES_OF: dict[str, tuple[str, ...]] = {
    ROWS: ("output", "source", "position", "arrival_time", "change"), LETTERS: ("output", "source", "position", "stage", "reason"),
    "panes": ("output", "pane", "index", "epoch"),
}  # fmt: skip
"""What messages of each output say of themselves."""
MAX_PARTITIONS = 10_000
"""Of a BigQuery table."""
_INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
_LEVELS = {"zstd": (1, 22), "gzip": (1, 9)}


def check_aggregate(scope: Scope, path: Path, spec: AggregateSpec, pipeline: PipelineSpec) -> dict[str, str | None]:
    """Checks an aggregate; gives its output columns, without those every pane has."""
    document = scope.document
    if path[-1] in (ROWS, LETTERS):
        document.problem(path, f"an aggregate cannot be called {path[-1]!r}: that is an output of every pipeline", key=True)
    _check_time(scope, path, spec, pipeline)
    scope.all_known((*path, "group_by"), spec.group_by)
    out = Scope(document)
    for i, name in enumerate(spec.group_by):
        kind = scope.columns.get(name)
        if kind is not None and family(kind) == "nested":
            document.problem((*path, "group_by", i), f"column {name!r} has type {kind}; expected a plain type to group by")
        out.columns[name] = kind
    for name, text in spec.measures.items():
        at = (*path, "measures", name)
        out.add(at, name, _measure_type(scope, at, text))
    return out.columns


def _check_time(scope: Scope, path: Path, spec: AggregateSpec, pipeline: PipelineSpec) -> None:
    document, column = scope.document, spec.time or pipeline.contract.event_time
    at = (*path, "time") if spec.time is not None else (*path, "windowing")
    if spec.windowing is None:
        if pipeline.sources.stream:
            document.problem(path, "needs 'windowing': without windows a stream would never give an answer", key=True)
        if spec.time is not None:
            document.problem(at, "'time' is what windows are cut by, and the aggregate has no 'windowing'", key=True)
        return
    check_zone(document, (*path, "windowing", "time_zone"), spec.windowing.time_zone)
    if column is None:
        document.problem(at, "windows need a time: set contract.event_time, or 'time' here", key=True)
    elif scope.known(at, column, also=PROVENANCE):
        kind = {**PROVENANCE, **scope.columns}[column]
        if kind is not None and family(kind) != "date":
            document.problem(at, f"column {column!r} has type {kind}; expected TIMESTAMP or DATE to cut windows by")
        elif pipeline.sources.stream and pipeline.deduplicate is not None and column not in (pipeline.contract.event_time, *PROVENANCE):
            known = f"contract.event_time ({pipeline.contract.event_time!r})" if pipeline.contract.event_time else "'_arrival_time'"
            document.problem(at, f"a stream that deduplicates takes rows back by their event time alone; got {column!r}, expected {known}")


def _measure_type(scope: Scope, path: Path, text: str) -> str | None:
    document = scope.document
    try:
        measure = parse_measure(text)
    except SpecError as error:
        document.problem(path, str(error))
        return None
    if measure.where:
        scope.expression(path, measure.where, kind="boolean", shift=text.rindex(measure.where))
    if not measure.argument:
        return "BIGINT"
    kind = scope.expression(path, measure.argument, kind="aggregate-arg", shift=text.index(measure.argument, text.index("(")))
    if kind is None:
        return None
    if measure.function in ("min", "max") and family(kind) == "nested":
        document.problem(path, f"{measure.function} needs a type with an order; its argument has type {kind}")
        return None
    try:
        return result_type(measure, kind)
    except SpecError as error:
        document.problem(path, str(error))
        return None


def check_sinks(scope: Scope, pipeline: PipelineSpec, outputs: Mapping[str, Mapping[str, str | None]]) -> None:
    """Checks every sink against the columns of the output it takes; `outputs` are the aggregates' columns by name."""
    document = scope.document
    known = {**outputs, ROWS: scope.columns, LETTERS: DEAD_LETTER_COLUMNS}
    taken: dict[str, int] = {}
    for i, sink in enumerate(pipeline.sinks):
        path: Path = ("sinks", i)
        if sink.from_ not in known:
            document.problem((*path, "from"), f"unknown output {sink.from_!r}; {nearest(sink.from_, known)}")
        if sink.pubsub is not None:
            if sink.from_ in known:
                columns = Scope(document, dict(known[sink.from_]), gone=scope.gone if sink.from_ == ROWS else {})
                _check_pubsub(columns, (*path, "pubsub"), sink, sink.pubsub, pipeline)
            continue
        place = sink.destination.path.rstrip("/")
        if not place:
            document.problem((*path, sink.kind, "path"), "the path is empty")
        if place in taken and not _same_table(sink, pipeline.sinks[taken[place]]):  # that is said of the table
            document.problem((*path, sink.kind, "path"), f"sinks[{taken[place]}] writes to the same place; each output needs its own")
        taken.setdefault(place, i)
        if sink.parquet is not None and sink.from_ in known:
            columns = Scope(document, dict(known[sink.from_]), gone=scope.gone if sink.from_ == ROWS else {})
            _check_parquet(columns, (*path, "parquet"), sink, sink.parquet, pipeline)
        if sink.bigquery is not None:
            _check_table(document, (*path, "bigquery", "table"), sink.bigquery.table, pipeline.sinks[:i])
            if sink.from_ in known:
                columns = Scope(document, dict(known[sink.from_]), gone=scope.gone if sink.from_ == ROWS else {})
                _check_bigquery(columns, (*path, "bigquery"), sink, sink.bigquery, pipeline)
    check_places(document, pipeline)


def _same_table(one: Sink, other: Sink) -> bool:
    return one.bigquery is not None and other.bigquery is not None and one.bigquery.table == other.bigquery.table


def _check_table(document: Document, path: Path, table: str, before: Sequence[Sink]) -> None:
    """No two sinks share a table, nor one's table and the other's of the stream."""
    for j, other in enumerate(before):
        theirs = "" if other.bigquery is None else other.bigquery.table
        if theirs and table in (theirs, f"{theirs}_speed", theirs.removesuffix("_speed")):
            document.problem(path, f"sinks[{j}] writes to {theirs}, and its stream to {theirs}_speed; each output needs its own")


def _check_bigquery(scope: Scope, path: Path, sink: Sink, bigquery: BigQuerySink, pipeline: PipelineSpec) -> None:
    own = _own_columns(sink, pipeline)
    if bigquery.partition_by is not None and not by_ingestion(bigquery.partition_by):
        at = (*path, "partition_by")
        by = _check_partition(scope, at, bigquery.partition_by, own, set(), pipeline, rows=sink.from_ == ROWS)
        if by is not None:
            _check_partitions(scope.document, path, by, bigquery)
    for name in ("partition_expiration", "require_partition_filter"):
        if getattr(bigquery, name) and bigquery.partition_by is None:
            scope.document.problem((*path, name), "the table has no partitions; write partition_by")
    for i, name in enumerate(bigquery.cluster_by):
        if scope.known((*path, "cluster_by", i), name, also=own):
            kind = {**own, **scope.columns}[name]
            if kind is not None and (family(kind) in ("nested", "binary") or kind in ("DOUBLE", "FLOAT", "TIME")):
                scope.document.problem((*path, "cluster_by", i), f"column {name!r} has type {kind}, by which BigQuery does not cluster")
    if sink.from_ == LETTERS and bigquery.partition_by is not None:
        scope.document.problem((*path, "partition_by"), "dead letters are kept by run, and their table has no partitions; leave it out")
    _check_upsert(scope, path, sink, bigquery, pipeline)


def _check_upsert(scope: Scope, path: Path, sink: Sink, bigquery: BigQuerySink, pipeline: PipelineSpec) -> None:
    if bigquery.mode != "upsert":
        if bigquery.max_staleness is not None:
            scope.document.problem(
                (*path, "max_staleness"),
                f"is of tables that changes are applied to, and the mode is {bigquery.mode}; write mode: upsert",
            )
        return
    order = pipeline.deduplicate.order_by if pipeline.deduplicate is not None else None
    if sink.from_ == ROWS and order in scope.columns and family(scope.columns[order] or "") == "text":
        text = f"upsert needs a number or a moment by which the newest version is known; deduplicate.order_by is {order!r}, a text"
        scope.document.problem((*path, "mode"), text)
    if sink.from_ == LETTERS:
        scope.document.problem((*path, "mode"), "dead letters have no key to upsert by")
    if sink.from_ == ROWS and not pipeline.contract.key:
        scope.document.problem((*path, "mode"), "upsert needs contract.key: it is what the newest version of a row is known by")


def _check_partitions(document: Document, path: Path, by: Partition, bigquery: BigQuerySink) -> None:
    """What files can be cut by and tables cannot."""
    at = (*path, "partition_by")
    if not by.transform:
        expected = "expected day(c), hour(c), month(c) or year(c), or range(c, start, end, step) of an integer"
        document.problem(at, f"got {bigquery.partition_by!r}; {expected}: a table is not partitioned by plain values")
    if by.transform == "range":
        start, end, step = by.bounds
        count = -(-(end - start) // step)
        if count > MAX_PARTITIONS:
            document.problem(at, f"{by} makes {count:,} partitions; a BigQuery table takes {MAX_PARTITIONS:,}. Choose a wider step")
        if bigquery.partition_expiration is not None:
            document.problem((*path, "partition_expiration"), f"partitions of numbers have no age, and partition_by is {by}")


def _check_pubsub(scope: Scope, path: Path, sink: Sink, pubsub: PubsubSink, pipeline: PipelineSpec) -> None:
    """Attributes and the ordering key are plain columns that are written, under names that are free."""
    own = {} if sink.from_ in (ROWS, LETTERS) else PANE_COLUMNS
    taken = ATTRIBUTES_OF.get(sink.from_, ATTRIBUTES_OF["panes"])
    places: list[tuple[Path, str]] = [((*path, "attributes", name), column) for name, column in pubsub.attributes.items()]
    places += [((*path, "ordering_key"), pubsub.ordering_key)] if pubsub.ordering_key is not None else []
    for at, name in places:
        if not scope.known(at, name, also=own):
            continue
        kind = {**own, **scope.columns}[name]
        if kind is not None and family(kind) in ("nested", "binary"):
            scope.document.problem(at, f"column {name!r} has type {kind}; expected a plain type")
        if sink.from_ == ROWS and sensitive_columns(pipeline.contract, pipeline.transform).get(name) == "drop":
            scope.document.problem(at, f"column {name!r} is sensitive (drop): it is not written")
    for name in pubsub.attributes:
        if name in taken or name.startswith("goog") or not 0 < len(name.encode()) <= 256:
            text = f"got the attribute {name!r}; expected 1 to 256 bytes that do not begin with 'goog', and not one of {', '.join(taken)}"
            scope.document.problem((*path, "attributes", name), text, key=True)


def _check_parquet(scope: Scope, path: Path, sink: Sink, parquet: ParquetSink, pipeline: PipelineSpec) -> None:
    own = _own_columns(sink, pipeline)
    names: set[str] = set()
    for i, text in enumerate(parquet.partition_by):
        _check_partition(scope, (*path, "partition_by", i), text, own, names, pipeline, rows=sink.from_ == ROWS)
    for name in ("dictionary", "statistics"):
        scope.all_known((*path, name), getattr(parquet, name) or (), also=own)
    low, high = _LEVELS.get(parquet.compression, (0, 0))
    level = parquet.compression_level
    if level is not None and not low <= level <= high:
        expected = f"expected {low} to {high}" if high else "expected none"
        scope.document.problem((*path, "compression_level"), f"got {level}; {expected} for {parquet.compression}")


def _own_columns(sink: Sink, pipeline: PipelineSpec) -> Mapping[str, str | None]:
    """What an output has besides its own columns."""
    if sink.from_ == ROWS:
        return PROVENANCE if (sink.provenance or pipeline.provenance) == "on" else {}
    return {} if sink.from_ == LETTERS else PANE_COLUMNS


def _check_partition(
    scope: Scope, path: Path, text: str, own: Mapping[str, str | None], names: set[str], pipeline: PipelineSpec, *, rows: bool
) -> Partition | None:
    """The partition that `text` is; None where it is none, or of no column."""
    document = scope.document
    try:
        partition = parse_partition(text)
        check_name(partition)
    except SpecError as error:
        document.problem(path, str(error))
        return None
    if not scope.known(path, partition.column, also=own):
        return None
    kind = {**own, **scope.columns}[partition.column]
    shown = f"column {partition.column!r} has type {kind}"
    if partition.transform == "range":
        if kind is not None and kind not in _INTEGERS:
            document.problem(path, f"{shown}; expected an integer of at most 63 bits for range(…)")
    elif partition.transform and kind is not None and family(kind) != "date":
        document.problem(path, f"{shown}; expected TIMESTAMP or DATE for {partition.transform}(…)")
    elif partition.transform == "hour" and kind == "DATE":
        document.problem(path, f"{shown}, which has no hours; write day({partition.column})")
    elif kind is not None and family(kind) in ("nested", "binary"):
        document.problem(path, f"{shown}; expected a plain type to partition by")
    if partition.name in names:
        document.problem(path, f"partition {partition.name!r} stands here twice")
    elif partition.transform and partition.name in scope.columns:
        document.problem(path, f"the partition would be called {partition.name!r}, as a column is already")
    names.add(partition.name)
    how = sensitive_columns(pipeline.contract, pipeline.transform).get(partition.column) if rows else None
    if how in ("drop", "redact") or (how and partition.transform):
        document.problem(path, f"column {partition.column!r} is sensitive ({how}): it cannot name a directory")
    return partition
