"""What a new version of a spec does to what a stream of the old one has stored: a rule for each field. Loads no Beam.

A start reads again, from the archive, what open windows and the comparison of copies need, and judges it by the new spec. Whatever holds from then on without
mixing two meanings in one table is `from now on`; what would mix them, hide rows or lose some is `refused`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.model import Model
from beam_pipelines.arrow.validate import Check
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.sinks.labels import labels_of
from beam_pipelines.spec.models import DeadLetterSettings, PipelineSpec
from beam_pipelines.spec.sinks import BigQuerySink, ParquetSink, PubsubSink, Sink, TextSink
from beam_pipelines.spec.sources import PubsubSource, Sources

Effect = Literal["refused", "from now on", "nothing stored changes"]


class Verdict(NamedTuple):
    """What a change does, why, and what to do instead."""

    effect: Effect
    why: str = ""
    do: str = ""


class At(NamedTuple):
    """Where two specs differ: the names that lead there, both values (None: there is none), both specs."""

    path: tuple[str, ...]
    old: Any
    new: Any
    before: PipelineSpec
    after: PipelineSpec


Rule = Verdict | Callable[[At], Verdict]
"""A function's docstring says when which effect holds."""


def refused(why: str, do: str) -> Verdict:
    return Verdict("refused", why, do)


NOTHING, LATER = Verdict("nothing stored changes"), Verdict("from now on")
_ANEW = "Accept it and compute what is closed anew by `backfill`; or start a stream of its own: another `state`, other places."
_NEW_NAME = "Give it another name with a sink of its own, and keep the old one."
_KEY = refused("what was a duplicate by the old key stays one: the table would be of two keys", _ANEW)
_BETTER = refused("of two copies that are read again each rule takes back the other, and both are gone", _ANEW)
_CLOCK = refused("rows of closed windows may lie in open ones by the other time, and count twice", _ANEW)
_WINDOWS = refused("windows cut both ways overlap in one table, and rows count twice", _NEW_NAME)
_GROUPS = refused("panes of closed windows are told apart by other columns, and some are hidden", _NEW_NAME)
_PLACE = refused("what is stored stays in the old place, and only the new one is shown", "Accept it, and fill the new place by `backfill`.")
_FOLDERS = refused("folders of two layouts cannot be read as one table", "Write to another `path`, too, and fill it by `backfill`.")
_TABLE = refused("BigQuery changes no table in this, and the stream would end with an error", "Write to another table.")
_ARRIVAL = refused("how far the stream has come is told by the old clock", "Start a stream of its own: another `state`, other places.")
_MASKED = refused("one column would hold values masked both ways, and what is stored stays as it is", "Give the column another name.")
_SEALED = refused(
    "the archive is sealed under the old key: what is needed again cannot be read", "Keep it; accept it where both are one key."
)
_SOURCE = refused(
    "what it has not delivered is never read, and open windows lose its rows", "Wait for its backlog and windows to end; accept it then."
)
_GONE = refused("its table is no longer shown; the files stay", "Keep the sink; or accept it, if nobody reads the table.")
_ARCHIVE = refused("what is needed again lies in the other folder, and is not read", "Stop the stream, move the files, and accept it.")
_FORMAT = refused(
    "what is read again was written the old way: what does not fit becomes a dead letter, and its row is gone",
    "Wait until what is read again is of the new format, or give that a subscription of its own; accept it where both read the same.",
)  # fmt: skip
_UNSHOWN = refused(
    "windows that ended and were not shown yet would count as closed, and never be shown",
    "Say `allowed_lateness` as long as the old time with it; the next version may leave that out.",
)  # fmt: skip


def _key(at: At) -> Verdict:
    """refused where copies are compared by it, or a table upserts; else from now on"""
    if at.old is not None and at.new is not None and set(at.old) == set(at.new):
        return NOTHING
    own = at.path[0] == "deduplicate" or all(s.deduplicate is not None and s.deduplicate.key is None for s in (at.before, at.after))
    upserts = any(sink.bigquery is not None and sink.bigquery.mode == "upsert" for sink in at.before.sinks)
    return _KEY if own or upserts else LATER


def _event_time(at: At) -> Verdict:
    """refused where windows are cut or copies compared by it; else from now on"""
    cuts = any(aggregate.time is None for aggregate in at.before.aggregates.values())
    return _CLOCK if cuts or at.before.deduplicate is not None else LATER


def _time_zone(at: At) -> Verdict:
    """refused where calendar windows go by it; else from now on"""
    windows = [aggregate.windowing for aggregate in at.before.aggregates.values()]
    return _WINDOWS if any(w is not None and w.type == "calendar" and w.time_zone is None for w in windows) else LATER


def _lateness(at: At) -> Verdict:
    """refused where windows would count as closed that the old version has not shown; else from now on"""
    old, new = (spec.aggregates[at.path[1]] for spec in (at.before, at.after))
    assert old.windowing is not None
    assert new.windowing is not None
    late = old.windowing.allowed_lateness if old.trigger.late == "never" else 0
    closes = max(new.windowing.watermark_delay, new.windowing.allowed_lateness)
    return _UNSHOWN if max(old.windowing.watermark_delay, late) > closes else LATER


def _groups(at: At) -> Verdict:
    """refused, but for another order"""
    return NOTHING if set(at.old) == set(at.new) else _GROUPS


def _check(at: At) -> Verdict:
    """from now on; nothing where it looks at many rows, which batch runs do"""
    return LATER if (at.new or at.old).per_row else NOTHING


def _stream(at: At) -> Verdict:
    """a new one from now on; one that is gone is refused"""
    return LATER if at.old is None else _SOURCE


def _format(at: At) -> Verdict:
    """refused, but for Avro `schemas` that are added"""
    return LATER if at.path[-1] == "schemas" and set(at.old) <= set(at.new) else _FORMAT


def _sink(at: At) -> Verdict:
    """a new one from now on; one that is gone is refused, but for a topic"""
    return LATER if at.old is None or at.old.pubsub is not None else _GONE


def _folders(at: At) -> Verdict:
    """refused where the `path` stays; else from now on"""
    return LATER if _moved(at) else _FOLDERS


def _table(at: At) -> Verdict:
    """refused where `table` or `path` stay; else from now on"""
    return LATER if _moved(at) else _TABLE


def _mode(at: At) -> Verdict:
    """refused to and from `upsert` where `table` or `path` stay; else from now on"""
    return _TABLE if "upsert" in (at.old, at.new) and not _moved(at) else LATER


def _moved(at: At) -> bool:
    """Whether nothing of an output lies where it lay."""
    old, new = (dict(zip(labels_of(spec), spec.sinks, strict=True))[at.path[1]] for spec in (at.before, at.after))
    tables = [None if sink.bigquery is None else sink.bigquery.table for sink in (old, new)]
    return old.destination.path != new.destination.path and (tables[0] is None or tables[0] != tables[1])


def _raw_key(at: At) -> Verdict:
    """refused where there were sensitive columns; else from now on"""
    return _SEALED if at.before.sensitive else LATER


def _hmac_key(at: At) -> Verdict:
    """refused where columns are `sensitive: hmac` before and after; else from now on"""
    old, new = at.before.hmac_reference, at.after.hmac_reference
    return LATER if old is None or new is None or old == new else _MASKED


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[type[Model], Mapping[str, Rule]] = {
    PipelineSpec: {
        **_all("spec pipeline version description parameters state thresholds state_shards", NOTHING), "time_zone": _time_zone, "hmac_key": _hmac_key,
        **_all("contract sources lookups transform deduplicate aggregates provenance dead_letters retention", LATER), "checks": _check, "sinks": _sink,
    },
    Contract: {
        **_all("version description", NOTHING), **_all("columns allowed_skew unknown_columns", LATER), "key": _key, "event_time": _event_time,
    },
    Column: {
        "description": NOTHING, "sensitive": _MASKED,
        **_all("type required path expr default null_values trim coerce format unit time_zone ambiguous missing min max in regex", LATER),
        **_all("min_length max_length", LATER),
    },
    Sources: {"batch": NOTHING, "stream": _stream},
    PubsubSource: {
        "pubsub": _SOURCE, "format": _format, "arrival": _ARRIVAL, "archive": _ARCHIVE, "endpoint": LATER,
        **_all("ack_deadline pulls max_outstanding_messages max_outstanding_bytes", NOTHING),
    },
    Check: {**_all("name expr references severity", LATER), **_all("unique row_count null_rate freshness description", NOTHING)},
    DeduplicateRule: {"key": _key, "within": LATER, **_all("keep order_by", _BETTER)},
    AggregateSpec: {**_all("windowing trigger measures", LATER), "time": _CLOCK, "group_by": _groups},
    WindowSpec: {**_all("type size period offset gap max_length unit time_zone", _WINDOWS), **_all("watermark_delay allowed_lateness", _lateness)},
    Sink: {**_all("from parquet csv jsonl bigquery", _PLACE), **_all("pubsub provenance", LATER)},
    ParquetSink: {
        "path": _PLACE, "partition_by": _folders,
        **_all("replace compression compression_level dictionary statistics target_file_bytes max_open_files", NOTHING),
    },
    TextSink: {"path": _PLACE, "compression": NOTHING},
    PubsubSink: _all("topic format ordering_key attributes endpoint", LATER),
    BigQuerySink: {
        **_all("table path", _PLACE), **_all("partition_by cluster_by", _table), "mode": _mode, **_all("max_staleness endpoint grpc_endpoint", LATER),
        **_all("replace partition_expiration require_partition_filter location", NOTHING),
    },
    DeadLetterSettings: {"raw_key": _raw_key},
}  # fmt: skip
"""What a change of each field does, by the names that a file has for them. All in a model that is not named here is judged as the field that holds it."""
