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
_LATER = {
    "flink": "Flink",
    "flinkrunner": "Flink",
    "dataflow": "Dataflow",
    "dataflowrunner": "Dataflow",
}
_CORRUPTING = "--direct_running_mode=multi_threading"


@dataclass(frozen=True)
class Engine:
    """The Beam runner that will run the job, always named: a bare DirectRunner tries to download one and then chooses in silence."""

    name: str
    asked: str

    @property
    def announcement(self) -> str:
        """One line for people."""
        asked = "" if self.asked.lower() == self.name.lower() else f" (--runner {self.asked})"
        return f"engine: Beam's {self.name} in this process{asked}"


def engine_for(runner: str) -> Engine:
    """The engine that `--runner` asks for. Raises SpecError where it is unknown, or not available in this version."""
    name = _ENGINES.get(runner.lower())
    if name is not None:
        return Engine(name, runner)
    if runner.lower() in ("prism", "prismrunner"):
        raise SpecError(f"--runner {runner}: runs streams; this is a batch.", hint="Use --mode stream, or --runner direct.")
    if runner.lower() in _LATER:
        raise SpecError(f"--runner {runner}: the {_LATER[runner.lower()]} path is not part of this version.", hint="Use --runner direct.")
    raise SpecError(
        f"--runner {runner}: unknown runner;", hint=nearest(runner, ["direct", "DirectRunner", "FnApiRunner", "BundleBasedDirectRunner"])
    )


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
