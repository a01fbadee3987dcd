"""The record of a run: a documented schema that later versions can extend."""

from __future__ import annotations

import json
from pathlib import Path

from beam_pipelines.sinks.ledger import Ledger, Line
from beam_pipelines.sinks.results import CheckResult, failures_of, from_json, judge_thresholds, schema, to_json
from tests.runs import read_run
from tests.sinks.lake import Lake, rows


def test_the_record_reads_back_also_with_fields_of_a_later_version(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    results = lake.go("r1", lake.output(), rows((1, "a")))
    assert read_run(lake.state, "r1") == from_json(to_json(results)) == results
    later = {**json.loads(to_json(results)), "something_new": 1}
    assert from_json(json.dumps(later).encode()) == results


def test_the_schema_names_every_field_of_the_record(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    record = json.loads(to_json(lake.go("r1", lake.output(), rows((1, "a")))))
    assert set(schema()["$defs"]["RunResults"]["properties"]) == set(record)
    assert record["schema_version"] == 1
    assert record["metadata"]["run_id"] == "r1"
    assert record["outputs"][0]["rows"] == 1


def test_thresholds_are_shares_of_the_rows_read_and_nothing_read_is_no_share() -> None:
    ledger = Ledger((Line("a", read=10),), {"validate:CHECK": 2}, {"odd": 5}, ())
    found = judge_thresholds(ledger, dead_letters=0.2, per_check={"odd": 0.4, "other": 0.0})
    assert [(t.name, t.share, t.status) for t in found] == [
        ("dead_letters", 0.2, "pass"),
        ("check odd", 0.5, "fail"),
        ("check other", 0.0, "pass"),
    ]
    assert judge_thresholds(Ledger((), {}, {}, ()), dead_letters=0.0, per_check={})[0].status == "pass"


def test_a_failed_check_says_what_was_found_and_expected() -> None:
    check = CheckResult("enough", "fail", observed="3 rows", expected="at least 5")
    assert failures_of(Ledger((), {}, {}, ()), [check], []) == ("check 'enough' failed: found 3 rows; expected at least 5",)
