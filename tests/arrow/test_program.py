"""Programs: each row leaves by one door, whatever the steps and the batch; fast and safe mode agree."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.layers import DOOR, Query
from beam_pipelines.arrow.program import Define, KernelResult, Layer, Program, Reject, Step, Warn, judge
from beam_pipelines.arrow.schema import ARRIVAL, DEAD_LETTERS, POSITION, RAW, SOURCE, Failure, Rejected
from tests.arrow.batches import assert_one_door, positions, with_provenance

ENGINE = Engine()


@dataclass(frozen=True)
class RejectRemainder:
    """Kernel: rejects rows with abs(x) % modulus = 1."""

    modulus: int
    sees_rejected: bool
    stage: str = "kernel"

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        values = batch["x"].to_pylist()
        bad = [i for i, x in enumerate(values) if x is not None and abs(x) % self.modulus == 1]
        return batch, {i: Rejected(self.stage, "KERNEL", (Failure("r", "x", str(values[i])),)) for i in bad}


Model = Callable[[int | None], tuple[int | None, str]]
"""What a step makes of a row's x, and the door: '' goes on, 'filtered', or the reason code."""


@dataclass(frozen=True)
class Case:
    step: Step
    model: Model


def keep_not_multiple(k: int) -> Case:
    return Case(Layer("s", keep=f"abs(x) % {k} <> 0"), lambda x: (x, "" if x is not None and abs(x) % k else "filtered"))


def divide(k: int) -> Case:
    return Case(
        Layer("s", define=(Define("x", f"{k} // x", True),)), lambda x: (x if not x else int(k / x), "EXPRESSION" if x == 0 else "")
    )


def reject_above(k: int) -> Case:
    rule = Reject("HIGH", "high", "x", f"x > {k}", "'x = ' || x::VARCHAR")
    return Case(Layer("s", rejects=(rule,)), lambda x: (x, "HIGH" if x is not None and x > k else ""))


def shift(k: int) -> Case:
    return Case(Layer("s", define=(Define("x", f"x + {k}"),)), lambda x: (x if x is None else x + k, ""))


def warn_fallibly(k: int) -> Case:
    return Case(Layer("s", warns=(Warn("w", f"{k} % x = 0", True),)), lambda x: (x, "EXPRESSION" if x == 0 else ""))


def kernel(k: int, sees_rejected: bool) -> Case:
    return Case(RejectRemainder(k, sees_rejected), lambda x: (x, "KERNEL" if x is not None and abs(x) % k == 1 else ""))


small = st.integers(1, 6)
cases = st.one_of(
    small.map(keep_not_multiple), small.map(divide), st.integers(-3, 6).map(reject_above), st.integers(-2, 2).map(shift),
    small.map(warn_fallibly), st.builds(kernel, st.integers(2, 5), st.booleans()),
)  # fmt: skip
values = st.lists(st.none() | st.integers(-6, 6), max_size=12)


def expected(x: int | None, program: list[Case]) -> tuple[int | None, str]:
    for case in program:
        x, door = case.model(x)
        if door:
            return x, door
    return x, ""


@given(st.lists(cases, max_size=5), values, st.integers(0, 3))
def test_each_row_leaves_by_the_door_that_its_own_values_say(program: list[Case], xs: list[int | None], skip: int) -> None:
    batch = with_provenance({"x": pa.array(xs, pa.int64())}).slice(skip)
    split = Program(tuple(c.step for c in program))(batch, ENGINE)
    assert_one_door(split, batch)
    model = {i + skip: expected(x, program) for i, x in enumerate(xs[skip:])}
    assert dict(zip(split.rows[POSITION].to_pylist(), split.rows["x"].to_pylist(), strict=True)) == {
        i: x for i, (x, d) in model.items() if not d
    }
    reasons = dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True))
    assert reasons == {i: d for i, (_, d) in model.items() if d not in ("", "filtered")}
    assert split.filtered == sum(d == "filtered" for _, d in model.values())
    assert split.dead["raw"].to_pylist() == [b"r%d" % i for i in split.dead["position"].to_pylist()]
    assert split.dead.schema == DEAD_LETTERS


@given(st.lists(cases, min_size=1, max_size=4), st.lists(st.none() | st.integers(7, 20), max_size=8))
def test_safe_mode_gives_what_fast_mode_gives_where_nothing_raises(program: list[Case], xs: list[int | None]) -> None:
    layers = [c.step for c in program if isinstance(c.step, Layer) and not any(d.sql.startswith("x +") for d in c.step.define)]
    layers = layers[:1] if any(d.fallible for layer in layers for d in layer.define) else layers
    batch = pa.record_batch({"x": pa.array(xs, pa.int64())})
    query = Query(layers, ("x",))
    assert ENGINE.select(query.sql(), batch.schema)(batch) == ENGINE.select(query.sql(safe=True), batch.schema)(batch)


def test_an_expression_that_raises_rejects_its_rows_and_no_other() -> None:
    batch = with_provenance({"x": [1, 0, None, 4]})
    split = Program((Layer("transform", define=(Define("y", "10 // x", True),)),))(batch, ENGINE)
    assert split.rows["y"].to_pylist() == [10, None, 2]
    assert positions(split)[1] == [1]
    assert split.dead["stage"].to_pylist() == ["transform"]
    assert "fails on this row" in split.dead["message"][0].as_py()


def test_all_that_fails_in_a_layer_is_on_the_dead_letter() -> None:
    rules = (Reject("A", "a", "x", "x > 1", "'over 1'"), Reject("B", "b", "x", "x > 2", "'over 2'"), Reject("C", "c", "x", "x > 3", "NULL"))
    split = Program((Layer("s", rejects=rules),))(with_provenance({"x": [1, 3, 4]}), ENGINE)
    assert split.dead["reason"].to_pylist() == ["A", "A"]
    assert [[f["name"] for f in fs] for fs in split.dead["failures"].to_pylist()] == [["a", "b"], ["a", "b", "c"]]
    assert split.dead["message"].to_pylist()[0] == "over 1; over 2"


def test_a_message_that_raises_costs_its_text_only() -> None:
    rule = Reject("A", "a", "x", "x > 1", "(1 // (x - x))::VARCHAR")
    split = Program((Layer("s", rejects=(rule,)),))(with_provenance({"x": [1, 2]}), ENGINE)
    assert split.dead["message"].to_pylist() == ["a: no reason can be given"]


def test_warnings_count_rows_that_stay() -> None:
    warns = tuple(Warn(f"w{i}", f"x > {i}") for i in range(130))
    steps = (Layer("s", warns=warns[:70]), Layer("s", rejects=(Reject("R", "r", "x", "x = 5", "'no'"),), warns=warns[70:]))
    split = Program(steps)(with_provenance({"x": [0, 5, 100, 129]}), ENGINE)
    assert split.warned == {f"w{i}": sum(x > i for x in (0, 100, 129)) for i in range(130)}


def test_provenance_and_raw_go_on_though_a_layer_lists_other_columns_and_uses_them() -> None:
    steps = (Layer("s", define=(Define("p", f'"{POSITION}" + 1'),), columns=("p", "_absent")), Layer("s", keep=f"{ARRIVAL} IS NULL"))
    split = Program(steps, keep_raw=True)(with_provenance({"x": [1, 2], "y": [3, 4]}), ENGINE)
    assert sorted(split.rows.schema.names) == sorted(["p", SOURCE, POSITION, ARRIVAL, RAW])
    assert split.rows["p"].to_pylist() == [1, 2]


def test_dropped_columns_go_no_further() -> None:
    split = Program((Layer("s", define=(Define("z", "x + y"),), drop=("x",)),))(with_provenance({"x": [1], "y": [2]}), ENGINE)
    assert split.rows.select(["y", "z"]).to_pylist() == [{"y": 2, "z": 3}]
    assert "x" not in split.rows.schema.names


def test_rows_without_columns_of_their_own_are_counted() -> None:
    split = Program((Layer("s", keep="random() >= 0"),))(with_provenance({}, rows=3), ENGINE)
    assert split.rows.num_rows == 3
    assert split.rows.schema.names == [SOURCE, POSITION, ARRIVAL]


def test_names_with_quotes_dots_spaces_emoji_and_keywords_are_columns_like_any_other() -> None:
    names = ['a"b', "a.b", "a b", "🙂", "select", "from", "{x}", "%s"]
    batch = with_provenance({n: [i] for i, n in enumerate(names)})
    quoted = ['"' + n.replace('"', '""') + '"' for n in names]
    split = Program((Layer("s", define=tuple(Define(n, f"{q} + 1") for n, q in zip(names, quoted, strict=True))),))(batch, ENGINE)
    assert split.rows.select(names).to_pylist() == [{n: i + 1 for i, n in enumerate(names)}]


def test_a_comment_ends_with_its_expression() -> None:
    split = Program((Layer("s", define=(Define("y", "x + 1 -- one more", True),), keep="x > 0 -- positive"),))(
        with_provenance({"x": [1, -1]}), ENGINE
    )
    assert split.rows["y"].to_pylist() == [2]


def test_two_hundred_layers_are_one_program() -> None:
    steps = tuple(Layer("s", define=(Define("x", "x + 1"),), rejects=(Reject("R", "r", "x", f"x$ = {i}", "'hit'"),)) for i in range(1, 201))
    split = Program(steps)(with_provenance({"x": [0, 300]}), ENGINE)
    assert split.dead["position"].to_pylist() == [0]
    assert split.rows["x"].to_pylist() == [500]


def test_instants_come_out_with_a_zone_and_civil_times_without_at_any_depth() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5)
    utc = at.replace(tzinfo=UTC)
    kind = pa.struct([("t", pa.timestamp("us", "UTC")), ("c", pa.timestamp("us"))])
    batch = with_provenance(
        {
            "instant": pa.array([utc], pa.timestamp("us", "UTC")),
            "civil": pa.array([at], pa.timestamp("us")),
            "many": pa.array([[{"t": utc, "c": at}]], pa.list_(kind)),
        }
    )
    layer = Layer("s", define=(Define("later", "instant + INTERVAL 1 HOUR"),), keep="many[1].t = instant")
    split = Program((layer,), civil=frozenset({"civil", "many.c"}))(batch, ENGINE)
    assert [str(split.rows.schema.field(n).type) for n in ("instant", "civil", "later")] == [
        "timestamp[us, tz=UTC]",
        "timestamp[us]",
        "timestamp[us, tz=UTC]",
    ]
    assert split.rows.schema.field("many").type == pa.list_(kind)
    assert split.rows["later"][0].as_py() == utc.replace(hour=4)


def test_a_dead_letter_knows_its_event_time() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    batch = with_provenance({"x": [0, 1], "t": pa.array([when, when], pa.timestamp("us", "UTC"))})
    in_layer = Program((Layer("s", rejects=(Reject("R", "r", "x", "x = 1", "'no'"),)),), event_time="t")(batch, ENGINE)
    in_kernel = Program((RejectRemainder(5, True),), event_time="t")(batch, ENGINE)
    assert in_layer.dead["event_time"].to_pylist() == in_kernel.dead["event_time"].to_pylist() == [when]


def test_rows_of_a_columnar_source_are_kept_as_json() -> None:
    batch = pa.record_batch({"x": [1, 2], "s": ["a", None]})
    split = Program((Layer("s", rejects=(Reject("R", "r", "x", "x = 2", "'no'"),)),))(batch, ENGINE)
    assert split.dead.select(["raw", "raw_format"]).to_pylist() == [{"raw": b'{"x":2,"s":null}', "raw_format": "row"}]


def test_suspects_are_resolved_and_run_through_the_rest() -> None:
    def resolve(batch: pa.RecordBatch) -> KernelResult:
        doubled = batch.set_column(batch.schema.get_field_index("x"), "x", pa.array([x * 2 for x in batch["x"].to_pylist()], pa.int64()))
        bad = [i for i, x in enumerate(batch["x"].to_pylist()) if x == 13]
        return doubled, {i: Rejected("decode", "DECODE", (Failure("d", "x", "thirteen"),)) for i in bad}

    steps = (
        Layer("decode", suspect="x > 10", resolve=resolve),
        Layer("s", keep="x <> 22"),
        Layer("s", rejects=(Reject("R", "r", "x", "x = 24", "'no'"),)),
    )
    batch = with_provenance({"x": [1, 11, 12, 13, 14]})
    split = Program(steps)(batch, ENGINE)
    assert_one_door(split, batch)
    assert sorted(split.rows["x"].to_pylist()) == [1, 28]
    assert sorted(split.dead["reason"].to_pylist()) == ["DECODE", "R"]
    assert split.filtered == 1


def test_a_kernel_that_loses_rows_is_an_error() -> None:
    @dataclass(frozen=True)
    class Loses:
        stage: str = "loses"
        sees_rejected: bool = True

        def __call__(self, batch: pa.RecordBatch) -> KernelResult:
            return batch.slice(1), {}

    with pytest.raises(ValueError, match="keeps its rows aligned"):
        Program((Loses(),))(with_provenance({"x": [1]}), ENGINE)


def test_judge_keeps_all_rows_in_order() -> None:
    rule = Reject("R", "r", "x", "x$ > 2", "'over 2'")
    out, verdicts = judge((Layer("s", define=(Define("x", "x + 1"),), rejects=(rule,)),), pa.record_batch({"x": [1, 2, 3]}))
    assert out["x"].to_pylist() == [2, 3, 4]
    assert {i: v.message for i, v in verdicts.items()} == {1: "over 2", 2: "over 2"}


def test_a_program_travels() -> None:
    program = Program((Layer("s", keep="x > 1"), RejectRemainder(2, False)), civil=frozenset({"c"}))
    batch = with_provenance({"x": [1, 2, 3]})
    assert pickle.loads(pickle.dumps(program))(batch).rows == program(batch).rows
    assert DOOR not in program(batch).rows.schema.names
