"""The ledger: read = written + dead + duplicate + filtered, per source and output; else it says where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.counts import Count
from beam_pipelines.sinks.ledger import tally
from beam_pipelines.sinks.run import Output

ROWS = Output("rows", "rows", "/r")
COPY = Output("rows_csv", "rows", "/c", "csv")
LETTERS = Output("dead_letters", "dead_letters", "/d")
HOURLY = Output("hourly_parquet", "hourly", "/h")
GOOD: list[Count] = [
    ("u", "a", "read", "", 10), ("u", "a", "dead", "decode:DECODE", 1), ("u", "a", "dead", "validate:CHECK", 2), ("u", "a", "filtered", "", 1),
    ("v", "a", "duplicate", "", 2), ("f", "a", "written", "rows", 4), ("f", "", "written", "dead_letters", 3), ("u", "a", "warn", "odd", 5),
]  # fmt: skip


def test_a_run_balances_when_each_row_left_by_one_door() -> None:
    ledger = tally(GOOD, [ROWS, LETTERS])
    assert ledger.balanced
    assert ledger.explain() == ""
    assert (ledger.read, ledger.dead, ledger.written("rows")) == (10, 3, 4)
    assert ledger.reasons == {"decode:DECODE": 1, "validate:CHECK": 2}
    assert ledger.failing == {"odd": 5}


@given(st.permutations(GOOD), st.lists(st.sampled_from(GOOD)))
def test_order_and_replayed_counts_do_not_matter(counts: list[Count], replayed: list[Count]) -> None:
    assert tally([*counts, *replayed], [ROWS, LETTERS]) == tally(GOOD, [ROWS, LETTERS])


@given(st.sampled_from([c for c in GOOD if c[2] != "warn"]))
def test_a_lost_count_is_noticed_and_the_place_is_named(lost: Count) -> None:
    ledger = tally([c for c in GOOD if c is not lost], [ROWS, LETTERS])
    assert not ledger.balanced
    assert "rows" in ledger.explain()


def test_the_sentence_names_output_source_and_numbers() -> None:
    ledger = tally([("u", "a.csv", "read", "", 10), ("f", "a.csv", "written", "rows", 8)], [ROWS])
    assert ledger.explain() == "rows, source a.csv: 10 read, but 8 written + 0 dead + 0 duplicate + 0 filtered: 2 rows vanished"


def test_sources_do_not_make_up_for_each_other() -> None:
    counts = [("u", "a", "read", "", 1), ("u", "b", "read", "", 1), ("f", "a", "written", "rows", 2)]
    assert [(i.source, i.missing) for i in tally(counts, [ROWS]).imbalances] == [("a", -1), ("b", 1)]


def test_each_output_of_rows_balances_on_its_own() -> None:
    counts: list[Count] = [("u", "a", "read", "", 2), ("f", "a", "written", "rows", 2), ("g", "a", "written", "rows_csv", 1)]
    assert [i.output for i in tally(counts, [ROWS, COPY]).imbalances] == ["rows_csv"]
    refused: Count = ("g", "a", "dead", "write:SINK@rows_csv", 1)
    assert tally([*counts, refused], [ROWS, COPY]).balanced


def test_an_aggregate_balances_over_aggregated_and_late() -> None:
    counts: list[Count] = [
        ("u", "a", "read", "", 5),
        ("w", "a", "aggregated", "hourly", 3),
        ("w", "a", "late", "hourly", 2),
        ("p", "", "written", "hourly_parquet", 1),
    ]
    assert tally(counts, [HOURLY]).balanced
    assert not tally(counts[:2], [HOURLY]).balanced


def test_letters_of_an_aggregate_do_not_take_rows_from_others() -> None:
    counts: list[Count] = [
        ("u", "a", "read", "", 5), ("u", "a", "written", "rows", 5), ("u#hourly", "a", "aggregated", "hourly", 3), ("u#hourly", "a", "late", "hourly", 1),
        ("u#hourly", "a", "dead", "aggregate:FUTURE", 1), ("u#daily", "a", "aggregated", "daily", 4), ("u", "a", "dead", "aggregate:FUTURE@daily", 1),
        ("p", "", "written", "dead_letters", 3),
    ]  # fmt: skip
    ledger = tally(counts, [ROWS, HOURLY, Output("daily", "daily", "/y"), LETTERS])
    assert ledger.explain() == ""
    assert ledger.reasons == {"aggregate:FUTURE": 2, "aggregate:LATE": 1}


def test_a_lost_dead_letter_is_noticed() -> None:
    ledger = tally([c for c in GOOD if c[3] != "dead_letters"], [ROWS, LETTERS])
    assert ledger.explain() == "dead_letters: 3 rows were rejected, 0 dead letters written"
