"""Where a cluster of this machine keeps checkpoints: which places are one, what Flink is told of them, and the plugin, fetched once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from beam_pipelines.errors import RunError, SinkError, SpecError
from beam_pipelines.runners.flink import gs_plugin
from beam_pipelines.runners.flink.gs_plugin import VERSION, find_gs_plugin, kept_plugins
from beam_pipelines.runners.flink.store import Store, store_at
from tests.runners.built_once import asked_at_once, calls, program
from tests.runners.test_flink_jars import java

MVN = """#!/bin/sh
echo "$@" >>"$CALLS"
for argument; do
    case $argument in
    -DoutputDirectory=*) folder=${argument#*=} ;;
    -Dartifact=*) jar=$(echo "$argument" | cut -d: -f2,3 | tr : -).jar ;;
    esac
done
test -z "$GATE" || case $jar in flink-gs*) read -r _ <"$GATE" ;; esac
test -z "$BROKEN" || { printf '%s\\n' "$BROKEN"; exit 1; }
printf %s "$CONTENT" >"$folder/$jar"
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty cache, a Java 17, and a `mvn` that gives small files, which are taken for the plugin."""
    program(tmp_path / "bin" / "mvn", MVN)
    java(tmp_path / "java17", "17.0.15")
    monkeypatch.setattr(gs_plugin, "SHA256", dict.fromkeys(gs_plugin.SHA256, hashlib.sha256(b"plugin").hexdigest()))
    home = {"JAVA_HOME": str(tmp_path / "java17"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CONTENT": "plugin"}
    return {**home, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}


def test_without_a_name_they_lie_in_the_clusters_folder_and_no_plugin_is_needed(tmp_path: Path) -> None:
    store = store_at(None, tmp_path)
    store.make()
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "savepoints"]
    assert store.settings({}) == {
        "state.checkpoints.dir": f"{tmp_path.as_uri()}/checkpoints",
        "state.savepoints.dir": f"{tmp_path.as_uri()}/savepoints",
    }
    assert store.environment({"HOME": str(tmp_path)}) == {}


def test_a_folder_that_is_named_is_made_whatever_is_in_its_name_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    named = tmp_path / "ä b#c%20"
    assert store_at(str(named), tmp_path) == store_at(f"file://{named}", tmp_path)
    store_at(str(named), tmp_path).make()
    assert sorted(os.listdir(named)) == ["checkpoints", "savepoints"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file/checkpoints: cannot write: a part of the path is a file"):
        store_at(str(tmp_path / "file"), tmp_path).make()


def test_a_bucket_is_told_to_flink_and_the_local_server_and_keys_only_where_the_environment_names_them(tmp_path: Path) -> None:
    store = store_at("gs://bucket/flink/", tmp_path)
    real = store.settings({})
    assert real["state.checkpoints.dir"] == "gs://bucket/flink/checkpoints"
    assert not any("auth" in key or "url" in key for key in real)
    local = store.settings({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"})
    assert {key: local[key] for key in local.keys() - real.keys()} == {
        "gs.storage.root.url": "http://127.0.0.1:9/", "gs.auth.null.enable": "true", "gs.auth.service.account.enable": "false",
    }  # fmt: skip


def test_who_is_logged_in_is_told_to_flink_unless_other_keys_are_named(tmp_path: Path) -> None:
    store, home = Store("gs://bucket", "/plugins"), {"HOME": str(tmp_path)}
    assert store.environment(home) == {"FLINK_PLUGINS_DIR": "/plugins"}
    keys = program(tmp_path / ".config" / "gcloud" / "application_default_credentials.json", "{}")
    assert store.environment(home) == {"FLINK_PLUGINS_DIR": "/plugins", "GOOGLE_APPLICATION_CREDENTIALS": str(keys)}
    assert store.environment({**home, "GOOGLE_APPLICATION_CREDENTIALS": "mine"}) == {"FLINK_PLUGINS_DIR": "/plugins"}
    assert store.environment({**home, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}) == {"FLINK_PLUGINS_DIR": "/plugins"}


@pytest.mark.parametrize("place", ["s3://bucket/flink", "gs://", "gs:///flink", "gs://bucket/a?b", "http://bucket"])
def test_a_place_that_is_none_of_these_is_a_spec_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--checkpoints .*: expected a folder, or gs://bucket/folder"):
        store_at(place, tmp_path)


def test_the_plugin_is_fetched_once_by_its_pinned_version_and_said_before(environ: dict[str, str]) -> None:
    said: list[tuple[str, int]] = []
    found = [find_gs_plugin(environ, say=lambda text: said.append((text, len(calls(environ))))) for _ in range(2)]
    plugins = kept_plugins(environ)
    assert found == [plugins] * 2
    assert os.listdir(plugins) == ["flink-gs-fs-hadoop"], "Flink takes every folder there for a plugin"
    jars = [f"flink-core-{VERSION}.jar", f"flink-gs-fs-hadoop-{VERSION}.jar"]
    assert sorted(os.listdir(plugins / "flink-gs-fs-hadoop")) == jars
    commands = calls(environ)
    assert [command.count("--strict-checksums") for command in commands] == [1, 1]
    assert f"-Dartifact=org.apache.flink:flink-gs-fs-hadoop:{VERSION}" in commands[0]
    assert [("69 MB" in text, before) for text, before in said] == [(True, 0)]
    assert sorted(os.listdir(plugins.parent)) == ["lock", "maven-flink-core.log", "maven-flink-gs-fs-hadoop.log", "plugins"]


def test_processes_that_ask_at_once_fetch_it_once(environ: dict[str, str], tmp_path: Path) -> None:
    code = f"""
from beam_pipelines.runners.flink import gs_plugin
gs_plugin.SHA256 = {gs_plugin.SHA256!r}
print(gs_plugin.find_gs_plugin())"""
    assert asked_at_once(code, {**os.environ, **environ}, tmp_path / "gate") == [str(kept_plugins(environ))] * 2
    assert len(calls(environ)) == 2


@pytest.mark.parametrize(("changed", "says"), [
    ({"CONTENT": "another"}, r"a repository gave another flink-gs-fs-hadoop: .*, expected .*maven-flink-gs-fs-hadoop\.log"),
    ({"BROKEN": "[ERROR] Could not transfer artifact a:b:1: Unknown host repo -> [Help 1]"}, r"cannot be reached or lacks a file .*maven-flink-gs-fs-hadoop\.log"),
    ({"PATH": ""}, "there is no Maven"),
])  # fmt: skip
def test_a_plugin_that_cannot_be_had_is_one_sentence_and_nothing_is_kept(
    environ: dict[str, str], changed: dict[str, str], says: str
) -> None:
    with pytest.raises(RunError, match=rf"file system for gs:// is not here: .*{says}.*keep checkpoints in a folder"):
        find_gs_plugin({**environ, **changed}, say=lambda text: None)
    assert not kept_plugins(environ).exists()
