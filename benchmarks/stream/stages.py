"""One run of the stage pipeline on Prism, or on the Flink cluster that is given, by the product's own `run_stream`. Prints one JSON line.

python benchmarks/stream/stages.py DATA OUT --rows 2000000 --answer 100 [--archive]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from endless import BEGIN, FEED, SPAN, Feed, lines_of, messages_of, reading

from beam_pipelines import metrics
from beam_pipelines.runners.options import LOOPBACK, Flink
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.spec.load import load_spec

SPEC = Path(__file__).parent / "pipeline.yaml"


def main() -> None:
    """Feeds, runs, counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--answer", type=int, required=True)
    parser.add_argument("--archive", action="store_true", help="raw messages are stored in the archive first, as the product always does")
    parser.add_argument("--flink", metavar="HOST:PORT", help="a Flink cluster; its own CPU seconds are not in the figures")
    options = parser.parse_args()
    arrivals = BEGIN + np.arange(options.rows) * (SPAN // 2_000_000)
    messages = messages_of(lines_of(options.data, options.rows), arrivals, archived=not options.archive)
    FEED.append(Feed(messages, arrivals, options.answer))
    loaded = load_spec(SPEC, set_={"lake": str(options.out)})
    ended: list[float] = []
    begun, wall = time.process_time(), time.monotonic()
    flink = None if options.flink is None else Flink(options.flink, LOOPBACK)
    record = run_stream(loaded, StreamCall(make=reading(0.1), watch=lambda: ended.append(time.process_time()), flink=flink))
    [line] = record.ledger
    python, prism = ended[-1] - begun, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # the ledger after the end is not the stream's
    seen = metrics.snapshot()
    print(json.dumps({
        "cpu_s": round(python + prism, 2), "python_s": round(python, 2), "prism_s": round(prism, 2), "wall_s": round(time.monotonic() - wall, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "prism_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "rows": options.rows, "dead": line.dead, "duplicates": line.duplicate, "written": line.written["rows"], "archived": seen.get("messages_archived", 0),
        "panes": seen.get("hourly_written", 0), "status": record.status,
    }))  # fmt: skip
    if options.rows != line.dead + line.duplicate + line.filtered + line.written["rows"]:
        raise SystemExit("rows are missing or left twice")


if __name__ == "__main__":
    main()
