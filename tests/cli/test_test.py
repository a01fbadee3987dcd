"""`test`: the cases beside a spec, and what is said where one fails."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call

CASES = """tests:
  - name: a good order is written
    given: [{id: 1, placed_at: "2024-05-01T10:00:00Z", shop: north, amount: "9.50"}]
    expect:
      rows: [{id: 1, amount: "9.5", cents: 950, placed_at: "2024-05-01T10:00:00Z"}]
      dead_letters: []
      aggregates: {by_hour: [{shop: north, orders: 1, turnover: 9.5}]}
  - name: closed shops are filtered and copies written once
    given:
      - {id: 1, placed_at: "2024-05-01T10:00:00Z", shop: closed, amount: 1}
      - "2,2024-05-01T10:00:00Z,north,5.00,"
      - "2,2024-05-01T10:00:00Z,north,5.00,"
      - "3,2024-05-01T10:00:00Z,north,-5.00,"
    parameters: {least: 5}
    expect:
      filtered: 1
      duplicates: 1
      dead_letters: [{reason: CHECK, stage: validate, failures: [amount], message: at least 0}]
"""


def test_cases_pass_with_exit_code_0(call: Call, orders: Path) -> None:
    (orders.parent / "orders_tests.yaml").write_text(CASES)
    out = call("test", orders).out
    assert "ok    a good order is written" in out
    assert "all 2 cases passed" in out
    assert sorted(p.name for p in orders.parent.iterdir()) == ["orders.csv", "orders.yaml", "orders_tests.yaml"]


def test_a_failing_case_shows_what_differs_and_exits_with_1(call: Call, orders: Path) -> None:
    tests = orders.parent / "other.yaml"
    tests.write_text(CASES.replace("cents: 950", "cents: 951").replace("filtered: 1", "filtered: 0"))
    out = call("test", orders, "--tests", tests, code=1).out
    assert f"FAIL    a good order is written   ({tests}:2)" in out
    assert "rows: differs: id=1 amount='9.5' cents=951 placed_at='2024-05-01T10:00:00Z'" in out
    assert "but got cents=950" in out
    assert "filtered: got 1; expected 0" in out
    assert "2 of 2 cases failed" in out


def test_a_missing_or_wrong_tests_file_is_a_clear_error(call: Call, orders: Path) -> None:
    assert "there is no" in call("test", orders, code=2).err
    (orders.parent / "orders_tests.yaml").write_text(CASES.replace("cents", "cent"))
    assert "did you mean 'cents'?" in call("test", orders, code=2).err
    (orders.parent / "orders_tests.yaml").write_text(CASES)
    assert "no case of" in call("test", orders, "--case", "nobody", code=2).err
