"""Parameters: declared in the spec, set at the call, put in place of `${name}` in its texts.

A text that is nothing but `${name}` takes the parameter's own type; inside a longer text the value is written out. `$${` is `${`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from beam_pipelines.arrow.durations import parse_duration
from beam_pipelines.arrow.model import Misfits, Model
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.problems import Path, Problem

from typing import Literal  # isort: skip

Value = str | int | float | bool
_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Parameter(Model):
    """A value set at the call: `--set name=value`."""

    type: Literal["string", "path", "int", "float", "boolean", "duration"] = Field(
        "string", description="`path`: a relative one is resolved against the spec file's directory."
    )
    default: str | int | float | bool | None = Field(None, description="Without one, the parameter must be set.")
    description: str = Field("", description="For people.")
    regex: str | None = Field(None, description="Python regular expression the whole text must match.")
    choices: tuple[str, ...] | None = Field(None, description="Texts allowed.", min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Parameter:
        faults: list[tuple[Path, str]] = []
        if self.type not in ("string", "path") and (self.regex is not None or self.choices is not None):
            name = "regex" if self.regex is not None else "choices"
            faults.append(((name,), f"'{name}' is for parameters of type string and path; this one has type {self.type}"))
        try:
            re.compile(self.regex or "")
        except re.error as error:
            faults.append((("regex",), f"not a regular expression: {error}"))
            raise Misfits(*faults) from None
        if self.default is not None:
            try:
                parameter_value(self, self.default)
            except SpecError as error:
                faults.append((("default",), str(error)))
        if faults:
            raise Misfits(*faults)
        return self


def parameter_value(parameter: Parameter, given: object) -> Value:
    """`given`, a text of the command line or a value of a file, as the parameter's type. Raises SpecError."""
    value = _typed(parameter.type, given)
    if parameter.choices is not None and value not in parameter.choices:
        raise SpecError(f"got {given!r}; expected one of {', '.join(parameter.choices)}")
    if parameter.regex is not None and not re.fullmatch(parameter.regex, str(value)):
        raise SpecError(f"got {given!r}; expected a text matching {parameter.regex}")
    return value


def _typed(kind: str, given: object) -> Value:
    expected = {"int": "an integer", "float": "a number", "boolean": "true or false", "duration": "a duration such as 15m or 2d"}
    try:
        if kind == "string" and isinstance(given, str):
            return given
        if kind == "path" and isinstance(given, str):
            return _some_path(given)
        if kind == "duration" and isinstance(given, str):
            parse_duration(given)
            return given
        if kind == "boolean" and str(given).lower() in ("true", "false") and isinstance(given, (bool, str)):
            return str(given).lower() == "true"
        if kind == "int" and not isinstance(given, (bool, float)):
            return int(str(given))
        if kind == "float" and not isinstance(given, bool):
            return float(str(given))
    except (ValueError, SpecError):
        if kind == "path":
            raise
    raise SpecError(f"got {given!r}; expected {expected.get(kind, 'a text')}")


def _some_path(given: str) -> str:
    """The path; an empty one would make `${lake}/rows` a folder of the file system's root."""
    if not given.strip():
        raise SpecError("got an empty path; write . for the spec's folder")
    return given


def resolve_parameters(
    declared: Mapping[str, Parameter], document: Document, *, set_: Mapping[str, str], given: Document | None
) -> dict[str, Value]:
    """The value of each declared parameter: from `set_` (`--set`), else from `given` (a file), else its default.

    Unknown names, missing values and values of another type become problems of `document`.
    """
    in_file: Mapping[str, Any] = given.value if given is not None and isinstance(given.value, dict) else {}
    if given is not None and not isinstance(given.value, dict):
        given.problem((), "expected a mapping, parameter: value")
    _refuse_unknown(declared, document, set_, given, in_file)
    values: dict[str, Value] = {}
    for name, parameter in declared.items():
        try:
            if name in set_:
                values[name] = parameter_value(parameter, set_[name])
            elif name in in_file:
                values[name] = parameter_value(parameter, in_file[name])
            elif parameter.default is not None:
                values[name] = parameter_value(parameter, parameter.default)
            else:
                how = f"set it with --set {name}=VALUE or in a parameters file, or give it a default"
                document.problem(("parameters", name), f"the parameter has no value; {how}", key=True)
        except SpecError as error:
            _wrong_value(name, str(error), document, given if name not in set_ and name in in_file else None)
    if given is not None:
        document.problems += given.problems
    return values


def _refuse_unknown(
    declared: Mapping[str, Parameter], document: Document, set_: Mapping[str, str], given: Document | None, in_file: Mapping[str, Any]
) -> None:
    known = nearest_known(declared)
    for name in set_:
        if name not in declared:
            document.problems.append(Problem(f"--set {name}", 0, 0, "", f"unknown parameter '{name}'; {known(name)}"))
    for name in in_file:
        if name not in declared and given is not None:
            given.problem((name,), f"unknown parameter '{name}'; {known(name)}", key=True)


def nearest_known(declared: Mapping[str, object]) -> Any:
    """A function from a name to the clause that names the nearest parameter."""
    return lambda name: nearest(name, declared) if declared else "the spec declares no parameters"


def _wrong_value(name: str, message: str, document: Document, given: Document | None) -> None:
    if given is not None:
        given.problem((name,), f"parameter '{name}': {message}")
    else:
        document.problems.append(Problem(f"--set {name}", 0, 0, "", f"parameter '{name}': {message}"))


def put_in(document: Document, values: Mapping[str, Value], declared: Mapping[str, object]) -> None:
    """Replaces `${name}` in every text of the document, but for the declarations themselves."""
    known = nearest_known(declared)

    def replaced(text: str, path: Path) -> Any:
        whole = re.fullmatch(r"\$\{([^}]*)\}", text)
        if whole and whole.group(1).strip() in values:
            return values[whole.group(1).strip()]

        def one(match: re.Match[str]) -> str:
            if match.group(1):
                return "${"
            name = match.group(2).strip()
            if not match.group(3) or not _NAME.fullmatch(name):
                message = "a '${' needs a parameter's name and '}'; a plain '${' is written '$${'"
                document.problem(path, message, offset=match.start())
            elif name not in declared:
                document.problem(path, f"unknown parameter '{name}'; {known(name)}", offset=match.start())
            return _written(values[name]) if name in values else match.group(0)

        return _REFERENCE.sub(one, text)

    def rebuilt(value: Any, path: Path) -> Any:
        if path == ("parameters",):
            return value
        if isinstance(value, str):
            return replaced(value, path) if "${" in value else value
        if isinstance(value, tuple):
            return tuple(rebuilt(item, (*path, i)) for i, item in enumerate(value))
        if isinstance(value, dict):
            return {key: rebuilt(item, (*path, key)) for key, item in value.items()}
        return value

    document.value = rebuilt(document.value, ())


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_url(path: str) -> bool:
    """Whether a path names a file system of its own: `gs://…`, `s3://…`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def resolve_path(path: str, directory: str) -> str:
    """`path` as an absolute one, against `directory`; URLs and absolute paths stay as they are."""
    if is_url(path) or os.path.isabs(path) or not path:
        return path
    joined = os.path.normpath(os.path.join(directory, os.path.expanduser(path)))
    return joined + os.sep if path.endswith("/") and not joined.endswith(os.sep) else joined


_PATHS = (
    ("state",),
    ("sources", "batch", "*", "files"),
    ("sources", "*", "*", "archive"),
    ("sources", "*", "*", "format", "schema_file"),
    ("sources", "*", "*", "format", "schemas", "*"),
    ("lookups", "*", "files"),
    ("sinks", "*", "parquet", "path"),
    ("sinks", "*", "csv", "path"),
    ("sinks", "*", "jsonl", "path"),
    ("sinks", "*", "bigquery", "path"),
)


def resolve_paths(document: Document, directory: str) -> None:
    """Makes the paths of a spec absolute: sources, lookups, sinks, state, and the files of secrets."""

    def at(value: Any, path: Path) -> Any:
        if isinstance(value, str):
            if _is_path(path):
                return resolve_path(value, directory)
            if path in (("hmac_key",), ("dead_letters", "raw_key")) and value.startswith("file:"):
                return "file:" + resolve_path(value.removeprefix("file:"), directory)
            if _is_of_database(path):
                scheme = "sqlite:///" if path[-1] == "database" else "file:"
                return scheme + resolve_path(value.removeprefix(scheme), directory) if value.startswith(scheme) else value
            return value
        if isinstance(value, tuple):
            return tuple(at(item, (*path, i)) for i, item in enumerate(value))
        if isinstance(value, dict):
            return {key: at(item, (*path, key)) for key, item in value.items()}
        return value

    document.value = at(document.value, ())


def _is_of_database(path: Path) -> bool:
    """Whether it is the place or the password of a source's or a lookup's database."""
    within = 3 if path[:2] == ("sources", "batch") else 2 if path[:1] == ("lookups",) else len(path)
    return path[within:] in (("database",), ("password",))


def place_tables(document: Document, directory: str) -> None:
    """Gives the files of each BigQuery sink that names no `path` theirs, in the state folder."""
    value = document.value
    sinks, pipeline = value.get("sinks"), value.get("pipeline")
    state = value.get("state") or os.path.join(directory, ".beam_pipelines", str(pipeline))
    for sink in sinks if isinstance(sinks, tuple | list) else ():
        table = sink.get("bigquery") if isinstance(sink, dict) else None
        if isinstance(table, dict) and table.get("path") is None and isinstance(table.get("table"), str):
            table["path"] = f"{str(state).rstrip('/')}/bigquery/{table['table']}"


def _is_path(path: Path) -> bool:
    trimmed = path[:-1] if len(path) > 1 and isinstance(path[-1], int) and path[-2] == "files" else path
    return any(len(p) == len(trimmed) and all(a in ("*", b) for a, b in zip(p, trimmed, strict=True)) for p in _PATHS)
