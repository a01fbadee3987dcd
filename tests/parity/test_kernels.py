"""Batch = stream = any order, on the stages' own kernels: the same law for more timelines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.spec.horizon import compared_late
from tests.parity import kernels
from tests.parity.budget import BUNDLES, tried
from tests.parity.specs import KINDS, Setting, settings_of
from tests.parity.timelines import Bundle, Message, Timeline, timelines
from tests.parity.verdict import agree


def check(setting: Setting, timeline: Timeline) -> None:
    """Raises AssertionError with the timeline where stream, batch and rules disagree."""
    batch, stream = kernels.as_batch(timeline, setting), kernels.as_stream(timeline, setting)
    agree(timeline, setting, batch, stream, compared_late=compared_late(kernels.spec_of(setting)))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_stream_and_rules_agree_whatever_the_order_and_the_bundles(kind: str) -> None:
    @tried(4, f"kernels {kind}")
    @given(settings_of(kind), timelines(BUNDLES))
    def law(setting: Setting, timeline: Timeline) -> None:
        check(setting, timeline)

    law()


def test_without_a_rule_for_duplicates_each_message_counts_once() -> None:
    @tried(4, "kernels without a rule")
    @given(st.sampled_from(KINDS).map(lambda kind: Setting(kind, within=None)), timelines(BUNDLES))
    def law(setting: Setting, timeline: Timeline) -> None:
        check(setting, timeline)

    law()


def test_the_letter_of_an_aggregate_holds_the_rows_own_columns_in_a_stream_as_in_a_batch() -> None:
    fields = {"id": 1, "at": 0, "kind": "a", "price": 1, "n": 1, "m": 0, "version": 1}  # 60 // m fails
    timeline = Timeline((Bundle(0, (Message(0, 0, tuple(fields.items())),)),), ())
    batch, stream = kernels.as_batch(timeline, Setting("fixed")), kernels.as_stream(timeline, Setting("fixed"))
    assert stream.letters == {0: ("aggregate:EXPRESSION",)}
    assert stream.spoken == batch.spoken
    assert sorted(json.loads(stream.spoken[0][0][-1])) == ["_unknown", *sorted([*fields, "share"])]
