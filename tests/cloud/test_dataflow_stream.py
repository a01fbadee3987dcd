"""The stream as Dataflow has it: messages one by one from a source that acknowledges by itself, everything behind them the same graph.

Beam's local runner with a hand-cranked clock takes Dataflow's place; what is put in place of its source is what that gives, element by element.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import duckdb
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Messages
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import arrival_clock, draining, durable, metrics
from beam_pipelines.edges import Job, Resume
from beam_pipelines.formats.archive import source_folder
from beam_pipelines.pipeline import build
from beam_pipelines.runners.dataflow.starts import of_trial
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.sinks.reached import begin, starts
from beam_pipelines.sources.pubsub_native import Gather
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.transforms import keyed_state
from tests.cloud.dataflow_specs import PLAIN, SUBSCRIPTION, loaded
from tests.formats.pubsub_files import Message, write_file

pytestmark = pytest.mark.cloud
NOON = 1_714_564_800  # 2024-05-01 12:00


def message(number: int, at_s: int, *, raw: bytes | None = None) -> TimestampedValue:
    """A message that is published when its flight leaves."""
    moment = datetime.fromtimestamp(at_s, UTC)
    data = json.dumps({"flight": number, "delay": number % 9, "at": moment.isoformat()}).encode() if raw is None else raw
    return TimestampedValue(PubsubMessage(data, {}, str(2**50 + number), moment, ""), Timestamp(at_s))


class _Played(beam.PTransform):
    """A stream of messages, then what our source makes of them."""

    def __init__(self, stream: Messages, number: int) -> None:
        super().__init__()
        self.stream, self.number = stream, number

    def expand(self, begin_: beam.pvalue.PBegin) -> beam.PCollection:
        return begin_ | "Pull" >> self.stream | "Gather" >> Gather(SUBSCRIPTION, self.number)


def play(spec: LoadedSpec, stream: Messages) -> None:
    """The graph that goes to Dataflow, over these messages."""
    for module in (draining, arrival_clock, durable, metrics):
        module.reset()
    keyed_state.forget()
    begun = of_trial(spec.spec, spec.state, "s1")
    begin(spec.state, 1)
    resume = Resume(begun.before, make=lambda source, number: _Played(stream, number))
    with beam.Pipeline("BundleBasedDirectRunner", options=PipelineOptions(["--streaming"])) as pipeline:
        build(pipeline, Job(spec.spec, begun.run, str(Path(spec.directory) / "tmp"), resume=resume))


def ask(sql: str) -> list[tuple[object, ...]]:
    return duckdb.connect().execute(sql).fetchall()


def test_rows_panes_letters_and_progress_are_those_of_any_stream(tmp_path: Path) -> None:
    spec = loaded(tmp_path, PLAIN, lake=str(tmp_path / "lake"))
    stream = Messages().advance_watermark_to(Timestamp(NOON))
    stream.add_elements([message(n, NOON + n) for n in range(40)])
    stream.add_elements([message(n, NOON + n) for n in range(5)])  # delivered again
    stream.add_elements([message(99, NOON + 99, raw=b'{"flight": ')])
    stream.advance_watermark_to(Timestamp(NOON + 3_600 + 60))
    stream.add_elements([message(n, NOON + 3_700 + n) for n in range(100, 103)])
    stream.advance_watermark_to(Timestamp(NOON + 10 * 3_600)).advance_watermark_to_infinity()
    play(spec, stream)
    lake = tmp_path / "lake"
    assert ask(f"SELECT count(DISTINCT _position), min(_position), any_value(_source) FROM '{lake}/flights.speed/**/*.parquet'") == [
        (43, 2**50, SUBSCRIPTION)
    ]
    panes = ask(
        f"SELECT left(_window_start::VARCHAR, 13), arg_max(flights, (_epoch, _pane_index)), bool_or(_pane = 'on_time') FROM '{lake}/by_hour.speed/*.parquet' GROUP BY 1 ORDER BY 1"
    )
    assert panes == [("2024-05-01 12", 40, True), ("2024-05-01 13", 3, True)]
    assert ask(f"SELECT position, reason FROM '{lake}/dead_letters.speed/**/*.parquet'") == [(2**50 + 99, "DECODE")]
    assert not (lake / "state" / "archive").exists()  # somebody else archives
    reached = starts(spec.state)[1].watermark_micros
    assert reached is not None
    assert reached >= (NOON + 3_600) * 1_000_000


def test_a_batch_over_what_pubsub_archived_gives_the_rows_of_the_stream(tmp_path: Path) -> None:
    """Both know a message by the subscription that the stream reads, although another one wrote the files, and wrote some messages twice."""
    lake = tmp_path / "lake"
    spec = loaded(tmp_path, PLAIN, lake=str(lake))
    sent = [message(n, NOON + n) for n in range(60)]
    stream = Messages().advance_watermark_to(Timestamp(NOON)).add_elements(sent)
    play(spec, stream.advance_watermark_to(Timestamp(NOON + 10 * 3_600)).advance_watermark_to_infinity())
    files = Path(source_folder(f"{lake}/state/archive", SUBSCRIPTION))
    archived = [Message(m.value.message_id, m.timestamp.micros, m.value.data) for m in sent]
    write_file(files / "2024-05-01" / "12_00_00Z_a.avro", archived[:40])
    write_file(files / "2024-05-01" / "12_05_00Z_b.avro", archived[30:])
    record = run_batch(spec, Call(input="archive"))
    assert (record.status, {line.source: line.read for line in record.ledger if line.read}) == ("success", {SUBSCRIPTION: 60})
    identity = "SELECT _source, _position, flight, delay FROM '{}/**/*.parquet' ORDER BY 2"
    assert ask(identity.format(lake / "flights")) == ask(identity.format(f"{lake}/flights.speed"))
