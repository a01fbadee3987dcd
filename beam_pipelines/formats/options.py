"""What a user says about a format: `format: csv`, or `format: {type: csv, delimiter: ";"}`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from beam_pipelines.arrow.model import Model
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.encoding import canonical


def _known_encoding(name: str) -> str:
    try:
        canonical(name)
    except SpecError as error:
        raise ValueError(str(error)) from None
    return name


def _named_groups(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"not a Python regular expression: {error}; got {pattern!r}") from None
    if not groups:
        raise ValueError(f"names no group; got {pattern!r}; write (?P<column>...) for each column")
    return pattern


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class CsvFormat(Model):
    """Delimited text. Quoted fields may hold line breaks; a file without any (`multiline: false`) can be split between workers."""

    type: Literal["csv"] = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1, description="One character between fields.")
    quote: str = Field('"', max_length=1, description="Empty: nothing is quoted.")
    escape: str = Field("", max_length=1, description="Empty: a quote inside a quoted field is doubled.")
    header: bool = Field(True, description="The first record of each file names the columns; else the contract's order does.")
    columns: tuple[str, ...] | None = Field(None, description="Column names of a file without header; default: the contract's.")
    encoding: Encoding = Field("utf-8", description="Any Python codec; a byte-order mark wins.")
    multiline: bool = Field(True, description="Whether quoted fields may hold line breaks.")
    comment: str = Field("", max_length=1, description="Lines that start with this are skipped.")
    skip_rows: int = Field(0, ge=0, description="Lines before the header.")
    ragged: Literal["dead_letter", "pad"] = Field(
        "dead_letter", description="A record with too few fields; too many is always a dead letter."
    )

    @model_validator(mode="after")
    def _characters_differ(self) -> CsvFormat:
        used: dict[str, str] = {}
        for name in ("delimiter", "quote", "escape", "comment"):
            character = getattr(self, name)
            if character and (not character.isascii() or character in "\r\n"):
                raise ValueError(f"{name} must be one ASCII character other than a line break; got {character!r}")
            if character and character in used:
                raise ValueError(f"{name} and {used[character]} are both {character!r}; expected different characters")
            used[character] = name
        return self


class JsonFormat(Model):
    """JSON: one object per line, or one array of objects (`layout: array`)."""

    type: Literal["json"] = "json"
    layout: Literal["lines", "array"] = Field("lines", description="One object per line, or one array of objects.")
    encoding: Encoding = Field("utf-8", description="Any Python codec; a byte-order mark wins.")


class TextFormat(Model):
    """Lines matched by a regular expression with named groups; a line that does not match is a dead letter."""

    type: Literal["text"] = "text"
    pattern: Annotated[str, AfterValidator(_named_groups)] = Field(
        description="Python regular expression that matches whole lines; its named groups are the columns; a group that matches nothing is NULL."
    )
    encoding: Encoding = Field("utf-8", description="Any Python codec; a byte-order mark wins.")


class AvroFormat(Model):
    """Avro: object container files, which hold their schema, or messages, whose schema is told.

    A message is one record: without a header (`schema`), with the header of Avro's single-object encoding (`schemas`), or published under a Pub/Sub
    schema, whose revisions are then fetched from the service. The fields are for messages only.
    """

    type: Literal["avro"] = "avro"
    schema_: Any = Field(
        None, alias="schema", description="The schema rows are read as, written here; and what messages without a header were written as."
    )
    schema_file: str | None = Field(None, description="`schema` in a file (.avsc).")
    schemas: tuple[str, ...] = Field(
        (), description="Files of all schemas that messages were written as, the newest last; each message says which, by its fingerprint."
    )

    @model_validator(mode="after")
    def _one_schema(self) -> AvroFormat:
        if self.schema_ is not None and self.schema_file is not None:
            raise ValueError("got 'schema' and 'schema_file'; expected one of them")
        return self

    @property
    def of_messages(self) -> tuple[str, ...]:
        """The fields given that only messages have."""
        given = (("schema", self.schema_), ("schema_file", self.schema_file), ("schemas", self.schemas or None))
        return tuple(name for name, value in given if value is not None)


class ParquetFormat(Model):
    """Parquet files; page checksums are verified."""

    type: Literal["parquet"] = "parquet"


class OrcFormat(Model):
    """ORC files."""

    type: Literal["orc"] = "orc"


def _long(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Format = Annotated[
    CsvFormat | JsonFormat | TextFormat | AvroFormat | ParquetFormat | OrcFormat, Field(discriminator="type"), BeforeValidator(_long)
]
"""A format by its name or with its options."""
