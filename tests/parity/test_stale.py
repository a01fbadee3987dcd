"""What a stream says of corrections that come when their window has closed: it must count them, and name the window."""

from __future__ import annotations

import pytest

from beam_pipelines.spec.horizon import compared_late
from tests.parity import kernels
from tests.parity.differences import unjustified
from tests.parity.specs import Setting
from tests.parity.timelines import Bundle, Message, Timeline


@pytest.mark.parametrize("kind", ["fixed", "sliding", "sessions"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_better_copy_for_a_closed_window_is_counted_whichever_shard_its_group_is_in(kind: str, number: int) -> None:
    def message(number: int, at: int, arrival: int) -> Message:
        return Message(number, arrival, (("id", 1), ("at", at), ("kind", "a"), ("price", 1), ("n", 1), ("m", 1), ("version", 1)))

    bundles = Bundle(0, (message(number, 0, 0),)), Bundle(120, (message(number + 2, 60, 120),))
    setting, timeline = Setting(kind), Timeline(bundles, ())
    stream = kernels.as_stream(timeline, setting)
    assert unjustified(timeline, setting, compared_late(kernels.spec_of(setting)), stream) == []
    assert stream.stale
