"""Whether `package.module:function` exists, without importing it: a user's module may do anything when it is imported."""

from __future__ import annotations

import ast
import sys
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path


def missing_function(target: str) -> str | None:
    """Why `target` cannot be right; None where it is there, or where its module cannot be found here (the run decides).

    Only a module's source is read: nothing of it runs.
    """
    module, _, name = target.partition(":")
    source = _source(module.split("."))
    if source is None:
        return None
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        return f"module {module} cannot be read: {error}"
    names = _names(tree)
    if names is None or name in names:
        return None
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"module {module} has no function '{name}'{guess}"


def _source(parts: list[str]) -> Path | None:
    """The file of a module, found the way an import would look for it."""
    where: list[str] = list(sys.path)
    spec = None
    for part in parts:
        spec = PathFinder.find_spec(part, where)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or [])
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _names(tree: ast.Module) -> set[str] | None:
    """Names a module defines at its top; None where that cannot be known (star imports, conditions, `__getattr__`)."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif not isinstance(node, (ast.Expr, ast.Pass)):
            return None
    return None if "*" in names or "__getattr__" in names else names
