"""Stream jobs as processes of their own: started, killed, and what they left compared with the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.stream_ledger import StreamLedger, stream_ledger
from tests.conftest import ROOT
from tests.faults.truth import SPEC, Row, Truth
from tests.prism import prism_program

GONE_S = 30.0
PANES = {
    "by_user": '"user", _window_start, _window_end, n, total, top',
    "slides": '"user", _window_start, _window_end, n, total',
    "visits": "visitor, _window_start, _window_end, n, total",
}


@dataclass
class Job:
    """A process that runs a stream; what it says on stderr is read as it comes."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    _heard: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.said.append(line.rstrip())
                self._heard.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def hears(self, sentence: str, *, timeout_s: float = 60.0) -> None:
        """Waits until the job says it."""
        with self._heard:
            assert self._heard.wait_for(lambda: sentence in self.text, timeout_s), f"never said {sentence!r}:\n{self.text}"

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Sends a signal and waits for the end; gives the exit code, negative for a signal."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self, timeout_s: float = GONE_S) -> int:
        """Waits for the end; gives the exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end within {timeout_s} s:\n{self.text}") from None
        self._reader.join(GONE_S)
        return code


@dataclass(frozen=True)
class Lake:
    """A spec in a folder of its own, run by as many processes as a test likes."""

    folder: Path
    subscription: str
    environment: Mapping[str, str]

    @classmethod
    def make(cls, folder: Path, subscription: str, server: Mapping[str, str], *, spec: str = SPEC) -> Lake:
        (folder / "spec.yaml").write_text(spec, "utf-8")
        paths = os.pathsep.join([str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        here = {**os.environ, **server, "PYTHONPATH": paths, "BEAM_PIPELINES_PRISM": str(prism_program()), "NO_COLOR": "1"}
        return cls(folder, subscription, here)

    @property
    def state(self) -> str:
        return str(self.folder / ".beam_pipelines" / "events")

    def start(self, *arguments: str, at: str | None = None) -> Job:
        """Starts the stream; `at` names a point of `points` at which it kills itself."""
        program = ["-c", "from beam_pipelines.cli import main; main()"] if at is None else ["-m", "tests.faults.points", at]
        given = ["run", "spec.yaml", "--mode", "stream", "--set", f"subscription={self.subscription}", *arguments]
        return Job(
            subprocess.Popen(
                [sys.executable, *program, *given], cwd=self.folder, env=dict(self.environment), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip

    def tables(self) -> duckdb.DuckDBPyConnection:
        return open_tables(self.state)

    def ledger(self) -> StreamLedger:
        outputs = read_outputs(self.state)
        assert outputs is not None
        return stream_ledger(self.state, outputs)

    def starts(self) -> int:
        return len(list((Path(self.state) / "stream" / "epochs").glob("??????.json")))


def rows_in(connection: duckdb.DuckDBPyConnection) -> Counter[tuple[Row, Any]]:
    found = connection.sql('SELECT id, version, "at", "user", visitor, cents, _arrival_time FROM rows').fetchall()
    return Counter((Row(*row[:6]), row[6]) for row in found)


def check(lake: Lake, expected: Truth, *, panes: Sequence[str] = tuple(PANES)) -> str:
    """Fails where the views are not the truth; gives a line of counts."""
    views = lake.tables()
    found = rows_in(views)
    assert found - expected.rows == Counter(), f"rows that were not published, or twice: {_some(found - expected.rows)}"
    assert expected.rows - found == Counter(), f"rows that are missing: {_some(expected.rows - found)}"
    for name in panes:
        shown = sorted(views.sql(f"SELECT {PANES[name]} FROM {name}").fetchall())
        wrong, missing = Counter(shown) - Counter(expected.panes[name]), Counter(expected.panes[name]) - Counter(shown)
        assert not wrong, (
            f"{name}: {wrong.total()} wrong, {missing.total()} missing, of {len(expected.panes[name])}: {_some(wrong)}; for {_some(missing)}"
        )
        assert not missing, f"{name}: {missing.total()} of {len(expected.panes[name])} missing: {_some(missing)}"
    dead = views.sql("SELECT any_value(raw) FROM dead_letters WHERE stage <> 'aggregate' GROUP BY source, position").fetchall()
    assert Counter(bytes(raw) for (raw,) in dead) == expected.broken
    late = dict(
        views.sql(
            "SELECT failures[1].name, count(DISTINCT (source, position)) FROM dead_letters WHERE reason = 'LATE' GROUP BY 1"
        ).fetchall()
    )
    assert late == {name: n for name, n in expected.late.items() if n}
    ledger = lake.ledger()
    assert ledger.balanced, ledger.explain()
    counts = {"rows": found.total(), **{name: len(expected.panes[name]) for name in panes}, "dead": len(dead), "late": sum(late.values())}
    return ", ".join(f"{n:,} {name}" for name, n in counts.items())


def _some(counted: Counter[Any]) -> list[Any]:
    return list(counted)[:3]
