"""The tree is the data flow: a module imports only from layers above it, siblings never, and nothing goes in circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "beam_pipelines"
LAYERS = (
    {"errors"},
    {"arrow"},
    {"places", "pubsub_service"},
    {"bigquery_service"},
    {"formats"},
    {"spec"},
    {"coders", "metrics", "durable", "draining", "arrival_clock", "back_pressure", "stage_results", "commit_elements"},
    {"sources", "transforms", "sinks"},
    {"intake"},
    {"edges"},
    {"pipeline"},
    {"runners", "serving"},
    {"testing"},  # the verb `test` runs it
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WITHOUT_BEAM = {"errors", "pubsub_service", "bigquery_service", "arrow", "formats", "spec", "serving"}
NO_SUCH_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "base", "misc"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(p) for p in MODULES}


def imports(path: Path, *, typing_only: bool = True) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file, wherever it stands; without those under TYPE_CHECKING if `typing_only` is false."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped: set[ast.AST] = set()
    if not typing_only:
        guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        skipped = {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in NAMES else str(node.module)


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def ours(path: Path) -> list[tuple[int, str]]:
    return [(line, name) for line, name in imports(path) if name == "beam_pipelines" or name.startswith("beam_pipelines.")]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_layers_above_and_never_from_siblings(path: Path) -> None:
    own = layer(module_name(path))
    if not own:
        return  # the package's own __init__ shows what is public; that it loads no Beam is tested below
    assert own in RANK, f"{own} is in no layer; known: {', '.join(RANK)}"
    for line, name in ours(path):
        other = layer(name)
        if other in ("", own):
            continue
        assert RANK[other] < RANK[own], f"{path.name}:{line}: {own} imports {name}; it may import: {above(own)}"


def above(own: str) -> str:
    return ", ".join(sorted(n for n, r in RANK.items() if r < RANK[own])) or "nothing of ours"


@pytest.mark.parametrize("path", [p for p in MODULES if layer(module_name(p)) in WITHOUT_BEAM], ids=module_name)
def test_layers_that_need_no_beam_import_none(path: Path) -> None:
    found = [f"{path.name}:{line}" for line, name in imports(path) if name.split(".")[0] == "apache_beam"]
    assert not found


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module_name(p): {n for _, n in imports(p, typing_only=False) if n in NAMES and n != module_name(p)} for p in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_names_say_what_is_inside_and_files_end_before_500_lines() -> None:
    vague = [str(p) for p in MODULES if p.stem in NO_SUCH_NAMES or p.parent.name in NO_SUCH_NAMES]
    long = [f"{p.name}: {n}" for p in MODULES if (n := len(p.read_text("utf-8").splitlines())) >= 500]
    assert not vague
    assert not long


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh Python holds after `code`."""
    script = f"{code}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["beam_pipelines", "beam_pipelines.spec.load", "beam_pipelines.cli"])
def test_loads_no_beam(module: str) -> None:
    assert "apache_beam" not in loaded_after(f"import {module}")


def test_the_models_load_neither_arrow_nor_duckdb_nor_beam() -> None:
    assert not {"apache_beam", "pyarrow", "duckdb", "numpy"} & loaded_after("import beam_pipelines.spec.models")


def test_validate_loads_no_beam() -> None:
    spec = PACKAGE.parent / "examples" / "flights" / "pipeline.yaml"
    code = f"""
from beam_pipelines.cli import main
try:
    main(["validate", {str(spec)!r}])
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    assert "apache_beam" not in loaded_after(code)
