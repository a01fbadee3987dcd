"""Where the Prism program comes from: named, kept, built with Go, or fetched by Beam; always of the installed Beam's version."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as BEAM_VERSION  # noqa: N812  (a constant)

from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.kept import alone, kept_folder

VARIABLE = "BEAM_PIPELINES_PRISM"
PACKAGE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{BEAM_VERSION}"
_BUILD_TIMEOUT_S = 900
_SILENCE_TIMEOUT_S = 30  # of one connection, not of the whole download

Say = Callable[[str], None]


def find_prism(location: str | None = None, *, environ: Mapping[str, str] = os.environ, say: Say | None = None) -> Path:
    """The path of a Prism program that can be started.

    It is `location` (`--prism_location`: a program, or a zip file or release page that Beam takes there), else what the variable
    BEAM_PIPELINES_PRISM names, else the one in the cache, else built into the cache with Go, else fetched into the cache by Beam.
    Processes that look at the same time wait for one another, and none sees a half-made program. `say` is told (default: on stderr)
    before anything that takes long.

    Raises SpecError where a program was named that cannot be used, RunError where every way failed.
    """
    say = say or _to_stderr
    found = prism_at_hand(location, environ=environ)
    if found is not None:
        return found
    for origin, named in _names(location, environ):
        return _fetched_by_beam(named, origin, say)
    kept = kept_prism(environ)
    with _alone(kept.parent):
        if not _is_program(kept):  # another process may have made it meanwhile
            _make(kept, environ, say)
    return kept


def prism_at_hand(location: str | None = None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The program that `find_prism` would take; None where it would have to build or fetch one. Raises SpecError where what is named cannot be one."""
    for origin, named in _names(location, environ):
        return _named(named, origin)
    kept = kept_prism(environ)
    return kept if _is_program(kept) else None


def builder(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Go that would build it; None where there is none, and Beam's download is left."""
    return shutil.which("go", path=environ.get("PATH"))


def _names(location: str | None, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is named, and by what; the first counts."""
    yield from ((origin, named) for origin, named in (("--prism_location", location), (VARIABLE, environ.get(VARIABLE))) if named)


def kept_prism(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the program that fits the installed Beam is kept, there or not; `XDG_CACHE_HOME` is honoured."""
    return kept_folder(environ) / "prism" / str(BEAM_VERSION) / "prism"


def _named(named: str, origin: str) -> Path | None:
    """None: Beam has to take it from there."""
    path = Path(named)
    if "://" in named or (path.is_file() and zipfile.is_zipfile(path)):
        return None
    if _is_program(path):
        return path.resolve()
    wrong = "is a file that cannot be executed" if path.is_file() else "is a directory" if path.is_dir() else "does not exist"
    raise SpecError(
        f"{origin}: {named} {wrong}; expected the Prism program of Beam {BEAM_VERSION}.",
        hint=f"Leave {origin} out, and it is built or fetched.",
    )


def _fetched_by_beam(named: str, origin: str, say: Say) -> Path:
    say(f"Prism: taking {named}")
    server = PrismJobServer(PipelineOptions([f"--prism_location={named}"]))
    try:
        with _alone(Path(PrismJobServer.BIN_CACHE)), _impatient():
            return Path(PrismJobServer.local_bin(server.path_to_binary(), PrismJobServer.BIN_CACHE, ignore_cache=True))
    except _FAILURES as error:
        raise SpecError(f"{origin}: {named}: no Prism program there: {_reason(error)}") from None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _make(kept: Path, environ: Mapping[str, str], say: Say) -> None:
    reasons = []
    for way in (_build, _fetch):
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            try:
                os.replace(way(folder, environ, say), kept)
            except _FAILURES as error:
                reasons.append(_reason(error))
            else:
                return
    raise RunError(
        f"Prism {BEAM_VERSION}, Beam's engine for streams on one machine, is not here: {'; '.join(reasons)}.",
        hint=f"Install Go, or allow access to github.com, or name the program by --prism_location or {VARIABLE}.",
    )


_FAILURES = (OSError, RuntimeError, ValueError, KeyError, subprocess.SubprocessError, zipfile.BadZipFile)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def _build(folder: str, environ: Mapping[str, str], say: Say) -> Path:
    go = builder(environ)
    if go is None:
        raise RuntimeError("it cannot be built, for there is no Go")
    say(f"Prism: building version {BEAM_VERSION} with Go, once; this takes some minutes")
    done = subprocess.run(  # noqa: S603  (go, with arguments of ours)
        [go, "install", PACKAGE], env={**environ, "GOBIN": folder}, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=_BUILD_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"building it with Go failed: {_reason(RuntimeError(done.stderr))}")
    return Path(folder) / "prism"


def _fetch(folder: str, environ: Mapping[str, str], say: Say) -> Path:
    server = PrismJobServer(PipelineOptions([]))
    url = server.path_to_binary()
    say(f"Prism: fetching {url}")
    try:
        with _impatient():
            return Path(PrismJobServer.local_bin(url, bin_cache=folder))
    except _FAILURES as error:
        raise RuntimeError(f"fetching it failed: {_reason(error)}") from None


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Beam opens its download without a timeout: behind a wall that swallows packets it would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    return alone(folder, what="the Prism program", instead=f"name a program by {VARIABLE}")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  (two silent minutes look like a hang)
