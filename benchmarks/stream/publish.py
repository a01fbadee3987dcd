"""Publishes J1's events with event times of now: a backlog as fast as the server takes it, or so many a second.

PUBSUB_EMULATOR_HOST=… python benchmarks/stream/publish.py DATA TOPIC --rows 100000
PUBSUB_EMULATOR_HOST=… python benchmarks/stream/publish.py DATA TOPIC --rows 90000 --rate 2000
"""

from __future__ import annotations

import argparse
import os
import re
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import grpc
from google.pubsub_v1 import PublisherClient

_EVENT_TIME = re.compile(rb'("event_time": ")[^"]*Z"')


def main() -> None:
    """Publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("topic")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--rate", type=int)
    options = parser.parse_args()
    with open(min(options.data.glob("*.jsonl")), "rb") as file:
        lines = [line.rstrip(b"\n") for line in islice(file, options.rows)]
    channel = grpc.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])
    client = PublisherClient(transport=PublisherClient.get_transport_class("grpc")(channel=channel))
    chunk = options.rate // 20 if options.rate else 1_000
    begun = time.monotonic()
    for number, start in enumerate(range(0, len(lines), chunk)):
        some = lines[start : start + chunk]
        if options.rate:
            time.sleep(max(0.0, begun + number / 20 - time.monotonic()))
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00").encode()
        some = [_EVENT_TIME.sub(rb"\g<1>" + now + b'Z"', line) for line in some]
        client.publish(request={"topic": options.topic, "messages": [{"data": line} for line in some]})
    print(round(len(lines) / (time.monotonic() - begun)), "published per second")


if __name__ == "__main__":
    main()
