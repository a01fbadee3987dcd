"""When pulled messages become an element."""

from __future__ import annotations

import pyarrow as pa
import pytest

from beam_pipelines.sources.pubsub_waiting import ENOUGH_BYTES, ENOUGH_ROWS, Parcel, Waiting

LINGER_S = 0.2


def parcel(since: float, *, behind_s: float = 0.0, rows: int = 100, size: int = 1_000) -> Parcel:
    return Parcel(pa.record_batch({"n": pa.nulls(rows)}), list(range(rows)), size, since, None, behind_s)


def due_at(waiting: Waiting, *, answers_until: float) -> float:
    """The first moment, to 10 ms, at which an element is due when messages last came then."""
    moments = (n / 100 for n in range(1_000))
    return next(now for now in moments if waiting.due(now, linger_s=LINGER_S, last=min(now, answers_until)))


def test_nothing_is_due_where_nothing_waits() -> None:
    assert not Waiting().due(100.0, linger_s=0.0, last=0.0)


@pytest.mark.parametrize("full", [{"rows": ENOUGH_ROWS}, {"size": ENOUGH_BYTES}])
def test_a_full_element_is_due_at_once(full: dict[str, int]) -> None:
    waiting = Waiting()
    waiting.add(parcel(0.0, behind_s=3_600, **full))
    assert waiting.due(0.0, linger_s=LINGER_S, last=0.0)


@pytest.mark.parametrize(
    ("behind_s", "answers_until", "due_s"),
    [
        (0.1, 9.0, 0.2),  # live: no longer than it lingers anyway
        (-60.0, 9.0, 0.2),  # this machine's clock is behind the server's
        (8.0, 9.0, 0.8),  # a tenth of what it is behind
        (3_600.0, 9.0, 2.0),  # at most that
        (3_600.0, 0.0, 0.2),  # the end of the backlog: nothing came since
        (3_600.0, 1.0, 1.2),
    ],
)
def test_an_element_of_a_backlog_waits_as_long_as_that_adds_little(behind_s: float, answers_until: float, due_s: float) -> None:
    waiting = Waiting()
    waiting.add(parcel(0.0, behind_s=7_200.0))  # the newest parcel says how far behind the stream is now
    waiting.add(parcel(0.1, behind_s=behind_s))
    assert due_at(waiting, answers_until=answers_until) == pytest.approx(due_s, abs=0.011)
