"""The reference of the spec language as Markdown, written from the models: what it says is what is checked."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from beam_pipelines.arrow.durations import PATTERN, format_duration
from beam_pipelines.arrow.types import WORDS
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.shape import ModelType, fields_of, is_model, members, tags
from beam_pipelines.spec.tests import SpecTests

_SECTIONS = {
    "Parameter": "parameters.NAME",
    "Contract": "contract",
    "Column": "contract.columns.NAME",
    "Sources": "sources",
    "FileSource": "sources.batch[]: files",
    "ArchiveSource": "sources.batch[]: archive",
    "BigQuerySource": "sources.batch[]: bigquery",
    "DatabaseSource": "sources.batch[]: database",
    "PubsubSource": "sources.stream[]",
    "Arrival": "sources.*[].arrival",
    "LookupSource": "lookups.NAME",
    "BigQueryLookup": "lookups.NAME: bigquery",
    "DatabaseLookup": "lookups.NAME: database",
    "TransformStep": "transform[]",
    "Apply": "transform[].apply",
    "LookupStep": "transform[].lookup",
    "Check": "checks[]",
    "References": "checks[].references",
    "RowCount": "checks[].row_count",
    "NullRate": "checks[].null_rate",
    "Thresholds": "thresholds",
    "DeduplicateRule": "deduplicate",
    "AggregateSpec": "aggregates.NAME",
    "WindowSpec": "aggregates.NAME.windowing",
    "Trigger": "aggregates.NAME.trigger",
    "Sink": "sinks[]",
    "ParquetSink": "sinks[].parquet",
    "TextSink": "sinks[].csv, sinks[].jsonl",
    "PubsubSink": "sinks[].pubsub",
    "BigQuerySink": "sinks[].bigquery",
    "DeadLetterSettings": "dead_letters",
    "Retention": "retention",
    "SpecTest": "tests[]",
    "Expectation": "tests[].expect",
    "ExpectedDeadLetter": "tests[].expect.dead_letters[]",
}
_EXAMPLES = {
    "PipelineSpec": """spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: created
  columns:
    id:      {type: int64, required: true}
    created: {type: timestamp, required: true}
    amount:  {type: "decimal(12,2)", min: 0}
sources:
  batch: [{files: "orders/*.jsonl", format: json}]
sinks:
  - {from: rows, parquet: {path: lake/orders, partition_by: [day(created)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}""",
    "Parameter": "parameters:\n  lake: {type: path, default: lake}\n  day:  {type: string, default: 2013-01-31, regex: '\\d{4}-\\d\\d-\\d\\d'}",
    "Column": """contract:
  columns:
    origin:  {type: string, required: true, in: [EWR, JFK, LGA]}
    delay:   {type: int16, null_values: [NA], min: -120, max: 3000}
    born:    {type: date, format: ["%d.%m.%Y", "%Y-%m-%d"]}
    user_id: {type: string, path: user.id, sensitive: hmac}
    month:   {type: timestamp, expr: "date_trunc('month', born)"}""",
    "FileSource": """sources:
  batch:
    - {files: "gs://bucket/flights*.csv.gz", format: {type: csv, delimiter: ";", null_values: [NA]}}""".replace(", null_values: [NA]", ""),
    "ArchiveSource": """sources:
  batch:  [{archive: lake/archive, format: json, arrival: {attribute: departed_at}}]
  stream: [{pubsub: projects/p/subscriptions/flights, format: json, arrival: {attribute: departed_at}}]""",
    "DatabaseSource": """sources:
  batch:
    - {database: "postgresql://reader@db.example:5432/shop", table: public.orders, where: "status <> 'draft'", password: "env:SHOP_PASSWORD"}
    - {database: "sqlite:///shop.db", query: "SELECT * FROM orders JOIN customers USING (customer_id)", row_id: order_id}""",
    "LookupSource": "lookups:\n  airports: {files: airports.csv, format: csv, key: faa, columns: {lat: float64}, refresh: 1h}",
    "DatabaseLookup": """lookups:
  customers: {database: "postgresql://reader@db.example:5432/shop", table: public.customers, key: id, password: "env:SHOP_PASSWORD", refresh: 1h}
  rates:     {database: "sqlite:///rates.db", query: "SELECT day, currency, rate FROM rates", key: [day, currency], columns: {day: date}}""",
    "TransformStep": """transform:
  - filter: "dep_time IS NOT NULL"
  - lookup: {from: airports, on: dest, take: {dest_name: name}}
  - set:    {speed: "distance / (air_time / 60.0)"}
  - rename: {departure_delay: dep_delay}
  - drop:   [minute]
  - apply:  {function: "my_package.enrich:add_weather", columns: {wind: float32}}""",
    "Check": """checks:
  - {name: plausible_delay, expr: "dep_delay BETWEEN -120 AND 3000"}
  - {name: known_airline, references: {columns: [carrier], lookup: airlines}, severity: warn}
  - {name: one_per_id, unique: [id], severity: fail}
  - {name: enough, row_count: {min: 1000}}
  - {name: fresh, freshness: {column: created, max_age: 1d}, severity: warn}""",
    "DeduplicateRule": "deduplicate: {within: 2d, keep: newest, order_by: _arrival_time}",
    "AggregateSpec": """aggregates:
  delays_by_hour:
    windowing: {type: fixed, size: 1h, allowed_lateness: 6h}
    group_by:  [origin]
    measures:  {flights: count(), late: count() where dep_delay > 15, median: "quantile(dep_delay, 0.5)"}""",
    "Retention": "retention: {archive: 90d, speed: 14d, dead_letters: 400d, runs: 400d}",
    "SpecTest": """tests:
  - name: a row without an id is a dead letter
    given: [{created: "2013-01-01T00:00:00Z"}]
    expect: {rows: [], dead_letters: [{reason: REQUIRED, failures: [id]}]}""",
}
_HEAD = """# The spec, field by field

Written from the models by `beam_pipelines.spec.reference`: do not edit. `beam-pipelines schema` gives the same as JSON Schema.

- **YAML 1.2.** `NO`, `yes` and `on` are texts, `1e3` is a number, and `1.10` where a text is expected must be quoted. Keys must not repeat.
- **`${name}`** in any text is a parameter; a text that is nothing else takes its type. `$${` is a plain `${`.
- **Paths** that are relative are resolved against the spec file's directory; URLs (`gs://…`) stay as they are.
- **Secrets** are references, resolved on the workers: `env:NAME`, `file:/path`, `gcp:projects/P/secrets/S[/versions/V]`.
- **Expressions** are DuckDB's SQL over one row: declared and computed columns, functions of one row that always give the same answer. No subqueries, windows,
  aggregates, `now()`, `random()`, files or settings. A name that is a keyword or holds a space, dot or quote is written in double quotes.
- **Types**: {types}.
- **Durations**: numbers with a unit, `us ms s m h d w`: `90s`, `1h30m`, `2d`. A day has 24 hours.
"""


def reference_markdown() -> str:
    """The reference: every field of every model with type, default and description, in the order of a spec."""
    parts = [_HEAD.replace("{types}", ", ".join(f"`{word}`" for word in WORDS))]
    parts += [_section(model) for model in models_in(PipelineSpec)]
    parts.append("## The `tests:` file\n\nCases beside a spec, run by `beam-pipelines test`.\n")
    parts += [_section(model) for model in models_in(SpecTests)[1:]]
    return "\n".join(parts)


def models_in(model: ModelType, seen: tuple[ModelType, ...] = ()) -> tuple[ModelType, ...]:
    """The model and those in its fields, each once, in order."""
    if model in seen:
        return seen
    seen = (*seen, model)
    for info in fields_of(model).values():
        for annotation in members(info.annotation):
            for inner in _inside(annotation):
                seen = models_in(inner, seen)
    return seen


def _inside(annotation: Any) -> list[ModelType]:
    if is_model(annotation):
        return [annotation]
    return [m for arg in get_args(annotation) for part in members(arg) for m in _inside(part)]


def _section(model: ModelType) -> str:
    place = _SECTIONS.get(model.__name__)
    if tags(model):
        place = f"format: {tags(model)[0]}"
    title = "A spec" if model is PipelineSpec else f"`{place}`"
    lines = [f"## {title}", "", _prose(model.__doc__ or ""), ""]
    if model.__name__ in _EXAMPLES:
        lines += ["```yaml", _EXAMPLES[model.__name__], "```", ""]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    lines += [_row(name, info) for name, info in fields_of(model).items()]
    return "\n".join(lines) + "\n"


def _prose(docstring: str) -> str:
    """A docstring's paragraphs without its Python examples."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in p.split("\n")) for p in paragraphs if not p.strip().startswith(">>>"))


def _row(name: str, info: FieldInfo) -> str:
    return f"| `{name}` | {_cell(type_words(info.annotation, info))} | {_cell(_default(info))} | {_cell(info.description or '')} |"


def _cell(text: str) -> str:
    pieces = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(piece if i % 2 else piece.replace("<", "&lt;") for i, piece in enumerate(pieces))


def type_words(annotation: Any, info: FieldInfo | None = None) -> str:
    """A type as a reader of YAML knows it."""
    if info is not None and any(_is_duration(m) for m in info.metadata):
        return "duration"
    words = [_one_type(a) for a in _alternatives(annotation) if a is not type(None)]
    return " or ".join(dict.fromkeys(words))


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [a for arg in get_args(annotation) for a in _alternatives(arg)]
    return [annotation]


def _is_duration(metadata: Any) -> bool:
    schema = getattr(metadata, "json_schema", None)
    return isinstance(schema, dict) and schema.get("pattern") == PATTERN


def _one_type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if any(_is_duration(m) for m in args[1:]):
            return "duration"
        return type_words(args[0])
    if origin is Literal:
        return " ".join(f"`{a}`" for a in args)
    if origin is tuple:
        return f"list of {type_words(args[0])}"
    if origin is dict:
        inner = type_words(args[1])
        return f"mapping of names to {inner}" if inner else "mapping"
    if is_model(annotation):
        return f"format `{tags(annotation)[0]}`" if tags(annotation) else f"[`{_SECTIONS[annotation.__name__]}`](#{_anchor(annotation)})"
    return {str: "text", int: "integer", float: "number", bool: "true/false", Any: "value"}.get(annotation, str(annotation))


def _anchor(model: ModelType) -> str:
    title = _SECTIONS[model.__name__].lower()
    return "".join(c for c in title.replace(" ", "-") if c.isalnum() or c in "-_")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.default
    if value in (None, (), {}, "") or is_model(type(value)):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if any(_is_duration(m) for m in info.metadata):
        return f"`{format_duration(value)}`"
    return f"`{value}`"
