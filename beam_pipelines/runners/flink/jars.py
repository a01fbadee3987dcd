"""Beam's job server for Flink: the jar that is named, the one that is kept, or one that Maven builds; and the Java that runs it.

The jar that Maven builds is both Beam's job server and, as class path, Flink's job manager and task manager (`cluster`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.kept import alone, kept_folder

RUNNER_VERSION = "2.70.0"
"""Of Beam's Flink runner in the jar that Maven builds: the newest that Maven's repositories hold in parts."""
FLINK_VERSION = "1.19"
OPTION = "--flink-job-server-jar"
POM = Path(__file__).with_name("pom.xml")
CONTENT_SHA256 = "3f25cdfb885f871591dc9fc8c96d9cd8b52c0ff767e63266772257e8cf1aeb83"
"""Of the jar that POM gives: see `content_sha256`. A test builds it anew."""
JAVA_VERSIONS = (17, 11)
"""That Flink 1.19 runs on; the first is preferred."""
JAVA_OPENS = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.text", "java.time", "java.util",
        "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks",
    )
)  # fmt: skip
"""For every JVM that runs Flink or Beam's runner: job server, job manager, task manager (with Java 17 they do not work without)."""

_JAR = "beam-flink-job-server.jar"
_DRIVER = "org/apache/beam/runners/flink/FlinkJobServerDriver.class"
_BUILD_TIMEOUT_S = 900
_NO_NETWORK = re.compile(
    r"Unknown host|Connection refused|Network is unreachable|timed out|No route to host|in offline mode|Could not transfer artifact"
)

Say = Callable[[str], None]
Build = Callable[[Path, Path, Mapping[str, str]], Path]
"""Builds in a folder of its own, with a log, in an environment: the jar. Raises RuntimeError or OSError with the reason."""


@dataclass(frozen=True)
class JarVersions:
    """What a job server jar says of itself; None where it says nothing."""

    beam: str | None
    flink: str | None


def maven_build(folder: Path, log: Path, environ: Mapping[str, str]) -> Path:
    """The jar that POM gives, built by Maven in `folder`; what Maven says goes to `log`.

    Versions are pinned by the POM, what comes out by CONTENT_SHA256. Raises RuntimeError with the reason in one clause.
    """
    shutil.copyfile(POM, folder / "pom.xml")
    run_maven(["--file", str(folder / "pom.xml"), "package"], folder, log, environ)
    jar = folder / "target" / _JAR
    digest = content_sha256(jar)
    if digest != CONTENT_SHA256:
        raise RuntimeError(
            f"what Maven built is not what was tested: content {digest}, expected {CONTENT_SHA256}; a repository gave other files; Maven's log: {log}"
        )
    return jar


def run_maven(arguments: Sequence[str], folder: Path, log: Path, environ: Mapping[str, str]) -> None:
    """Runs Maven in `folder`; what it says goes to `log`. Raises RuntimeError with the reason in one clause, RunError where there is no Java."""
    maven = builder(environ)
    if maven is None:
        raise RuntimeError("it cannot be built or fetched, for there is no Maven (`mvn`)")
    java = find_java(environ)
    command = [maven, "--batch-mode", "--strict-checksums", "--no-transfer-progress", *arguments]
    with open(log, "wb") as out:
        done = subprocess.run(  # noqa: S603  (mvn, with arguments of ours)
            command, env={**environ, "JAVA_HOME": str(java.parent.parent)}, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            timeout=_BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Maven failed: {_maven_reason(log)}; its log: {log}")


def builder(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Maven that would build the jar; None where there is none, and Beam's download is left."""
    return shutil.which("mvn", path=environ.get("PATH"))


def find_job_server(
    given: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    say: Say | None = None,
    build: Build = maven_build,
) -> Path:
    """The path of a job server jar: `given` (the option --flink-job-server-jar), else the one in the cache, else built into the cache.

    Processes that look at the same time wait for one another, and none sees a half-made jar. `say` is told (default: on stderr)
    before anything that takes long.

    Raises SpecError where the jar that was named cannot be used, RunError where there is none and none can be built: then Beam's
    own download is left.
    """
    if given:
        return _named(Path(given))
    kept = kept_job_server(environ)
    if not kept.is_file():
        with alone(kept.parent, what="Beam's job server for Flink", instead=f"name a jar by {OPTION}"):
            if not kept.is_file():  # another process may have made it meanwhile
                _make(kept, environ, say or to_stderr, build)
    return kept


def kept_job_server(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the jar that Maven builds is kept, there or not."""
    pom = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    return kept_folder(environ) / "flink" / f"{RUNNER_VERSION}-{pom}" / _JAR


def _named(path: Path) -> Path:
    wrong = ""
    if not path.is_file():
        wrong = "is a directory" if path.is_dir() else "does not exist"
    elif not zipfile.is_zipfile(path) or _DRIVER not in _names(path):
        wrong = "is not a job server of Beam's Flink runner: it holds no FlinkJobServerDriver"
    if wrong:
        raise SpecError(
            f"{OPTION}: {path} {wrong}; expected a jar such as beam-runners-flink-{FLINK_VERSION}-job-server-{RUNNER_VERSION}.jar.",
            hint=f"Leave {OPTION} out, and one is built by Maven or fetched by Beam.",
        )
    return path.resolve()


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as jar:
        return jar.namelist()


def _make(kept: Path, environ: Mapping[str, str], say: Say, build: Build) -> None:
    say(f"Flink: building Beam's job server {RUNNER_VERSION} for Flink {FLINK_VERSION} with Maven, once; this takes a minute or two")
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        try:
            os.replace(build(Path(folder), kept.parent / "maven.log", environ), kept)
        except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            raise RunError(
                f"Beam's job server for Flink {FLINK_VERSION} is not here: {_reason(error)}.",
                hint=f"Install Maven and Java {_or(JAVA_VERSIONS)} (apt-get install maven openjdk-17-jre-headless), or name a jar by {OPTION}.",
            ) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"Maven was not done after {error.timeout:.0f} s"
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def _maven_reason(log: Path) -> str:
    """The first error in Maven's log, without its advice; told apart is a network that is not there."""
    text = log.read_text("utf-8", errors="replace")
    errors = re.findall(r"^\[ERROR\] (.+)$", re.sub(r"\x1b\[[\d;]*m", "", text), re.MULTILINE) or [text.strip().rpartition("\n")[2]]
    first = re.sub(r" -> \[Help \d+\]$", "", errors[0]).strip().rstrip(".:")[:400] or "it said nothing"
    return f"its repository cannot be reached or lacks a file ({first})" if _NO_NETWORK.search(text) else first


def content_sha256(jar: Path) -> str:
    """One digest of what a jar holds: over the lines `sha256  name` of its files, sorted, but for the manifest.

    Unlike the digest of the jar it does not depend on who compressed it, with which Java, or in which order.
    """
    whole = hashlib.sha256()
    with zipfile.ZipFile(jar) as files:
        for name in sorted(name for name in files.namelist() if not name.endswith("/") and name != "META-INF/MANIFEST.MF"):
            whole.update(f"{hashlib.sha256(files.read(name)).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def jar_versions(jar: Path) -> JarVersions:
    """The versions of Beam's Java SDK and of Flink inside a job server jar."""
    with zipfile.ZipFile(jar) as files:
        return JarVersions(
            _property(files, "org/apache/beam/sdk/sdk.properties", "version"),
            _property(files, ".flink-runtime.version.properties", "project.version"),
        )


def _property(files: zipfile.ZipFile, name: str, key: str) -> str | None:
    try:
        text = files.read(name).decode()
    except KeyError:
        return None
    found = re.search(rf"^{re.escape(key)}=(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def find_java(environ: Mapping[str, str] = os.environ) -> Path:
    """A `java` of a version that Flink runs on: of JAVA_HOME, of PATH, else the best of those that are installed.

    Raises RunError that names what was found instead.
    """
    seen: dict[Path, int | None] = {}
    for program in _javas(environ):
        path = program.resolve()
        if path not in seen:
            seen[path] = java_version(path)
            if seen[path] in JAVA_VERSIONS:
                return path
    found = "; ".join(f"{path} is {version or 'of an unknown version'}" for path, version in seen.items())
    raise RunError(
        f"Flink {FLINK_VERSION} needs Java {_or(JAVA_VERSIONS)}: {f'only others were found: {found}' if found else 'no Java was found'}.",
        hint="Install one (apt-get install openjdk-17-jre-headless), or set JAVA_HOME to its folder.",
    )


def _javas(environ: Mapping[str, str]) -> Iterator[Path]:
    if environ.get("JAVA_HOME"):
        home = Path(environ["JAVA_HOME"]) / "bin" / "java"
        if os.access(home, os.X_OK):
            yield home
    on_path = shutil.which("java", path=environ.get("PATH"))
    if on_path:
        yield Path(on_path)
    for version in JAVA_VERSIONS:
        for root, pattern in ((Path("/usr/lib/jvm"), "bin/java"), (Path("/Library/Java/JavaVirtualMachines"), "Contents/Home/bin/java")):
            yield from (home for home in sorted(root.glob(f"*{version}*/{pattern}")) if os.access(home, os.X_OK))


def java_version(java: Path) -> int | None:
    """The feature version: from the file `release` beside it, else asked."""
    try:
        text = (java.parent.parent / "release").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r'^JAVA_VERSION="?(?:1\.)?(\d+)', text, re.MULTILINE)
    if found is None:
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603  (a java)
        except (OSError, subprocess.SubprocessError):
            return None
        found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found[1]) if found else None


def _or(versions: tuple[int, ...]) -> str:
    return " or ".join(map(str, versions))


def to_stderr(text: str) -> None:
    """Where what takes long is said, unless it is told elsewhere."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  (a silent minute looks like a hang)
