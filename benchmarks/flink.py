"""Flink beside the local runners: J1 in batch, and its events as a stream, on a cluster of this machine; what one more stage costs, and checkpoints.

    make bench-flink                     2 million events, three runs each
    python benchmarks/flink.py --quick   a tenth of it, to see that everything runs

`flink_boundary.py` and `flink_checkpoints.py` are the parts about stages and state; each runs by itself, too.

CPU seconds (user + system) of the command, of Flink and of the workers together: what the command's process tree took, and by how much the cluster's processes
have grown meanwhile. Medians of interleaved runs; every answer is compared with the local runner's before a figure counts. The last line of output is one JSON object.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from batch import data_of, forget_state, measure, options_of, ours
from flink_boundary import boundary, cpu_s
from flink_checkpoints import checkpoints
from stream import program

from beam_pipelines.runners.flink.cluster import Cluster, local_cluster

HERE = Path(__file__).parent


def taken_s(cluster: Cluster) -> float:
    """CPU seconds that all processes of the cluster have taken, those of workers that have ended included."""
    return cpu_s([*(part.pid for part in cluster.parts.values()), *cluster.worker_pids])


def batch(cluster: Cluster, data: Path, work: Path, how: str) -> dict[str, Any]:
    """One run of J1: "local", or workers and parallelism on Flink, as "pool-2"."""
    out = work / f"j1-{how}"
    shutil.rmtree(out, ignore_errors=True)
    command = ours("j1", data, out)
    if how != "local":
        workers, _, parallelism = how.partition("-")
        where = cluster.workers if workers == "pool" else "loopback"
        command += ["--runner", "flink", "--flink-master", cluster.rest, "--flink-workers", where, "--", f"--parallelism={parallelism}"]
    before = taken_s(cluster)
    run = measure(command)
    flink_s = 0.0 if how == "local" else taken_s(cluster) - before
    forget_state("j1")
    found = {"cpu_s": run.cpu_s + flink_s, "command_s": run.cpu_s, "cluster_s": flink_s, "wall_s": run.wall_s, "answer": run.answer}
    print(f"  batch {how:10s} {found['cpu_s']:7.2f} CPU s ({flink_s:.2f} of the cluster) {run.wall_s:7.2f} s  {run.answer}", flush=True)
    return found


def stream(cluster: Cluster, data: Path, work: Path, rows: int, how: str) -> dict[str, Any]:
    """One run of J1's events from a source in the process, on Prism or on Flink."""
    out = work / "stages"
    shutil.rmtree(out, ignore_errors=True)
    before = taken_s(cluster)
    flags = ["--flink", cluster.rest] if how == "flink" else []
    found: dict[str, Any] = json.loads(program("stages.py", data, out, "--rows", rows, "--answer", 1_000, "--archive", *flags)[-1])
    found["cpu_s"] += taken_s(cluster) - before if how == "flink" else 0.0
    print(
        f"  stream {how:6s} {found['cpu_s']:7.2f} CPU s {found['wall_s']:7.1f} s  {found['written']} rows, {found['panes']} panes",
        flush=True,
    )
    return found


def main() -> None:
    """Runs everything and prints the figures."""
    options = options_of(__doc__).parse_args()
    scale, runs = (10, 1) if options.quick else (1, options.runs)
    rows = 2_000_000 // scale
    options.work.mkdir(parents=True, exist_ok=True)
    data = data_of("j1", rows, options.work)
    kinds = ["local", "loopback-1", "pool-1", "pool-2"]
    batches: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    streams: dict[str, list[dict[str, Any]]] = {"prism": [], "flink": []}
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder) / "cluster") as cluster:
        for _ in range(runs):
            for kind in kinds:
                batches[kind].append(batch(cluster, data, options.work, kind))
            for kind, found in streams.items():
                found.append(stream(cluster, data, options.work, rows, kind))
        costs = boundary(cluster, runs=runs, scale=scale) | checkpoints(cluster, scale=scale)
    answers = {json.dumps(run["answer"], sort_keys=True) for found in batches.values() for run in found}
    answers_of_streams = {(run["written"], run["dead"], run["duplicates"]) for found in streams.values() for run in found}
    if len(answers) != 1 or len(answers_of_streams) != 1:
        raise SystemExit(f"the answers differ: {answers} {answers_of_streams}")
    cpu = {kind: statistics.median(run["cpu_s"] for run in found) for kind, found in (batches | streams).items()}
    wall = {kind: statistics.median(run["wall_s"] for run in found) for kind, found in (batches | streams).items()}
    figures: dict[str, float] = {f"batch_cpu_ratio_{kind}": cpu[kind] / cpu["local"] for kind in kinds[1:]}
    figures |= {f"batch_wall_ratio_{kind}": wall[kind] / wall["local"] for kind in kinds[1:]}
    figures |= {f"batch_rows_per_cpu_s_{kind}": rows / cpu[kind] for kind in kinds}
    figures |= {f"stream_rows_per_cpu_s_{kind}": rows / cpu[kind] for kind in streams}
    figures["stream_cpu_ratio_flink"] = cpu["flink"] / cpu["prism"]
    print(json.dumps({name: round(value, 2) for name, value in (figures | costs).items()}))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
