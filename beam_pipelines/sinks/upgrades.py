"""Two versions of a spec, compared for a stream that goes on: what differs, and what that does to what is stored. Loads no Beam, looks at no file.

    field by field      by `upgrade_rules`
    output by output    columns that are gone, or of a type that cannot stand in one table with the old one

Nobody sees here what is not in a spec: the code of `apply` functions, what a lookup holds, whether two references lead to one key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

import msgspec

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.measures import decimal_of, measure_type
from beam_pipelines.arrow.model import Model
from beam_pipelines.arrow.partition import parse_partition
from beam_pipelines.arrow.sensitive import sensitive_columns
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.places import join
from beam_pipelines.sinks.bigquery_schema import evolved, fields_of
from beam_pipelines.sinks.labels import labels_of
from beam_pipelines.sinks.upgrade_rules import LATER, RULES, At, Effect, Rule, Verdict, refused
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import LETTERS, ROWS, ParquetSink, Sink
from beam_pipelines.spec.sources import PubsubSource

_LONGEST = 48


class SpecChange(msgspec.Struct, frozen=True):
    """One difference: its `name`, by which it can be accepted, what was said before and what is said now, and what that does."""

    name: str
    before: str
    after: str
    effect: Effect
    why: str = ""
    do: str = ""


class Version(NamedTuple):
    """A spec, and DuckDB's types of its final rows (`LoadedSpec.columns`)."""

    spec: PipelineSpec
    columns: Mapping[str, str | None]


def compare(old: Version, new: Version, state: str) -> list[SpecChange]:
    """Every difference between what ran and what is to run in the folder `state`, the refused ones first."""
    before, after = (version._replace(spec=_effective(version.spec, state)) for version in (old, new))
    found = [*_fields((), _part(before.spec), _part(after.spec), LATER, before.spec, after.spec), *_outputs(before, after)]
    return sorted(found, key=lambda change: get_args(Effect).index(change.effect))


def _effective(spec: PipelineSpec, state: str) -> PipelineSpec:
    """With the places that are meant where a spec names none."""
    stream = tuple(s.model_copy(update={"archive": s.archive or join(state, "archive")}) for s in spec.sources.stream)
    letters = Sink.model_validate({"from": LETTERS, "parquet": {"path": join(state, LETTERS)}})
    said = any(sink.from_ == LETTERS and sink.pubsub is None for sink in spec.sinks)
    sources = spec.sources.model_copy(update={"stream": stream})
    return spec.model_copy(update={"sources": sources, "sinks": spec.sinks if said else (*spec.sinks, letters)})


# ── field by field ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Part(NamedTuple):
    """A part of a spec: as a model has it (None: there is none), and as JSON."""

    value: Any = None
    said: Any = None

    def short(self) -> str:
        said = self.value.model_dump(mode="json", by_alias=True, exclude_defaults=True) if isinstance(self.value, Model) else self.said
        text = "none" if said is None else said if isinstance(said, str) else msgspec.json.encode(said).decode()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _part(model: Model) -> _Part:
    return _Part(model, model.model_dump(mode="json", by_alias=True))


def _parts(of: _Part) -> dict[str, _Part] | None:
    """What a part is made of, by names that stay when others come or go; None where it is looked at as a whole."""
    value, said = of
    if isinstance(value, PipelineSpec):
        said = {**said, "sinks": dict(zip(labels_of(value), said["sinks"], strict=True))}
        value = value.model_copy(update={"sinks": dict(zip(labels_of(value), value.sinks, strict=True))})
    if isinstance(value, Model):
        return {info.alias or n: _Part(getattr(value, n), said[info.alias or n]) for n, info in type(value).model_fields.items()}
    if isinstance(value, dict):
        return {str(key): _Part(item, said[key]) for key, item in value.items()}
    if isinstance(value, tuple) and all(isinstance(item, Model) for item in value):
        return {_name(item, number): _Part(item, said[number]) for number, item in enumerate(value)}
    return None


def _name(item: Model, number: int) -> str:
    return item.name if isinstance(item, Check) else item.pubsub if isinstance(item, PubsubSource) else str(number)


def _fields(path: tuple[str, ...], old: _Part, new: _Part, rule: Rule, before: PipelineSpec, after: PipelineSpec) -> Iterator[SpecChange]:
    """The differences below `path`, where `rule` holds unless a model has rules of its own."""
    if old.said == new.said or (path[-1:] in (("path",), ("archive",)) and str(old.said).rstrip("/") == str(new.said).rstrip("/")):
        return
    ours, theirs = _parts(old), _parts(new)
    if ours is None or theirs is None or (isinstance(old.value, Model) and type(old.value) is not type(new.value)):
        verdict = rule(At(path, old.value, new.value, before, after)) if callable(rule) else rule
        yield SpecChange(".".join(path), old.short(), new.short(), *verdict)
        return
    rules = RULES.get(type(old.value))
    for name in dict.fromkeys((*ours, *theirs)):
        inner = rule if rules is None else rules.get(name, LATER)
        yield from _fields((*path, name), ours.get(name, _Part()), theirs.get(name, _Part()), inner, before, after)


# ── output by output ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _outputs(old: Version, new: Version) -> Iterator[SpecChange]:
    """Columns of the outputs of files and tables that both versions have."""
    ours, theirs = ([s for s in spec.sinks if s.pubsub is None and s.from_ != LETTERS] for spec, _ in (old, new))
    for of in dict.fromkeys(sink.from_ for sink in ours if sink.from_ in {s.from_ for s in theirs}):
        was, now = _types(old, of), _types(new, of)
        sinks = [sink for sink in theirs if sink.from_ == of]
        by = [parse_partition(p) for s in sinks if isinstance(s.destination, ParquetSink) for p in s.destination.partition_by]
        folders, table = {p.column for p in by if not p.transform}, any(sink.bigquery is not None for sink in sinks)
        for name in dict.fromkeys((*was, *now)):
            before, after = was.get(name, ""), now.get(name, "")
            if before != after and before is not None and after is not None:
                yield SpecChange(f"columns.{of}.{name}", before or "none", after or "none", *_column(before, after, name in folders, table))


def _types(version: Version, of: str) -> dict[str, str | None]:
    """The columns of an output and their types, None where a type is known in the run only."""
    spec, columns = version
    if of == ROWS:
        hidden = {name for name, how in sensitive_columns(spec.contract, spec.transform).items() if how == "drop"}
        return {name: _instant(spec.contract, name, kind) for name, kind in columns.items() if name not in hidden}
    aggregate = spec.aggregates[of]
    groups = {name: _instant(spec.contract, name, columns.get(name)) for name in aggregate.group_by}
    return groups | {name: _measured(text, columns) for name, text in aggregate.measures.items()}


def _instant(contract: Contract, name: str, kind: str | None) -> str | None:
    """Files tell instants from civil times; rows on their way do not."""
    column = contract.columns.get(name)
    return "TIMESTAMP WITH TIME ZONE" if kind == "TIMESTAMP" and column is not None and column.dtype.kind == "timestamp" else kind


def _measured(text: str, columns: Mapping[str, str | None]) -> str | None:
    try:
        return measure_type(text, {name: kind for name, kind in columns.items() if kind is not None})
    except SpecError:  # of a column whose type is known in the run only
        return None


def _column(was: str, now: str, folder: bool, table: bool) -> Verdict:
    """What becomes of a column of another type; "": it is not there."""
    if not was:
        return Verdict("from now on", "rows from before have NULL")
    if not now:
        return refused("rows from now on have NULL where readers expect a value", "Keep it; or accept it, if nobody reads it any more.")
    if folder:
        return refused("names of folders from before are read as the new type", "Write to another `path`, and fill it by `backfill`.")
    if table and not _takes(was, now):
        return refused(f"BigQuery's column takes no {now}, and the stream would end with an error", "Give the column another name.")
    if not holds(was, now):
        return refused("one table cannot hold values of both types as they are", "Give the column another name.")
    return LATER


def _takes(was: str, now: str) -> bool:
    try:
        evolved(fields_of([("column", was)]), fields_of([("column", now)]))
    except (SinkError, SpecError):
        return False
    return True


_DIGITS = {"TINYINT": 3, "UTINYINT": 3, "SMALLINT": 5, "USMALLINT": 5, "INTEGER": 10, "UINTEGER": 10, "BIGINT": 19, "UBIGINT": 20}
_IN_FLOAT = {"TINYINT", "UTINYINT", "SMALLINT", "USMALLINT"}
_EXACT = {"FLOAT": _IN_FLOAT, "DOUBLE": {"FLOAT", "INTEGER", "UINTEGER", *_IN_FLOAT}}


def holds(one: str, other: str) -> bool:
    """Whether DuckDB reads files of both types as one column in which every value is what it was.

    >>> holds("INTEGER", "BIGINT"), holds("DECIMAL(12,2)", "DECIMAL(14,4)"), holds("BIGINT", "DOUBLE"), holds("DATE", "VARCHAR")
    (True, True, False, False)
    """
    kinds = {one, other}
    if kinds <= _DIGITS.keys() or any(wide in kinds and kinds <= {wide, *narrow} for wide, narrow in _EXACT.items()):
        return True
    sizes = [decimal_of(kind) or ((_DIGITS[kind], 0) if kind in _DIGITS else None) for kind in kinds]
    known = [size for size in sizes if size is not None]
    behind = max((scale for _, scale in known), default=0)
    return len(known) == len(kinds) and behind + max(digits - scale for digits, scale in known) <= 38
