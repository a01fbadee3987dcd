"""Memory and linearity of J1: peak resident memory and CPU at 1 and 8 million rows, and at 10 GB of input.

    make bench-memory                     needs about 25 GB of disk and a quarter of an hour
    python benchmarks/memory.py --rows 1000000 8000000

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from batch import data_of, forget_state, measure, ours

TEN_GIGABYTES = 42_000_000
"""Rows of 241 bytes."""


def main() -> None:
    """Runs the job once per size and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 8_000_000, TEN_GIGABYTES])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "beam-pipelines-bench")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for rows in options.rows:
        data, out = data_of("j1", rows, options.work), options.work / "j1-memory"
        run = measure(ours("j1", data, out))
        size = sum(f.stat().st_size for f in data.glob("*.jsonl"))
        figures[str(rows)] = {"cpu_s": round(run.cpu_s, 1), "peak_mib": round(run.peak_mib), "input_gb": round(size / 1e9, 2)}
        print(f"  j1 {rows:>11,} rows {size / 1e9:6.2f} GB {run.cpu_s:7.1f} CPU s {run.peak_mib:6.0f} MiB  {run.answer}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        forget_state("j1")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
