"""The test of the test: a bug seeded into each stage in turn makes the law fail, within the everyday number of timelines, and shows the timeline."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parity import kernels, test_graph, test_kernels
from tests.parity.budget import BUNDLES, tried
from tests.parity.seeds import SEEDS, STAGES, Seed
from tests.parity.specs import Setting
from tests.parity.timelines import Timeline, timelines

TIMELINES = {"kernels": 8, "graph": 4}
MORE = 3
"""Times as many for seeds of the slow tests, which are rarer."""
TABLE = re.compile("watermark +message +arrival +event time +id +value +batch +stream +rules")


DEAR = ("conform", "transform", "bundles")  # stages whose bugs take longest to find


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, id=f"{seed.stage}: {seed.bug}", marks=[pytest.mark.slow] if seed.again or seed.stage in DEAR else [])
        for seed in SEEDS
    ],
)
def test_a_bug_in_a_stage_breaks_the_law(seed: Seed) -> None:
    check = {"kernels": test_kernels.check, "graph": test_graph.check}[seed.on]

    @tried(TIMELINES[seed.on] * (MORE if seed.again else 1), f"{seed.on} {seed.setting.kind}", shrink=False)
    @given(st.just(seed.setting), timelines(BUNDLES, least=5))
    def law(setting: Setting, timeline: Timeline) -> None:
        check(setting, timeline)

    kernels._program.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            seed.sow(patch)
            with pytest.raises(AssertionError, match=TABLE):
                law()
    finally:
        kernels._program.cache_clear()


def test_every_stage_has_a_seed_in_the_everyday_tests() -> None:
    assert tuple(seed.stage for seed in SEEDS if not seed.again) == STAGES
