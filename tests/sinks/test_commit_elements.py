"""What a commit is told crosses processes as it is, and is told apart by type."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest

from beam_pipelines.commit_elements import CheckState, Columns, CommitElement, SourceSpans, Staged
from beam_pipelines.sinks.commit import sort_elements

COUNT = ("u", "s", "read", "", 5)
STAGED = Staged("out", "day=1", "/lake/out/.staging/part-1.parquet.inprogress", 5, 700)
ELEMENTS: tuple[CommitElement, ...] = (
    COUNT,
    STAGED,
    Columns("out", (("n", "BIGINT"), ("k", "VARCHAR"))),
    CheckState(b"state"),
    SourceSpans("s", ((0, 3_600_000_000),), True),
)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: type(element).__name__)
def test_an_element_is_the_same_behind_the_coder_of_the_commits_input(element: CommitElement) -> None:
    coder = beam.coders.registry.get_coder(beam.typehints.Tuple[str, beam.typehints.Any])
    key, decoded = coder.decode(coder.encode(("run", element)))
    assert (key, type(decoded), decoded) == ("run", type(element), element)


def test_elements_are_told_apart_whatever_their_order() -> None:
    inbox = sort_elements([None, *ELEMENTS])
    assert inbox == sort_elements(reversed(ELEMENTS))
    assert (inbox.counts, inbox.staged, inbox.checks) == ((COUNT,), (STAGED,), (b"state",))
    assert (inbox.schemas, inbox.spans) == ({"out": (("n", "BIGINT"), ("k", "VARCHAR"))}, (ELEMENTS[-1],))


@pytest.mark.parametrize("wrong", [("s", "read", "", 5), ("file", "out", "day=1", "/lake/out/part-1", 5, 700), "out", 5])
def test_what_is_no_element_is_refused_and_shown(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Commit: got .*; expected a count \(unit, source, outcome, detail, rows\), Staged"):
        sort_elements([wrong])
