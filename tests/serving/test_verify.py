"""`verify` finds exactly the rows on which batch and stream do not agree, whatever they hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.verify import Verification, agreements, verdict
from tests.serving.two_layers import DAY, HOUR, KINDS, SOURCE, SPEC, ZERO, Pane, Row, Twin

FLOATS = st.sampled_from([None, 0.0, -0.0, 1.0, 1.0 + 1e-12, 1.0 + 1e-6, math.nan, math.inf, -math.inf, 1e300])
ROWS = st.lists(
    st.builds(
        Row, st.integers(0, 9), st.integers(0, 4), st.none() | st.integers(0, 11).map(lambda n: n * DAY // 4), st.sampled_from("ab"),
        st.none() | st.integers(0, 2), FLOATS, st.just("Ulm"),
    ),
    max_size=14,
)  # fmt: skip


def found(done: Verification, output: str = "rows") -> dict[str, int]:
    (each,) = [each for each in done.outputs if each.output == output]
    return dict(each.kinds)


def same(one: float | None, other: float | None) -> bool:
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return repr(one) == repr(other)
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))


def apart(batch: list[Row], stream: list[Row]) -> Counter[str]:
    """The symmetric difference, one by one: of the rows of a key and time the most alike are paired."""
    groups: dict[Any, tuple[list[Row], list[Row]]] = {}
    for side, rows in enumerate((batch, stream)):
        for row in rows:
            groups.setdefault((row.id, row.at), ([], []))[side].append(row)
    total: Counter[str] = Counter()
    for mine, other in groups.values():
        left = list(other)
        alone = 0
        for row in mine:
            twin = next((r for r in left if (r.g, r.v) == (row.g, row.v) and same(r.x, row.x)), None)
            if twin is None:
                alone += 1
            else:
                left.remove(twin)
        both = min(alone, len(left))
        total.update({"other values": both, "only batch": alone - both, "only speed": len(left) - both})
    return +total


@pytest.mark.slow
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(ROWS, ROWS, st.integers(1, 3))
def test_the_differences_are_the_symmetric_difference(
    tmp_path_factory: pytest.TempPathFactory, batch: list[Row], stream: list[Row], size: int
) -> None:
    batch = [row._replace(n=i) for i, row in enumerate(batch)]
    stream = [row._replace(n=i) for i, row in enumerate(stream)]
    if any(
        not math.isfinite(row.x or 0) or row.x in (1.0 + 1e-12, 1.0 + 1e-6) for row in (*batch, *stream)
    ):  # bags of near floats: each key once
        batch, stream = ([*{(r.id, r.at): r for r in rows}.values()] for rows in (batch, stream))
    twin = Twin(tmp_path_factory.mktemp("twin"))
    twin.know()
    twin.stream(*stream)
    twin.commit(*batch, where=(0, 3))
    dated = [[row for row in rows if row.at is not None] for rows in (batch, stream)]
    done = twin.verify(0, 3, rows=size)
    assert found(done) == dict(apart(*dated))
    assert done.outputs[0].equal == len(dated[0]) - sum(n for kind, n in found(done).items() if kind != "only speed")
    assert sum(part.equal + part.differ for part in done.outputs[0].parts) == done.outputs[0].equal + done.outputs[0].differ
    assert found(twin.verify(0, 3)) == found(done)  # however it was cut


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(ROWS, st.booleans())
def test_two_layers_that_hold_the_same_are_equal(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], partitioned: bool) -> None:
    """Also rows without a time, where the batch answers for them; and outputs that are not partitioned by it."""
    twin = Twin(tmp_path_factory.mktemp("twin"))
    rows = [row._replace(n=i) for i, row in enumerate(rows)]
    twin.know(partitioned=partitioned)
    twin.stream(*rows)
    twin.stream(*rows[:3], run_id="s2")  # a bundle that was repeated
    twin.commit(*rows, where=None, partitioned=partitioned)
    if not rows and partitioned:
        with pytest.raises(SpecError, match="there is nothing to compare"):
            twin.verify()
        return
    done = twin.verify()
    assert (done.equal, done.differ) == (len(rows), 0)
    assert "none differ" in verdict(done)


def test_two_values_that_change_places_are_a_difference(tmp_path: Path) -> None:
    """A sum over rows of separate hashes would not see it."""
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0, x=1.0), Row(2, 2, 0, x=2.0))
    twin.commit(Row(1, 1, 0, x=2.0), Row(2, 2, 0, x=1.0))
    assert found(twin.verify()) == {"other values": 2}


def test_a_changed_value_has_no_cause_and_is_shown(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0), Row(2, 2, HOUR, v=7))
    twin.panes(Pane(0), Pane(1, total=7))
    twin.commit(Row(1, 1, 0), Row(2, 2, HOUR), Pane(0), Pane(1))
    done = twin.verify()
    assert done.causes == {"unexplained": 2}
    rows, hourly = done.outputs
    (one,) = rows.samples
    assert (one.kind, one.key["id"], one.columns, one.batch, one.speed) == ("other values", 2, ("v",), {"v": 1}, {"v": 7})
    assert hourly.samples[0].speed == {"total": 7}
    assert verdict(done) == "2 outputs over everything a batch run has committed: 2 rows equal, 2 differ: 2 unexplained"
    assert [(a.output, a.equal, a.differing, a.note) for a in agreements(done)] == [
        ("rows", 1, 1, "1 unexplained"),
        ("hourly", 1, 1, "1 unexplained"),
    ]


def test_floats_are_compared_within_the_tolerance(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0, x=1e6), Row(2, 2, 0, x=0.0))
    twin.commit(Row(1, 1, 0, x=1e6 + 1e-4), Row(2, 2, 0, x=1e-30))
    assert found(twin.verify()) == {"other values": 1}
    assert found(twin.verify(tolerance=0.0)) == {"other values": 2}
    assert found(twin.verify(tolerance=1.0)) == {}


def test_only_what_is_asked_for_and_committed_is_compared(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    rows = [Row(n, n, n * DAY) for n in range(6)]
    twin.stream(*rows)
    twin.commit(where=(1, 3))
    assert found(twin.verify()) == {"only speed": 2}
    assert found(twin.verify(0, 2)) == {"only speed": 1}
    assert [each.missing for each in twin.verify(0, 2).outputs] == [(Range(ZERO, ZERO + DAY),)] * 2
    assert [gap.partition(", which ")[2] for gap in twin.verify(0, 2).outputs[0].gaps] == ["no batch run has committed"]
    with pytest.raises(SpecError, match="no batch run has committed anything of this range") as refused:
        twin.verify(4, 5)
    assert "Committed are [2024-10-05T00:00:00Z, 2024-10-07T00:00:00Z)" in str(refused.value.hint)


def test_an_empty_range_that_was_committed_is_equal(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0))
    twin.commit(where=(2, 3))
    done = twin.verify(2, 3)
    assert (done.equal, done.differ) == (0, 0)


def test_without_a_stream_there_is_nothing_to_compare(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.commit(Row(1, 1, 0))
    with pytest.raises(SpecError, match="no stream of this spec has ever started"):
        twin.verify()
    twin.know()  # started, and has stored nothing
    assert found(twin.verify()) == {"only batch": 1}


def test_without_a_batch_run_there_is_nothing_to_compare(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0))
    with pytest.raises(SpecError, match="rows: no batch run has committed it"):
        twin.verify()


def test_an_output_that_is_not_partitioned_by_time_is_compared_whole_and_never_over_a_range(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know(partitioned=False)
    twin.stream(Row(1, 1, 0), Row(2, 2, None))
    twin.commit(Row(1, 1, 0), Row(2, 2, None), where=None, partitioned=False)
    done = twin.verify()
    assert (done.equal, done.differ) == (2, 0)
    assert done.outputs[0].notes == ("it is not partitioned by time: all of it was compared",)
    assert done.outputs[0].parts[0].start is None
    with pytest.raises(SpecError, match="rows: it is not partitioned by time"):
        twin.verify(0, 1)


def test_a_column_that_only_one_layer_has_and_a_type_that_was_widened(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    narrow = {**KINDS, "v": pa.int16(), "x": pa.decimal128(5, 2)}
    twin.stream(Row(1, 1, 0, x=None), Row(2, 2, 0, x=None), Row(3, 3, 0, v=3, x=None), contract="old", kinds=narrow, drop=["town"])
    twin.commit(Row(1, 1, 0, x=None), Row(2, 2, 0, v=5, x=None), Row(3, 3, 0, v=3, x=None), contract="new", drop=["label"])
    rows = twin.verify().outputs[0]
    assert rows.kinds == {"other values": 3}  # a value against none
    assert rows.causes == {"contract": 3}
    assert set(rows.samples[0].columns) == {"town", "label"}
    said = " ".join(rows.notes)
    assert "'town' is a column of the batch alone" in said
    assert "'label' is a column of the speed layer alone" in said
    assert "'v' is BIGINT in the batch and SMALLINT in the speed layer; compared as BIGINT" in said
    assert "'x' is DOUBLE in the batch and DECIMAL(5,2) in the speed layer; compared as DOUBLE" in said


def test_a_key_that_was_changed_is_said_and_rows_are_matched_all_the_same(tmp_path: Path) -> None:
    """The stream knew no `id` yet: rows are matched by identity where the batch read the archive, else by content."""
    for read, kinds in (("archive", {"other values": 2}), ("batch", {"only batch": 2, "only speed": 2})):
        twin = Twin(tmp_path / read)
        twin.know()
        twin.stream(Row(1, 1, 0), Row(2, 2, 0), contract="old", drop=["id"])
        twin.commit(Row(1, 1, 0), Row(2, 2, 0), read=read, contract="new")  # type: ignore[arg-type]
        rows = twin.verify().outputs[0]
        assert rows.kinds == kinds
        assert rows.causes == {"contract": sum(kinds.values())}
        assert "the key (id) is not in both layers" in rows.notes


def test_without_a_key_rows_are_a_bag(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("  key: [id]\n", "").replace("deduplicate: {within: 1h}\n", ""))
    twin.know()
    alike = [Row(n, 1, 0, x=0.5) for n in range(5)]
    twin.stream(*alike[:3], Row(7, 9, 0))
    twin.commit(*alike, read="batch")
    assert found(twin.verify()) == {"only batch": 2, "only speed": 1}


def test_a_row_that_a_changed_spec_placed_anew_is_compared_where_it_is_now(tmp_path: Path) -> None:
    twin = Twin(tmp_path, placings=("one", "two"))
    twin.know()
    twin.stream(Row(1, 1, 0))
    twin.stream(Row(1, 1, DAY), run_id="s2")
    twin.commit(Row(1, 1, DAY), where=(0, 3))
    done = twin.verify(rows=1)
    assert (done.equal, done.differ) == (1, 0)


def test_samples_show_every_cause_and_those_without_one_first(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.commit(*[Row(n, n, n * 2 * HOUR) for n in range(30)])
    for n in range(10):
        twin.letter(n, n * 2 * HOUR)
    done = twin.verify(samples=4)
    assert done.causes == {"dead letter": 10, "unexplained": 20}
    assert [sample.cause for sample in done.outputs[0].samples] == ["unexplained"] * 4
    done = twin.verify(samples=25)
    assert Counter(sample.cause for sample in done.outputs[0].samples) == {"unexplained": 20, "dead letter": 5}


def test_files_that_vanish_for_good_are_one_sentence(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know()
    twin.stream(Row(1, 1, 0))
    twin.commit(Row(1, 1, 0))
    for file in (tmp_path / "lake" / "rows").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(RunError, match="verify: ") as refused:
        twin.verify()
    assert "a new run over its range writes it again" in str(refused.value.hint)


def test_little_memory_is_enough(tmp_path: Path) -> None:
    """What does not fit is laid aside, and nothing of it is left."""
    twin = Twin(tmp_path)
    twin.know()
    rows = [Row(n, n, n * 1000) for n in range(200)]
    twin.commit(*rows)
    twin.stream(*rows[:-1])
    assert found(twin.verify(memory="60MB")) == {"only batch": 1}
    with pytest.raises(SpecError, match="memory 'much' is no size"):
        twin.verify(memory="much")
    assert not list(tmp_path.glob("beam-pipelines-verify-*"))


@pytest.mark.slow
def test_a_batch_that_wrote_text_is_compared_as_what_it_means(tmp_path: Path) -> None:
    """Numbers, NULLs and empty texts as they were; nested columns, which CSV has in another form, are left out, and that is said."""
    text = SPEC.replace("parquet: {path: lake/rows, partition_by: [day(at)]}", "csv: {path: lake/rows.csv}").replace(
        "g: {type: string}", "g: {type: string}, tags: {type: list<string>}"
    )
    twin = Twin(tmp_path, text)
    (tmp_path / "in").mkdir()
    records = [{"id": n, "at": None, "g": g, "v": n, "x": n / 7, "tags": ["q"]} for n, g in enumerate(["a", "", None, "b"])]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run_batch(twin.loaded, Call()).status == "success"
    twin.know(partitioned=False)
    towns = {"a": ("Ulm", "Ulm!")}
    for record in [*records[:3], {**records[3], "v": 7}]:
        town, label = towns.get(record["g"], (None, None))
        values = {**record, "town": town, "label": label, "_source": SOURCE, "_position": record["id"], "_run_id": "s1"}
        kinds = {**KINDS, "tags": pa.list_(pa.string()), "_position": pa.int64()}
        columns = {name: pa.array([value], kinds.get(name, pa.string())) for name, value in values.items()}
        columns["_arrival_time"] = columns["_stored_at"] = pa.array([0], KINDS["at"])
        twin.put("rows.speed", "", columns)
    rows = twin.verify().outputs[0]
    assert (rows.equal, rows.kinds) == (3, {"other values": 1})
    assert rows.samples[0].columns == ("v",)
    assert "'tags' is not compared: as csv it has another form" in rows.notes
