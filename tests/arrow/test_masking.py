"""Masking: nothing sensitive leaves, equal values stay equal, NULL stays NULL."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.masking import SEALED, mask_batch, mask_letters, open_sealed, parse_key, seal
from beam_pipelines.arrow.quiet import HIDDEN
from beam_pipelines.arrow.schema import RAW_BATCH, Failure, Rejected, dead_letters, provenance
from beam_pipelines.errors import SpecError

KEY = b"k" * 32
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=30)


def contract(**how: str) -> Contract:
    return Contract(columns={"plain": Column(type="int32"), **{n: Column(type="string", sensitive=h) for n, h in how.items()}})


def digest(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()


@given(TEXTS)
def test_hmac_is_hmac_sha256_of_the_text_and_null_stays_null(texts: list[str | None]) -> None:
    batch = pa.record_batch({"plain": pa.array(range(len(texts)), pa.int32()), "name": pa.array(texts, pa.string())})
    masked = mask_batch(batch, contract(name="hmac"), key=KEY)
    assert masked.column("name").to_pylist() == [None if t is None else digest(t) for t in texts]
    assert masked.column("plain").equals(batch.column("plain"))


@given(TEXTS, st.integers(0, 5))
def test_a_dictionary_or_a_slice_is_masked_as_the_plain_column(texts: list[str | None], offset: int) -> None:
    plain = pa.array(texts, pa.string()).slice(offset)
    rules = contract(name="hmac")
    one = mask_batch(pa.record_batch({"name": plain}), rules, key=KEY)
    other = mask_batch(pa.record_batch({"name": plain.dictionary_encode()}), rules, key=KEY)
    assert one.column("name").to_pylist() == other.column("name").to_pylist()


def test_redact_shows_only_that_a_text_was_there() -> None:
    batch = pa.record_batch({"name": pa.array(["a", None]), "n": pa.array([1, None], pa.int64())})
    rules = Contract(columns={"name": Column(type="string", sensitive="redact"), "n": Column(type="int64", sensitive="redact")})
    assert mask_batch(batch, rules).to_pydict() == {"name": ["***", None], "n": [None, None]}


def test_drop_removes_the_column() -> None:
    batch = pa.record_batch({"plain": pa.array([1], pa.int32()), "name": pa.array(["a"])})
    assert mask_batch(batch, contract(name="drop")).schema.names == ["plain"]


def test_nested_numbers_and_instants_are_masked_by_their_text() -> None:
    moment = datetime(2013, 1, 1, tzinfo=UTC)
    batch = pa.record_batch({"at": pa.array([moment], pa.timestamp("us", "UTC")), "n": pa.array([7]), "l": pa.array([[1, 2]])})
    rules = Contract(
        columns={n: Column(type=t, sensitive="hmac") for n, t in {"at": "timestamp", "n": "int64", "l": "list<int64>"}.items()}
    )
    found = mask_batch(batch, rules, key=KEY).to_pydict()
    assert found == {"at": [digest("2013-01-01T00:00:00.000000Z")], "n": [digest("7")], "l": [digest("[1,2]")]}


def test_hmac_without_a_key_is_refused() -> None:
    with pytest.raises(SpecError, match="hmac_key"):
        mask_batch(pa.record_batch({"name": pa.array(["a"])}), contract(name="hmac"))


def test_a_batch_without_sensitive_columns_passes_as_it_is() -> None:
    batch = pa.record_batch({"plain": pa.array([1], pa.int32())})
    assert mask_batch(batch, contract(name="hmac"), key=KEY) is batch


@given(st.lists(st.one_of(st.none(), st.binary(max_size=50)), max_size=10))
def test_what_is_sealed_opens_again_and_looks_different_every_time(values: list[bytes | None]) -> None:
    raw = pa.array(values, pa.binary())
    sealed = seal(raw, KEY)
    assert open_sealed(sealed, KEY).equals(raw)
    assert all(a != b for a, b in zip(sealed.to_pylist(), seal(raw, KEY).to_pylist(), strict=True) if a is not None)


def test_another_key_or_changed_bytes_do_not_open() -> None:
    sealed = seal(pa.array([b"secret"]), KEY)
    changed = sealed[0].as_py()[:-1] + b"\0"
    with pytest.raises(SpecError, match="key does not open"):
        open_sealed(sealed, b"x" * 32)
    with pytest.raises(SpecError, match="key does not open"):
        open_sealed(pa.array([changed]), KEY)
    with pytest.raises(SpecError, match="not sealed"):
        open_sealed(pa.array([b"plain"]), KEY)


def test_a_key_is_read_from_bytes_hex_or_base64() -> None:
    import base64

    assert {parse_key(KEY), parse_key(KEY.hex()), parse_key(base64.b64encode(KEY).decode() + "\n")} == {KEY}
    with pytest.raises(SpecError, match="32 bytes"):
        parse_key("short")


def letters(reason: str, *failures: Failure) -> pa.RecordBatch:
    rows = pa.RecordBatch.from_arrays([*provenance("s", pa.array([0])), pa.array([b"raw"], pa.binary())], schema=RAW_BATCH)
    return dead_letters(rows, [Rejected("conform", reason, failures)], raw_format="json")


def test_letters_of_a_plain_contract_keep_their_bytes() -> None:
    batch = letters("CAST", Failure("cast", "plain", "'x' is no int32"))
    assert mask_letters(batch, Contract(columns={"plain": Column(type="int32")})) is batch


def test_letters_hide_what_may_quote_a_sensitive_value() -> None:
    batch = letters(
        "CAST", Failure("cast", "name", "'Ann' is too long"), Failure("cast", "plain", "'x' is no int32"), Failure("", "", "near 'Ann'")
    )
    found = mask_letters(batch, contract(name="hmac")).to_pylist()[0]
    assert found["raw"] is None
    assert found["message"] == f"name: the value is no string {HIDDEN}; 'x' is no int32; the value does not convert {HIDDEN}"
    assert "Ann" not in str(found)


def test_a_sensitive_event_time_is_in_no_letter() -> None:
    batch = letters("FUTURE", Failure("at.future", "at", "at: got 2999-05-01 01:02:03, which is …"))
    day = datetime(2999, 5, 1, 1, 2, 3, tzinfo=UTC)
    time = pa.array([day], pa.timestamp("us", "UTC"))
    batch = batch.set_column(batch.schema.get_field_index("event_time"), batch.schema.field("event_time"), time)
    for how, shown, said in (
        ("redact", None, f"at: the time lies too far after the arrival {HIDDEN}"),
        (None, day, batch["message"][0].as_py()),
    ):
        columns = {"at": Column(type="timestamp", sensitive=how), "name": Column(type="string", sensitive="drop")}
        found = mask_letters(batch, Contract(columns=columns, event_time="at")).to_pylist()[0]
        assert (found["event_time"], found["message"], found["failures"][0]["message"]) == (shown, said, said)


def test_letters_keep_sealed_bytes_under_a_key() -> None:
    found = mask_letters(letters("DECODE", Failure("json", "", "at byte 3: 'Ann'")), contract(name="redact"), raw_key=KEY)
    assert open_sealed(found.column("raw"), KEY).to_pylist() == [b"raw"]
    assert found.column("raw_format").to_pylist() == ["json" + SEALED]
    assert found.column("message").to_pylist() == [f"the record cannot be read {HIDDEN}"]
