"""The keys that archived messages have, read out of their bytes: whether a stream was ever given a record."""

from __future__ import annotations

from collections.abc import Mapping

from beam_pipelines.arrow.engine import literal
from beam_pipelines.formats.archive import source_folder
from beam_pipelines.places import join
from beam_pipelines.sinks.speed_views import scan
from beam_pipelines.spec.models import PipelineSpec

_PLAIN = ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "UBIGINT", "UINTEGER", "USMALLINT", "UTINYINT", "VARCHAR")


def keys_of_messages(spec: PipelineSpec, state: str, key: Mapping[str, str]) -> str | None:
    """A SELECT of source, position, k0, k1, … (the values of `key`, column to DuckDB type) of every archived message.

    None where that cannot be said for all of them: messages that are no JSON, sealed ones, a key that the contract or a step makes from something else.
    """
    if spec.sensitive or not spec.sources.stream or not all(_as_read(spec, name) and kind in _PLAIN for name, kind in key.items()):
        return None
    found = []
    for source in spec.sources.stream:
        if source.format.type != "json":
            return None
        files = scan(source_folder(source.archive or join(state, "archive"), source.pubsub))
        if files is not None:
            found.append(f"SELECT _source::VARCHAR AS source, _position AS position, {_values(spec, key)} FROM {files}")
    return " UNION ALL ".join(found) or None


def _values(spec: PipelineSpec, key: Mapping[str, str]) -> str:
    text = "TRY(decode(_raw))"
    record = f"CASE WHEN json_valid({text}) THEN {text} END"
    paths = {name: "$" + "".join(f'."{part}"' for part in spec.contract.columns[name].keys(name)) for name in key}
    return ", ".join(
        f"TRY_CAST(json_extract_string({record}, {literal(paths[n])}) AS {kind}) AS k{i}" for i, (n, kind) in enumerate(key.items())
    )


def _as_read(spec: PipelineSpec, name: str) -> bool:
    """Whether the column holds what the record says, and nothing else."""
    column = spec.contract.columns.get(name)
    if (
        column is None
        or column.expr is not None
        or column.trim
        or column.default is not None
        or column.null_values
        or '"' in "".join(column.keys(name))
    ):
        return False
    made = [{**(step.set or {}), **(step.rename or {}), **(step.lookup.take if step.lookup else {})} for step in spec.transform]
    return not any(name in names for names in made) and not any(step.apply for step in spec.transform)
