"""The source in a job: every message in once, acknowledged after it is stored, ended by a drain; and what is said before a job starts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from pydantic import ValidationError

from beam_pipelines import draining, durable
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, RAW, SOURCE
from beam_pipelines.errors import SourceError, SpecError, TransientError
from beam_pipelines.sources import pubsub, pubsub_reports
from beam_pipelines.sources.pubsub_calls import EMULATOR
from beam_pipelines.spec.sources import PubsubSource
from beam_pipelines.testing.broker import Broker
from tests.prism import prism_program, run_on_prism
from tests.sources.pubsub_topic import Topic
from tests.sources.test_pubsub_puller import TIMEOUT_S, numbered, until

SEEN: list[tuple[int, bytes]] = []
"""Position and body of every row that the job below has stored, in this process."""
SEEN_MORE = threading.Condition()


class Store(beam.DoFn):  # type: ignore[misc]
    """Stands where the archive stands."""

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[None]:
        assert timestamp.micros == min(batch[ARRIVAL].cast(pa.int64()).to_pylist())
        durable.register(batch[SOURCE][0].as_py(), batch[POSITION].to_numpy())
        with SEEN_MORE:
            SEEN.extend(zip(batch[POSITION].to_pylist(), batch[RAW].to_pylist(), strict=True))
            SEEN_MORE.notify_all()
        yield from ()


@pytest.fixture
def _clean() -> Iterator[None]:
    durable.reset()
    draining.reset()
    SEEN.clear()
    yield
    pubsub.close()
    draining.reset()
    assert [t.name for t in threading.enumerate() if t.name.startswith("pubsub-s")] == []


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture(scope="module", params=["broker", "emulator"])
def address(request: pytest.FixtureRequest, broker: Broker) -> str:
    return broker.address if request.param == "broker" else str(request.getfixturevalue("emulator_address"))


def source(topic: Topic, **fields: Any) -> PubsubSource:
    return PubsubSource(pubsub=topic.subscription, format="json", endpoint=f"http://{topic.address}", **fields)  # type: ignore[arg-type]


def drain_after(rows: int) -> threading.Thread:
    """Asks for the end once so many rows are stored."""

    def watch() -> None:
        with SEEN_MORE:
            SEEN_MORE.wait_for(lambda: len(SEEN) >= rows, timeout=60)
        draining.request()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def on_fn_api_runner(build: Callable[[beam.Pipeline], object]) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(["--streaming"]))
    build(pipeline)
    pipeline.run().wait_until_finish()


def on_prism(build: Callable[[beam.Pipeline], object]) -> None:
    run_on_prism(build, flags=[f"--prism_location={prism_program()}"])


@pytest.mark.usefixtures("_clean")
@pytest.mark.parametrize("run", [on_fn_api_runner, pytest.param(on_prism, marks=pytest.mark.slow)])
def test_a_job_reads_every_message_once_acknowledges_it_and_ends_when_drained(address: str, run: Callable[..., None]) -> None:
    topic = Topic(address)
    topic.publish(numbered(5_000))
    read = source(topic, pulls=2)
    pubsub.check_subscription(read)
    watching = drain_after(5_000)
    run(lambda p: p | pubsub.ReadPubsub(read) | beam.ParDo(Store()))
    watching.join()
    assert sorted(SEEN) == sorted(set(SEEN))
    assert sorted(body for _, body in SEEN) == sorted(numbered(5_000))
    [status] = pubsub.status()
    assert (status.pulled, status.delivered, status.replayed, status.behind) == (5_000, 5_000, 0, 0)
    pubsub.close()
    assert topic.pull() == []
    assert draining.ended_at() is not None
    assert pubsub.status() == ()


@pytest.mark.usefixtures("_clean")
def test_a_job_on_a_subscription_that_is_not_there_fails_with_one_clear_error(broker: Broker) -> None:
    topic = Topic(broker.address)
    topic.delete()
    with pytest.raises(Exception, match="there is no such subscription; expected a subscription that can be pulled"):
        on_fn_api_runner(lambda p: p | pubsub.ReadPubsub(source(topic)) | beam.ParDo(Store()))


@pytest.mark.usefixtures("_clean")
def test_marks_are_worth_something_in_this_process_only_and_at_any_reader(broker: Broker) -> None:
    topic = Topic(broker.address)
    topic.publish(numbered(10))
    unbounded = pubsub._Unbounded(pubsub.ReadPubsub(source(topic), ack="finalized", linger_s=0.0).settings, None, None)
    readers = [unbounded.create_reader(None, None) for _ in range(3)]
    coder = unbounded.get_checkpoint_mark_coder()
    rows = 0
    marks = []

    def all_read() -> bool:
        nonlocal rows
        for reader in readers:
            if reader.advance():
                rows += reader.get_current().num_rows
            marks.append(coder.encode(reader.get_checkpoint_mark()))
        return rows == 10

    until(all_read)
    readers[0].close()
    for mark in [*reversed(marks), *marks]:
        coder.decode(mark).finalize_checkpoint()
    coder.decode(b"4711-elsewhere:job:token").finalize_checkpoint()
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)
    assert readers[1].get_watermark() < MAX_TIMESTAMP


@pytest.mark.usefixtures("_clean")
def test_a_reader_closed_without_a_mark_gives_its_messages_back(broker: Broker) -> None:
    topic = Topic(broker.address)
    topic.publish(numbered(10))
    unbounded = pubsub._Unbounded(pubsub.ReadPubsub(source(topic), linger_s=0.0).settings, None, None)
    failed = unbounded.create_reader(None, None)
    until(failed.start)
    failed.close()
    [status] = pubsub.status()
    assert status.delivered > 0
    other = unbounded.create_reader(None, None)
    until(lambda: other.advance() and pubsub.status()[0].delivered >= 10 + status.delivered)


@pytest.mark.usefixtures("_clean")
def test_an_unbroken_source_goes_on_where_it_ended_and_nowhere_else(broker: Broker) -> None:
    topic = Topic(broker.address)
    topic.publish(numbered(10))
    unbounded = pubsub._Unbounded(pubsub.ReadPubsub(source(topic), linger_s=0.0, unbroken=True).settings, None, None)
    unbounded.create_reader(None, None).close()
    first = unbounded.create_reader(None, None)  # nothing was handed out: a job that begins again before it has begun
    until(first.start)
    old = first.get_checkpoint_mark()
    second = unbounded.create_reader(None, old)
    topic.publish(numbered(10))
    until(second.advance)
    new = second.get_checkpoint_mark()
    for mark in (None, old, unbounded.get_checkpoint_mark_coder().decode(b"4711-elsewhere:job:token")):
        with pytest.raises(TransientError, match="went back to a checkpoint; the stream is to be started anew"):
            unbounded.create_reader(None, mark)
    unbounded.create_reader(None, new)


@pytest.mark.usefixtures("_clean")
def test_a_patient_reader_waits_and_gives_what_comes_meanwhile(broker: Broker) -> None:
    def reader(topic: Topic, idle_s: float) -> Any:
        settings = pubsub.ReadPubsub(source(topic), linger_s=0.0, idle_s=idle_s).settings
        return pubsub._Unbounded(settings, None, None).create_reader(None, None)

    begun = time.monotonic()
    assert not reader(Topic(broker.address), 0.5).start()
    assert time.monotonic() - begun >= 0.5
    topic = Topic(broker.address)
    patient = reader(topic, 60.0)
    threading.Timer(0.1, lambda: topic.publish(numbered(1))).start()
    until(patient.start)
    draining.request()
    until(lambda: not patient.advance())
    begun = time.monotonic()
    assert not patient.advance()
    assert time.monotonic() - begun < 30, "a source that has ended is not waited for"


@pytest.mark.usefixtures("_clean")
def test_a_source_is_followed_and_ended_from_another_process(broker: Broker, tmp_path: Path) -> None:
    topic = Topic(broker.address)
    topic.publish(numbered(10))
    folder = str(tmp_path / "control")
    read = pubsub.ReadPubsub(source(topic), 3, linger_s=0.0, control=folder)
    reader = pubsub._Unbounded(read.settings, None, None).create_reader(None, None)
    until(reader.start)

    def told() -> pubsub_reports.Report:
        found = pubsub_reports.reports(folder)
        return next(iter(found.values())) if found else pubsub_reports.Report(0, pubsub.status()[0], {})

    until(lambda: told().status.delivered == pubsub.status()[0].delivered > 0)
    assert (told().number, told().status.subscription, told().ended_micros) == (3, topic.subscription, None)
    assert told().counts["messages_pulled"] >= 1
    pubsub_reports.ask_to_end(folder)
    until(lambda: not reader.advance() and told().ended_micros is not None)
    assert reader.get_watermark() == MAX_TIMESTAMP


def test_a_subscription_is_looked_at_before_the_job(broker: Broker) -> None:
    topic = Topic(broker.address)
    pubsub.check_subscription(source(topic))
    topic.delete()
    with pytest.raises(SourceError, match=f"{topic.subscription}: there is no such subscription; .* Create it"):
        pubsub.check_subscription(source(topic))


def test_who_may_only_pull_may_read(broker: Broker) -> None:
    topic = Topic(broker.address)
    topic.publish(numbered(1))
    broker.fail("GetSubscription", "PERMISSION_DENIED")
    pubsub.check_subscription(source(topic))
    assert (broker.leased(topic.subscription), topic.pull()) == (0, [b"0"])
    broker.fail("GetSubscription", "PERMISSION_DENIED")
    broker.fail("Pull", "PERMISSION_DENIED")
    with pytest.raises(SourceError, match=r"PERMISSION_DENIED: .* roles/pubsub.subscriber"):
        pubsub.check_subscription(source(topic))


def test_a_subscription_that_is_pushed_cannot_be_pulled(emulator_address: str) -> None:
    with pytest.raises(SourceError, match="is delivered by its push_config; expected a subscription that is pulled"):
        pubsub.check_subscription(source(Topic(emulator_address, push="https://example.com/push")))


def test_a_moment_without_an_answer_is_waited_for_and_silence_is_said(broker: Broker) -> None:
    topic = Topic(broker.address)
    broker.fail("GetSubscription", "UNAVAILABLE", times=2)
    pubsub.check_subscription(source(topic))
    silent = PubsubSource(pubsub="projects/p/subscriptions/s", format="json", endpoint="http://127.0.0.1:9")  # type: ignore[arg-type]
    with pytest.raises(TransientError, match=r"http://127.0.0.1:9 does not answer: .* PUBSUB_EMULATOR_HOST"):
        pubsub.check_subscription(silent, patience_s=0.5)


def test_missing_credentials_are_said_before_anything_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(EMULATOR, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(
        SourceError, match=r"no credentials for Pub/Sub: .*missing.json was not found. Run `gcloud auth application-default login`"
    ):
        pubsub.check_subscription(PubsubSource(pubsub="projects/p/subscriptions/s", format="json"))  # type: ignore[arg-type]


def test_a_missing_client_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.pubsub_v1", None)
    with pytest.raises(SpecError, match=r"pip install 'beam-pipelines\[gcp\]'"):
        pubsub.check_subscription(PubsubSource(pubsub="projects/p/subscriptions/s", format="json"))  # type: ignore[arg-type]


def test_the_emulators_variable_counts_as_in_googles_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PubsubSource(pubsub="projects/p/subscriptions/s", format="json", endpoint="europe-west1-pubsub.googleapis.com:443")  # type: ignore[arg-type]
    monkeypatch.delenv(EMULATOR, raising=False)
    assert pubsub.pull_settings(plain).endpoint == "europe-west1-pubsub.googleapis.com:443"
    monkeypatch.setenv(EMULATOR, "localhost:8085")
    assert pubsub.pull_settings(plain).endpoint == "http://localhost:8085"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pubsub": "s"}, "got 's'; expected projects/PROJECT/subscriptions/SUBSCRIPTION"),
        ({"pubsub": "projects/p/topics/t"}, "expected projects/PROJECT/subscriptions/SUBSCRIPTION"),
        ({"arrival": {"column": "created"}}, "must be known before its records are decoded"),
        ({"ack_deadline": "5s"}, "greater than or equal to"),
        ({"pulls": 0}, "greater than or equal to 1"),
    ],
)
def test_what_a_subscription_cannot_be_is_refused_by_its_model(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PubsubSource.model_validate({"pubsub": "projects/p/subscriptions/s", "format": "json", **fields})
