"""The embedded broker as a process, and in a process that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pubsub_servers import PubsubServer, connected, texts


def command(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "beam_pipelines.testing.broker", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_address_and_runs_until_told(environment: dict[str, str], number: signal.Signals) -> None:
    process = command("--project", "my-project", environment=environment)
    assert process.stdout is not None
    try:
        for server in connected(process.stdout.readline().strip()):
            topic, subscription = server.pair()
            server.publish(topic, b"x")
            assert texts(server.take(subscription, 1)) == ["x"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.wait(30)


def test_the_command_says_when_its_port_is_taken(broker: PubsubServer, environment: dict[str, str]) -> None:
    process = command("--port", broker.address.rpartition(":")[2], environment=environment)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (1, "")
    assert "taken" in errors


def test_the_command_says_what_to_install(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\", name='grpc')")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    printed, errors = (process := command(environment={**environment, "PYTHONPATH": paths})).communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    assert errors == (
        "error: beam_pipelines.testing.broker: needs google-cloud-pubsub: No module named 'grpc'. Run: pip install 'beam-pipelines[gcp]'\n"
    )


def test_a_broker_nobody_stopped_does_not_keep_its_program_alive(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text("""
import os
from beam_pipelines.testing import Broker
broker = Broker().start()
os.environ.update(broker.environment)
from google.cloud import pubsub_v1
topic = pubsub_v1.PublisherClient().create_topic(name="projects/demo-project/topics/flights").name
name = "projects/demo-project/subscriptions/flights"
subscriber = pubsub_v1.SubscriberClient()
subscriber.create_subscription(name=name, topic=topic)
subscriber.subscribe(name, lambda message: message.ack())
assert broker.wait_called("StreamingPull", timeout_s=30)
print("end")
""")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "end\n"


def test_a_broker_needs_no_beam(environment: dict[str, str]) -> None:
    code = "import sys, beam_pipelines.testing\nprint('grpc' in sys.modules)\nfrom beam_pipelines.testing import Broker\nprint('apache_beam' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
