"""What a stream writes where, written down at its start so that `query` reads it without the spec. Loads no Beam."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from beam_pipelines.places import join, read_bytes, write_bytes
from beam_pipelines.sinks.epochs import stream_folder

_COLUMNS = ".columns.json"


class SpeedOutput(msgspec.Struct, frozen=True):
    """One output of a stream. `group_by` are the columns of an aggregate's groups; `provenance` whether readers see `_source` and the like.

    `placed` are the columns that say in which partition a row lies, and its event time: given by what the row is, once its contract and transform
    are. `placings` names every such pair that starts had.

    `table` is the BigQuery table to which its rows are appended besides; "" none.

    A window of an aggregate is shown on time within `shown_micros` of its end, and may change until `open_micros` after it (arrival clock).
    """

    name: str
    of: str
    folder: str
    group_by: tuple[str, ...] = ()
    provenance: bool = True
    shown_micros: int = 0
    open_micros: int = 0
    placed: tuple[str, ...] = ()
    placings: tuple[str, ...] = ()
    table: str = ""


class StreamOutputs(msgspec.Struct, frozen=True):
    """All outputs of a stream, and the archive of its raw messages: a folder for each of its `sources`."""

    outputs: tuple[SpeedOutput, ...]
    archive: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def write_outputs(state: str, outputs: StreamOutputs) -> None:
    """Writes down what the stream of this state folder writes; how its earlier starts placed rows stays known."""
    earlier = read_outputs(state)
    before = {o.folder: o.placings for o in (earlier.outputs if earlier else ())}
    known = tuple(replace(o, placings=tuple(dict.fromkeys((*before.get(o.folder, ()), *o.placings)))) for o in outputs.outputs)
    write_bytes(_path(state), msgspec.json.format(msgspec.json.encode(replace(outputs, outputs=known)), indent=2))


def read_outputs(state: str) -> StreamOutputs | None:
    """What the stream of this state folder writes; None if none has ever started."""
    content = read_bytes(_path(state))
    return None if content is None else msgspec.json.decode(content, type=StreamOutputs)


def write_columns(folder: str, types: Mapping[str, str]) -> None:
    """Writes down the DuckDB types of the partition columns of an output's speed layer: files do not have them, and names of folders are text."""
    write_bytes(join(folder, _COLUMNS), msgspec.json.encode(types))


def read_columns(folder: str) -> dict[str, str]:
    """The DuckDB types of the partition columns; {} without any."""
    content = read_bytes(join(folder, _COLUMNS))
    return {} if content is None else msgspec.json.decode(content, type=dict[str, str])


def _path(state: str) -> str:
    return join(stream_folder(state), "outputs.json")
