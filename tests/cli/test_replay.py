"""`replay`: a summary on stdout, progress on stderr, clear errors, and an end by Ctrl-C that says what went out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.conftest import ROOT
from tests.pubsub_servers import PubsubServer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [f"{n},{datetime.fromtimestamp(n, UTC).isoformat()}" for n in range(100)] + ["100,"]
    (tmp_path / "a.csv").write_text("\n".join(["id,at", *lines]))
    return tmp_path / "a.csv"


def test_a_file_is_played(call: Call, file: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    topic, subscription = broker.path("topics", "t"), broker.path("subscriptions", "s")
    done = call(
        "replay", file, "--to", topic, "--arrival-column", "at", "--arrival-attribute", "arrived", "--speed", "max", "--create", "--subscription",
        subscription, "--duplicates", "0.1", "--broken", "0.1",
    )  # fmt: skip

    assert f"messages published to {topic} (100 rows, " in done.out
    assert "warning: 1 rows have no at that can be read, and were left out" in done.err
    count = int(done.out.split()[0])
    assert count > 100
    assert all("arrived" in m.message.attributes for m in broker.take(subscription, count))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "flights"], "--to flights: expected projects/PROJECT/topics/NAME"),
        (["--to", "projects/p-1/topics/t-1", "--subscription", "projects/p-1/subscriptions/s-1"], "Add --create"),
        (["--to", "projects/p-1/topics/t-1", "--speed", "fast"], "expected a number with an x"),
        (["--to", "projects/p-1/topics/t-1", "--arrival-column", "ta"], "did you mean 'at'"),
    ],
)
def test_a_wrong_call_is_told(call: Call, file: Path, arguments: list[str], expected: str) -> None:
    done = call("replay", file, "--arrival-column", "at", *arguments, code=2)

    assert expected in done.err


def test_ctrl_c_ends_it_and_says_what_went_out(file: Path, broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    environment = {**os.environ, **broker.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "beam_pipelines.cli", "replay", str(file), "--to", topic, "--arrival-column", "at"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        broker.take(subscription, 1)  # the first goes out at once, the second is a second away
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out.startswith("interrupted: ")
    assert "Traceback" not in err
