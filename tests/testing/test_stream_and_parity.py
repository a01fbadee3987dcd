"""A spec on a timeline, and batch against stream: what comes of late, held and repeated messages; and that a difference is found and shown."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beam_pipelines.testing.stream
from beam_pipelines.arrow import copies
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.testing import Message, Timeline, assert_batch_equals_stream, assert_rows, parity, run_spec_stream
from beam_pipelines.testing.run import loaded_spec
from beam_pipelines.testing.timeline import moment

SPEC: dict[str, Any] = {
    "spec": 1,
    "pipeline": "shop",
    "contract": {
        "key": ["id"],
        "event_time": "at",
        "columns": {"id": {"type": "int64", "required": True}, "at": {"type": "timestamp"}, "shop": {"type": "string"}},
    },
    "sources": {"stream": [{"pubsub": "projects/p/subscriptions/orders", "format": "json"}]},
    "transform": [{"filter": "shop IS DISTINCT FROM 'test'"}],
    "deduplicate": {"within": "1h", "keep": "newest"},
    "aggregates": {"hourly": {"windowing": {"size": "1h", "allowed_lateness": "2h"}, "group_by": ["shop"], "measures": {"n": "count()"}}},
    "sinks": [{"from": "rows", "parquet": {"path": "out"}}],
}


def order(number: int, minute: int, shop: str = "north") -> dict[str, Any]:
    return {"id": number, "at": f"2024-05-01T10:{minute:02}:00Z", "shop": shop}


@pytest.mark.slow
def test_a_timeline_gives_rows_panes_letters_and_ledger() -> None:
    held = Message(order(4, 50), arrival="2024-05-01T10:51Z", id="held")
    timeline = (
        Timeline()
        .arrive("2024-05-01T10:01Z", order(1, 0), order(2, 0, "test"), '{"id": ', {"id": None})
        .arrive("2024-05-01T10:30Z", order(1, 0), order(3, 30))  # the first one once more
        .watermark("2024-05-01T11:30Z")  # the pane is shown
        .arrive("2024-05-01T11:40Z", held)
        .arrive("2024-05-01T12:00Z", held)  # delivered again
        .arrive("2024-05-01T18:00Z", order(5, 55))  # too late for its window
    )
    result = run_spec_stream(SPEC, timeline)
    assert_rows(result.rows, [{"id": n} for n in (1, 3, 4, 5)])
    assert [(p["_pane"], p["n"]) for p in result.panes["hourly"]] == [("on_time", 2), ("late", 3)]
    assert_rows(result.aggregates["hourly"], [{"shop": "north", "n": 3, "_window_start": "2024-05-01T10:00:00Z"}])
    assert result.reasons == {"decode:DECODE": 1, "validate:REQUIRED": 1, "aggregate:LATE": 1}
    assert sorted(x["reason"] for x in result.dead_letters) == ["DECODE", "LATE", "REQUIRED"]
    assert (result.duplicates, result.filtered, result.ledger.explain()) == (1, 1, "")
    assert result.ledger.lines[0].read == 8


def test_wrong_calls_say_so() -> None:
    for wrong, says in [([order(1, 0)], "expected a Timeline"), (None, "expected a Timeline")]:
        with pytest.raises(SpecError, match=says):
            run_spec_stream(SPEC, wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="1 stream sources"):
        run_spec_stream(SPEC, Timeline(), source=1)
    with pytest.raises(SpecError, match="goes back from 2024-05-01T10:00:00"):
        Timeline().arrive("2024-05-01T10:00Z").arrive("2024-05-01T09:00Z")
    with pytest.raises(SpecError, match="got 'soon'"):
        Timeline().watermark("soon")
    with pytest.raises(SpecError, match="got int 1"):
        Timeline().arrive("2024-05-01T10:00Z", 1)
    with pytest.raises(SpecError, match="tries: got 0"):
        assert_batch_equals_stream(SPEC, [order(1, 0)], tries=0)
    for nothing in ([], Timeline().watermark("2024-05-01T10:00Z")):
        with pytest.raises(SpecError, match="there are none"):
            assert_batch_equals_stream(SPEC, nothing)
    assert moment("2024-05-01T12:00:00+02:00") == moment("2024-05-01T10:00:00")


IDS = st.lists(st.sampled_from([None, "", "0", "1", "2", "#0", "#1"]), min_size=1, max_size=6)


@given(IDS, st.booleans())
def test_messages_are_one_where_they_are_given_one_id(ids: list[str | None], in_bundles: bool) -> None:
    sent = [Message(order(i, 0), id=name) for i, name in enumerate(ids)]
    timeline = Timeline()
    for message in sent:
        timeline = timeline.arrive("2024-05-01T10:01Z", message)
    [(steps, _)] = parity._plays(loaded_spec(SPEC, None, where="a test"), timeline if in_bundles else sent, 1, 0, 0)
    found = [d for step in steps for batch in step.batches for d in batch]
    assert [f'"id":{i},' in d.data.decode() for i, d in enumerate(found)] == [True] * len(ids)
    for mine, name in zip(found, ids, strict=True):
        assert name is None or mine.id == name
        for other, its in zip(found, ids, strict=True):
            assert (mine.position == other.position) == (mine is other or (name is not None and name == its))


RECORDS = [
    order(1, 0), order(2, 10, "test"), order(3, 20, "south"), "nonsense", {"id": None}, {"id": 7},
    Message(order(1, 0, "south"), arrival="2024-05-01T10:40Z"), Message(order(4, 30), arrival="2024-05-01T20:00Z"),
]  # fmt: skip


@pytest.mark.slow
def test_batch_and_stream_agree_in_any_order() -> None:
    assert_batch_equals_stream(SPEC, RECORDS, tries=2)


def test_a_difference_is_shown_with_the_messages_that_bear_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = copies.duplicate_mask

    def worse(rows: Any, *, within: int | None = None, keep: Any = "newest") -> Any:
        return right(rows, within=within, keep="oldest" if keep == "newest" else "newest")

    monkeypatch.setattr(copies, "duplicate_mask", worse)  # of the stream alone
    with pytest.raises(AssertionError) as raised:
        assert_batch_equals_stream(SPEC, RECORDS[:-1], tries=1)  # one that is never compared excuses its window
    lines = str(raised.value).splitlines()
    assert lines[0] == "batch and stream differ"
    assert any(line.startswith("row of message 0: batch nothing; stream id=1") for line in lines)
    assert any(line.startswith("hourly, pane [05-01 10:00:00, 05-01 11:00:00) of south: batch n=2; stream n=1") for line in lines), lines
    table = lines[lines.index("3 of 7 messages bear on it:") + 1 :]
    assert table[0].split() == ["clock", "message", "arrival", "record", "batch", "stream"]
    [first] = [line for line in table if '"id":1' in line and "north" in line]
    assert first.split()[-2:] == ["dropped", "written"]


def test_what_stands_there_twice_and_a_run_that_failed_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    right, run = parity.stored, parity.run_batch
    monkeypatch.setattr(parity, "stored", lambda *of, **how: {name: rows * 2 for name, rows in right(*of, **how).items()})
    monkeypatch.setattr(parity, "run_batch", lambda *call: replace(run(*call), status="failed"))
    with pytest.raises(AssertionError) as raised:
        assert_batch_equals_stream(SPEC, [order(1, 0)], tries=1)
    lines = str(raised.value).splitlines()
    pane = "hourly, pane [05-01 10:00:00, 05-01 11:00:00) of north"
    for layer in ("batch", "stream"):
        assert {f"{layer}: row of message 0 is there 2 times", f"{layer}: {pane} is there 2 times"} <= {*lines}
    assert "batch: the run is failed" in lines


def test_sums_that_cancel_are_the_same() -> None:
    spec = {
        **{name: SPEC[name] for name in ("spec", "pipeline", "sources", "sinks")},
        "contract": {"event_time": "at", "columns": {"at": {"type": "timestamp"}, "x": {"type": "float64"}}},
        "aggregates": {"hourly": {"windowing": {"size": "1h"}, "measures": {"total": "sum(x)"}}},
    }
    timeline = Timeline()  # in other parts than the batch adds them
    for part in ((0.1, 300.7), (-0.3, 1000.3), (0.2, -300.7, -1000.3)):
        timeline = timeline.arrive("2024-05-01T10:01Z", *({"at": "2024-05-01T10:00Z", "x": x} for x in part))
    assert_batch_equals_stream(spec, timeline)
    with pytest.raises(AssertionError, match="batch total="):
        assert_batch_equals_stream(spec, timeline, tolerance=0)


def test_what_breaks_in_a_step_is_an_error_not_a_difference() -> None:
    broken = {**SPEC, "lookups": {"shops": {"files": "nowhere.csv", "format": "csv", "key": "shop"}},
              "transform": [{"lookup": {"from": "shops", "on": "shop", "take": {"town": "town"}}}]}  # fmt: skip
    with pytest.raises(RunError, match="nowhere"):
        run_spec_stream(broken, Timeline().arrive("2024-05-01T10:01Z", order(1, 0)))


@pytest.mark.slow
def test_the_examples_in_docstrings_run() -> None:
    found = doctest.testmod(beam_pipelines.testing.stream)
    assert found.attempted
    assert not found.failed
