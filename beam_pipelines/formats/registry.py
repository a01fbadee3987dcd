"""The one place that knows which module reads and decodes a format."""

from __future__ import annotations

from importlib import import_module

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Step
from beam_pipelines.formats.options import CsvFormat, Format, JsonFormat, TextFormat
from beam_pipelines.formats.reader import Reader

TEXT_FORMATS = frozenset({"csv", "json", "text"})
"""Formats whose raw batches hold `_raw` and whose decoded columns are strings."""


def reader(fmt: Format, contract: Contract) -> Reader:
    """What reads a file of this format; only the format's own module is loaded."""
    match fmt:
        case CsvFormat():
            from beam_pipelines.formats.csv import CsvReader

            return CsvReader(fmt, contract)
        case JsonFormat():
            from beam_pipelines.formats.json import JsonReader

            return JsonReader(fmt)
        case TextFormat():
            from beam_pipelines.formats.text import TextReader

            return TextReader(fmt)
    if fmt.type == "parquet":
        from beam_pipelines.formats.parquet import ParquetReader

        return ParquetReader(contract)
    if fmt.type == "orc":
        from beam_pipelines.formats.orc import OrcReader

        return OrcReader(contract)
    from beam_pipelines.formats.avro import AvroReader

    return AvroReader()


def decode_steps(fmt: Format, contract: Contract) -> tuple[Step, ...]:
    """The steps from a raw batch of this format to a decoded batch."""
    module = fmt.type if fmt.type in TEXT_FORMATS else "columnar"
    steps: tuple[Step, ...] = import_module(f"beam_pipelines.formats.{module}").decode_steps(contract, fmt)
    return steps
