"""What a process keeps is of one start of a stream, or outlives it for a reason that is said here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from beam_pipelines import arrival_clock, back_pressure, draining, durable, metrics
from beam_pipelines.runners.process_state import begin_anew
from beam_pipelines.transforms import keyed_state

PACKAGE = Path(__file__).resolve().parents[2] / "beam_pipelines"
RESET = {
    "arrival_clock._watermarks", "back_pressure._here", "draining._ends", "durable._owed", "durable._stored", "durable._under_way", "metrics._elsewhere",
    "metrics._local", "transforms.keyed_state._known",
}  # fmt: skip
LASTING = {
    "arrow.engine._LOCAL": "a DuckDB connection of each thread",
    "arrow.engine._SHARING": "of calls under way, each of which takes its own away",
    "coders._numbers": "only counts up",
    "coders._table": "of jobs on Prism: `keyed_state.resident` begins and ends them",
    "draining._requests": "a request to end holds for all starts of a call, which begins with `draining.reset`",
    "formats.archive_files._known": "notes of files whose content never changes",
    "formats.avro_message_schemas._fetched": "revisions of schemas never change",
    "formats.compaction._damaged": "names of files are never used again",
    "formats.orc_child.idle": "processes that wait for any file",
    "places.gcs._clients": "a client of this process",
    "places.gcs._stamps": "trusted for seconds",
    "runners.bundle_ends._ends": "of bundles under way",
    "runners.flink.parked_bundles._of_this_bundle": "of bundles under way",
    "runners.flink.parked_bundles._parked": "of bundles under way; gone with their worker",
    "runners.writable._by_device": "locks",
    "sinks.bigquery_append._tables": "connections: `close_appenders` ends them with the job",
    "sinks.settling._failed": "names of files are never used again",
    "sources.database_connection._held": "of a call: a context variable ends with it",
    "sources.lookups._held": "tables by name and source, trusted for their `refresh`",
    "sources.pubsub._elements": "`pubsub.close` ends them with the job",
    "sources.pubsub._elsewhere": "`pubsub.close` ends it with the job",
    "sources.pubsub._pullers": "`pubsub.close` ends them with the job",
    "sources.pubsub_reports._looked": "by a folder that is one start's own",
    "testing.broker_protocol.METHODS": "a constant",
    "transforms.aggregate_stream._coder": "a constant",
    "transforms.guard._of_thread": "a journal with its start in its name",
    "transforms.keyed_state._resident": "of jobs on Prism: `keyed_state.resident` begins and ends them",
}
CONTAINERS = {
    "Counter", "Event", "ContextVar", "OrderedDict", "Queue", "SimpleQueue", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "count", "defaultdict",
    "deque", "dict", "list", "local", "set",
}  # fmt: skip
NO_STATE = {"Lock", "RLock", "getLogger"}


def kept() -> Iterator[str]:
    """Names of modules, bound when they are loaded, whose values can change: empty, or named as variables are."""
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Global), f"{module}: `global` hides what is kept"
        for statement in tree.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            yield from (f"{module}.{t.id}" for t in targets if isinstance(t, ast.Name) and changes(t.id, value))


def changes(name: str, value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        made = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return made in CONTAINERS or (name.islower() and made not in NO_STATE)
    items = value.keys if isinstance(value, ast.Dict) else value.elts if isinstance(value, ast.List | ast.Set) else None
    return items is not None and (not items or (name.islower() and not name.startswith("__")))


def test_whatever_a_process_keeps_is_reset_by_a_start_or_outlives_it_for_a_reason() -> None:
    found = set(kept())
    assert sorted(found - RESET - set(LASTING)) == [], "reset it in runners/process_state.py, or say here why it outlives a start"
    assert sorted((RESET | set(LASTING)) - found) == []


def test_a_start_finds_nothing_of_the_one_before_but_a_request_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "_requests", [])
    draining.request()
    draining.end(5)
    arrival_clock.tell("s", 7)
    durable.register("s", np.array([1]))
    durable.archiving(3)
    durable.owe(9, 2)
    metrics.count("rows_read", 4)
    metrics.heard({"other": {"rows_read": 4}})
    back_pressure.limit(10)
    back_pressure.left(1, 100)
    keyed_state._known["stage", 1] = (b"token", "value")
    begin_anew(most_waiting_bytes=10)
    assert draining.requested()
    assert (draining.ended_at(), arrival_clock.now(), metrics.snapshot()) == (None, None, {})
    assert not durable.take_stored("s", np.array([1])).any()
    assert durable.all_shown(6) == 6
    assert not durable._under_way
    assert not back_pressure.full()
    assert not keyed_state._known
    back_pressure.left(1, 100)
    assert back_pressure.full()
    begin_anew(most_waiting_bytes=None)
