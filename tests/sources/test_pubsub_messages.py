"""From protobuf messages to batches: a position is a message's alone, an arrival is read or counted as unreadable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.pubsub_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import ARRIVAL, ATTRIBUTES, MESSAGE_ID, MESSAGES, ORDERING_KEY, POSITION, PUBLISH_TIME, RAW, SOURCE
from beam_pipelines.sources.pubsub_messages import (
    AHEAD_MICROS,
    AS_ARRIVAL,
    AS_POSITION,
    AS_SOURCE,
    arrival_times,
    arrivals,
    attribute_of,
    clocked,
    clocked_again,
    identity,
    instants,
    message_positions,
    pulled,
)

SUBSCRIPTION = "projects/p/subscriptions/s"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROS = st.integers(0, 4_000_000_000_000_000)
IDS = st.one_of(
    st.integers(0, 5_000).map(str), st.integers(2**40, 2**63 - 1).map(str), st.integers(2**63, 2**70).map(str), st.text(max_size=12), st.sampled_from(["007", "7", ""])
)  # fmt: skip


def received(*messages: dict[str, Any]) -> Any:
    """A pull's `received_messages`; each message's keyword arguments are those of PubsubMessage, `micros` its publish time."""
    response = types.PullResponse.pb()()
    for number, message in enumerate(messages):
        one = response.received_messages.add(ack_id=f"ack-{number}")
        for name, value in message.items():
            if name == "micros":
                one.message.publish_time.FromMicroseconds(value)
            elif name == "attributes":
                one.message.attributes.update(value)
            else:
                setattr(one.message, name, value)
    return response.received_messages


def positions(ids: list[str], micros: list[int]) -> list[int]:
    return message_positions(pa.array(ids, pa.string()), np.array(micros, np.int64)).tolist()


@given(st.lists(st.tuples(IDS, MICROS), min_size=1, max_size=50, unique=True))
def test_a_position_belongs_to_one_message_wherever_it_stands_in_a_batch(messages: list[tuple[str, int]]) -> None:
    ids, micros = [m[0] for m in messages], [m[1] for m in messages]
    found = positions(ids, micros)
    assert all(0 <= p < 2**63 for p in found)
    assert found == [positions([i], [t])[0] for i, t in messages]
    # An id of the real service says all; ids of one microsecond are told apart as long as a broker gives fewer than 2,048 in it.
    whole = {(i, 0 if i.isdecimal() and i[0] != "0" and 2**40 <= int(i) < 2**63 else t) for i, t in messages}
    assert len(set(found)) >= len(whole) - sum(len(i) < 5 and i.isdecimal() for i, _ in messages) // 2


def test_a_broker_that_counts_from_one_again_gives_new_positions() -> None:
    ids = [str(i) for i in range(1, 2_049)]
    before, after = positions(ids, [10**15] * 2_048), positions(ids, [10**15 + 1] * 2_048)
    assert len({*before, *after}) == 2 * 2_048


def test_an_id_of_the_service_is_the_position_itself() -> None:
    assert positions(["9000000000000001", str(2**40), str(2**63 - 1)], [1, 2, 3]) == [9_000_000_000_000_001, 2**40, 2**63 - 1]
    assert positions(["007"], [5]) != positions(["7"], [5])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "data": st.binary(max_size=8),
                "message_id": st.text(max_size=5),
                "ordering_key": st.text(max_size=3),
                "micros": MICROS,
                "attributes": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
            }
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_field_of_every_message_is_in_its_row(messages: list[dict[str, Any]]) -> None:
    batch, ack_ids, unreadable, _ = pulled(received(*messages), source=SUBSCRIPTION, attribute=None)
    batch.validate(full=True)
    assert batch.schema.equals(MESSAGES)
    assert ack_ids == [f"ack-{i}" for i in range(len(messages))]
    assert not unreadable.any()
    for row, message in zip(batch.to_pylist(), messages, strict=True):
        assert row[SOURCE] == SUBSCRIPTION
        assert row[RAW] == message["data"]
        assert row[MESSAGE_ID] == message["message_id"]
        assert row[ORDERING_KEY] == (message["ordering_key"] or None)
        assert row[PUBLISH_TIME] == row["_arrival_time"] == EPOCH + timedelta(microseconds=message["micros"])
        assert dict(row[ATTRIBUTES]) == message["attributes"]
    assert batch[POSITION].to_pylist() == positions([m["message_id"] for m in messages], [m["micros"] for m in messages])


@given(st.lists(st.dictionaries(st.sampled_from(["at", "a", "att"]), st.text(max_size=3)), min_size=1))
def test_an_attribute_is_found_in_its_own_row_only(rows: list[dict[str, str]]) -> None:
    column = pa.array([list(r.items()) for r in rows], pa.map_(pa.string(), pa.string()))
    assert attribute_of(column, "at").to_pylist() == [r.get("at") for r in rows]


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60), st.sampled_from(["T", " ", "t"]))
def test_a_time_with_a_zone_is_that_instant(local: datetime, minutes: int, between: str) -> None:
    zoned = local.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    micros, unreadable = arrival_times(pa.array([zoned.isoformat(between)]), np.zeros(1, np.int64))
    assert not unreadable.any()
    assert EPOCH + timedelta(microseconds=int(micros[0])) == zoned


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2013-12-01T05:00:00Z", 1_385_874_000_000_000),
        ("2013-12-01T05:00:00", 1_385_874_000_000_000),
        ("2013-12-01T06:00:00.5+0100", 1_385_874_000_500_000),
        ("2013-12-01T05:00:00.123456789z", 1_385_874_000_123_456),
        ("2013-12-01T05:00Z", 1_385_874_000_000_000),
        ("2013-12-01", 1_385_856_000_000_000),
        (" 2013-12-01 05:00:00 ", 1_385_874_000_000_000),
        ("1385874000", 1_385_874_000_000_000),
        ("1385874000123", 1_385_874_000_123_000),
        ("1385874000123456", 1_385_874_000_123_456),
        ("0", 0),
    ],
)
def test_times_are_read_as_people_and_programs_write_them(text: str, micros: int) -> None:
    found, unreadable = arrival_times(pa.array([text]), np.array([-1]))
    assert (found.tolist(), unreadable.tolist()) == ([micros], [False])


def test_what_is_no_time_is_the_publish_time_and_costs_no_other_row_its_own() -> None:
    texts = [
        None,
        "",
        "soon",
        "2013-02-30T00:00:00Z",
        "2013-12-01T25:00:00Z",
        "-5",
        "1.5",
        "9" * 19,
        "9" * 30,
        "12/01/2013",
        "2013-12-01T05:00:00Z",
    ]
    found, unreadable = arrival_times(pa.array(texts, pa.string()), np.arange(len(texts)))
    assert unreadable.tolist() == [True] * (len(texts) - 1) + [False]
    assert found.tolist() == [*range(len(texts) - 1), 1_385_874_000_000_000]
    rows = received({"attributes": {"at": "soon"}, "micros": 7}, {"micros": 8}, {"attributes": {"at": "1"}, "micros": 9})
    batch, _, unreadable, _ = pulled(rows, source=SUBSCRIPTION, attribute="at")
    assert batch["_arrival_time"].cast(pa.int64()).to_pylist() == [7, 8, 1_000_000]
    assert unreadable.tolist() == [True, True, False]


TOLD = st.lists(st.tuples(st.integers(14 * 10**14, 2 * 10**15), st.integers(-3 * AHEAD_MICROS, 3 * AHEAD_MICROS)), min_size=1, max_size=20)


@given(TOLD)
def test_no_message_arrives_a_day_after_it_was_published_and_none_sets_the_clock_past_that(messages: list[tuple[int, int]]) -> None:
    told = received(*({"micros": at, "message_id": str(i), "attributes": {"at": str(at + by)}} for i, (at, by) in enumerate(messages)))
    batch, _, unreadable, _ = pulled(told, source=SUBSCRIPTION, attribute="at")
    assert unreadable.tolist() == [by > AHEAD_MICROS for _, by in messages]
    assert arrivals(batch).tolist() == [at + (by if by <= AHEAD_MICROS else 0) for at, by in messages]
    assert clocked(batch).tolist() == [at + min(0, by) if by <= AHEAD_MICROS else at for at, by in messages]


def test_of_archived_messages_those_without_an_arrival_of_their_own_and_those_far_ahead_say_nothing_to_the_clock() -> None:
    at = 10**15
    batch, _, _, _ = pulled(received(*[{"micros": at}] * 4), source=SUBSCRIPTION, attribute="at")
    believed = instants(np.array([at - 5, at, at + 5, at + AHEAD_MICROS + 1]))  # as earlier versions did, whatever a message said
    earlier = batch.set_column(batch.schema.get_field_index(ARRIVAL), batch.schema.field(ARRIVAL), believed)
    assert clocked_again(earlier).tolist() == [at - 5, at]


sent = st.fixed_dictionaries(
    {"micros": st.integers(14 * 10**14, 2 * 10**15), "message_id": st.integers(2**40, 2**41).map(str)},
    optional={"was": st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**15))},
)


@given(st.lists(sent, min_size=1, max_size=12), st.sampled_from([None, "arrived"]))
def test_a_message_that_is_sent_again_has_the_position_and_arrival_it_had(messages: list[dict[str, Any]], attribute: str | None) -> None:
    def attributes(one: dict[str, Any]) -> dict[str, str]:
        mine = {"arrived": "1385874000", "more": "x"}
        return mine if "was" not in one else {**mine, **identity(SUBSCRIPTION, *one["was"])}

    given_ = [{"micros": m["micros"], "message_id": m["message_id"], "attributes": attributes(m)} for m in messages]
    batch, _, unclocked, carriers = pulled(received(*given_), source=SUBSCRIPTION, attribute=attribute)
    batch.validate(full=True)
    plain, _, _, own = pulled(
        received(*({**g, "attributes": {"arrived": "1385874000"}} for g in given_)), source=SUBSCRIPTION, attribute=attribute
    )
    found = zip(batch[POSITION].to_pylist(), batch["_arrival_time"].cast(pa.int64()).to_pylist(), strict=True)
    else_ = zip(plain[POSITION].to_pylist(), plain["_arrival_time"].cast(pa.int64()).to_pylist(), strict=True)
    assert list(found) == [m.get("was", other) for m, other in zip(messages, else_, strict=True)]
    assert own is None
    assert (carriers is None) == (not any("was" in m for m in messages))
    assert carriers is None or carriers.tolist() == plain[POSITION].to_pylist()
    assert unclocked.tolist() == ["was" in m for m in messages]  # it says nothing about the arrival clock now
    assert batch[PUBLISH_TIME].cast(pa.int64()).to_pylist() == [m["micros"] for m in messages]


@pytest.mark.parametrize(
    "wrong",
    [
        {AS_SOURCE: "projects/p/subscriptions/another"},
        {AS_SOURCE: ""},
        {AS_POSITION: "-1"},
        {AS_POSITION: str(2**63)},
        {AS_POSITION: "9" * 19},
        {AS_POSITION: "9" * 40},
        {AS_POSITION: "007"},
        {AS_POSITION: "1.0"},
        {AS_POSITION: "\u0661"},
        {AS_ARRIVAL: "2013-12-01"},
        {AS_ARRIVAL: str(10**17)},
        {AS_ARRIVAL: str(10**15 + 1)},  # after it was published
        {AS_ARRIVAL: None},
        {AS_POSITION: None},
    ],
)
def test_what_is_not_well_said_is_a_message_like_any_other(wrong: dict[str, str | None]) -> None:
    said = {name: value for name, value in {**identity(SUBSCRIPTION, 5, 7), **wrong}.items() if value is not None}
    foreign = {"micros": 10**15, "message_id": str(2**40), "attributes": said}
    batch, _, unclocked, _ = pulled(received(foreign, {"micros": 10**15, "message_id": "7"}), source=SUBSCRIPTION, attribute=None)
    assert (batch[POSITION][0].as_py(), batch["_arrival_time"].cast(pa.int64())[0].as_py()) == (2**40, 10**15)
    assert not unclocked.any()
