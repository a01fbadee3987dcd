"""The official Pub/Sub emulator as a process of this test run: found in the gcloud SDK, started on a free port, ended by its own pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HOST = "127.0.0.1"
JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
HOW_TO_GET_IT = "gcloud components install pubsub-emulator (or apt-get install google-cloud-cli-pubsub-emulator), and Java"
_START_S = 60


def emulator_command() -> list[str] | None:
    """`java -jar ...` of the emulator that is installed here; None if Java, the gcloud SDK or its component is missing."""
    java = shutil.which("java")
    jar = next((jar for root in _sdk_roots() for jar in sorted(root.glob(JAR), reverse=True)), None)
    return None if java is None or jar is None else [java, "-jar", str(jar)]


def _sdk_roots() -> Iterator[Path]:
    """Where the SDK may be: beside the command, which may be a link; then where the command says, which takes a second."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return
    yield Path(gcloud).resolve().parents[1]
    asked = [gcloud, "info", "--format=value(installation.sdk_root)"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    if found:
        yield Path(found)


def require_emulator() -> list[str]:
    """The emulator's command. Without one the test is skipped, with what to install; in CI it fails."""
    command = emulator_command()
    if command is None:
        text = f"the Pub/Sub emulator is not installed. Enable it: {HOW_TO_GET_IT}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    return command


@contextmanager
def running_emulator(log: Path) -> Iterator[str]:
    """The address of an emulator that answers; its output goes to `log`. It is ended when the block is left."""
    command = require_emulator()
    for _ in range(3):  # another process may take the port between our look and its start
        port = _free_port()
        process, listening = _start([*command, f"--host={HOST}", f"--port={port}"], log)
        try:
            if listening.wait(_START_S) and process.poll() is None:
                assert _answer(f"http://{HOST}:{port}/") == "Ok"
                yield f"{HOST}:{port}"
                return
        finally:
            _end(process)
    pytest.fail(f"the Pub/Sub emulator did not start:\n{log.read_text('utf-8')[-2000:]}")


def _start(command: list[str], log: Path) -> tuple[subprocess.Popen[str], threading.Event]:
    """The process, and an event that is set when it listens or has ended."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    event = threading.Event()

    def follow() -> None:
        assert process.stdout is not None
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if "listening on" in line:
                    event.set()
        event.set()

    threading.Thread(target=follow, name="pubsub-emulator-log", daemon=True).start()
    return process, event


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode().strip()
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port
