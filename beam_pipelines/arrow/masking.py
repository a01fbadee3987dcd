"""Masking of sensitive columns at every exit, and sealing of raw bytes that may hold them.

    hmac     HMAC-SHA256 of the value's text under a secret key, as 64 hex digits: equal values stay equal, joins keep working
    redact   `***` for texts, NULL for everything else
    drop     the column is not there

NULL stays NULL. Raw bytes are sealed with AES-256-GCM, or left out.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.quiet import quiet
from beam_pipelines.arrow.schema import FAILURE
from beam_pipelines.errors import SpecError

REDACTED = "***"
KEY_BYTES = 32
SEALED = "+sealed"
"""Ending of `raw_format` where `raw` is encrypted."""
_VERSION = b"\x01"
_NONCE_BYTES, _TAG_BYTES = 12, 16


def mask_batch(batch: pa.RecordBatch, contract: Contract, *, key: bytes | None = None) -> pa.RecordBatch:
    """`batch` with the contract's sensitive columns masked; columns are matched by name, so aggregates that group by one are masked too.

    Raises SpecError where a column is `sensitive: hmac` and there is no `key`.
    """
    return mask_columns(batch, contract.sensitive, key=key)


def mask_columns(batch: pa.RecordBatch, how: Mapping[str, str], *, key: bytes | None = None) -> pa.RecordBatch:
    """`batch` with the named columns masked as `how` says (hmac, redact, drop)."""
    present = {name: word for name, word in how.items() if name in batch.schema.names}
    if not present:
        return batch
    columns: dict[str, pa.Array] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        word = present.get(name)
        if word != "drop":
            columns[name] = column if word is None else _masked(column, word, name, key)
    if not columns:
        raise SpecError(
            "every column is `sensitive: drop`, so nothing would be written.", hint="Mask at least one column with hmac or redact."
        )
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _masked(column: pa.Array, how: str, name: str, key: bytes | None) -> pa.Array:
    if how == "redact":
        return _redacted(column)
    if not key:
        raise SpecError(
            f"column {name!r} is `sensitive: hmac`, and there is no key.", hint="Set `hmac_key` in the spec to a secret reference."
        )
    return _hmac(column, key)


def _redacted(column: pa.Array) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return pa.nulls(len(column), column.type)
    return pc.if_else(column.is_valid(), pa.scalar(REDACTED, kind), pa.scalar(None, kind))


def _hmac(column: pa.Array, key: bytes) -> pa.Array:
    if pa.types.is_nested(column.type):
        encode = msgspec.json.Encoder(enc_hook=str, order="sorted").encode
        texts = pa.array(
            [None if v is None else encode(v) for v in column.to_pylist()], pa.binary()
        )  # no Arrow kernel prints nested values
    else:
        texts = _text(column)
    coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    # A loop, but over distinct values only: no vectorised HMAC exists, and one costs a microsecond.
    digests = [hmac.digest(key, _bytes(v), "sha256").hex() for v in coded.dictionary.to_pylist()]
    return pa.array(digests, pa.string()).take(coded.indices)


def _text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return column
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")  # one text for one instant, whatever the zone
    return column.cast(pa.string())


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def mask_letters(letters: pa.RecordBatch, contract: Contract, *, raw_key: bytes | None = None) -> pa.RecordBatch:
    """Dead letters fit to be stored: where the contract has sensitive columns, raw bytes are sealed under `raw_key` or left out,
    messages that may quote a sensitive value say the kind of error and the place only (`quiet`), and an event time that is sensitive is left out."""
    if not contract.sensitive:
        return letters
    raw = letters.column("raw")
    columns = {name: letters.column(name) for name in letters.schema.names}
    columns["raw"] = pa.nulls(len(raw), pa.binary()) if raw_key is None else seal(raw, raw_key)
    if raw_key is not None:
        columns["raw_format"] = pc.binary_join_element_wise(columns["raw_format"], SEALED, "", null_handling="replace")
    columns["failures"], columns["message"] = _quiet(letters, contract)
    if contract.event_time in contract.sensitive:
        columns["event_time"] = pa.nulls(len(raw), letters.schema.field("event_time").type)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=letters.schema)


def _quiet(letters: pa.RecordBatch, contract: Contract) -> tuple[pa.Array, pa.Array]:
    failures, messages = [], []
    for letter in letters.select(["reason", "message", "failures"]).to_pylist():  # rejected rows only
        reason, found = letter["reason"], letter["failures"] or ()
        kept = [{**f, "message": quiet(f["message"], reason=reason, column=f["column"], contract=contract)} for f in found]
        failures.append(kept)
        whole = letter["message"] or ""
        messages.append("; ".join(f["message"] for f in kept) if kept else quiet(whole, reason=reason, column="", contract=contract))
    return pa.array(failures, pa.list_(FAILURE)), pa.array(messages, pa.string())


def parse_key(text: str | bytes) -> bytes:
    """The 32 bytes of a sealing key written as 32 bytes, 64 hex digits or base64.

    >>> len(parse_key("00" * 32))
    32
    """
    raw = text.strip().encode() if isinstance(text, str) else text
    for read in (lambda b: b, binascii.unhexlify, lambda b: base64.b64decode(b, altchars=b"-_" if b"-" in b or b"_" in b else None)):
        try:
            key = bytes(read(raw))
        except (binascii.Error, ValueError):
            continue
        if len(key) == KEY_BYTES:
            return key
    raise SpecError(
        f"raw_key: a key of {KEY_BYTES} bytes is needed; got {len(raw)} bytes that are no such key.",
        hint="Make one with `openssl rand -hex 32`.",
    )


def seal(raw: pa.Array, key: bytes) -> pa.Array:
    """`raw` (binary) encrypted value by value: version byte, 12-byte nonce, AES-256-GCM ciphertext with tag. NULL stays NULL."""
    encrypt = _cipher(key).encrypt
    sealed = []
    for value in raw.to_pylist():  # each value needs its own nonce
        nonce = os.urandom(_NONCE_BYTES)
        sealed.append(None if value is None else _VERSION + nonce + encrypt(nonce, value, _VERSION))
    return pa.array(sealed, pa.binary())


def open_sealed(sealed: pa.Array, key: bytes) -> pa.Array:
    """The bytes that `seal` was given. Raises SpecError where the key is another one or the bytes were changed."""
    decrypt = _cipher(key).decrypt
    return pa.array([None if v is None else _open(v, decrypt) for v in sealed.to_pylist()], pa.binary())  # no kernel decrypts


def _open(value: bytes, decrypt: Any) -> bytes:
    from cryptography.exceptions import InvalidTag

    if value[:1] != _VERSION or len(value) < 1 + _NONCE_BYTES + _TAG_BYTES:
        raise SpecError(
            "raw bytes: not sealed by this program.", hint="Open only the `raw` of dead letters whose `raw_format` ends in `+sealed`."
        )
    try:
        return bytes(decrypt(value[1 : 1 + _NONCE_BYTES], value[1 + _NONCE_BYTES :], _VERSION))
    except InvalidTag:
        raise SpecError(
            "raw bytes: the key does not open them.", hint="Use the key that `dead_letters.raw_key` named when the run wrote them."
        ) from None


def _cipher(key: bytes) -> Any:
    if len(key) != KEY_BYTES:
        raise SpecError(f"raw_key: a key of {KEY_BYTES} bytes is needed; got {len(key)}.", hint="Make one with `openssl rand -hex 32`.")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
