"""The `tests:` file: read with places, its names checked against the spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.problems import SpecErrors
from beam_pipelines.spec.tests import load_tests

FLIGHTS = Path(__file__).parent / "flights.yaml"
CASES = """tests:
  - name: two rows
    given:
      - {carrier: UA, flight: 1, distance: 1.5, note: null}
      - 'UA,1,"x"'
    expect:
      rows: [{carrier: UA, speed_mph: 400.0, _source: a}]
      dead_letters: [{reason: CHECK, stage: validate, failures: [plausible_delay]}]
      aggregates: {delays_by_hour: [{origin: EWR, flights: 1}]}
      filtered: 1
  - name: nothing goes in
    given: []
    expect: {rows: []}
"""


def test_cases_are_read_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(CASES)
    loaded = load_tests(tmp_path / "t.yaml", loaded=load_spec(FLIGHTS))
    assert loaded.lines == (2, 11)
    first, second = loaded.cases
    assert first.given == ({"carrier": "UA", "flight": 1, "distance": 1.5, "note": None}, 'UA,1,"x"')
    assert first.expect.dead_letters is not None
    assert first.expect.dead_letters[0].failures == ("plausible_delay",)
    assert (first.expect.filtered, second.expect.rows, second.expect.dead_letters) == (1, (), None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("speed_mph", "speed", ":7:35: tests[0].expect.rows[0].speed: unknown column 'speed'; did you mean 'speed_mph'?"),
        (
            "delays_by_hour",
            "delays",
            ":9:20: tests[0].expect.aggregates.delays: unknown aggregate 'delays'; did you mean 'delays_by_hour'?",
        ),
        (
            "given: []",
            "given: []\n    parameters: {lak: x}",
            ":13:18: tests[1].parameters.lak: unknown parameter 'lak'; did you mean 'lake'?",
        ),
        ("nothing goes in", "two rows", ":11:11: tests[1].name: tests[0] has the same name"),
        ("reason: CHECK, ", "", ":8:22: tests[0].expect.dead_letters[0]: needs 'reason'"),
    ],
)
def test_wrong_names_are_found_at_their_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "t.yaml").write_text(CASES.replace(old, new))
    with pytest.raises(SpecErrors) as caught:
        load_tests(tmp_path / "t.yaml", loaded=load_spec(FLIGHTS))
    assert says in str(caught.value)
