"""Reading a spec: YAML to a checked, frozen PipelineSpec; everything wrong with it at once, each at its line and column."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import ValidationError

from beam_pipelines.arrow.durations import WRITTEN
from beam_pipelines.arrow.model import Model
from beam_pipelines.errors import SpecError
from beam_pipelines.spec.check import check_spec
from beam_pipelines.spec.document import MAX_BYTES, Document, read_document
from beam_pipelines.spec.messages import report
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.parameters import Parameter, Value, place_tables, put_in, resolve_parameters, resolve_path, resolve_paths
from beam_pipelines.spec.repair import repaired

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec and where it came from.

    `columns` are the columns of the final rows and their DuckDB types, in order; None where a type is known in the run only.
    `notes` are sentences about what is valid but worth knowing.
    """

    spec: PipelineSpec
    path: str
    directory: str
    parameters: Mapping[str, Value]
    text: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """Where runs and manifests are kept."""
        return self.spec.state or os.path.join(self.directory, ".beam_pipelines", self.spec.pipeline)


def load_spec(
    path: str | os.PathLike[str], *, set_: Mapping[str, str] | None = None, parameters_file: str | os.PathLike[str] | None = None
) -> LoadedSpec:
    """The spec in the file `path`, its parameters from `set_` (`--set name=value`), else `parameters_file` (YAML or JSON), else defaults.

    Raises SpecErrors with everything that is wrong.
    """
    given = None if parameters_file is None else read_document(_bytes(parameters_file), file=os.fspath(parameters_file))
    return parse_spec(_bytes(path), path=path, set_=set_, parameters=given)


def parse_spec(
    text: str | bytes, *, path: str | os.PathLike[str], set_: Mapping[str, str] | None = None, parameters: Document | None = None
) -> LoadedSpec:
    """As `load_spec`, of a `text` already read; `path` is where it came from, for messages and relative paths."""
    file = os.fspath(path)
    directory = os.path.dirname(os.path.abspath(file))
    document = read_document(text, file=file)
    _expect_mapping(document)
    declared = _declarations(document)
    values = resolve_parameters(declared, document, set_=set_ or {}, given=parameters)
    values = {n: resolve_path(str(v), directory) if declared[n].type == "path" else v for n, v in values.items()}
    put_in(document, values, declared)
    _graft_contract(document, directory, values, declared)
    resolve_paths(document, directory)
    place_tables(document, directory)
    spec = _validated(PipelineSpec, document)
    trial = spec if spec is not None else repaired(document)
    found = None if trial is None else check_spec(trial, document)
    document.fail()
    assert spec is not None
    assert found is not None
    return LoadedSpec(spec, file, directory, values, document.text, found.columns, found.notes)


def load_model(model: type[M], path: str | os.PathLike[str]) -> tuple[M, Document]:
    """The file `path` as a model, and the places of its parts. Raises SpecErrors with everything that is wrong."""
    document = read_document(_bytes(path), file=os.fspath(path))
    _expect_mapping(document)
    made = _validated(model, document)
    document.fail()
    assert made is not None
    return made, document


def _bytes(path: str | os.PathLike[str]) -> bytes:
    name = os.fspath(path)
    try:
        with FilePath(name).open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{name}: there is no such file.", hint=_near_files(name)) from None
    except OSError as error:
        raise SpecError(f"{name}: cannot be read: {error.strerror or error}.") from None


def _near_files(name: str) -> str:
    directory = FilePath(name).parent
    try:
        there = sorted(p.name for p in directory.iterdir() if p.suffix in (".yaml", ".yml", ".json"))
    except OSError:
        return f"There is no directory {directory} either."
    close = get_close_matches(FilePath(name).name, there, n=1, cutoff=0.5)
    return f"Did you mean '{directory / close[0]}'?" if close else f"YAML files there: {', '.join(there[:20]) or 'none'}."


def _expect_mapping(document: Document) -> None:
    if not isinstance(document.value, dict):
        document.problem((), "expected a mapping, key: value")
    if not isinstance(document.value, dict):
        document.fail()


def _declarations(document: Document) -> dict[str, Parameter]:
    """The parameters that are declared well; the rest is reported with the whole spec."""
    raw = document.value.get("parameters")
    declared: dict[str, Parameter] = {}
    for name, value in raw.items() if isinstance(raw, dict) else ():
        try:
            declared[name] = Parameter.model_validate(value, strict=True, by_alias=True, by_name=False)
        except ValidationError:
            declared[name] = Parameter(default="")  # so that its uses are no errors as well
    return declared


def _graft_contract(document: Document, directory: str, values: Mapping[str, Value], declared: Mapping[str, Parameter]) -> None:
    """`contract: {file: contracts/x.yaml}`: that file's content in its place, its errors at its lines."""
    contract = document.value.get("contract")
    if not isinstance(contract, dict) or "file" not in contract or "columns" in contract:
        return
    name = contract["file"]
    for other in contract:
        if other != "file":
            document.problem(("contract", other), f"'{other}' cannot stand beside 'file': it belongs into the contract's file", key=True)
    if not isinstance(name, str):
        return
    beside = name if os.path.isabs(name) else os.path.join(os.path.dirname(document.file), name)
    try:
        other_file = read_document(_bytes(resolve_path(name, directory)), file=beside)
    except SpecError as error:
        problems = getattr(error, "problems", None)
        if problems is None:
            document.problem(("contract", "file"), str(error))
        document.problems += problems or ()
        document.fail()
        raise
    put_in(other_file, values, declared)
    document.graft(("contract",), other_file)


def _validated(model: type[M], document: Document) -> M | None:
    try:
        return validate(model, document.value)
    except ValidationError as error:
        report(error, document, model)
        return None


def validate(model: type[M], value: Any) -> M:
    """`value` as a model, strictly: `yes` is no boolean, 1.0 no text."""
    return model.model_validate(value, strict=True, by_alias=True, by_name=False, context=WRITTEN)
