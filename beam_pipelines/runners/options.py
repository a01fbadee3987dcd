"""What `--runner` means, and the Beam options that go with it. Loads no Beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beam_pipelines.errors import SpecError, nearest

_ENGINES = {
    "direct": "FnApiRunner",
    "directrunner": "FnApiRunner",
    "fnapirunner": "FnApiRunner",
    "bundlebaseddirectrunner": "BundleBasedDirectRunner",
}
_FLINK = ("flink", "flinkrunner")
_LATER = ("dataflow", "dataflowrunner")
FLINK = "FlinkRunner"
_CORRUPTING = "--direct_running_mode=multi_threading"


BEAM = "2.77"
"""Beam's Python SDK, as far as versions are told apart: what tests run on."""
LOOPBACK = "loopback"
"""For `Flink.workers`: threads of the launching process."""


@dataclass(frozen=True)
class Flink:
    """A Flink cluster, as `host:port` of its REST service, and who does the work: the launching process (LOOPBACK) or the pool of Python workers that each task
    manager finds at `host:port`. None: the cluster of `beam-pipelines cluster up`, and its pool. `job_server_jar` is Beam's job server, where it is not the pinned one."""

    master: str | None = None
    workers: str | None = None
    job_server_jar: str | None = None


NOT_SAID = Flink()


@dataclass(frozen=True)
class Engine:
    """The Beam runner that will run the job, always named: a bare DirectRunner tries to download one and then chooses in silence."""

    name: str
    asked: str

    @property
    def announcement(self) -> str:
        """One line for people."""
        asked = "" if self.asked.lower() == self.name.lower() else f" (--runner {self.asked})"
        return f"engine: Beam's {self.name} {'on a cluster' if self.on_flink else 'in this process'}{asked}"

    @property
    def on_flink(self) -> bool:
        """Whether it is a Flink cluster; else it is this process."""
        return self.name == FLINK


def engine_for(runner: str) -> Engine:
    """The engine that `--runner` asks for. Raises SpecError where it is unknown, or not available in this version."""
    name = FLINK if runs_on_flink(runner) else _ENGINES.get(runner.lower())
    if name is not None:
        return Engine(name, runner)
    if runner.lower() in ("prism", "prismrunner"):
        raise SpecError(f"--runner {runner}: runs streams; this is a batch.", hint="Use --mode stream, or --runner direct.")
    if runner.lower() in _LATER:
        raise SpecError(f"--runner {runner}: is for the verb `run`.", hint="Use --runner direct or flink.")
    raise SpecError(
        f"--runner {runner}: unknown runner;",
        hint=nearest(runner, ["direct", "flink", "dataflow", "DirectRunner", "FlinkRunner", "FnApiRunner", "BundleBasedDirectRunner"]),
    )


def runs_on_flink(runner: str) -> bool:
    """Whether `--runner` means a Flink cluster."""
    return runner.lower() in _FLINK


def check_flags(flags: Sequence[str]) -> None:
    """Refuses Beam flags under which rows are lost. Raises SpecError."""
    joined = " ".join(flags).replace("--direct_running_mode multi_threading", _CORRUPTING)
    if _CORRUPTING in joined:
        raise SpecError(
            f"{_CORRUPTING}: with this mode Beam mixes up buffers when a coder releases the interpreter lock, as Arrow does, and loses rows.",
            hint="Use in_memory (the default) or multi_processing.",
        )
    if "data_buffer_time_limit_ms" in joined:
        raise SpecError(
            "--experiments=data_buffer_time_limit_ms: corrupts streams whose coder releases the interpreter lock, as Arrow's does.",
            hint="Leave it out.",
        )
