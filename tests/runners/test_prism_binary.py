"""Where the Prism program comes from: the order, one build however many ask, and one sentence where there is none."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.prism_binary import PACKAGE, VARIABLE, find_prism, kept_prism
from tests.runners.built_once import asked_at_once, calls, program

GO = """#!/bin/sh
echo "$@" >>"$CALLS"
test -z "$GATE" || read -r _ <"$GATE"
test -z "$BROKEN" || { echo 'go: module lookup failed' >&2; exit 1; }
echo '#!/bin/sh' >"$GOBIN/prism"
chmod 755 "$GOBIN/prism"
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty cache, a `go` that writes down how it was called, and no way to the network."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    program(tmp_path / "bin" / "go", GO)
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "CALLS": str(tmp_path / "calls")}


def test_the_option_comes_before_the_variable_before_the_cache_before_a_build(environ: dict[str, str], tmp_path: Path) -> None:
    option, variable = program(tmp_path / "option"), program(tmp_path / "variable")
    environ[VARIABLE] = str(variable)
    said: list[str] = []
    assert find_prism(str(option), environ=environ, say=said.append) == option
    assert find_prism(environ=environ, say=said.append) == variable
    del environ[VARIABLE]
    kept = program(kept_prism(environ))
    assert find_prism(environ=environ, say=said.append) == kept
    assert (calls(environ), said) == ([], [])


def test_it_is_built_once_for_the_installed_beam_and_says_so_before(environ: dict[str, str]) -> None:
    said: list[tuple[str, int]] = []
    found = [find_prism(environ=environ, say=lambda text: said.append((text, len(calls(environ))))) for _ in range(2)]
    assert found == [kept_prism(environ)] * 2
    assert beam_version in str(found[0])
    assert os.access(found[0], os.X_OK)
    assert calls(environ) == [f"install {PACKAGE}"]
    assert PACKAGE.endswith(f"/cmd/prism@v{beam_version}")
    assert [(beam_version in text, before) for text, before in said] == [(True, 0)]


def test_nothing_but_the_program_is_left_in_the_cache(environ: dict[str, str]) -> None:
    kept = find_prism(environ=environ, say=lambda _: None)
    assert sorted(os.listdir(kept.parent)) == ["lock", "prism"]


@pytest.mark.slow
def test_processes_that_ask_at_once_get_one_build(environ: dict[str, str], tmp_path: Path) -> None:
    mine = {name: value for name, value in os.environ.items() if name != VARIABLE}
    code = "from beam_pipelines.runners.prism_binary import find_prism; print(find_prism())"
    assert asked_at_once(code, {**mine, **environ}, tmp_path / "gate") == [str(kept_prism(environ))] * 2
    assert len(calls(environ)) == 1


def test_where_every_way_fails_one_sentence_names_them_all(environ: dict[str, str]) -> None:
    with pytest.raises(RunError) as raised:
        find_prism(environ={**environ, "BROKEN": "1"}, say=lambda _: None)
    text = str(raised.value)
    assert "\n" not in text
    for part in (beam_version, "go: module lookup failed", "fetching it failed", "--prism_location", VARIABLE):
        assert part in text
    assert os.listdir(kept_prism(environ).parent) == ["lock"]


def test_without_go_the_reason_is_that(environ: dict[str, str]) -> None:
    with pytest.raises(RunError, match="there is no Go"):
        find_prism(environ={**environ, "PATH": ""}, say=lambda _: None)


@pytest.mark.parametrize(("make", "says"), [
    (lambda path: None, "does not exist"),
    (lambda path: path.mkdir(), "is a directory"),
    (lambda path: path.write_text("text"), "cannot be executed"),
])  # fmt: skip
def test_a_named_program_that_is_none_is_a_spec_error_and_nothing_else_is_tried(
    environ: dict[str, str], tmp_path: Path, make: object, says: str
) -> None:
    named = tmp_path / "named"
    make(named)  # type: ignore[operator]
    with pytest.raises(SpecError, match=says) as raised:
        find_prism(str(named), environ=environ)
    assert str(raised.value).startswith(f"--prism_location: {named}")
    with pytest.raises(SpecError, match=VARIABLE):
        find_prism(environ={**environ, VARIABLE: str(named)})
    assert calls(environ) == []


def test_a_zip_file_as_beam_releases_it_is_unpacked(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "beams"))
    packed = tmp_path / "apache_beam-prism.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("apache_beam-prism", "#!/bin/sh\n")
    found = find_prism(str(packed), environ=environ, say=lambda _: None)
    assert found == tmp_path / "beams" / "apache_beam-prism"
    assert os.access(found, os.X_OK)


def test_a_place_that_cannot_be_written_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RunError, match="XDG_CACHE_HOME"):
        find_prism(environ=environ, say=lambda _: None)
