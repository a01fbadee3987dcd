"""Sensitive values stay masked under new names and in what is computed from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.sensitive import for_letters, sensitive_anywhere, sensitive_columns, sensitive_panes
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.edges import raw_key, sealing_key
from beam_pipelines.runners.direct import run_batch
from beam_pipelines.spec.load import load_spec, parse_spec
from beam_pipelines.spec.secrets import secrets_of

CONTRACT = Contract(
    columns={
        "email": Column(type="string", sensitive="hmac"), "phone": Column(type="string", sensitive="redact"), "n": Column(type="int64"),
        "short": Column(type="string", expr="left(email, 3)"),
    }
)  # fmt: skip


def test_what_is_computed_from_a_sensitive_column_is_sensitive() -> None:
    assert sensitive_columns(CONTRACT)["short"] == "hmac"
    steps = [TransformStep(set={"both": "email || phone", "again": "upper(both)", "plain": "n + 1"})]
    found = sensitive_columns(CONTRACT, steps)
    assert (found["both"], found["again"]) == ("redact", "redact")
    assert "plain" not in found


def test_a_sensitive_column_that_is_computed_anew_takes_the_strictest_way_too() -> None:
    assert sensitive_columns(CONTRACT, [TransformStep(set={"email": "phone"})])["email"] == "redact"
    assert sensitive_columns(CONTRACT, [TransformStep(set={"phone": "email"})])["phone"] == "redact"


def test_a_name_inside_another_name_is_no_mention() -> None:
    assert "size" not in sensitive_columns(CONTRACT, [TransformStep(set={"size": "n * phones"})])


def test_a_renamed_column_stays_sensitive() -> None:
    found = sensitive_columns(CONTRACT, [TransformStep(rename={"mail": "email"})])
    assert found["mail"] == "hmac"
    assert "email" not in found


def applied(**more: object) -> list[TransformStep]:
    return [TransformStep.model_validate({"apply": {"function": "m:f", "columns": {"made": "string", "n": "int64"}, **more}})]


def test_what_a_function_makes_of_rows_with_sensitive_columns_is_sensitive_unless_the_step_says_otherwise() -> None:
    everything = {"email": "hmac", "phone": "redact", "short": "hmac"}
    assert sensitive_columns(CONTRACT, applied()) == {**everything, "made": "redact", "n": "redact"}
    assert sensitive_columns(CONTRACT, applied(sensitive={"made": "hmac", "n": "none"})) == {**everything, "made": "hmac"}
    again = [*applied(), TransformStep(set={"upper": "upper(made)"})]
    assert sensitive_columns(CONTRACT, again)["upper"] == "redact"


def test_a_sensitive_column_that_a_function_fills_takes_the_strictest_way_of_all_that_it_sees() -> None:
    columns = {"columns": {"email": "string", "phone": "string"}}
    assert sensitive_columns(CONTRACT, applied(**columns)) == {"email": "redact", "phone": "redact", "short": "hmac"}
    secret = CONTRACT.model_copy(update={"columns": {**CONTRACT.columns, "pin": Column(type="string", sensitive="drop")}})
    assert sensitive_columns(secret, applied(**columns)) == {"email": "drop", "phone": "drop", "pin": "drop", "short": "hmac"}
    assert sensitive_columns(secret, applied(**columns, sensitive={"email": "hmac"}))["email"] == "hmac"


def test_a_function_sees_no_column_that_was_dropped_before() -> None:
    dropped = [TransformStep(drop=("phone",)), *applied()]
    assert sensitive_columns(CONTRACT, dropped)["made"] == "hmac"
    assert sensitive_columns(CONTRACT, [TransformStep(drop=("phone", "email", "short")), *applied()]) == {}


def test_a_column_that_a_function_fills_is_quoted_in_no_letter() -> None:
    assert for_letters(CONTRACT, applied()).sensitive == CONTRACT.sensitive | {"n": "redact", "short": "hmac", "made": "redact"}
    assert for_letters(CONTRACT, []).sensitive == CONTRACT.sensitive | {"short": "hmac"}
    with pytest.raises(ValidationError, match="no column 'maid'; did you mean 'made'"):
        applied(sensitive={"maid": "none"})


OPEN = Contract(columns={"id": Column(type="int64"), "n": Column(type="int64")})


@pytest.mark.parametrize("name", ["made", "n"])
def test_a_column_that_only_a_step_declares_sensitive_hides_the_record_it_is_made_of(name: str) -> None:
    steps = applied(sensitive={name: "hmac"})
    for after in ([], [TransformStep(drop=(name,))], [TransformStep(rename={"other": name})]):
        assert for_letters(OPEN, [*steps, *after]).sensitive == {name: "hmac"}
    assert for_letters(OPEN, applied(sensitive={name: "none"})) is OPEN


def test_a_column_is_sensitive_before_it_is_dropped_or_has_another_name() -> None:
    steps = [TransformStep(rename={"mail": "email"}), TransformStep(drop=("phone",))]
    assert sensitive_anywhere(CONTRACT, steps) == {"email": "hmac", "mail": "hmac", "phone": "redact", "short": "hmac"}


def test_panes_that_show_a_value_are_sensitive_and_counts_are_not() -> None:
    spec = AggregateSpec(group_by=("email",), measures={"last": "max(phone)", "n": "count()", "people": "count_distinct(phone)"})
    assert sensitive_panes(spec, sensitive_columns(CONTRACT)) == {"email": "hmac", "last": "redact"}


@pytest.mark.parametrize(
    ("column", "said"), [("{type: string, sensitive: redact}", ""), ("{type: string}", ", sensitive: {copy: redact, email: redact}")]
)
def test_no_file_of_a_run_holds_a_sensitive_value(tmp_path: Path, column: str, said: str) -> None:
    """Whether the contract says that it is sensitive, or the step that takes it over."""
    (tmp_path / "p.yaml").write_text(f"""
spec: 1
pipeline: people
contract:
  columns:
    id: {{type: int64, required: true, max: 5}}
    email: {column}
sources: {{batch: [{{files: in.jsonl, format: json}}]}}
checks: [{{name: not_the_third, expr: "copy NOT LIKE '%t3@%'"}}]
transform:
  - apply: {{function: "tests.arrow.user_functions:copies_email", columns: {{copy: string, email: string}}{said}}}
  - set: {{host: "split_part(email, '@', 2)"}}
  - rename: {{mail: email}}
aggregates:
  hosts: {{group_by: [host], measures: {{last: max(mail), n: count()}}}}
sinks:
  - {{from: rows, jsonl: {{path: out/rows.jsonl}}}}
  - {{from: hosts, jsonl: {{path: out/hosts.jsonl}}}}
  - {{from: dead_letters, jsonl: {{path: out/dead.jsonl}}}}
""")
    rows: list[dict[str, object]] = [{"id": n, "email": f"secret{n}@hidden.example"} for n in range(8)]
    rows.append({"id": "secret9", "email": "secret9@hidden.example"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = load_spec(tmp_path / "p.yaml")
    assert any("raw bytes of dead letters are left out" in note for note in spec.notes)
    assert run_batch(spec).status == "success"
    written = [p for p in [*(tmp_path / "out").rglob("*"), *(tmp_path / ".beam_pipelines").rglob("*")] if p.is_file()]
    assert len(written) > 3
    for path in written:
        assert b"hidden.example" not in path.read_bytes(), path
        assert b"secret1" not in path.read_bytes(), path
    letters = [json.loads(line) for line in (tmp_path / "out" / "dead.jsonl").read_text().splitlines()]
    assert sorted((letter["reason"], letter["raw"]) for letter in letters) == [*[("CHECK", None)] * 3, ("TYPE", None)]


def test_a_stream_seals_what_only_a_step_declares_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its archive under the key, or it does not start (`tests/cli/test_run_stream.py`)."""
    monkeypatch.setenv("RAW_KEY", "00" * 32)
    text = """{spec: 1, pipeline: p, contract: {columns: {id: {type: int64}}}, sources: {stream: [{pubsub: projects/p/subscriptions/s, format: json}]},
        dead_letters: {raw_key: env:RAW_KEY}, sinks: [{from: rows, parquet: {path: out}}],
        transform: [{apply: {function: 'm:f', columns: {made: string}, sensitive: {made: redact}}}]}"""
    for written, key in ((text, bytes(32)), (text.replace("redact", "none"), None)):
        spec = parse_spec(written, path="p.yaml").spec
        seals, opens = sealing_key(spec), raw_key(spec)
        assert (seals and seals()) == key
        assert opens is not None
        assert opens() == bytes(32), "what an earlier version has sealed is read"
        assert ("dead_letters.raw_key" in secrets_of(spec)) == (key is not None)
