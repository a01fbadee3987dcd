"""The pytest plugin: a test of a user's asks for a broker and has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = "beam_pipelines.testing.fixtures"
TEST = """
import os
from google.cloud import pubsub_v1

def publish(broker):
    topic = f"projects/{broker.project}/topics/orders"
    publisher = pubsub_v1.PublisherClient()
    publisher.create_topic(name=topic)
    publisher.publish(topic, b"{}").result(timeout=30)

def test_one(pubsub_broker):
    assert os.environ["PUBSUB_EMULATOR_HOST"] == pubsub_broker.address
    publish(pubsub_broker)

def test_another_has_one_of_its_own(pubsub_broker):
    publish(pubsub_broker)
"""


@pytest.mark.slow
def test_each_test_has_a_broker_of_its_own_that_clients_find(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_plugin_costs_a_test_run_nothing_until_it_is_used() -> None:
    script = f"import sys, pytest, {PLUGIN}; print(*{{'apache_beam', 'pyarrow', 'duckdb', 'grpc'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
