"""Where the job server comes from: the order, one build however many ask, one sentence where there is none; and which Java."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.flink import jars
from beam_pipelines.runners.flink.jars import (
    OPTION,
    POM,
    RUNNER_VERSION,
    JarVersions,
    content_sha256,
    find_java,
    find_job_server,
    jar_versions,
    kept_job_server,
)
from tests.runners.built_once import asked_at_once, calls, program

DRIVER = "org/apache/beam/runners/flink/FlinkJobServerDriver.class"
MVN = """#!/bin/sh
echo "$@" >>"$CALLS"
echo "$JAVA_HOME" >>"$CALLS"
test -z "$GATE" || read -r _ <"$GATE"
test -z "$BROKEN" || { echo "[INFO] Scanning"; printf '%s\\n' "$BROKEN"; echo '[ERROR] To see the full stack trace, use -e'; exit 1; }
mkdir target
cp "$JAR" target/beam-flink-job-server.jar
"""


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small job server, taken for the one that the POM gives."""
    path = jar_of(tmp_path / "small.jar", {DRIVER: "class"})
    monkeypatch.setattr(jars, "CONTENT_SHA256", content_sha256(path))
    return path


@pytest.fixture
def environ(tmp_path: Path, jar: Path) -> dict[str, str]:
    """An empty cache, a Java 17, and a `mvn` that writes down how it was called."""
    program(tmp_path / "bin" / "mvn", MVN)
    java(tmp_path / "java17", "17.0.15")
    home = {"JAVA_HOME": str(tmp_path / "java17"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAR": str(jar)}
    return {**home, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}


def silent(_: str) -> None:
    pass


def java(home: Path, version: str) -> Path:
    found = program(home / "bin" / "java")
    (home / "release").write_text(f'IMPLEMENTOR="X"\nJAVA_VERSION="{version}"\n')
    return found


def jar_of(path: Path, files: dict[str, str], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, text in files.items():
            made.writestr(name, text)
    return path


def test_the_option_comes_before_the_cache_before_a_build(environ: dict[str, str], tmp_path: Path) -> None:
    named = jar_of(tmp_path / "named.jar", {DRIVER: ""})
    kept = jar_of(program(kept_job_server(environ)), {DRIVER: ""})
    said: list[str] = []
    assert find_job_server(named, environ=environ, say=said.append) == named
    assert find_job_server(environ=environ, say=said.append) == kept
    assert (calls(environ), said) == ([], [])
    kept.unlink()
    assert find_job_server(environ=environ, say=said.append) == kept
    assert len(said) == 1


def test_it_is_built_once_from_the_pinned_pom_with_the_right_java_and_says_so_before(environ: dict[str, str], tmp_path: Path) -> None:
    said: list[tuple[str, int]] = []
    found = [find_job_server(environ=environ, say=lambda text: said.append((text, len(calls(environ))))) for _ in range(2)]
    assert found == [kept_job_server(environ)] * 2
    assert RUNNER_VERSION in str(found[0])
    command, home = calls(environ)
    assert command.endswith("package")
    assert "--strict-checksums" in command
    assert home == str(tmp_path / "java17")
    assert [(RUNNER_VERSION in text, before) for text, before in said] == [(True, 0)]
    assert sorted(os.listdir(found[0].parent)) == ["beam-flink-job-server.jar", "lock", "maven.log"]


def test_another_pom_is_another_jar(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept_job_server(environ)
    other = tmp_path / "pom.xml"
    other.write_text(POM.read_text().replace("1.19.0", "1.19.1"))
    monkeypatch.setattr(jars, "POM", other)
    assert kept_job_server(environ).parent != before.parent
    assert kept_job_server(environ).parent.parent == before.parent.parent


def test_processes_that_ask_at_once_get_one_build(environ: dict[str, str], tmp_path: Path) -> None:
    code = f"""
from beam_pipelines.runners.flink import jars
jars.CONTENT_SHA256 = {jars.CONTENT_SHA256!r}
print(jars.find_job_server())"""
    assert asked_at_once(code, {**os.environ, **environ}, tmp_path / "gate") == [str(kept_job_server(environ))] * 2
    assert len(calls(environ)) == 2  # one call, in two lines


@pytest.mark.parametrize(("said", "expected"), [
    ("[ERROR] Non-resolvable POM: Could not transfer artifact a:b:pom:1 from/to central: Unknown host repo -> [Help 1]", "cannot be reached"),
    ("[ERROR] No space left on device -> [Help 1]", "failed: No space left on device; its log"),
])  # fmt: skip
def test_a_build_that_fails_is_one_sentence_with_mavens_first_error_and_its_log(environ: dict[str, str], said: str, expected: str) -> None:
    with pytest.raises(RunError) as raised:
        find_job_server(environ={**environ, "BROKEN": said}, say=silent)
    text = str(raised.value)
    log = kept_job_server(environ).parent / "maven.log"
    assert expected in text
    assert "[Help 1]" not in text
    assert "\n" not in text
    assert str(log) in text
    assert said in log.read_text()
    assert sorted(os.listdir(log.parent)) == ["lock", "maven.log"]


def test_without_maven_the_reason_is_that_and_what_to_install(environ: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"there is no Maven.*apt-get install maven.*" + OPTION):
        find_job_server(environ={**environ, "PATH": ""}, say=silent)


def test_a_jar_with_other_content_than_was_pinned_is_not_kept(environ: dict[str, str], jar: Path) -> None:
    jar_of(jar, {DRIVER: "another class"})
    with pytest.raises(RunError, match="not what was tested"):
        find_job_server(environ=environ, say=silent)
    assert not kept_job_server(environ).exists()


def test_a_build_that_leaves_no_jar_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"job server for Flink 1\.19 is not here"):
        find_job_server(environ=environ, say=silent, build=lambda folder, log, env: folder / "none.jar")


def test_the_content_is_the_files_and_not_how_they_are_packed(tmp_path: Path) -> None:
    files = {"META-INF/MANIFEST.MF": "Build-Jdk-Spec: 17", "b": "2" * 1000, "a": "1"}
    one = jar_of(tmp_path / "one.jar", files)
    turned = dict(reversed(list(files.items()))) | {"META-INF/MANIFEST.MF": "Build-Jdk-Spec: 11", "folder/": ""}
    other = jar_of(tmp_path / "other.jar", turned, compression=zipfile.ZIP_DEFLATED)
    assert content_sha256(one) == content_sha256(other)
    for changed in ({**files, "a": "2"}, {**files, "c": ""}, {"b": files["b"]}, {"b": files["a"], "a": files["b"]}):
        assert content_sha256(jar_of(tmp_path / "changed.jar", changed)) != content_sha256(one)


@pytest.mark.parametrize(("make", "says"), [
    (lambda path: None, "does not exist"),
    (lambda path: path.mkdir(), "is a directory"),
    (lambda path: path.write_text("text"), "holds no FlinkJobServerDriver"),
    (lambda path: jar_of(path, {"A.class": ""}), "holds no FlinkJobServerDriver"),
])  # fmt: skip
def test_a_named_jar_that_is_none_is_a_spec_error_and_nothing_is_built(
    environ: dict[str, str], tmp_path: Path, make: object, says: str
) -> None:
    named = tmp_path / "named.jar"
    make(named)  # type: ignore[operator]
    with pytest.raises(SpecError, match=says) as raised:
        find_job_server(named, environ=environ)
    assert str(raised.value).startswith(f"{OPTION}: {named}")
    assert calls(environ) == []


def test_a_jar_tells_its_versions_where_it_knows_them(tmp_path: Path) -> None:
    known = {"org/apache/beam/sdk/sdk.properties": "#\nversion=2.70.0\nsdk_version=2.70.0\n", ".flink-runtime.version.properties": "project.version=1.19.0\n"}  # fmt: skip
    assert jar_versions(jar_of(tmp_path / "known.jar", known)) == JarVersions("2.70.0", "1.19.0")
    assert jar_versions(jar_of(tmp_path / "other.jar", {"a": ""})) == JarVersions(None, None)


def test_java_home_comes_before_the_path_and_a_wrong_one_is_passed_over(tmp_path: Path) -> None:
    at_home, on_path, wrong = java(tmp_path / "a", "11.0.2"), java(tmp_path / "b", "17"), java(tmp_path / "c", "25.0.3")
    path = {"PATH": str(on_path.parent)}
    assert find_java({**path, "JAVA_HOME": str(tmp_path / "a")}) == at_home
    assert find_java({**path, "JAVA_HOME": str(tmp_path / "c")}) == on_path
    assert find_java(path) == on_path
    assert wrong.exists()


def test_a_java_without_a_release_file_is_asked(tmp_path: Path) -> None:
    asked = program(tmp_path / "bin" / "java", "#!/bin/sh\necho 'openjdk version \"11.0.9\" 2020' >&2\n")
    assert find_java({"JAVA_HOME": str(tmp_path), "PATH": ""}) == asked


def test_where_only_other_javas_are_the_sentence_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "JAVA_VERSIONS", (1717, 1111))  # so that no Java of this machine fits
    wrong = java(tmp_path / "c", "25.0.3")
    with pytest.raises(RunError, match=rf"needs Java 1717 or 1111: only others were found: {wrong} is 25"):
        find_java({"JAVA_HOME": str(tmp_path / "c"), "PATH": ""})
    with pytest.raises(RunError, match="no Java was found"):
        find_java({"PATH": ""})
