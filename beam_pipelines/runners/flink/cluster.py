"""A Flink cluster on this machine, without Docker: ZooKeeper, a job manager, a task manager and a pool of Python workers, on loopback alone.

They outlive the program that starts them. What is known of them is in the cluster's folder:

    cluster.json   ports, versions, and each part's process
    conf/          Flink's and ZooKeeper's configuration, written anew by each start of a cluster
    logs/          one log per part
    checkpoints/ savepoints/     kept when the cluster is ended; elsewhere, where `start_cluster` is told so
    recovery/ zookeeper/ tmp/    gone with it: which jobs run, and where their checkpoints are

ZooKeeper is there so that a job manager that is killed and started again goes on with its jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from beam_pipelines.errors import BeamPipelinesError, RunError, TransientError
from beam_pipelines.runners.flink.conf import DIRECT_MB, HEAP_MB, HOST, LOGGING, flink_conf, zookeeper_conf
from beam_pipelines.runners.flink.gs_plugin import find_gs_plugin
from beam_pipelines.runners.flink.jars import JAVA_OPENS, RUNNER_VERSION, find_java, find_job_server
from beam_pipelines.runners.flink.lasting_process import LastingProcess, alive, end, kill, members, start
from beam_pipelines.runners.flink.rest import FlinkRest, Overview
from beam_pipelines.runners.flink.store import Store, store_at
from beam_pipelines.runners.kept import alone, kept_folder

REST_PORT = 8081
SLOTS = 2
Part = str
PARTS: tuple[Part, ...] = ("zookeeper", "job manager", "task manager", "worker pool")
"""Of a cluster with one task manager; further ones are called "task manager 2" and so on."""

WORKER = "beam-worker"
"""The name of a worker's process, on Linux; the spare one of a pool has it not yet."""
_TASK_MANAGER = "task manager"
_RECORD = "cluster.json"
_START_TIMEOUT_S = 90.0
_ANSWER_S = 5.0
_GRACE_S = 10.0
_PASSING = ("conf", "recovery", "zookeeper", "tmp")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ports:
    """The ports that outlast a part: whoever is started anew takes the same."""

    rest: int
    zookeeper: int
    workers: int


@dataclass(frozen=True)
class Cluster:
    """A cluster that was started: its parts may be alive or not. `environment` is that of parts that are started; no file holds it."""

    folder: Path
    id: str
    ports: Ports
    slots: int
    jar: Path
    store: Store
    parts: Mapping[Part, LastingProcess]
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    @property
    def rest(self) -> str:
        """`host:port` of Flink's REST service and web page: `--flink-master`."""
        return f"{HOST}:{self.ports.rest}"

    @property
    def workers(self) -> str:
        """`host:port` of the pool of Python workers: `--environment_config` of `--environment_type=EXTERNAL`."""
        return f"{HOST}:{self.ports.workers}"

    @property
    def client(self) -> FlinkRest:
        """Its REST service."""
        return FlinkRest(self.rest)

    @property
    def task_managers(self) -> int:
        """How many there are, alive or not; the slots are spread evenly."""
        return sum(part.startswith(_TASK_MANAGER) for part in self.parts)

    @property
    def dead(self) -> list[Part]:
        """The parts that do not run."""
        return [part for part, process in self.parts.items() if not alive(process)]

    @property
    def worker_pids(self) -> list[int]:
        """The processes in which Python steps run at the moment: none where no job does (Linux only)."""
        return [pid for pid in members(self.parts["worker pool"]) if _name(pid) == WORKER]

    def log(self, part: Part) -> Path:
        """Where a part's output goes."""
        return self.folder / "logs" / f"{part.replace(' ', '-')}.log"

    def kill(self, part: Part) -> None:
        """kill -9 of one part; returns when it is gone. Workers end with their pool by themselves."""
        kill(self.parts[part])

    def restart(self, part: Part) -> Cluster:
        """Starts a part that is dead with the ports and the configuration that it had; gives the cluster with its new process.

        It does not wait until the part serves: see `wait_until_ready`. Raises RunError where the part still runs.
        """
        if alive(self.parts[part]):
            raise RunError(f"{self.folder}: the {part} runs (process {self.parts[part].pid}); expected one that is dead.")
        changed = replace(self, parts={**self.parts, part: self._start(part)})
        changed._write()
        return changed

    def wait_until_ready(self, timeout_s: float = _START_TIMEOUT_S) -> Overview:
        """The cluster at a glance, once the job manager has all slots and the pool of workers listens.

        Raises RunError that names the part, and the last error in its log, where one dies or `timeout_s` pass.
        """
        deadline = time.monotonic() + timeout_s
        client = FlinkRest(self.rest, timeout_s=_ANSWER_S)
        waiting = ""
        while time.monotonic() < deadline:
            if self.dead:
                raise self._failed(self.dead[0], "ended")
            try:
                overview = client.overview()
                if overview.slots < self.slots:
                    waiting = f"has {overview.slots} of {self.slots} slots"
                elif not listens(self.workers):
                    waiting = f"has its slots, but no worker pool at {self.workers}"
                else:
                    return overview
            except TransientError as error:
                waiting = error.message
            time.sleep(0.1)
        raise self._failed("task manager", f"is not ready after {timeout_s:.0f} s: the cluster {waiting}")

    def end(self) -> None:
        """Ends what was started, and all that it started; returns when that is gone. Logs, checkpoints and savepoints stay."""
        for part in reversed(list(self.parts)):
            end(self.parts[part], grace_s=_GRACE_S)
        for name in _PASSING:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / _RECORD).unlink(missing_ok=True)

    def _failed(self, part: Part, what: str) -> RunError:
        error = _last_error(self.log(part)).removeprefix("Caused by: ").rstrip(".")
        return RunError(f"{self.folder}: the {part} {what}{f': {error}' if error else ''}.", hint=f"Its log: {self.log(part)}")

    def _start(self, part: Part) -> LastingProcess:
        # Programs that the workers start find this environment's, as they would from an activated one.
        path = os.pathsep.join([str(Path(sys.executable).parent), self.environment.get("PATH", os.defpath)])
        own = self.store.environment(self.environment) if part == "job manager" or part.startswith(_TASK_MANAGER) else {}
        return start(
            self._command(part), folder=self.folder, log=self.log(part), mark=f"{self.id}/{part}",
            environment={**self.environment, "PATH": path, **own},
        )  # fmt: skip

    def _command(self, part: Part) -> list[str]:
        if part == "worker pool":
            return [sys.executable, "-m", "beam_pipelines.runners.worker_pool", "--host", HOST, "--port", str(self.ports.workers)]
        memory, main, *arguments = {
            "zookeeper": (
                ["-Xmx64m", "-XX:+UseSerialGC"], "org.apache.flink.runtime.zookeeper.FlinkZooKeeperQuorumPeer",
                "--zkConfigFile", str(self.folder / "conf" / "zoo.cfg"), "--peerId", "1",
            ),
            "job manager": (
                ["-Xmx512m", "-XX:+UseSerialGC"], "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
                "--configDir", str(self.folder / "conf"),
            ),
            _TASK_MANAGER: (
                [f"-Xmx{HEAP_MB}m", f"-XX:MaxDirectMemorySize={DIRECT_MB}m"], "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
                "--configDir", str(self.folder / "conf"),
            ),
        }[_TASK_MANAGER if part.startswith(_TASK_MANAGER) else part]  # fmt: skip
        log = [f"-Dorg.slf4j.simpleLogger.{key}={value}" for key, value in LOGGING.items()]
        opens = [*JAVA_OPENS, f"-Dlog.file={self.log(part)}"]
        return [str(find_java(self.environment)), *memory, *opens, *log, "-cp", str(self.jar), main, *arguments]

    def _configure(self) -> None:
        for name in ("conf", "logs", "tmp", "recovery", "zookeeper"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        store = self.store.settings(self.environment)
        slots = self.slots // self.task_managers
        conf = flink_conf(self.folder, slots=slots, rest_port=self.ports.rest, zookeeper_port=self.ports.zookeeper, store=store)
        for name, text in (("flink-conf.yaml", conf), ("zoo.cfg", zookeeper_conf(self.folder, self.ports.zookeeper))):
            (self.folder / "conf" / name).write_text(text, "utf-8")
        for part in self.parts:
            self.log(part).write_bytes(b"")

    def _write(self) -> None:
        record = {
            "id": self.id, "rest": self.rest, "workers": self.workers, "ports": asdict(self.ports), "slots": self.slots, "jar": str(self.jar),
            "store": asdict(self.store), "beam_runner": RUNNER_VERSION, "parts": {part: asdict(process) for part, process in self.parts.items()},
        }  # fmt: skip
        unfinished = self.folder / f".{_RECORD}"
        unfinished.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        os.replace(unfinished, self.folder / _RECORD)


def cluster_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cluster of this user is kept, there or not, unless another folder is named."""
    return kept_folder(environ) / "cluster"


def find_cluster(folder: Path | None = None) -> Cluster | None:
    """The cluster that was started in a folder and not ended, alive or not; None where there is none.

    Raises RunError where its record cannot be read.
    """
    folder = folder or cluster_folder()
    path = folder / _RECORD
    try:
        found = json.loads(path.read_text("utf-8"))
        parts = {part: LastingProcess(**process) for part, process in found["parts"].items()}
        store = Store(**found.get("store", asdict(store_at(None, folder))))  # clusters of earlier versions name none
        return Cluster(folder, found["id"], Ports(**found["ports"]), found["slots"], Path(found["jar"]), store, parts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not the record of a cluster: {type(error).__name__}: {error}.",
            hint="Look for its processes (ps -ef | grep flink), end them, and remove the file.",
        ) from None


def master_of(named: str | None) -> str | None:
    """`host:port` of the cluster that is named, else of the one that was started here; None where neither is."""
    here = find_cluster() if named is None else None
    return named if here is None else here.rest


def start_cluster(
    folder: Path | None = None,
    *,
    slots: int | None = None,
    task_managers: int | None = None,
    port: int | None = None,
    checkpoints: str | None = None,
    job_server_jar: str | None = None,
    environment: Mapping[str, str] = os.environ,
    say: Say | None = None,
) -> tuple[Cluster, list[Part]]:
    """A cluster that is ready in `folder`, and the parts that were started for it: none where it ran already, some where some were dead.

    Where None, `task_managers` is 1, `slots`, of all together, SLOTS or one for each, and `port`, that of Flink's REST service, 8081 or, where another has that, a free one. `environment` is what the
    pool's workers see. Checkpoints and savepoints lie below `checkpoints`, a folder or gs://bucket/folder; where None, in `folder`.
    Raises RunError where a part does not start (what was started is then ended), where the cluster that runs is another than was asked for,
    and where there is no Java, jar or plugin; SinkError where `checkpoints` cannot be written, SpecError where it is no such place.
    """
    folder = (folder or cluster_folder()).resolve()
    with alone(folder, what="the cluster's files", instead="name one by --folder"):
        found = find_cluster(folder)
        if found is not None:
            _same(found, slots, task_managers, port, None if checkpoints is None else store_at(checkpoints, folder))
            return _repaired(replace(found, environment=environment))
        managers = task_managers or 1
        slots = slots or max(SLOTS, managers)
        if slots % managers:
            raise RunError(
                f"{slots} slots cannot be spread evenly over {managers} task managers.",
                hint=f"Ask for {managers * (slots // managers + 1)}.",
            )
        find_java(environment)
        store = store_at(checkpoints, folder)
        store.make()
        jar = find_job_server(job_server_jar, environ=environment, say=say)
        if store.in_bucket:
            store = replace(store, plugins=str(find_gs_plugin(environment, say=say)))
        started = _started(folder, slots, managers, port, jar, store, environment)
        return started, list(started.parts)


def end_cluster(folder: Path | None = None) -> Cluster | None:
    """Ends the cluster of a folder; gives what it was, None where there was none."""
    folder = (folder or cluster_folder()).resolve()
    if not (folder / _RECORD).exists():
        return None
    with alone(folder, what="the cluster's files", instead="name one by --folder"):
        found = find_cluster(folder)
        if found is not None:
            found.end()
        return found


def listens(address: str) -> bool:
    """Whether somebody takes connections at `host:port`; asked for 5 s at most."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def local_cluster(
    folder: Path,
    *,
    slots: int = SLOTS,
    task_managers: int = 1,
    checkpoints: str | None = None,
    environment: Mapping[str, str] = os.environ,
    say: Say | None = None,
) -> Iterator[Cluster]:
    """A cluster on free ports in `folder` for as long as the block lasts; it ends with this process, too, however that dies.

    `kill` and `restart` are the Cluster's; after a `restart` use the Cluster that it gave.
    """
    with _ended_with_this_process(folder):
        port = _free_ports(1)[0]
        yield start_cluster(
            folder, slots=slots, task_managers=task_managers, port=port, checkpoints=checkpoints, environment=environment, say=say
        )[0]


@contextlib.contextmanager
def _ended_with_this_process(folder: Path) -> Iterator[None]:
    """A watcher reads a pipe whose other end only this process holds: when that ends, in whatever way, the watcher ends the cluster."""
    code = "import sys; sys.stdin.read(); from pathlib import Path; from beam_pipelines.runners.flink.cluster import end_cluster; end_cluster(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    watcher = subprocess.Popen(  # noqa: S603  (this program)
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    try:
        yield
    finally:
        try:
            end_cluster(folder)
        finally:
            watcher.kill()
            watcher.wait()
            if watcher.stdin is not None:
                watcher.stdin.close()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
    except OSError:  # ended meanwhile
        return ""


def _same(found: Cluster, slots: int | None, task_managers: int | None, port: int | None, store: Store | None) -> None:
    place = None if store is None else store.place
    settings = (
        ("slots", found.slots, slots),
        ("task managers", found.task_managers, task_managers),
        ("port", found.ports.rest, port),
        ("checkpoints", found.store.place, place),
    )
    for what, has, asked in settings:
        if asked is not None and has != asked:
            raise RunError(
                f"{found.folder}: the cluster there was started with {what} {has}; asked for was {asked}.",
                hint="End it first: beam-pipelines cluster down.",
            )


def _repaired(found: Cluster) -> tuple[Cluster, list[Part]]:
    dead = found.dead
    for part in dead:
        found = found.restart(part)
    found.wait_until_ready()
    return found, dead


def _started(
    folder: Path, slots: int, task_managers: int, port: int | None, jar: Path, store: Store, environment: Mapping[str, str]
) -> Cluster:
    rest = REST_PORT if port is None and not listens(f"{HOST}:{REST_PORT}") and _free(REST_PORT) else port
    zookeeper, workers, other = _free_ports(3)
    more = [f"{_TASK_MANAGER} {number}" for number in range(2, task_managers + 1)]
    nobody = {part: LastingProcess(0, "", "") for part in (*PARTS[:-1], *more, PARTS[-1])}
    cluster = Cluster(folder, secrets.token_hex(8), Ports(rest or other, zookeeper, workers), slots, jar, store, nobody, environment)
    for name in _PASSING:  # what a crash of the machine left
        shutil.rmtree(folder / name, ignore_errors=True)
    cluster._configure()
    try:
        for part in cluster.parts:
            cluster = cluster.restart(part)
        cluster.wait_until_ready()
    except (BeamPipelinesError, OSError, KeyboardInterrupt):
        cluster.end()
        raise
    return cluster


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that are ending do not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    """Different ports that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _last_error(log: Path) -> str:
    """The last line of a log that looks like an error, else the last; empty where there is none."""
    try:
        lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors: Sequence[str] = [line for line in lines if line.startswith("Caused by: ") or " ERROR " in line or "Error: " in line]
    return (errors or lines or [""])[-1][:500]
