"""What the local runner is spared: connections that only one DoFn uses, and signatures that do not change."""

from __future__ import annotations

import threading

import pyarrow as pa
from apache_beam.transforms import userstate

from beam_pipelines.arrow.engine import Engine, Select
from beam_pipelines.runners.quick import quick
from beam_pipelines.transforms.aggregate_stream import ShowWindows
from beam_pipelines.transforms.stage import RunProgram

SCHEMA = pa.schema({"n": pa.int64()})


def prepared(engine: Engine) -> Select:
    return engine.select("SELECT n + 1 AS n FROM $slot", SCHEMA)


def test_engines_of_a_thread_are_one_inside_and_their_own_outside() -> None:
    one, other = Engine(), Engine()
    with quick():
        inside = prepared(one)
        assert prepared(other) is inside
        with quick():
            assert prepared(other) is inside
        assert prepared(other) is inside
    assert prepared(one) is not inside
    assert prepared(one) is not prepared(other)


def test_threads_share_nothing() -> None:
    found: list[Select] = []
    with quick():
        mine = prepared(Engine())
        thread = threading.Thread(target=lambda: found.append(prepared(Engine())))
        thread.start()
        thread.join()
    assert len(found) == 1
    assert found[0] is not mine


def test_the_state_of_a_dofn_is_what_beam_finds() -> None:
    with quick():
        remembered = userstate.get_dofn_specs
    asked = remembered._ask  # Beam's own
    for kind in (ShowWindows, RunProgram):
        dofn = kind.__new__(kind)
        for _ in range(2):
            assert remembered(dofn) == asked(dofn)
