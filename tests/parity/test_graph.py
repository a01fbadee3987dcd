"""Batch = stream = any order, on the product's graph: for every kind of window, every measure, and whatever a topic may bring.

PARITY_EXAMPLES=200 pytest tests/parity        the nightly run: so many timelines for each kind of window, new ones each time
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.spec.horizon import compared_late
from beam_pipelines.testing.quick import quick
from tests.parity import graph
from tests.parity.budget import BUNDLES, tried
from tests.parity.specs import KINDS, Setting, settings_of
from tests.parity.timelines import Timeline, timelines
from tests.parity.verdict import agree


def check(setting: Setting, timeline: Timeline) -> None:
    """Raises AssertionError with the timeline where stream, batch and rules disagree."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder, quick():
        streamed = batched = graph.spec_in(Path(folder) / "stream", setting)
        stream = graph.as_stream(streamed, timeline)
        if timeline.shuffled:
            batched = graph.spec_in(Path(folder) / "batch", setting)
            graph.archive(Path(batched.directory), timeline.shuffled)
        agree(timeline, setting, graph.as_batch(batched), stream, compared_late=compared_late(streamed.spec))


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_batch_stream_and_rules_agree_on_what_is_stored(kind: str) -> None:
    @tried(2, f"graph {kind}")
    @given(settings_of(kind), timelines(BUNDLES))
    def law(setting: Setting, timeline: Timeline) -> None:
        check(setting, timeline)

    law()


@pytest.mark.slow
def test_a_stream_without_a_rule_for_duplicates_counts_each_message_once() -> None:
    @tried(2, "graph without a rule")
    @given(st.sampled_from(KINDS).map(lambda kind: Setting(kind, within=None)), timelines(BUNDLES))
    def law(setting: Setting, timeline: Timeline) -> None:
        check(setting, timeline)

    law()
