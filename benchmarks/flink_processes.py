"""A stream on Flink by one Python process and by two, each with a task manager of its own: CPU seconds, and how long, for a backlog in the embedded broker.

    python benchmarks/flink_processes.py [--rows 600000] [--runs 3] [--quick]

The spec has checks, `deduplicate` and an hourly aggregate; the archive, rows, panes and doors are stored as always. The backlog is published before the job starts. Time and CPU seconds (user + system, of Flink, the workers
and the command) are from the first messages that are handed out until all are acknowledged. The broker's are not in them, though it takes its share of the machine. The last line of output is one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from batch import options_of
from flink import taken_s
from flink_boundary import cpu_s

from beam_pipelines.runners.flink.cluster import Cluster, local_cluster
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sources.pubsub_reports import reports

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.pubsub_servers import broker_process

SPEC = """
spec: 1
pipeline: events
parameters: {subscription: {type: string}}
contract:
  key: [id]
  event_time: at
  columns:
    id: {type: int64, required: true}
    at: {type: timestamp, required: true}
    user: {type: string, required: true}
    cents: {type: int64, min: 0}
sources:
  stream: [{pubsub: "${subscription}", format: json, max_outstanding_messages: 50_000}]
deduplicate: {within: 1h}
aggregates:
  hourly:
    windowing: {type: fixed, size: 1h}
    group_by: [user]
    measures: {n: count(), total: sum(cents)}
sinks:
  - {from: rows, parquet: {path: lake/rows}}
  - {from: hourly, parquet: {path: lake/hourly}}
  - {from: dead_letters, parquet: {path: lake/dead}}
"""


def message(number: int, now: float) -> dict[str, Any]:
    """One of them; one in twenty comes twice, one in a hundred is refused."""
    of = number - 1 if number % 20 == 19 else number
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - of % 1_000))
    row = {"id": of, "at": at, "user": f"user-{of % 500}", "cents": -1 if of % 100 == 7 else of % 10_000}
    return {"data": json.dumps(row).encode()}


def run(folder: Path, rows: int, processes: int) -> dict[str, Any]:
    """One stream over `rows` messages, on a cluster of its own."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(SPEC, "utf-8")
    with broker_process() as broker, local_cluster(folder / "cluster", slots=processes, task_managers=processes) as cluster:
        topic, subscription = broker.pair(ack_deadline_seconds=60)
        now = time.time()
        for first in range(0, rows, 5_000):
            broker.publish_all(topic, [message(n, now) for n in range(first, min(rows, first + 5_000))])
        load = os.getloadavg()[0]
        command = [
            sys.executable, "-m", "beam_pipelines", "run", "spec.yaml", "--mode", "stream", "--set", f"subscription={subscription}", "--until-idle", "5s", "--runner", "flink",
            "--flink-master", cluster.rest, "--flink-workers", cluster.workers, "--", f"--parallelism={processes}", "--checkpointing_interval=2000",
        ]  # fmt: skip
        environment = {**os.environ, **broker.environment, "PYTHONPATH": str(Path(__file__).parents[1])}
        with (folder / "log").open("wb") as log:
            job = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            spent_s, wall_s, shares = followed(folder, job, cluster, rows)
            code = job.wait()
    if code:
        raise SystemExit((folder / "log").read_text("utf-8")[-2_000:])
    found = {
        "processes": processes, "cpu_s": round(spent_s, 1), "wall_s": round(wall_s, 1), "shares": shares, "written": written(folder),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }  # fmt: skip
    print(f"  {found}", flush=True)
    return found


def followed(folder: Path, job: subprocess.Popen[bytes], cluster: Cluster, rows: int) -> tuple[float, float, list[int]]:
    """CPU seconds and seconds from the first messages that were handed out until all were acknowledged, and how many each process had."""
    begun, control = None, str(folder / ".beam_pipelines" / "events" / "stream" / "control" / "000001")
    while job.poll() is None:
        told = [report.status for report in reports(control).values()]
        now = (taken_s(cluster) + cpu_s([job.pid]), time.monotonic())
        if begun is None and any(status.delivered for status in told):
            begun = now
        if begun is not None and sum(status.acked for status in told) >= rows:
            return now[0] - begun[0], now[1] - begun[1], sorted(status.acked for status in told)
        time.sleep(0.2)
    raise SystemExit((folder / "log").read_text("utf-8")[-2_000:])


def written(folder: Path) -> int:
    """Rows that readers see."""
    with open_tables(str(folder / ".beam_pipelines" / "events")) as tables:
        return int(tables.execute("SELECT count(*) FROM rows").fetchall()[0][0])


def main() -> None:
    """Runs both in turn and prints the figures."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    options = parser.parse_args()
    rows, runs = (options.rows // 10, 1) if options.quick else (options.rows, options.runs)
    with tempfile.TemporaryDirectory() as work:
        found = [run(Path(work) / f"{number}-{count}", rows, count) for number in range(runs) for count in (1, 2)]
    if len({one["written"] for one in found}) != 1:
        raise SystemExit(f"the answers differ: {found}")
    figures: dict[str, float] = {}
    for count in (1, 2):
        mine = [one for one in found if one["processes"] == count]
        spent_s, wall_s = (statistics.median(one[name] for one in mine) for name in ("cpu_s", "wall_s"))
        figures |= {f"rows_per_cpu_s_{count}": round(rows / spent_s), f"rows_per_s_{count}": round(rows / wall_s)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
