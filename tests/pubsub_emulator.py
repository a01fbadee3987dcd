"""The official Pub/Sub emulator as a process of this test run: found in the gcloud SDK, started on a free port, ended by its own pid."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.needs import missing
from tests.server_process import HOST, ServerProcess, free_ports, started

JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
HOW_TO_GET_IT = "gcloud components install pubsub-emulator (or apt-get install google-cloud-cli-pubsub-emulator), and Java"


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
    """The emulator's command; `missing` where there is none."""
    command = emulator_command()
    if command is None:
        missing("the Pub/Sub emulator is not installed", HOW_TO_GET_IT)
    return command


@dataclass(frozen=True)
class Emulator:
    """The emulator that is installed here, on a port of its own."""

    command: Sequence[str]
    process: ServerProcess

    def start(self) -> None:
        self.process.start([*self.command, f"--host={HOST}", f"--port={self.process.ports[0]}"])


@contextmanager
def running_emulator(log: Path) -> Iterator[str]:
    """The address of an emulator that answers; its output goes to `log`. It is ended when the block is left."""
    command = require_emulator()
    emulator = started(lambda: Emulator(command, ServerProcess("the Pub/Sub emulator", free_ports(1), log)))
    address = f"{HOST}:{emulator.process.ports[0]}"
    try:
        assert _answer(f"http://{address}/") == "Ok"
        yield address
    finally:
        emulator.process.stop()


def _answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode().strip()
    return text
