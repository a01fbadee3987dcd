"""Prism takes what a source gives and keeps what the keyed stages have not taken: the source must hold back by itself, and comes to its end."""

from __future__ import annotations

import pytest

from beam_pipelines import back_pressure
from tests.prism import prism_program, run_on_prism
from tests.runners.flood import ROWS, flood, reset

ELEMENTS = 200


@pytest.mark.slow
@pytest.mark.parametrize("bounded", [True, False])
def test_rows_that_wait_for_a_slow_keyed_stage_are_bounded(bounded: bool) -> None:
    """Without a bound the source is done while the keyed stage has hardly begun."""
    seen = reset()
    one_element = 20 * ROWS  # bytes: two numbers and a dictionary's index a row, and a little more
    back_pressure.limit(5 * one_element if bounded else None)
    try:
        run_on_prism(lambda p: flood(p, ELEMENTS), flags=[f"--prism_location={prism_program()}"])
    finally:
        back_pressure.limit(None)
    assert seen.positions == set(range(ELEMENTS * ROWS))
    assert seen.through == ELEMENTS * ROWS
    if bounded:
        assert seen.refused
        assert max(seen.ahead) < ELEMENTS * ROWS / 4, "what waits, what is in work, and now and then one element in vain"
    else:
        assert max(seen.ahead) > ELEMENTS * ROWS / 2
