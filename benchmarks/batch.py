"""The batch benchmark: our job from its spec, DuckDB's SQL and row-wise Beam over the same files, run in turn.

    make bench-batch                     2 and 4 million events (J1), 800,000 orders (J2)
    python benchmarks/batch.py --quick   a tenth of it, to see that everything runs

CPU seconds (user + system, children included), wall seconds and peak memory of whole processes; medians of interleaved runs. Every run's
answer is compared with the peer's before any figure counts. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
J2_ROWS = 800_000


@dataclass(frozen=True)
class Run:
    """One process: CPU seconds, wall seconds, peak resident MiB, and its answer (rows read, dead, duplicates, written)."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    answer: dict[str, int]


def measure(command: list[str]) -> Run:
    """Runs `command` as a whole process, children included. Raises SystemExit where it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # else each start compiles the package
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - begun
        out.seek(0)
        text = out.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, _answer(text))


def _answer(text: str) -> dict[str, int]:
    """What became of the rows: from our run record, from a peer's last line."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        lines = text.strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "ledger" not in found:
        return {k: int(found[k]) for k in ("read", "dead", "duplicates", "written")}
    lines = found["ledger"]
    return {
        "read": sum(line["read"] for line in lines), "dead": sum(line["dead"] for line in lines),
        "duplicates": sum(line["duplicate"] for line in lines), "written": sum(line["written"].get("rows", 0) for line in lines),
    }  # fmt: skip


def ours(job: str, data: Path, out: Path) -> list[str]:
    """The product's own command."""
    spec = str(HERE / job / "pipeline.yaml")
    return [sys.executable, "-m", "beam_pipelines.cli", "run", spec, "--set", f"input={data}", "--set", f"lake={out}", "--json"]


def peer(job: str, program: str, data: Path, out: Path) -> list[str]:
    """A peer's program."""
    return [sys.executable, str(HERE / job / program), str(data), str(out)]


def compare(job: str, data: Path, work: Path, *, runs: int) -> tuple[list[Run], list[Run]]:
    """Our runs and DuckDB's, in turn; their answers must be equal."""
    mine: list[Run] = []
    theirs: list[Run] = []
    for _ in range(runs):
        for kind, into in (("ours", mine), ("duckdb", theirs)):
            out = work / f"{job}-{kind}"
            shutil.rmtree(out, ignore_errors=True)
            run = measure(ours(job, data, out) if kind == "ours" else peer(job, "duckdb_peer.py", data, out))
            into.append(run)
            print(
                f"  {job} {data.name} {kind:8s} {run.cpu_s:7.2f} CPU s {run.wall_s:7.2f} s {run.peak_mib:7.0f} MiB  {run.answer}",
                flush=True,
            )
            forget_state(job)
        expect_same(job, "DuckDB", mine[-1], theirs[-1])
    return mine, theirs


def expect_same(job: str, who: str, ours: Run, theirs: Run) -> None:
    """Raises SystemExit where the peer has another answer."""
    if theirs.answer != ours.answer:
        raise SystemExit(f"{job}: the answers differ: ours {ours.answer}, that of {who} {theirs.answer}")


def forget_state(job: str) -> None:
    """Every run starts as the first."""
    shutil.rmtree(HERE / job / ".beam_pipelines", ignore_errors=True)


def data_of(job: str, rows: int, work: Path) -> Path:
    """The input of `rows` rows, made once."""
    data = work / f"{job}-{rows}"
    if not (data / ".complete").exists():
        subprocess.run([sys.executable, str(HERE / job / "generate.py"), str(rows), str(data)], check=True)
        (data / ".complete").touch()
    return data


def median(runs: list[Run], figure: str) -> float:
    """The median of one figure."""
    return statistics.median(getattr(r, figure) for r in runs)


def options_of(about: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one run each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "beam-pipelines-bench")
    return parser


def main() -> None:
    """Runs everything and prints the figures."""
    parser = options_of(__doc__)
    parser.add_argument("--skip-rowwise", action="store_true")
    options = parser.parse_args()
    scale, runs = (10, 1) if options.quick else (1, options.runs)
    options.work.mkdir(parents=True, exist_ok=True)
    small, large = 2_000_000 // scale, 4_000_000 // scale
    figures: dict[str, float] = {}
    j1_small = compare("j1", data_of("j1", small, options.work), options.work, runs=runs)
    figures["cpu_ratio_duckdb_2m"] = median(j1_small[0], "cpu_s") / median(j1_small[1], "cpu_s")
    j1_large = compare("j1", data_of("j1", large, options.work), options.work, runs=runs)
    figures["cpu_ratio_duckdb_4m"] = median(j1_large[0], "cpu_s") / median(j1_large[1], "cpu_s")
    if not options.skip_rowwise:
        rowwise = measure(peer("j1", "rowwise_beam.py", data_of("j1", small, options.work), options.work / "j1-rowwise"))
        print(f"  j1 {small} row-wise Beam {rowwise.cpu_s:.1f} CPU s {rowwise.wall_s:.1f} s {rowwise.peak_mib:.0f} MiB", flush=True)
        shutil.rmtree(options.work / "j1-rowwise", ignore_errors=True)
        expect_same("j1", "row-wise Beam", j1_small[0][-1], rowwise)
        figures["rowwise_beam_over_ours"] = rowwise.cpu_s / median(j1_small[0], "cpu_s")
    figures["peak_memory_ratio_duckdb_4m"] = median(j1_large[0], "peak_mib") / median(j1_large[1], "peak_mib")
    j2 = compare("j2", data_of("j2", J2_ROWS // scale, options.work), options.work, runs=runs)
    figures["j2_cpu_ratio_duckdb"] = median(j2[0], "cpu_s") / median(j2[1], "cpu_s")
    figures["cpu_growth_2m_to_4m"] = median(j1_large[0], "cpu_s") / median(j1_small[0], "cpu_s")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
