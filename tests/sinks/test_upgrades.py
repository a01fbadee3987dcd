"""What a change of a spec does to what a stream has stored: each kind of change and its effect; and no change without one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.model import Model
from beam_pipelines.arrow.types import parse_type
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.sinks.epochs import Ran
from beam_pipelines.sinks.upgrade_rules import RULES, Effect
from beam_pipelines.sinks.upgrades import Version, compare, holds
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.reference import models_in
from beam_pipelines.spec.shape import fields_of, is_model, members
from tests.conftest import ROOT
from tests.laws import share
from tests.sinks.versions import SPEC, STATE, changes, loaded, version

NOTHING, LATER, REFUSED = "nothing stored changes", "from now on", "refused"
STREAM = "sources.stream.projects/p/subscriptions"

# before, after, the change that is told of it, its effect
TABLE: list[tuple[str, str, str, Effect]] = [
    # names and what is for people, for batches, for the engine
    ("description: Orders of a shop.", "description: Of shops.", "description", NOTHING),
    ('version: "1"', 'version: "2"', "version", NOTHING),
    ("pipeline: shop", "pipeline: shops", "pipeline", NOTHING),
    ("id: {type: int64,", "id: {type: int64, description: Number,", "contract.columns.id.description", NOTHING),
    ("thresholds: {dead_letters: 0.5}", "thresholds: {dead_letters: 0.6}", "thresholds.dead_letters", NOTHING),
    ("files: /in/*.jsonl", "files: /other/*.jsonl", "sources.batch.0.files", NOTHING),
    ("row_count: {min: 1}", "row_count: {min: 2}", "checks.enough.row_count.min", NOTHING),
    ("  - {name: enough, row_count: {min: 1}}\n", "", "checks.enough", NOTHING),
    ("{attribute: sent}}", "{attribute: sent}, pulls: 8}", f"{STREAM}/orders.pulls", NOTHING),
    ("path: /lake/hourly,", "path: /lake/hourly, compression: gzip,", "sinks.hourly.parquet.compression", NOTHING),
    ("path: /lake/hourly,", "path: /lake/hourly, target_file_bytes: 1000,", "sinks.hourly.parquet.target_file_bytes", NOTHING),
    ("mode: exactly_once", "mode: exactly_once, location: EU", "sinks.rows_bigquery.bigquery.location", NOTHING),
    ("{type: int, default: 0}", "{type: int, default: 0, description: Least.}", "parameters.least.description", NOTHING),
    # what is read is judged otherwise
    ("cents < 1000", "cents < 2000", "checks.cheap.expr", LATER),
    ("lookup: shops}, severity: warn", "lookup: shops}, severity: dead_letter", "checks.known.severity", LATER),
    ("checks:\n", "checks:\n  - {name: more, expr: n > 1}\n", "checks.more", LATER),
    ('{type: int, default: 0}', '{type: int, default: 1}', "contract.columns.n.min", LATER),
    ("n IS NOT NULL", "n > 3", "transform.0.filter", LATER),
    ("n * cents", "2 * n * cents", "transform.2.set.total", LATER),
    ("files: /in/shops.csv", "files: /in/more.csv", "lookups.shops.files", LATER),
    ("allowed_skew: 1h", "allowed_skew: 2h", "contract.allowed_skew", LATER),
    ("unknown_columns: drop", "unknown_columns: keep", "contract.unknown_columns", LATER),
    ("within: 1h", "within: 2h", "deduplicate.within", LATER),
    ("deduplicate: {within: 1h, keep: newest, order_by: n}\n", "", "deduplicate", LATER),
    ("allowed_lateness: 2h", "allowed_lateness: 1h", "aggregates.hourly.windowing.allowed_lateness", LATER),
    ("allowed_lateness: 2h", "allowed_lateness: 5h", "aggregates.hourly.windowing.allowed_lateness", LATER),
    ("watermark_delay: 10m", "watermark_delay: 20m", "aggregates.daily.windowing.watermark_delay", LATER),
    ("watermark_delay: 10m", "watermark_delay: 1m, allowed_lateness: 10m", "aggregates.daily.windowing.watermark_delay", LATER),
    ("early: 10s", "early: 20s", "aggregates.hourly.trigger.early", LATER),
    ("turnover: sum(cents)", "turnover: sum(2 * cents)", "aggregates.hourly.measures.turnover", LATER),
    ("top: max(n)}", "top: max(n), low: min(n)}", "columns.hourly.low", LATER),
    ("attributes: {shop: shop}", "attributes: {branch: shop}", "sinks.rows_pubsub.pubsub.attributes.branch", LATER),
    ("mode: exactly_once", "mode: at_least_once", "sinks.rows_bigquery.bigquery.mode", LATER),
    ('provenance: "on"', 'provenance: "off"', "provenance", LATER),
    ("retention: {archive: 30d}", "retention: {archive: 60d}", "retention.archive", LATER),
    ("time_zone: Europe/Berlin", "time_zone: Europe/Rome", "time_zone", REFUSED),  # of calendar windows
    # outputs and sources come and go
    ("sinks:\n", "sinks:\n  - {from: daily, jsonl: {path: /lake/d.jsonl}}\n", "sinks.daily_csv", LATER),
    ("  - {from: daily, csv: {path: /lake/daily.csv}}\n", "", "sinks.daily", REFUSED),
    ("  - {from: rows, pubsub: {topic: projects/p/topics/orders, attributes: {shop: shop}}}\n", "", "sinks.rows_pubsub", LATER),
    ("  stream:\n", "  stream:\n    - {pubsub: projects/p/subscriptions/third, format: json}\n", f"{STREAM}/third", LATER),
    ("subscriptions/more,", "subscriptions/others,", f"{STREAM}/more", REFUSED),
    ("subscriptions/more,", "subscriptions/others,", f"{STREAM}/others", LATER),
    # which rows are one
    ("key: [id, shop]", "key: [id]", "contract.key", REFUSED),
    ("key: [id, shop]", "key: [shop, id]", "contract.key", NOTHING),
    ("within: 1h,", "within: 1h, key: [id],", "deduplicate.key", REFUSED),
    ("keep: newest", "keep: oldest", "deduplicate.keep", REFUSED),
    ("order_by: n", "order_by: cents", "deduplicate.order_by", REFUSED),
    # which windows there are
    ("event_time: at\n", "event_time: due\n", "contract.event_time", REFUSED),
    ("size: 1h", "size: 2h", "aggregates.hourly.windowing.size", REFUSED),
    ("unit: day,", "unit: week,", "aggregates.daily.windowing.unit", REFUSED),
    ("group_by: [shop, town]", "group_by: [shop]", "aggregates.hourly.group_by", REFUSED),
    ("group_by: [shop, town]", "group_by: [town, shop]", "aggregates.hourly.group_by", NOTHING),
    ("group_by: [shop], measures", "time: _arrival_time, group_by: [shop], measures", "aggregates.daily.time", REFUSED),
    ("watermark_delay: 10m", "watermark_delay: 1m", "aggregates.daily.windowing.watermark_delay", REFUSED),
    # what columns hold
    ("id: {type: int64", "id: {type: int32", "columns.rows.id", LATER),
    ("max(n)", "max(rate)", "columns.hourly.top", REFUSED),
    ("rate: {type: float32}", "rate: {type: float64}", "columns.rows.rate", LATER),
    ("rate: {type: float32}", "rate: {type: string}", "columns.rows.rate", REFUSED),
    ("made: {type: datetime}", "made: {type: timestamp}", "columns.rows.made", REFUSED),
    ("    rate: {type: float32}\n", "", "columns.rows.rate", REFUSED),
    ("    secret: {type: string, sensitive: drop}\n", "", "contract.columns.secret", LATER),  # was never stored
    ("orders: count(), turnover", "turnover", "columns.hourly.orders", REFUSED),
    ("decimal(12,2)", "decimal(14,2)", "columns.rows.cents", REFUSED),  # BigQuery's column has a precision
    ("sensitive: hmac", "sensitive: redact", "contract.columns.mail.sensitive", REFUSED),
    ("hmac_key: env:HMAC_KEY", "hmac_key: env:OTHER", "hmac_key", REFUSED),
    # where it lies
    ("path: /lake/hourly,", "path: /lake/by_hour,", "sinks.hourly.parquet.path", REFUSED),
    ("csv: {path: /lake/daily.csv}", "jsonl: {path: /lake/daily.jsonl}", "sinks.daily.csv", REFUSED),
    ("partition_by: [day(at), shop]", "partition_by: [month(at), shop]", "sinks.rows.parquet.partition_by", REFUSED),
    ("  - {from: dead_letters, parquet: {path: /lake/dead}}\n", "", "sinks.dead_letters.parquet.path", REFUSED),
    ("path: /lake/rows, partition_by: [day(at), shop]", "path: /lake/r, partition_by: [day(at)]", "sinks.rows.parquet.partition_by", LATER),
    ("table: my-project.shop.orders", "table: my-project.shop.others", "sinks.rows_bigquery.bigquery.table", REFUSED),
    ("orders, partition_by: day(at)", "others, partition_by: month(at)", "sinks.rows_bigquery.bigquery.partition_by", LATER),
    ("cluster_by: [shop]", "cluster_by: [town]", "sinks.rows_bigquery.bigquery.cluster_by", REFUSED),
    ("mode: exactly_once", "mode: upsert", "sinks.rows_bigquery.bigquery.mode", REFUSED),
    # what can be read again
    ("archive: /lake/more", "archive: /lake/others", f"{STREAM}/more.archive", REFUSED),
    ("archive: /lake/more", "archive: /lake/more/", "", NOTHING),
    ("{pubsub: projects/p/subscriptions/orders, format: json", "{pubsub: projects/p/subscriptions/orders, archive: /lake/state/archive, format: json", "", NOTHING),
    ("{attribute: sent}", "{attribute: arrived}", f"{STREAM}/orders.arrival.attribute", REFUSED),
    ("orders, format: json", "orders, format: csv", f"{STREAM}/orders.format", REFUSED),
    ("dead_letters: {raw_key: env:RAW_KEY}", "dead_letters: {raw_key: env:OTHER}", "dead_letters.raw_key", REFUSED),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "name", "effect"), TABLE, ids=[f"{name or 'none'}: {after}" for _, after, name, _ in TABLE])
def test_the_effect_of_each_kind_of_change(before: str, after: str, name: str, effect: Effect) -> None:
    found = {change.name: change for change in changes((before, after))}
    if not name:
        assert found == {}
        return
    assert name in found, list(found)
    assert found[name].effect == effect
    if effect == REFUSED:
        assert found[name].why
        assert found[name].do
    else:
        assert not found[name].do


def test_what_depends_on_the_rest_of_the_spec() -> None:
    plain = (
        SPEC.replace("deduplicate: {within: 1h, keep: newest, order_by: n}\n", "")
        .replace(", sensitive: hmac", "")
        .replace(", sensitive: drop", "")
    )
    effects = {
        c.name: c.effect for c in changes(("key: [id, shop]", "key: [id]"), ("env:RAW_KEY", "env:OTHER"), ("HMAC_KEY", "NONE"), text=plain)
    }
    assert effects == {"contract.key": LATER, "dead_letters.raw_key": LATER, "hmac_key": LATER}
    upserted = plain.replace("exactly_once", "upsert")
    assert [c.effect for c in changes(("key: [id, shop]", "key: [id]"), text=upserted)] == [REFUSED]
    hours = SPEC.replace("{type: calendar, unit: day, watermark_delay: 10m}", "{type: fixed, size: 1d}")
    assert [c.effect for c in changes(("Europe/Berlin", "Europe/Rome"), text=hours)] == [LATER]
    never = SPEC.replace("trigger: {early: 10s}", "trigger: {late: never}")
    assert [c.effect for c in changes(("allowed_lateness: 2h", "allowed_lateness: 1h"), text=never)] == [REFUSED]


@pytest.mark.parametrize(("schemas", "effect"), [(("1.avsc", "2.avsc"), LATER), (("2.avsc",), REFUSED), ((), REFUSED)])
def test_schemas_that_are_added_read_what_was_written_before(schemas: tuple[str, ...], effect: Effect) -> None:
    def reading(*files: str) -> Version:
        spec, columns = version(loaded())
        first, second = spec.sources.stream
        stream = (first, second.model_copy(update={"format": AvroFormat(schemas=files)}))
        return Version(spec.model_copy(update={"sources": spec.sources.model_copy(update={"stream": stream})}), columns)

    (change,) = compare(reading("1.avsc"), reading(*schemas), STATE)
    assert (change.name, change.effect) == (f"{STREAM}/more.format.schemas", effect)


def test_refused_changes_come_first_and_say_before_and_after_in_short() -> None:
    found = changes(("cents < 1000", "cents < 2000"), ("key: [id, shop]", "key: [id]"), ("Orders of a shop.", "x" * 200))
    assert [change.effect for change in found] == [REFUSED, LATER, NOTHING]
    assert (found[0].before, found[0].after) == ('["id","shop"]', '["id"]')
    assert len(found[2].after) == 48


# ── laws ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if "\npipeline: " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_spec_that_was_written_down_reads_as_it_was(path: Path) -> None:
    found = load_spec(path)
    assert _again(found).spec == found.spec
    assert compare(_again(found), version(found), STATE) == []


def _again(found: LoadedSpec) -> Version:
    ran = msgspec.json.decode(msgspec.json.encode(Ran.of(found)), type=Ran)
    return Version(PipelineSpec.model_validate_json(msgspec.json.encode(ran.spec), strict=True, by_alias=True, by_name=False), ran.columns)


def test_secrets_are_written_down_as_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMAC_KEY", "the-key-itself")
    monkeypatch.setenv("RAW_KEY", "the-key-itself")
    assert compare(_again(loaded()), version(loaded()), STATE) == []
    written = msgspec.json.encode(Ran.of(loaded()))
    assert b"env:HMAC_KEY" in written
    assert b"the-key-itself" not in written


@share(8)
@given(st.randoms(use_true_random=False))
def test_order_and_form_are_no_change(chance: Any) -> None:
    """Keys of mappings, checks and subscriptions in any order; and YAML as it is or as JSON."""
    spec = Ran.of(loaded()).spec
    spec["sources"]["stream"].reverse()
    chance.shuffle(spec["checks"])
    text = msgspec.json.encode(_shuffled(spec, chance)).decode().replace("${", "$${")
    assert compare(version(loaded()), version(loaded(text)), STATE) == []
    assert compare(version(loaded(text)), version(loaded()), STATE) == []


def _shuffled(thing: Any, chance: Any) -> Any:
    if isinstance(thing, dict):
        names = list(thing)
        chance.shuffle(names)
        return {name: _shuffled(thing[name], chance) for name in names}
    return [_shuffled(item, chance) for item in thing] if isinstance(thing, list) else thing


def test_every_field_of_a_spec_has_a_rule() -> None:
    """Where a model has rules it has them for all its fields; and a new model is put there, or with those that are judged by the field that holds them."""
    whole = {model.__name__ for model in models_in(PipelineSpec) if model not in RULES}
    assert whole == {
        "Parameter", "FileSource", "ArchiveSource", "BigQuerySource", "DatabaseSource", "CsvFormat", "JsonFormat", "TextFormat", "AvroFormat", "ParquetFormat",
        "OrcFormat", "Arrival", "LookupSource", "BigQueryLookup", "DatabaseLookup", "TransformStep", "Apply", "LookupStep", "References", "RowCount", "NullRate",
        "Thresholds", "Trigger", "Retention",
    }  # fmt: skip
    for model, rules in RULES.items():
        assert rules.keys() == fields_of(model).keys(), model.__name__


def _single_changes(thing: Any, samples: dict[type[Model], Model]) -> Iterator[tuple[str, Any]]:
    """The thing with one field changed, for each field of it and of all that is in it; nobody has checked whether the result makes sense."""
    if isinstance(thing, Model):
        for name, info in type(thing).model_fields.items():
            for where, other in [*_others(getattr(thing, name), info, samples), *_single_changes(getattr(thing, name), samples)]:
                yield f"{type(thing).__name__}.{name}{where}", thing.model_copy(update={name: other})
    elif isinstance(thing, dict):
        for key, item in thing.items():
            yield from ((f"[{key}]{where}", {**thing, key: other}) for where, other in _single_changes(item, samples))
    elif isinstance(thing, tuple):
        for i, item in enumerate(thing):
            yield from ((f"[{i}]{where}", (*thing[:i], other, *thing[i + 1 :])) for where, other in _single_changes(item, samples))


def _others(value: Any, info: Any, samples: dict[type[Model], Model]) -> Iterator[tuple[str, Any]]:
    """Another value that the field may have."""
    kinds = list(members(info.annotation))
    if isinstance(value, Model):
        return
    if isinstance(value, bool):
        yield "", not value
    elif isinstance(value, int | float):
        yield "", value + 1
    elif isinstance(value, str):
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        yield from (("", word) for word in (words or [f"{value}x"]) if word != value)
    elif isinstance(value, tuple | dict):
        if value:
            yield " emptied", type(value)()
    elif (sample := next((samples[kind] for kind in kinds if is_model(kind) and kind in samples), None)) is not None:
        yield " added", sample
    elif str in kinds or int in kinds:
        yield " said", "x" if str in kinds else 1


def _models(thing: Any) -> Iterator[Model]:
    if isinstance(thing, Model):
        yield thing
        yield from (inner for name in type(thing).model_fields for inner in _models(getattr(thing, name)))
    elif isinstance(thing, dict | tuple):
        yield from (inner for item in (thing.values() if isinstance(thing, dict) else thing) for inner in _models(item))


def test_every_single_change_is_reported() -> None:
    spec, columns = version(loaded())
    samples = {type(model): model for model in _models(spec)}
    told, fields = 0, set[str]()
    for where, changed in _single_changes(spec, samples):
        if where.endswith(".pubsub") and "[1]" in where:
            continue  # both of one name: no spec
        try:
            found = compare(Version(spec, columns), Version(changed, columns), STATE)
        except (BeamPipelinesError, AssertionError, KeyError):
            continue  # no spec any more: no such type, a sink of nothing
        assert found, where
        told += 1
        fields.add(where.rpartition("]")[2])
    assert told > 200
    assert len(fields) > 110


# ── types ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "TINYINT": "-128", "UTINYINT": "255", "SMALLINT": "-32768", "USMALLINT": "65535", "INTEGER": "-2147483648", "UINTEGER": "4294967295", "BIGINT": "9007199254740993",
    "UBIGINT": "18446744073709551615", "FLOAT": "0.5", "DOUBLE": "0.1", "DECIMAL(12,2)": "9999999999.99", "DECIMAL(12,4)": "99999999.9999", "DECIMAL(38,2)": f"{'9' * 36}.99",
    "VARCHAR": "'a'", "BOOLEAN": "true", "DATE": "DATE '2024-01-01'", "TIMESTAMP": "TIMESTAMP '2024-01-01 01:00:00'", "TIME": "TIME '01:00:00'",
}  # fmt: skip


def test_what_one_column_holds_is_what_duckdb_reads_from_files_of_both_types(tmp_path: Path) -> None:
    connection = duckdb.connect()
    for kind, value in KINDS.items():
        connection.execute(f"COPY (SELECT ({value})::{kind} AS x) TO '{tmp_path}/{kind}.parquet'")

    def read(*kinds: str) -> set[str]:
        files = [f"{tmp_path}/{kind}.parquet" for kind in kinds]
        found = connection.execute(f"SELECT x::VARCHAR FROM read_parquet({files}, union_by_name = true)").fetchall()
        return {_number(text) for (text,) in found}

    for one, other in itertools.combinations(KINDS, 2):
        assert holds(one, other) == holds(other, one)
        if holds(one, other):
            assert read(one, other) == read(one) | read(other), (one, other)
    assert sum(holds(one, other) for one, other in itertools.combinations(KINDS, 2)) > 50


def _number(text: str) -> str:
    """Without what tells 1.50 from 1.5."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def test_types_of_a_contract_are_known_to_the_comparison() -> None:
    assert holds(parse_type("int8").sql, parse_type("uint64").sql)
    assert holds("DECIMAL(12,2)", "DECIMAL(14,4)")
    assert not holds("DECIMAL(38,2)", "DECIMAL(12,4)")  # 36 + 4 digits
    assert not holds("INTEGER[]", "VARCHAR[]")


# ── docs ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

PLACES = {
    "PipelineSpec": "", "Contract": "contract", "Column": "contract.columns.NAME", "Sources": "sources", "PubsubSource": "sources.stream.SUBSCRIPTION",
    "Check": "checks.NAME", "DeduplicateRule": "deduplicate", "AggregateSpec": "aggregates.NAME", "WindowSpec": "aggregates.NAME.windowing",
    "Sink": "sinks.OUTPUT", "ParquetSink": "sinks.OUTPUT.parquet", "TextSink": "sinks.OUTPUT.csv", "PubsubSink": "sinks.OUTPUT.pubsub",
    "BigQuerySink": "sinks.OUTPUT.bigquery", "DeadLetterSettings": "dead_letters",
}  # fmt: skip


def effects_table() -> Iterator[str]:
    """The table of docs/upgrade.md: fields of one rule in a line."""
    for model, rules in RULES.items():
        by_rule: dict[Any, list[str]] = {}
        for name, rule in rules.items():
            by_rule.setdefault(rule, []).append(f"`{name}`")
        for rule, names in by_rule.items():
            effect, do = (rule.__doc__, "") if callable(rule) else (f"{rule.effect}: {rule.why}" if rule.why else rule.effect, rule.do)
            yield f"| `{PLACES[model.__name__]}` | {', '.join(names)} | {effect} | {do} |".replace("``", "").replace("|  |", "| |")


def test_the_page_has_the_rules() -> None:
    page = (ROOT / "docs" / "upgrade.md").read_text("utf-8")
    table = page.partition("|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert table == list(effects_table()), "\n".join(effects_table())
