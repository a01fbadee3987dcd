"""The one place that knows which module reads and decodes a format."""

from __future__ import annotations

from importlib import import_module

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Step
from beam_pipelines.formats.options import AvroFormat, CsvFormat, Format, JsonFormat, TextFormat
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
    module = fmt.type if fmt.type in TEXT_FORMATS else "avro_message" if fmt.type == "avro" else "columnar"
    steps: tuple[Step, ...] = import_module(f"beam_pipelines.formats.{module}").decode_steps(contract, fmt)
    return steps


def message_steps(fmt: Format, contract: Contract, *, endpoint: str | None = None) -> tuple[Step, ...]:
    """`decode_steps` for raw batches of messages, one record each: whole, in the format's encoding, without header.

    `endpoint` is where the schemas of Avro messages are fetched from (see `pubsub_service.where`).
    """
    if isinstance(fmt, AvroFormat):
        from beam_pipelines.formats import avro_message

        return avro_message.decode_steps(contract, fmt, endpoint=endpoint)
    from beam_pipelines.formats.message_text import AsUtf8

    if isinstance(fmt, CsvFormat):
        from beam_pipelines.formats.csv import DecodeCsv

        return AsUtf8(fmt.encoding), DecodeCsv(contract, fmt, messages=True)
    steps = decode_steps(fmt, contract)
    return (AsUtf8(fmt.encoding), *steps) if isinstance(fmt, JsonFormat | TextFormat) else steps
