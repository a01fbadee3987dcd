"""How a stream ends from outside: SIGTERM in mid-window, Ctrl-C twice, a second process, a full disk. Nothing is lost, and it says what was."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.truth import FLUSH, Message, messages, truth
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow  # whole jobs, each started twice
COUNT = 1_500


def halves(sent: list[Message]) -> tuple[list[Message], list[Message]]:
    middle = (len(sent) - FLUSH) // 2
    return sent[:middle], sent[middle:]


def begun(server: PubsubServer, tmp_path: Path, sent: list[Message]) -> tuple[Lake, Job, str]:
    """A running stream that has stored and acknowledged `sent`."""
    topic, subscription = server.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, server.environment)
    publish(server, topic, sent)
    job = lake.start()
    acknowledged(server, subscription, job)
    return lake, job, topic


def publish(server: PubsubServer, topic: str, sent: list[Message]) -> None:
    server.publish_all(topic, [m.published() for m in sent])


def acknowledged(server: PubsubServer, subscription: str, job: Job) -> None:
    assert server.broker is not None
    assert server.broker.wait_acked(subscription, timeout_s=60.0), job.text


def finished(server: PubsubServer, lake: Lake, sent: list[Message], *, leases: bool = True) -> None:
    """The last start goes on to the end, and all is there. `leases`: the one before ended badly, what it had leased is out no more."""
    if leases:
        server.advance(11.0)
    last = lake.start("--until-idle", "2s", at="none")
    assert last.ended(60) == 0, last.text
    check(lake, truth(sent))


def test_sigterm_in_mid_window_drains_and_the_next_start_completes_the_windows(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(11, COUNT)
    first, rest = halves(sent)
    lake, job, topic = begun(broker, tmp_path, first)
    assert job.kill(signal.SIGTERM) == 0, job.text
    kinds = dict(lake.tables().sql("SELECT _pane, count(*) FROM by_user GROUP BY 1").fetchall())
    assert kinds.get("drained", 0) > 0
    assert lake.ledger().balanced
    publish(broker, topic, rest)
    finished(broker, lake, sent, leases=False)
    kept = dict(lake.tables().sql("SELECT _pane, count(*) FROM by_user WHERE \"user\" <> 'flush' GROUP BY 1").fetchall())
    assert "drained" not in kept, "windows that a drain cut short are completed"


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(12, COUNT)
    first, rest = halves(sent)
    lake, job, topic = begun(broker, tmp_path, first)
    publish(broker, topic, rest)
    job.process.send_signal(signal.SIGINT)
    job.hears("once more ends at once")
    assert job.kill(signal.SIGINT) in (0, 130), job.text  # 0: it was drained before the second one came
    finished(broker, lake, sent)


def test_of_two_processes_on_one_output_the_older_is_fenced(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(13, COUNT)
    first, rest = halves(sent)
    lake, older, topic = begun(broker, tmp_path, first)
    younger = lake.start("--until-idle", "4s", at="none")
    younger.hears("start 2")
    for start in range(0, len(rest), 50):
        publish(broker, topic, rest[start : start + 50])
    assert older.ended(60) == 1, older.text
    assert "was taken over by a later start" in older.text
    assert younger.ended(60) == 0, younger.text
    finished(broker, lake, sent, leases=False)


def test_a_full_disk_ends_the_stream_with_a_sentence_and_a_restart_loses_nothing(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(14, COUNT)
    first, rest = halves(sent)
    lake, job, topic = begun(broker, tmp_path, first)
    resource.prlimit(job.process.pid, resource.RLIMIT_FSIZE, (400, 400))  # no file of it may grow longer: what a full disk is to it
    publish(broker, topic, rest)
    assert job.ended(60) == 1, job.text
    assert "cannot write: a file would grow past the limit" in job.text
    finished(broker, lake, sent)
