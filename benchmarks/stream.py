"""The stream benchmark: the product's own stream on Prism from an in-process source, from the Pub/Sub emulator, and its latency.

    make bench-stream                    2 million events, three runs each
    python benchmarks/stream.py --quick  a tenth of it, to see that everything runs

CPU seconds (user + system) of Python and of Prism together, medians of interleaved runs; nothing of the graph is left out but, where it says so,
the archive. Every run's rows are counted at all doors before a figure counts. The last line of output is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch import data_of, options_of

HERE = Path(__file__).parent
ANSWERS = (100, 1_000, 10_000)
PROJECT = "projects/bench"
LATENCY_S, RATE = 60, 2_000
BACKLOG = 200_000
"""Messages in the emulator. Of 400,000 it gave 250,000 to the bare reader, and then none for minutes."""


def program(name: str, *arguments: object, server: str | None = None) -> list[str]:
    """Runs one of the programs in `stream/`; gives the lines it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if server is not None:
        environment["PUBSUB_EMULATOR_HOST"] = server
    command = [sys.executable, str(HERE / "stream" / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout.strip().splitlines()


def stages(data: Path, work: Path, rows: int, answer: int, *, archive: bool) -> dict[str, Any]:
    """One run of the stage pipeline."""
    out = work / "stages"
    shutil.rmtree(out, ignore_errors=True)
    found = json.loads(program("stages.py", data, out, "--rows", rows, "--answer", answer, *(["--archive"] if archive else []))[-1])
    found["rows_per_cpu_s"] = round(rows / found["cpu_s"])
    print(f"  {answer:6,d} messages an answer, {'with' if archive else 'without'} archive: {found}", flush=True)
    return found


@contextmanager
def subscriptions(server: str, *names: str) -> Iterator[str]:
    """A new topic on the server with these subscriptions; gives the topic."""
    import grpc
    from google.pubsub_v1 import PublisherClient, SubscriberClient

    with grpc.insecure_channel(server) as channel:
        publisher, subscriber = (c(transport=c.get_transport_class("grpc")(channel=channel)) for c in (PublisherClient, SubscriberClient))
        topic = f"{PROJECT}/topics/{names[0]}"
        publisher.create_topic(name=topic)
        for name in names:
            subscriber.create_subscription(name=f"{PROJECT}/subscriptions/{name}", topic=topic, ack_deadline_seconds=60)
        yield topic


def from_emulator(data: Path, work: Path, rows: int, server: str, number: int) -> tuple[int, int]:
    """(rows per second of the whole pipeline, of a bare reader) from a backlog in the emulator."""
    with subscriptions(server, f"whole-{number}", f"bare-{number}") as topic:
        program("publish.py", data, topic, "--rows", rows, server=server)
        bare = int(program("bare.py", f"{PROJECT}/subscriptions/bare-{number}", rows, server=server)[-1])
        out = work / "whole"
        shutil.rmtree(out, ignore_errors=True)
        whole = json.loads(program("whole.py", f"{PROJECT}/subscriptions/whole-{number}", out, "--rows", rows, server=server)[-1])
        print(f"  from the emulator: bare reader {bare} rows/s, whole pipeline {whole}", flush=True)
        if whole["read"] != rows or whole["status"] != "success":
            raise SystemExit("rows are missing or left twice")
    return whole["rows_per_s"], bare


def latency(data: Path, work: Path, seconds: int, number: int) -> dict[str, Any]:
    """How long after a window's end its pane is in place, at RATE messages a second from the embedded broker."""
    from beam_pipelines.testing.broker import Broker

    out = work / "latency"
    shutil.rmtree(out, ignore_errors=True)
    with Broker() as broker, subscriptions(broker.address, f"latency-{number}") as topic:
        environment = {**os.environ, "PUBSUB_EMULATOR_HOST": broker.address}
        command = [
            sys.executable,
            str(HERE / "stream" / "publish.py"),
            str(data),
            topic,
            f"--rows={RATE * (seconds + 5)}",
            f"--rate={RATE}",
        ]
        publishing = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            arguments = ["--rows", RATE * seconds, "--size", "5s", "--late", "10s", "--for-s", seconds]
            lines = program("whole.py", f"{PROJECT}/subscriptions/latency-{number}", out, *arguments, server=broker.address)
        finally:
            publishing.terminate()
            publishing.wait()
    found: dict[str, Any] = json.loads(lines[-1])
    print(f"  latency at {RATE} messages/s: {found}", flush=True)
    return found


def emulated(data: Path, work: Path, rows: int, runs: int) -> dict[str, float | None]:
    """Figures with the official emulator; None where it is not installed."""
    sys.path.insert(0, str(HERE.parent))
    from tests.pubsub_emulator import HOW_TO_GET_IT, emulator_command, running_emulator

    if emulator_command() is None:
        print(f"  the Pub/Sub emulator is not installed, so its figures are null: {HOW_TO_GET_IT}")
        return {"emulator_rows_per_s": None, "emulator_ratio_bare": None}
    with running_emulator(work / "emulator.log") as server:
        found = [from_emulator(data, work, rows, server, number) for number in range(runs)]
    ratio = statistics.median(whole / bare for whole, bare in found)
    return {"emulator_rows_per_s": statistics.median(whole for whole, _ in found), "emulator_ratio_bare": round(ratio, 2)}


def main() -> None:
    """Runs everything and prints the figures."""
    options = options_of(__doc__).parse_args()
    scale, runs = (10, 1) if options.quick else (1, options.runs)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = 2_000_000 // scale
    data = data_of("j1", rows, options.work)
    kinds = [(answer, archive) for answer in ANSWERS for archive in (False, True)]
    measured: dict[tuple[int, bool], list[int]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for answer, archive in kinds:
            measured[answer, archive].append(stages(data, options.work, rows, answer, archive=archive)["rows_per_cpu_s"])
    figures: dict[str, float | None] = {}
    for answer in ANSWERS:
        figures[f"rows_per_cpu_s_{answer}"] = statistics.median(measured[answer, False])
        figures[f"rows_per_cpu_s_{answer}_archived"] = statistics.median(measured[answer, True])
    late = [latency(data, options.work, LATENCY_S // (3 if options.quick else 1), number) for number in range(runs)]
    figures["p50_latency_s"] = statistics.median(run["p50_s"] for run in late)
    figures["p99_latency_s"] = statistics.median(run["p99_s"] for run in late)
    figures |= emulated(data, options.work, BACKLOG // scale, runs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
