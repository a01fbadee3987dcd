"""Streams on Prism: they end when their source does, lose no state, fail with one sentence, and can be cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, PortableOptions, StandardOptions

from beam_pipelines.errors import RunError, SinkError, SpecError
from beam_pipelines.runners.portable_job import PortableJob
from beam_pipelines.runners.prism import NO_SPLITS, prism_job, prism_options, quiet_ends
from beam_pipelines.runners.prism_process import PrismServer, prism_server
from tests.prism import prism_program, run_on_prism
from tests.runners.prism_source import FAR_S, Dwell, Fail, Gather, See, numbers, reset

Build = Callable[[beam.Pipeline], object]


@pytest.fixture
def flags() -> list[str]:
    return [f"--prism_location={prism_program()}"]


def keyed(pipeline: beam.Pipeline, count: int) -> beam.PCollection:
    return numbers(pipeline, count) | "Key" >> beam.Map(lambda n: ("even" if n % 2 == 0 else "odd", n)).with_output_types(tuple[str, int])


def test_a_stream_ends_with_its_source_after_all_timers_and_finalizations(flags: list[str]) -> None:
    seen = reset()
    run_on_prism(lambda p: keyed(p, 23) | "Gather" >> beam.ParDo(Gather()), flags=flags)
    for key in ("even", "odd"):
        assert [at for name, at in seen.fired if name == key] == [10, 20, 30, FAR_S], "each once, in the order of their times"
    assert sorted(seen.numbers) == list(range(23)), "the last timer finds all that was kept"
    assert max(seen.finalized) == 23, "what was read last is acknowledged, too"
    assert seen.finalized == sorted(seen.finalized)


def dwell(patience_s: float) -> Build:
    def build(pipeline: beam.Pipeline) -> None:
        pairs = numbers(pipeline, 12) | "Key" >> beam.Map(lambda n: ("one", n)).with_output_types(tuple[str, int])
        _ = pairs | "Dwell" >> beam.ParDo(Dwell(patience_s))

    return build


def test_a_key_is_never_worked_on_twice_at_a_time_and_keeps_all_its_state(flags: list[str]) -> None:
    seen = reset()
    run_on_prism(dwell(1.5), flags=flags)
    assert not seen.together.is_set()
    assert sorted(seen.numbers) == list(range(12))


@pytest.mark.slow
def test_prism_still_loses_state_where_it_may_split(flags: list[str]) -> None:
    """The reason for NO_SPLITS. Fails when Prism is repaired: then the experiment can go, and docs/prism.md be changed."""
    seen = reset()
    with prism_server(prism_program()) as server:
        options = prism_options(server)
        options.view_as(DebugOptions).experiments.remove(NO_SPLITS)
        pipeline = beam.Pipeline(options=options)
        dwell(30)(pipeline)
        pipeline.run().wait_until_finish()
    assert seen.together.is_set()
    assert len(seen.numbers) < 12


@pytest.mark.parametrize(("how", "kind", "says"), [
    ("row", RunError, "the job failed: ValueError: seven is no good, in step Fail. Prism's log: "),
    ("finish", RunError, "the job failed: OSError: [Errno 28] No space left on device, in step Fail. Prism's log: "),
    ("ours", SinkError, "sinks[0]: disk full. Make room."),
])  # fmt: skip
def test_a_failure_is_the_cause_in_one_sentence(flags: list[str], how: str, kind: type[RunError], says: str) -> None:
    with pytest.raises(RunError) as raised:
        run_on_prism(lambda p: numbers(p, 10) | "Fail" >> beam.ParDo(Fail(how)), flags=flags)
    text = str(raised.value)
    assert type(raised.value) is kind
    assert text.startswith(says)
    if how != "ours":
        log = Path(text.removeprefix(says))
        assert log.exists()
        log.unlink()


def endless(pipeline: beam.Pipeline) -> None:
    _ = numbers(pipeline, 10, endless=True) | "See" >> beam.ParDo(See())


def test_a_job_that_is_cancelled_ends_its_workers_and_prism(flags: list[str]) -> None:
    seen = reset()
    with prism_job(endless, flags=flags) as job:
        assert seen.flowing.wait(60)
        assert not job.wait(0.0)
        job.cancel()
        assert job.wait(0.0)
    assert seen.torn_down > 0
    assert job.server.ended() is not None


def left(flags: list[str], jobs: list[PortableJob], act: Callable[[PortableJob], object]) -> None:
    """Runs an endless job up to its first numbers, then does `act` inside the block."""
    seen = reset()
    with prism_job(endless, flags=flags) as job:
        jobs.append(job)
        assert seen.flowing.wait(60)
        act(job)


def interrupt(_: PortableJob) -> None:
    raise KeyboardInterrupt


def kill_prism(job: PortableJob) -> None:
    os.kill(job.server.pid, signal.SIGKILL)
    job.wait(60)


def test_a_block_that_is_left_cancels_the_job(flags: list[str]) -> None:
    jobs: list[PortableJob] = []
    with pytest.raises(KeyboardInterrupt):
        left(flags, jobs, interrupt)
    assert jobs[0].server.ended() is not None
    assert not jobs[0].server.log.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's threads lose their connections
def test_a_prism_that_dies_is_said_to_have_died(flags: list[str]) -> None:
    jobs: list[PortableJob] = []
    with pytest.raises(RunError, match=r"Prism ended \(signal 9\) while the job ran\.") as raised:
        left(flags, jobs, kill_prism)
    assert str(jobs[0].server.log) in str(raised.value)
    jobs[0].server.log.unlink()


def test_one_process_can_run_one_stream_after_another(flags: list[str]) -> None:
    for count in (3, 4):
        seen = reset()
        run_on_prism(lambda p, count=count: numbers(p, count) | "See" >> beam.ParDo(See()), flags=flags)
        assert sorted(seen.numbers) == list(range(count))


def test_a_graph_that_prism_refuses_is_a_run_error_with_the_reason(flags: list[str]) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        side = numbers(pipeline, 3) | beam.WindowInto(
            beam.window.GlobalWindows(),
            trigger=beam.trigger.Repeatedly(beam.trigger.AfterCount(1)),
            accumulation_mode=beam.trigger.AccumulationMode.DISCARDING,
        )
        _ = pipeline | beam.Create([1]) | beam.Map(lambda n, _: n, beam.pvalue.AsList(side))

    with pytest.raises(RunError, match=r"Prism does not take the job: .*SideInput") as raised:
        run_on_prism(build, flags=flags)
    Path(str(raised.value).rsplit(" ", 1)[-1]).unlink()


def test_a_program_that_is_not_there_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="--prism_location: nowhere does not exist"):
        run_on_prism(endless, flags=["--prism_location=nowhere"])


def test_the_options_keep_the_users_and_add_what_a_stream_needs(tmp_path: Path) -> None:
    server = PrismServer(None, tmp_path, "127.0.0.1:1")  # type: ignore[arg-type]
    options = prism_options(server, ["--experiments=mine", "--job_name=x"])
    assert options.view_as(DebugOptions).experiments == ["mine", NO_SPLITS]
    assert options.view_as(StandardOptions).streaming
    portable = options.view_as(PortableOptions)
    assert (portable.job_endpoint, portable.environment_type) == ("127.0.0.1:1", "LOOPBACK")
    assert portable.job_server_timeout > 365 * 24 * 3600, "Beam's 300 s would end every stream after five minutes"


def test_every_end_of_a_graph_gets_a_quiet_one_and_nothing_else_changes() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([]), runner="FnApiRunner")
    read = pipeline | beam.Create([1])
    outputs = read | "Two" >> beam.FlatMap(lambda n: [n]).with_outputs("other", main="main")
    _ = outputs.main | "Once" >> beam.Map(lambda n, _: n, beam.pvalue.AsList(outputs.other))
    _ = read | "Twice" >> beam.Map(lambda n: n)
    quiet_ends(pipeline)
    labels = {applied.full_label for applied in pipeline.transforms_stack[0].parts}
    assert {label for label in labels if label.startswith("End")} == {"End0", "End1"}
    pipeline.run().wait_until_finish()
