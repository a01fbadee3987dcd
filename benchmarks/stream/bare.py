"""What a Pub/Sub server gives to a bare reader: four threads that pull and acknowledge, and do nothing else. Prints rows per second.

PUBSUB_EMULATOR_HOST=… python benchmarks/stream/bare.py SUBSCRIPTION ROWS
"""

from __future__ import annotations

import os
import sys
import threading
import time

import grpc
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.types import PullRequest, PullResponse

THREADS = 4


def main() -> None:
    """Pulls until it has them all."""
    subscription, rows = sys.argv[1], int(sys.argv[2])
    channel = grpc.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])
    client = SubscriberClient(transport=SubscriberClient.get_transport_class("grpc")(channel=channel))
    lock, got, done = threading.Lock(), [0], threading.Event()

    def read() -> None:
        while not done.is_set():
            found = client.pull(request=PullRequest(subscription=subscription, max_messages=1_000), timeout=30)
            messages = PullResponse.pb(found).received_messages
            if messages:
                client.acknowledge(subscription=subscription, ack_ids=[m.ack_id for m in messages])
            with lock:
                got[0] += len(messages)
                if got[0] >= rows:
                    done.set()

    begun = time.monotonic()
    for _ in range(THREADS):
        threading.Thread(target=read, daemon=True).start()
    if not done.wait(300):
        raise SystemExit(f"only {got[0]} of {rows} messages came within 300 s")
    print(round(rows / (time.monotonic() - begun)), flush=True)
    os._exit(0)  # pulls that wait for more are not waited for


if __name__ == "__main__":
    main()
