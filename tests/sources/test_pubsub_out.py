"""Until when messages may be leased to nobody here."""

from __future__ import annotations

import pytest

from beam_pipelines.sources.pubsub_out import LEASE_ENDS_S, Out


@pytest.mark.parametrize(("others_s", "expected"), [(0.0, 100.0), (7.5, 107.5), (None, 160.0 + LEASE_ENDS_S)])
def test_a_start_waits_as_long_as_it_is_told_and_for_a_lease_after_a_bad_end(others_s: float | None, expected: float) -> None:
    assert Out(others_s=others_s, lease_s=60, now=100.0).until() == expected


def test_a_process_that_died_may_have_had_the_lease_of_the_subscription_only() -> None:
    out = Out(others_s=None, lease_s=10, now=100.0)
    out.first_lease_s = 600.0
    assert out.until() == 700.0 + LEASE_ENDS_S


def test_a_lost_answer_counts_from_when_it_was_lost_and_its_messages_were_never_extended() -> None:
    out = Out(others_s=0.0, lease_s=600, now=100.0)
    out.lost(150.0)
    assert out.until() == 160.0 + LEASE_ENDS_S
    out.lost(155.0)
    assert out.until() == 165.0 + LEASE_ENDS_S
