"""The `tests:` file beside a spec: given these rows, expect those. `beam-pipelines test` runs it.

tests:
  - name: a cancelled flight leaves as filtered
    given: [{carrier: UA, flight: 1545, dep_time: NA}]
    expect: {rows: [], dead_letters: []}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from beam_pipelines.arrow.model import Misfits, Model
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.load import LoadedSpec, load_model
from beam_pipelines.spec.scope import Scope

Row = dict[str, Any]


class ExpectedDeadLetter(Model):
    """A dead letter: what is given must be so, the rest may be anything."""

    reason: str = Field(description="DECODE, TYPE, CAST, TIME, REQUIRED, CHECK, ...")
    stage: str | None = Field(None, description="decode, conform, transform, enrich, validate, ...")
    failures: tuple[str, ...] | None = Field(None, description="Names of all that failed: checks, or columns for their own rules.")
    message: str | None = Field(None, description="A piece of the message.")


class Expectation(Model):
    """What comes out. An output that is not named may be anything; rows may come in any order, and a row shows only the columns that matter."""

    rows: tuple[Row, ...] | None = Field(None, description="The rows that are written.")
    dead_letters: tuple[ExpectedDeadLetter, ...] | None = Field(None, description="The rows that are rejected.")
    aggregates: dict[str, tuple[Row, ...]] = Field({}, description="Rows of aggregates, by name.")
    filtered: int | None = Field(None, ge=0, description="How many rows a `filter` step took out.")
    duplicates: int | None = Field(None, ge=0, description="How many rows were duplicates.")

    @model_validator(mode="after")
    def _some(self) -> Expectation:
        if not self.model_fields_set:
            raise ValueError(f"expects nothing; name at least one of {', '.join(type(self).model_fields)}")
        return self


class SpecTest(Model):
    """One case: rows in, rows out."""

    name: str = Field(min_length=1, description="What the case shows, as a sentence.")
    given: tuple[Row | str, ...] = Field(description="Records: mappings, or raw texts as they would stand in a file.")
    expect: Expectation = Field(description="What comes out.")
    parameters: dict[str, str | int | float | bool] = Field({}, description="Parameters set for this case.")
    description: str = Field("", description="For people.")


class SpecTests(Model):
    """The cases of a spec."""

    tests: tuple[SpecTest, ...] = Field(min_length=1, description="The cases, in order.")

    @model_validator(mode="after")
    def _names_differ(self) -> SpecTests:
        names = [case.name for case in self.tests]
        twice = [i for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise Misfits(*(((("tests", i, "name")), f"tests[{names.index(names[i])}] has the same name") for i in twice))
        return self


@dataclass(frozen=True)
class LoadedTests:
    """The cases of a file, and where each of them starts in it."""

    cases: tuple[SpecTest, ...]
    path: str
    lines: tuple[int, ...]


def load_tests(path: str | os.PathLike[str], *, loaded: LoadedSpec | None = None) -> LoadedTests:
    """The cases in the file `path`, with the names in them checked against the spec where it is given. Raises SpecErrors."""
    made, document = load_model(SpecTests, path)
    if loaded is not None:
        _check_names(made, document, loaded)
        document.fail()
    return LoadedTests(made.tests, os.fspath(path), tuple(document.position(("tests", i))[1] for i in range(len(made.tests))))


def _check_names(tests: SpecTests, document: Document, loaded: LoadedSpec) -> None:
    spec = loaded.spec
    for i, case in enumerate(tests.tests):
        at = ("tests", i)
        _refuse_unknown(document, (*at, "parameters"), case.parameters, spec.parameters, "parameter")
        _refuse_unknown(document, (*at, "expect", "aggregates"), case.expect.aggregates, spec.aggregates, "aggregate")
        provenance = {"_source": None, "_position": None, "_arrival_time": None, "_unknown": None}
        scope = Scope(document, {**loaded.columns, **provenance})
        for j, row in enumerate(case.expect.rows or ()):
            for name in row:
                scope.known((*at, "expect", "rows", j, name), name)


def _refuse_unknown(document: Document, path: tuple[str | int, ...], given: Any, known: Any, what: str) -> None:
    from beam_pipelines.errors import nearest

    for name in given:
        if name not in known:
            document.problem(
                (*path, name), f"unknown {what} {name!r}; {nearest(name, known) if known else f'the spec has no {what}s'}", key=True
            )
