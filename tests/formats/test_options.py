"""What a user says about a format is checked where it is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from beam_pipelines.formats.options import CsvFormat, TextFormat


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"delimiter": "¦"}, "delimiter must be one ASCII character"),
        ({"quote": "\n"}, "quote must be one ASCII character other than a line break"),
        ({"delimiter": ";", "comment": ";"}, "comment and delimiter are both ';'"),
        ({"encoding": "utf-9"}, "unknown text encoding 'utf-9'"),
    ],
)
def test_csv_options(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CsvFormat(**said)


def test_csv_without_quotes_and_escapes() -> None:
    assert CsvFormat(quote="", escape="").quote == ""


@pytest.mark.parametrize(("pattern", "message"), [("(?P<a>", "not a Python regular expression"), ("a+", "names no group")])
def test_a_pattern_must_compile_and_name_its_columns(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextFormat(pattern=pattern)
