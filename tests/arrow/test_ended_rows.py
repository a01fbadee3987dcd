"""Identities of rows whose windows have closed: a set that forgets by slices of event time, and gives each row once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.ended_rows import EndedRows, identities_of

REACH = 80

identity = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9))
act = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(identity, st.integers(0, 300)), max_size=4, unique_by=lambda x: x[0])),
    st.tuples(st.just("take"), st.lists(identity, max_size=4)),
    st.tuples(st.just("forget"), st.integers(0, 400)),
    st.tuples(st.just("reload"), st.none()),
)


def rows_of(identities: list[tuple[str, int]]) -> pa.RecordBatch:
    return pa.record_batch({"_source": pa.array([s for s, _ in identities], pa.string()).dictionary_encode(),
                            "_position": pa.array([p for _, p in identities], pa.int64())})  # fmt: skip


@given(acts=st.lists(act, max_size=20))
def test_each_row_is_given_once_while_it_lies_within_reach_of_the_watermark(acts: list[tuple[str, Any]]) -> None:
    ended, known, watermark = EndedRows(reach=REACH), dict[tuple[str, int], int](), 0
    for word, of in acts:
        if word == "add":
            new = {i: t for i, t in of if i not in known}  # a row is kept once, so it ends once
            rows = rows_of(list(new))
            ended.add(np.array(list(new.values()), np.int64), identities_of(rows.column("_source"), rows.column("_position")))
            known |= new
        elif word == "take":
            for one, found in zip(of, ended.take(rows_of(of)).tolist(), strict=True):
                time = known.pop(one, None)
                within = time is not None and time >= watermark - REACH
                assert found or not within, "a row within reach is remembered"
                assert time is not None or not found, "what was never there, or was given before, is not given"
        elif word == "forget":
            watermark = max(watermark, of)
            ended.forget(watermark)
        else:
            dumped = ended.dump()
            ended = EndedRows(reach=REACH)
            if dumped is not None:
                ended.load(dumped)


def test_what_lies_out_of_reach_takes_no_memory() -> None:
    ended = EndedRows(reach=REACH)
    for time in range(0, 10_000, 10):
        ended.add(np.array([time], np.int64), np.array([time], np.int64))
        ended.forget(time)
    assert len(ended) <= REACH / 10 * (1 + 1 / 8) + 1
