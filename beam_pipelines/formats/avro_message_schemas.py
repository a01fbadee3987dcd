"""Which schema an Avro message was written as, and what reads it: schemas of the spec, by fingerprint, or revisions of a Pub/Sub schema.

    googclient_schema… attributes          the revision that they name, fetched once per process     BINARY or JSON
    C3 01 and a fingerprint                one of `schemas` (or `schema`)                            single-object encoding
    neither                                `schema`, or the newest of `schemas` where one is alone   the bare record

Rows are read as `schema`, else as the newest of `schemas`, by Avro's resolution (fields added with a default, removed, promoted, renamed by
aliases). Without either, a message is read as its own revision says, and the contract picks from that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import fastavro
import grpc
from fastavro.schema import fingerprint, to_parsing_canonical_form

from beam_pipelines.errors import SourceError, SpecError, TransientError
from beam_pipelines.formats.avro_schema import RowSchema, row_schema
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.pubsub_service import LOG_IN, Schemas, code, is_transient, patiently

MARK = b"\xc3\x01"
HEADER_BYTES = 10
_PATIENCE_S = 30.0
_SHOWN = 200
_DO = {"PERMISSION_DENIED": "Give this account the role roles/pubsub.viewer on the schema.", "UNAUTHENTICATED": LOG_IN}


@dataclass(frozen=True)
class KnownSchemas:
    """What a spec says of its messages' schemas, as JSON texts. `by_print` are the writers by their fingerprint of 8 bytes."""

    reader: str | None = None
    bare: str | None = None
    by_print: Mapping[bytes, str] = field(default_factory=dict)
    only_framed: bool = False


def known_schemas(fmt: AvroFormat) -> KnownSchemas:
    """The schemas that `fmt` names. Raises SpecError for a file that cannot be read, and for what is no Avro schema."""
    own = _inline(fmt.schema_) if fmt.schema_file is None else _of_file(fmt.schema_file)
    listed = [_of_file(path) for path in fmt.schemas]
    every = [*listed, *([own] if own is not None else [])]
    reader = own if own is not None else listed[-1] if listed else None
    return KnownSchemas(reader, None if listed else own, {_print(text): text for text in every}, only_framed=bool(listed))


def _inline(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        return _checked(value, "format.schema")
    return _checked(json.dumps(value), "format.schema")


def _of_file(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return _checked(stream.read().decode("utf-8"), path)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}; expected an Avro schema (.avsc).") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: is no text; expected an Avro schema as JSON (.avsc).") from None


def _checked(text: str, where: str) -> str:
    try:
        row_schema(json.loads(text))
    except Exception as error:  # fastavro tells wrong schemas by many exceptions
        raise SpecError(f"{where}: no Avro schema: {described(error)}.") from None
    return text


def _print(text: str) -> bytes:
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(text)), "CRC-64-AVRO"))


class Codec(NamedTuple):
    """How messages of one schema are read: `reader` is None where rows are read as they were written."""

    writer: Any
    reader: Any
    rows: RowSchema
    read: Callable[..., Any]


@lru_cache(maxsize=256)
def codec(writer: str, reader: str | None) -> Codec:
    """What reads messages written as `writer`, as rows of `reader` (default: as they were written)."""
    written = row_schema(json.loads(writer))
    if reader is None or reader == writer:
        return Codec(written.decode, None, written, written.read)
    rows = row_schema(json.loads(reader))
    return Codec(written.decode, rows.decode, rows, written.read)


class Fetched(NamedTuple):
    """A revision's definition, or why its messages cannot be read."""

    definition: str | None
    fault: str = ""


_lock = threading.Lock()
_fetched: dict[tuple[str, str], Fetched] = {}


def fetched(endpoint: str, name: str, revision: str) -> Fetched:
    """The revision of a Pub/Sub schema, asked for once per process: a revision never changes.

    Raises SourceError where the service refuses, TransientError where it does not answer for 30 s: no message is to blame for that.
    """
    whole = f"{name}@{revision}" if revision else name
    with _lock:
        if (endpoint, whole) not in _fetched:
            _fetched[endpoint, whole] = _fetch(endpoint, whole)
        return _fetched[endpoint, whole]


def forget() -> None:
    """Forgets fetched revisions; for tests that start a service anew under an old address."""
    with _lock:
        _fetched.clear()


def _fetch(endpoint: str, whole: str) -> Fetched:
    schemas = Schemas(endpoint, who="format avro", error=SourceError)
    try:
        found = patiently(lambda: schemas.get(whole), patience_s=_PATIENCE_S)
    except grpc.RpcError as error:
        return _refused(whole, error)
    finally:
        schemas.close()
    if found.kind != "AVRO":
        return Fetched(None, f"the schema {whole} is {found.kind}; expected AVRO")
    try:
        return Fetched(_checked(found.definition, whole))
    except SpecError as error:
        return Fetched(None, str(error).rstrip("."))


def _refused(whole: str, error: grpc.RpcError) -> Fetched:
    name = code(error)
    if name in ("NOT_FOUND", "INVALID_ARGUMENT"):
        return Fetched(None, f"there is no schema {whole}")
    if is_transient(error):
        raise TransientError(f"format avro: the schema {whole} cannot be fetched: {error.details()}.", hint="Check the network.") from None
    raise SourceError(f"format avro: the schema {whole} cannot be fetched: {name}: {error.details()}.", hint=_DO.get(name, "")) from None


def described(error: Exception) -> str:
    """An error of fastavro in few words: some quote whole schemas."""
    text = " ".join(str(error).split())
    if isinstance(error, EOFError):
        return "it ends in the middle of a value"
    if isinstance(error, fastavro._read_common.SchemaResolutionError):
        return f"its schema cannot be read as the spec's: {text[:_SHOWN]}"
    return f"{type(error).__name__} {text[:_SHOWN]}".rstrip()
