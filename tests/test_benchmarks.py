"""The benchmarks run: what they call of the package is there, their answers are those of their peers. No figure is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prism import prism_program

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
ROWS = 20_000


def run(*arguments: object) -> str:
    """What a program of `benchmarks/` prints."""
    path = os.pathsep.join([str(ROOT), str(BENCHMARKS)])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("j1")
    run(BENCHMARKS / "j1" / "generate.py", ROWS, data)
    return data


@pytest.mark.slow
@pytest.mark.parametrize("job", ["j1", "j2"])
def test_the_batch_benchmark_has_the_answers_of_its_peer(job: str, tmp_path: Path) -> None:
    compared = "import sys, batch; from pathlib import Path; job, rows, work = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]); "
    compared += "batch.compare(job, batch.data_of(job, rows, work), work, runs=1)"
    assert "ours" in run("-c", compared, job, ROWS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("archive", [[], ["--archive"]], ids=["without archive", "with archive"])
def test_the_stream_benchmark_counts_every_row(archive: list[str], events: Path, tmp_path: Path) -> None:
    prism_program()
    found = json.loads(
        run(BENCHMARKS / "stream" / "stages.py", events, tmp_path / "out", "--rows", ROWS, "--answer", 1_000, *archive).splitlines()[-1]
    )
    assert found["status"] == "success"
    assert found["rows"] == ROWS == found["written"] + found["dead"] + found["duplicates"]
    assert found["archived"] == (ROWS if archive else 0)


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(p.relative_to(BENCHMARKS).as_posix() for p in BENCHMARKS.rglob("*.py")))
def test_every_benchmark_finds_what_it_imports(program: str) -> None:
    run(
        "-c",
        f"import runpy, sys; sys.path.insert(0, {str((BENCHMARKS / program).parent)!r}); runpy.run_path({str(BENCHMARKS / program)!r}, run_name='looked at')",
    )
