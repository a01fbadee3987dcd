"""What is declared is what is used: dependencies, versions, the lock, the changelog."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\s\[<>=!~;]", r)[0]) for r in requirements}


def locked(file: str = "requirements.lock") -> dict[str, str]:
    return {normal(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text("utf-8"), re.MULTILINE)}


def imported(folder: Path) -> set[str]:
    """Top-level names of other people's packages that the files under `folder` import."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return {n for n in found if n.partition(".")[0] not in {*sys.stdlib_module_names, "beam_pipelines", "__future__"}}


def test_what_the_package_imports_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"]) | names(extras["gcp"]) | names(extras["databases"]) | names(extras["testing"])
    owners = packages_distributions()
    for module in imported(ROOT / "beam_pipelines"):
        top = module.partition(".")[0]
        candidates = {normal(d) for d in owners.get(top, [])}
        assert candidates & declared or any(normal(module).startswith(d) for d in declared), f"{module} ({candidates}) is not declared"


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_the_lock_holds_every_dependency_with_hashes(extra: str) -> None:
    wanted = names(PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"])
    assert wanted <= set(locked())


LOCKS = ["requirements.lock", "requirements-run.lock"]


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_names_versions_and_hashes_and_nothing_else(file: str) -> None:
    for line in (ROOT / file).read_text("utf-8").splitlines():
        assert re.match(r"^([\w.-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?)$", line), line


def test_the_image_gets_what_is_tested() -> None:
    assert locked("requirements-run.lock").items() <= locked().items()
    assert f"ARG BEAM={locked()['apache-beam']}\n" in (ROOT / "Dockerfile").read_text("utf-8")


def test_what_is_no_python_in_the_package_is_installed_with_it() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["beam_pipelines"]
    package = ROOT / "beam_pipelines"
    there = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert there
    assert {path.relative_to(package).as_posix() for path in there} == set(declared)


def test_every_dependency_has_a_reason_in_the_docs() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    every = names(PROJECT["dependencies"]).union(*map(names, PROJECT["optional-dependencies"].values()))
    assert not {name for name in every if f"`{name}`" not in {f"`{normal(n)}`" for n in re.findall(r"`([\w.-]+)`", text)}}


def test_the_changelog_tells_about_this_version() -> None:
    assert f"## {PROJECT['version'].partition('.dev')[0]} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
