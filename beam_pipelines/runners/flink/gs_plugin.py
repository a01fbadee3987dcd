"""Flink's file system for gs://, as a plugin of a cluster on this machine: the one that is kept, or fetched by Maven when a cluster first asks for it.

    plugins/flink-gs-fs-hadoop/flink-gs-fs-hadoop-1.20.0.jar     brings all its libraries
                               flink-core-1.20.0.jar             for one interface (ByteBufferReadable) that Flink 1.19 has not; whatever it has is taken from there

That of 1.19 is not in every repository of Maven's, and that of 1.18.0 breaks the job manager (its libraries do not fit one another).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from beam_pipelines.errors import RunError
from beam_pipelines.runners.flink.jars import run_maven, to_stderr
from beam_pipelines.runners.kept import alone, kept_folder

VERSION = "1.20.0"
_NAME = "flink-gs-fs-hadoop"
SHA256 = {
    _NAME: "306bba19dee24d199965dd0656b2d52ffbd5c4d39240868ca144c10088afbbc7",
    "flink-core": "a6d590ea4d66fa3f2e2fffeab4cfe1ec4d30cbdc30d73aea29453f0441946b82",
}
"""Of what is fetched."""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_WHAT = "Flink's file system for gs://"
_INSTEAD = "keep checkpoints in a folder"

Say = Callable[[str], None]


def find_gs_plugin(environ: Mapping[str, str] = os.environ, *, say: Say | None = None) -> Path:
    """The folder of plugins that a Flink which is to know gs:// is started with (FLINK_PLUGINS_DIR), fetched if it is not kept: 69 MB.

    Raises RunError where it cannot be had.
    """
    plugins = kept_plugins(environ)
    if not plugins.is_dir():
        with alone(plugins.parent, what=_WHAT, instead=_INSTEAD):
            if not plugins.is_dir():  # another process may have fetched it meanwhile
                (say or to_stderr)(f"Flink: fetching {_WHAT} ({_NAME} {VERSION}, 69 MB) with Maven, once")
                _fetch(plugins, environ)
    return plugins


def kept_plugins(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the folder of plugins is kept, there or not."""
    return kept_folder(environ) / "flink" / f"gs-{VERSION}" / "plugins"


def _fetch(plugins: Path, environ: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=plugins.parent) as fetched:
        made = Path(fetched, "plugins")
        (made / _NAME).mkdir(parents=True)
        try:
            for name in SHA256:
                _fetch_jar(name, made / _NAME, plugins.with_name(f"maven-{name}.log"), environ)
            os.replace(made, plugins)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise RunError(
                f"{_WHAT} is not here: {str(error).rstrip('.')}.",
                hint=f"Install Maven and a Java (apt-get install maven openjdk-17-jre-headless), or {_INSTEAD}.",
            ) from None


def _fetch_jar(name: str, folder: Path, log: Path, environ: Mapping[str, str]) -> None:
    run_maven([_COPY, f"-Dartifact=org.apache.flink:{name}:{VERSION}", f"-DoutputDirectory={folder}"], folder, log, environ)
    digest = hashlib.sha256((folder / f"{name}-{VERSION}.jar").read_bytes()).hexdigest()
    if digest != SHA256[name]:
        raise RuntimeError(f"a repository gave another {name}: {digest}, expected {SHA256[name]}; Maven's log: {log}")
