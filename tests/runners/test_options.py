"""What `--runner` and Beam's options mean, and the errors that a runner wraps."""

from __future__ import annotations

import pytest

from beam_pipelines.errors import RunError, SinkError, SpecError
from beam_pipelines.runners.beam_options import unknown_flags
from beam_pipelines.runners.failures import own_error
from beam_pipelines.runners.options import check_flags, engine_for


@pytest.mark.parametrize("asked", ["direct", "DirectRunner", "FnApiRunner", "directrunner"])
def test_the_engine_is_always_named(asked: str) -> None:
    assert engine_for(asked).name == "FnApiRunner"
    assert "FnApiRunner" in engine_for(asked).announcement


@pytest.mark.parametrize("asked", ["flink", "FlinkRunner"])
def test_flink_is_a_cluster(asked: str) -> None:
    assert engine_for(asked).on_flink
    assert "on a cluster" in engine_for(asked).announcement


@pytest.mark.parametrize(("asked", "says"), [("DataflowRunner", "is for the verb `run`"), ("dirct", "did you mean 'direct'?")])
def test_an_engine_that_is_not_there_is_a_spec_error(asked: str, says: str) -> None:
    with pytest.raises(SpecError, match=says.replace("?", r"\?")):
        engine_for(asked)


@pytest.mark.parametrize(
    "flags",
    [
        ["--direct_running_mode", "multi_threading"],
        ["--direct_running_mode=multi_threading"],
        ["--experiments=data_buffer_time_limit_ms=1"],
    ],
)
def test_flags_that_lose_rows_are_refused(flags: list[str]) -> None:
    with pytest.raises(SpecError):
        check_flags(flags)


def test_beam_options_are_known_and_others_named() -> None:
    assert unknown_flags(["--job_name=x", "--labels", "a=b", "--streaming", "--experiments=y", "--temp_location", "t"]) == []
    assert unknown_flags(["--job_nam=x"]) == ["Beam knows no option --job_nam: ignored. Did you mean --job_name?"]
    assert unknown_flags(["stray"]) == ["'stray' is no Beam option, and no value of one: ignored."]
    with pytest.raises(SpecError, match="invalid choice"):
        unknown_flags(["--direct_running_mode=x"])
    with pytest.raises(SpecError, match="invalid int value"):
        unknown_flags(["--direct_num_workers=many"])


def test_our_own_error_is_found_inside_what_a_runner_raised() -> None:
    wrapped = RuntimeError("engine")
    wrapped.__cause__ = ours = SinkError("disk: full.", hint="Free space.")
    assert own_error(wrapped) is ours


def test_an_error_of_a_worker_process_comes_back_as_what_it_was() -> None:
    trace = (
        "Traceback (most recent call last):\n  File x\nbeam_pipelines.errors.SinkError: disk: full. Free space. [while running 'Write']\n"
    )
    found = own_error(RuntimeError(trace))
    assert (type(found), str(found)) == (SinkError, "disk: full. Free space.")


def test_an_interruption_that_an_engine_wrapped_is_one() -> None:
    assert isinstance(own_error(RuntimeError("KeyboardInterrupt [while running 'x']")), KeyboardInterrupt)


def test_any_other_error_names_its_cause_and_step() -> None:
    found = own_error(ValueError("no good [while running 'Read0/Read']"))
    assert isinstance(found, RunError)
    assert str(found).startswith("the job failed: ValueError: no good, in step Read0/Read.")
