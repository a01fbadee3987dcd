"""Decode: raw bytes to one column per contract column."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
from pydantic import TypeAdapter

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Program
from beam_pipelines.formats.options import Format
from beam_pipelines.formats.registry import decode_steps, message_steps
from beam_pipelines.transforms.given import piped
from beam_pipelines.transforms.stage import run_program

_FORMAT: TypeAdapter[Any] = TypeAdapter(Format)


class Decoded(NamedTuple):
    """Decoded batches; dead letters of records that are malformed or hold the wrong kind of value; ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Decode(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches (`_raw` bytes and provenance) to decoded batches, by a format's name or options.

    `messages`: each record is a whole message, such as `ReadPubsub` gives: in the format's encoding, and none is a header.
    A text format gives one string column per contract column, a columnar one the source's own types. Each input row is a decoded row
    or a dead letter (DECODE, TYPE, UNKNOWN_COLUMN).
    """

    def __init__(
        self,
        contract: Contract,
        format: str | dict[str, Any] | Any = "json",  # noqa: A002  (Beam's and the spec's word)
        *,
        messages: bool = False,
    ) -> None:
        super().__init__()
        self.contract = contract
        self.format = _FORMAT.validate_python(format)
        self.messages = messages

    def expand(self, rows: Any) -> Decoded:
        steps = message_steps if self.messages else decode_steps
        program = Program(steps(self.format, self.contract), raw_format=self.format.type, keep_raw=True)
        return Decoded(*run_program(rows, program))
