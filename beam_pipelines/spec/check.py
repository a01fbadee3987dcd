"""What a spec must satisfy beyond its shape: every name known, every expression typed, every part fitting the others."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from beam_pipelines.arrow.expressions import family
from beam_pipelines.arrow.sensitive import sensitive_columns
from beam_pipelines.arrow.types import parse_type
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.formats.options import AvroFormat, CsvFormat, Format, JsonFormat, OrcFormat, ParquetFormat, TextFormat
from beam_pipelines.spec.check_contract import check_contract, check_zone
from beam_pipelines.spec.check_outputs import check_aggregate, check_sinks
from beam_pipelines.spec.check_retention import check_retention
from beam_pipelines.spec.check_steps import check_step
from beam_pipelines.spec.cuts import unjoined_of
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.scope import ARRIVAL, PROVENANCE, Scope
from beam_pipelines.spec.secrets import absent_here, check_reference, passwords_of, secrets_of
from beam_pipelines.spec.sinks import LETTERS
from beam_pipelines.spec.sources import AnyLookup, ArchiveSource, Arrival, LookupSource, TableSource

__all__ = ["Checked", "check_contract", "check_spec"]


class Checked(NamedTuple):
    """The columns of the final rows with their DuckDB types (None: known in the run only), and what is worth knowing."""

    columns: dict[str, str | None]
    notes: tuple[str, ...]


def check_spec(spec: PipelineSpec, document: Document) -> Checked:
    """Adds everything that is wrong with `spec` to the document's problems, at its place."""
    columns = check_contract(spec.contract, document)
    check_zone(document, ("time_zone",), spec.time_zone)
    _check_names(spec, document)
    _check_sources(spec, document, columns)
    for name, lookup in spec.lookups.items():
        _check_lookup(document, ("lookups", name), lookup)
    scope = Scope(document, dict(columns))
    for i, step in enumerate(spec.transform):
        check_step(scope, ("transform", i), step, spec.lookups)
    for i, check in enumerate(spec.checks):
        _check_check(scope, ("checks", i), check, spec)
    _check_thresholds(spec, document)
    _check_deduplicate(scope, spec)
    outputs = {n: check_aggregate(scope, ("aggregates", n), a, spec) for n, a in spec.aggregates.items()}
    check_sinks(scope, spec, outputs)
    check_retention(spec, document)
    _check_secrets(spec, document)
    return Checked(scope.columns, () if document.problems else tuple(_notes(spec, scope)))


def _check_names(spec: PipelineSpec, document: Document) -> None:
    for section in ("parameters", "lookups", "aggregates"):
        for name in getattr(spec, section):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
                document.problem(
                    (section, name), f"got the name {name!r}; expected letters, digits, _ and -, not starting with a digit", key=True
                )
    first: dict[str, int] = {}
    for i, check in enumerate(spec.checks):
        if check.name in first:
            document.problem(("checks", i, "name"), f"checks[{first[check.name]}] is called {check.name!r} too; names must differ")
        first.setdefault(check.name, i)
        if check.name in spec.contract.columns:
            document.problem(
                ("checks", i, "name"), f"{check.name!r} is a column's name, under which its own rules are counted; choose another"
            )


def _check_sources(spec: PipelineSpec, document: Document, columns: dict[str, str | None]) -> None:
    hidden = sensitive_columns(spec.contract)
    for i, source in enumerate(spec.sources.batch):
        at: Path = ("sources", "batch", i)
        if isinstance(source, TableSource):
            _check_arrival(document, (*at, "arrival"), source.arrival, columns, hidden, messages=False)
            continue
        archive = isinstance(source, ArchiveSource)
        _check_patterns(document, (*at, "archive" if archive else "files"), source.patterns)
        _check_format(document, (*at, "format"), source.format, spec, messages=archive)
        _check_arrival(document, (*at, "arrival"), source.arrival, columns, hidden, messages=archive)
        if archive:
            _check_message_format(document, (*at, "format"), source.format)
    for i, stream in enumerate(spec.sources.stream):
        at = ("sources", "stream", i)
        _check_format(document, (*at, "format"), stream.format, spec, messages=True)
        _check_arrival(document, (*at, "arrival"), stream.arrival, columns, hidden, messages=True)
        _check_message_format(document, (*at, "format"), stream.format)
        if not re.fullmatch(r"projects/[^/]+/subscriptions/[^/]+", stream.pubsub):
            document.problem((*at, "pubsub"), f"got {stream.pubsub!r}; expected projects/PROJECT/subscriptions/SUBSCRIPTION")


def _check_message_format(document: Document, path: Path, fmt: Format) -> None:
    """What only files have: several records, a header, lines to skip."""
    if isinstance(fmt, ParquetFormat | OrcFormat):
        document.problem(path, f"a message holds one record; {fmt.type} is a format of files")
    if isinstance(fmt, JsonFormat) and fmt.layout == "array":
        document.problem((*path, "layout"), "a message holds one record, an object; an array of them is a layout of files", key=True)
    if isinstance(fmt, CsvFormat):
        if fmt.header and "header" in fmt.model_fields_set:
            text = "a message has no header: its columns are those of 'columns', or of the contract in their order; leave 'header' out"
            document.problem((*path, "header"), text, key=True)
        for name in ("skip_rows", "comment"):
            if getattr(fmt, name):
                document.problem((*path, name), f"a message holds one record; {name!r} is for files", key=True)
    if isinstance(fmt, AvroFormat) and fmt.of_messages:
        _check_schemas(document, path, fmt)


def _check_schemas(document: Document, path: Path, fmt: AvroFormat) -> None:
    from beam_pipelines.formats.avro_message_schemas import known_schemas  # fastavro is loaded where it is needed only

    try:
        known_schemas(fmt)
    except SpecError as error:
        at = next((place for place, called in _places(path, fmt) if str(error).startswith(called)), path)
        document.problem(at, str(error).removeprefix("format.schema: "))


def _places(path: Path, fmt: AvroFormat) -> list[tuple[Path, str]]:
    """Where each schema stands in the spec, and how messages call it."""
    places: list[tuple[Path, str]] = [((*path, "schema"), "format.schema:")]
    if fmt.schema_file is not None:
        places.append(((*path, "schema_file"), fmt.schema_file))
    return places + [((*path, "schemas", i), name) for i, name in enumerate(fmt.schemas)]


def _check_patterns(document: Document, path: Path, patterns: tuple[str, ...]) -> None:
    if not patterns:
        document.problem(path, "the list is empty; expected a path, a glob, a directory or a URL")
    for pattern in patterns:
        if not pattern.strip():
            document.problem(path, "the path is empty")


def _check_arrival(
    document: Document, path: Path, arrival: Arrival | None, columns: dict[str, str | None], hidden: Collection[str], *, messages: bool
) -> None:
    if arrival is None:
        return
    if arrival.attribute is not None and not messages:
        document.problem((*path, "attribute"), "files have no attributes; name a column", key=True)
    if arrival.column is not None and Scope(document, columns).known((*path, "column"), arrival.column):
        kind = columns[arrival.column]
        if kind not in (None, "TIMESTAMP"):
            document.problem((*path, "column"), f"column {arrival.column!r} has type {kind}; expected timestamp")
        if arrival.column in hidden:
            document.problem(
                (*path, "column"), f"column {arrival.column!r} is sensitive: _arrival_time would show it in rows and dead letters"
            )


def _check_format(document: Document, path: Path, fmt: Format, spec: PipelineSpec | None, *, messages: bool = False) -> None:
    for name in fmt.of_messages if isinstance(fmt, AvroFormat) and not messages else ():
        document.problem((*path, name), f"an Avro file holds its schema; {name!r} is for messages", key=True)
    if isinstance(fmt, CsvFormat) and fmt.columns is not None and fmt.header and not messages:
        document.problem((*path, "columns"), "'columns' is for files without a header; write header: false", key=True)
    if isinstance(fmt, TextFormat) and spec is not None:
        groups = set(re.compile(fmt.pattern).groupindex)
        for name, column in spec.contract.read.items():
            if column.keys(name)[0] not in groups:
                document.problem((*path, "pattern"), f"no group for the column {name!r}; {nearest(name, groups)}")


def _check_lookup(document: Document, path: Path, lookup: AnyLookup) -> None:
    if isinstance(lookup, LookupSource):
        _check_patterns(document, (*path, "files"), lookup.patterns)
        _check_format(document, (*path, "format"), lookup.format, None)
    if not lookup.keys:
        document.problem((*path, "key"), "the list is empty; expected the columns a row is found by")
    for name, kind in (lookup.columns or {}).items():
        try:
            parse_type(kind)
        except SpecError as error:
            document.problem((*path, "columns", name), str(error))


def _check_check(scope: Scope, path: Path, check: Check, spec: PipelineSpec) -> None:
    document = scope.document
    if check.expr is not None:
        scope.expression((*path, "expr"), check.expr, kind="boolean")
    if check.unique is not None:
        scope.all_known((*path, "unique"), check.unique)
    if check.null_rate is not None:
        scope.known((*path, "null_rate", "column"), check.null_rate.column)
    if check.freshness is not None and scope.known((*path, "freshness", "column"), check.freshness["column"], also=PROVENANCE):
        kind = {**PROVENANCE, **scope.columns}[check.freshness["column"]]
        if kind is not None and family(kind) != "date":
            document.problem(
                (*path, "freshness", "column"), f"column {check.freshness['column']!r} has type {kind}; expected TIMESTAMP or DATE"
            )
    if check.references is not None:
        lookup = spec.lookups.get(check.references.lookup)
        scope.all_known((*path, "references", "columns"), check.references.columns)
        if check.references.lookup in document.doubtful:
            return
        if lookup is None:
            hint = nearest(check.references.lookup, spec.lookups) if spec.lookups else "the spec has no lookups"
            document.problem((*path, "references", "lookup"), f"unknown lookup {check.references.lookup!r}; {hint}")
        elif lookup.keys and len(lookup.keys) != len(check.references.columns):
            message = f"got {len(check.references.columns)} columns; the key of lookup {check.references.lookup!r} has {len(lookup.keys)}: {', '.join(lookup.keys)}"
            document.problem((*path, "references", "columns"), message, key=True)


def _check_thresholds(spec: PipelineSpec, document: Document) -> None:
    names = [c.name for c in spec.checks]
    for name, share in spec.thresholds.per_check.items():
        at = ("thresholds", "per_check", name)
        if name not in names and "checks" not in document.vague:
            document.problem(at, f"unknown check {name!r}; {nearest(name, names) if names else 'the spec has no checks'}", key=True)
        if not 0 <= share <= 1:
            document.problem(at, f"got {share}; expected a share from 0 to 1")


def _check_deduplicate(scope: Scope, spec: PipelineSpec) -> None:
    rule, document = spec.deduplicate, scope.document
    if rule is None:
        return
    if not (rule.key or spec.contract.key):
        document.problem(("deduplicate",), "needs a key: set contract.key, or 'key' here", key=True)
    at: Path = ("deduplicate", "key") if rule.key else ("deduplicate",)
    for i, name in enumerate(rule.key or spec.contract.key):
        place: Path = (*at, i) if rule.key else at
        if (rule.key or name in spec.contract.columns) and scope.known(place, name):
            kind = scope.columns[name]
            if kind is not None and family(kind) == "nested":
                document.problem(place, f"key column {name!r} has type {kind}; expected a plain type")
    if rule.within is not None and spec.contract.event_time is None:
        document.problem(("deduplicate", "within"), "is measured in event time, and the contract has no event_time", key=True)
    elif rule.within is not None and spec.contract.event_time in spec.contract.columns:
        scope.known(("deduplicate", "within"), str(spec.contract.event_time))
    if rule.within is None and spec.sources.stream:
        document.problem(("deduplicate",), "needs 'within': a stream cannot remember every key for ever", key=True)
    if rule.order_by != ARRIVAL and scope.known(("deduplicate", "order_by"), rule.order_by, also={ARRIVAL: "TIMESTAMP"}):
        kind = scope.columns[rule.order_by]
        if kind is not None and family(kind) in ("nested", "binary"):
            document.problem(("deduplicate", "order_by"), f"column {rule.order_by!r} has type {kind}; expected a type with an order")


def _check_secrets(spec: PipelineSpec, document: Document) -> None:
    references: list[tuple[Path, str | None]] = [(("hmac_key",), spec.hmac_key), (("dead_letters", "raw_key"), spec.dead_letters.raw_key)]
    for path, ref in references:
        problem = check_reference(ref) if ref is not None else None
        if problem is not None:
            document.problem(path, problem)


def _notes_of_secrets(spec: PipelineSpec) -> list[str]:
    """Keys that workers will need: where they come from by default, and those that this machine does not have."""
    notes = []
    if spec.hmac_key is None and spec.hmac_reference is not None:
        notes.append(f"hmac_key is not set: workers take the key for sensitive columns from {spec.hmac_reference}, and fail without it.")
    for place, ref in secrets_of(spec).items():
        why = absent_here(ref) if check_reference(ref) is None else None
        if why is not None:
            notes.append(f"{place}: {ref}: {why}; a run on this machine would stop before it starts.")
    return notes


def _notes_of_functions(spec: PipelineSpec) -> list[str]:
    """Columns of functions that are masked because the functions see sensitive ones."""
    notes = []
    for number, step in enumerate(spec.transform):
        if step.apply is None:
            continue
        seen, after = (sensitive_columns(spec.contract, spec.transform[:to]) for to in (number, number + 1))
        masked = {
            name: after[name] for name in step.apply.columns if name not in step.apply.sensitive and after.get(name) != seen.get(name)
        }
        if masked:
            shown = ", ".join(f"{name} ({how})" for name, how in masked.items())
            says = f"transform[{number}].apply: the function sees sensitive columns ({', '.join(seen)}), so what it makes is masked too: {shown};"
            notes.append(f"{says} `sensitive: {{{next(iter(masked))}: none}}` in the step says that it shows nothing of them.")
    return notes


def _notes(spec: PipelineSpec, scope: Scope) -> list[str]:
    notes = [
        f"{place}: {ref}: {why}; a run on this machine would stop before it starts."
        for place, ref in passwords_of(spec).items()
        if (why := absent_here(ref)) is not None
    ]
    sensitive = spec.sensitive
    if sensitive:
        key, archives = spec.dead_letters.raw_key, bool(spec.sources.stream)
        kept = f"stored encrypted under {key}" if key else "left out (set dead_letters.raw_key to keep them encrypted)"
        raw = "raw bytes of dead letters" + (" and of the archive" if key and archives else "")
        notes += _notes_of_secrets(spec)
        notes.append(f"There are sensitive columns ({', '.join(sensitive)}): {raw} are {kept}.")
        if archives and not key:
            notes.append(
                "A stream that archives its messages itself does not start without dead_letters.raw_key: they hold sensitive columns."
            )
    notes += _notes_of_functions(spec)
    if sensitive and spec.contract.unknown_columns == "keep":
        notes.append("unknown_columns: keep writes values the contract does not name into _unknown, as they are: none of them is masked.")
    dropped = [n for n in spec.contract.key if sensitive.get(n) in ("drop", "redact")]
    if dropped:
        notes.append(f"Key columns {', '.join(dropped)} are masked in the outputs: written rows cannot be told apart by their key.")
    if not any(sink.from_ == LETTERS for sink in spec.sinks):
        notes.append("No sink takes dead_letters: they go to the state folder, where `dlq inspect` finds them.")
    for name, column in unjoined_of(spec).items():
        how = f"partition_by: [day({column})]" if column else "a contract.event_time, and partitions by it"
        notes.append(
            f"'{name}' is not partitioned by its time: once a batch has written it, `query` shows the batch's and nothing of the stream's. "
            f"One table of both needs {how}."
        )
    unused = [n for n in spec.aggregates if not any(sink.from_ == n for sink in spec.sinks)]
    if unused:
        notes.append(f"No sink takes {', '.join(unused)}: it is computed for nothing.")
    return notes
