"""The whole pipeline from a Pub/Sub server, by the product's own `run_stream`. Prints one JSON line.

    PUBSUB_EMULATOR_HOST=… python benchmarks/stream/whole.py SUBSCRIPTION OUT --rows 100000 [--size 5s --late 10s]

Rows per second: from the first message pulled until all are through to a sink. Latency: from a window's end to its pane's file being in place.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_pipelines import draining, metrics
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.sources import pubsub
from beam_pipelines.spec.load import load_spec

WARM_S = 10.0  # messages wait while Python and Prism start: windows that end before that are caught up
SPEC = Path(__file__).parent / "pipeline.yaml"


class Watch:
    """When the first message was pulled, and when all were through, to 20 ms; then the stream is asked to end."""

    def __init__(self, rows: int, stay: bool) -> None:
        self.rows, self.stay, self.first_s, self.last_s = rows, stay, 0.0, 0.0
        self.first_at = 0.0  # of the wall clock
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.last_s:
            self._look_once()
            time.sleep(0.02)

    def _look_once(self) -> None:
        states, now = pubsub.status(), time.monotonic()
        if not self.first_s and states and states[0].pulled:
            self.first_s, self.first_at = now, time.time()
        seen = metrics.snapshot()
        through = sum(seen.get(name, 0) for name in ("rows_written", "rows_dead", "rows_filtered"))  # a duplicate was written or never is
        if not self.last_s and through + seen.get("rows_duplicate", 0) >= self.rows:
            self.last_s = now
            if not self.stay:
                draining.request()


def latencies(folder: Path, since: float) -> Iterator[float]:
    """Seconds from the end of each window that ended after `since` to the file of its pane on time."""
    for path in folder.rglob("*.parquet"):
        panes = pq.read_table(path, columns=["_pane", "_window_end"])
        for end in pc.unique(panes.filter(pc.equal(panes["_pane"], "on_time"))["_window_end"]).to_pylist():
            if end.timestamp() >= since:
                yield (
                    os.stat(path).st_ctime - end.timestamp()
                )  # a file gets its name when it is complete; that is the time of its last change


def main() -> None:
    """Runs until all is through, counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subscription")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--size", default="1h")
    parser.add_argument("--late", default="10m")
    parser.add_argument("--for-s", type=float, help="how long to run, instead of until all is through")
    options = parser.parse_args()
    text = SPEC.read_text("utf-8").replace("projects/bench/subscriptions/events", options.subscription)
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "pipeline.yaml"
        spec.write_text(text, "utf-8")
        loaded = load_spec(spec, set_={"lake": str(options.out), "size": options.size, "late": options.late})
        watch = Watch(options.rows, options.for_s is not None)
        begun = time.process_time()
        record = run_stream(loaded, StreamCall(until_idle_s=None if options.for_s else 60.0, max_duration_s=options.for_s))
    [line] = record.ledger
    found = np.array(list(latencies(options.out / "hourly.speed", watch.first_at + WARM_S))) if options.for_s else np.empty(0)
    print(json.dumps({
        "rows_per_s": round(line.read / (watch.last_s - watch.first_s)) if watch.last_s and not options.for_s else None,
        "cpu_s": round(time.process_time() - begun + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), 2),
        "panes": len(found), "p50_s": round(float(np.percentile(found, 50)), 2) if len(found) else None,
        "p99_s": round(float(np.percentile(found, 99)), 2) if len(found) else None, "max_s": round(float(found.max()), 2) if len(found) else None,
        "read": line.read, "dead": line.dead, "duplicates": line.duplicate, "written": line.written.get("rows", 0), "status": record.status,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
