"""`validate`, the command itself: quick, and clear when called wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Call


def test_validate_says_what_it_found(call: Call, orders: Path) -> None:
    assert call("validate", orders).out.startswith(f"{orders}: valid. Pipeline orders, contract ")
    assert json.loads(call("validate", orders, "--json").out)["columns"]["cents"] == "BIGINT"


def test_all_that_is_wrong_comes_at_once_with_exit_code_2(call: Call, orders: Path) -> None:
    orders.write_text(orders.read_text().replace("type: int64", "type: integer").replace("required: true, min: 0", "requierd: true"))
    err = call("validate", orders, code=2).err
    assert "unknown type 'integer'" in err
    assert "did you mean 'required'?" in err


@pytest.mark.parametrize("module", ["beam_pipelines.cli", "beam_pipelines"])
def test_validate_loads_neither_arrow_nor_beam(orders: Path, environment: dict[str, str], module: str) -> None:
    code = f"""
import runpy, sys
sys.argv = ["x", "validate", {str(orders)!r}]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as ended:
    assert not ended.code
print(*sorted({{m.partition(".")[0] for m in sys.modules}}))"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"pyarrow", "apache_beam", "numpy", "rich", "pandas", "fastavro"} & set(done.stdout.splitlines()[-1].split())


def test_a_key_that_is_not_there_is_a_note_and_stops_a_run_before_it_starts(
    call: Call, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.write_text(orders.read_text().replace("sensitive: redact", "sensitive: hmac") + "dead_letters: {raw_key: env:RAW_KEY}\n")
    for name in ("BEAM_PIPELINES_HMAC_KEY", "RAW_KEY"):
        monkeypatch.delenv(name, raising=False)
    err = call("validate", orders).err
    assert "note: hmac_key: env:BEAM_PIPELINES_HMAC_KEY: the environment variable is not set here" in err
    assert "note: dead_letters.raw_key: env:RAW_KEY: the environment variable is not set here" in err
    assert "error: hmac_key: secret env:BEAM_PIPELINES_HMAC_KEY" in call("run", orders, code=2).err
    monkeypatch.setenv("BEAM_PIPELINES_HMAC_KEY", "k")
    assert "error: dead_letters.raw_key: secret env:RAW_KEY" in call("run", orders, code=2).err
    monkeypatch.setenv("RAW_KEY", "short")
    assert "a key of 32 bytes is needed" in call("run", orders, code=2).err
    assert not (orders.parent / "lake").exists()
    monkeypatch.setenv("RAW_KEY", "00" * 32)
    assert "not set here" not in call("validate", orders).err


def test_an_unknown_verb_names_the_nearest(call: Call) -> None:
    assert "unknown verb 'runn'; did you mean 'run'?" in call("runn", code=2).err


def test_help_lists_the_verbs_in_the_order_a_user_meets_them(call: Call) -> None:
    out = call("--help").out
    verbs = [
        "init",
        "validate",
        "preview",
        "test",
        "doctor",
        "run",
        "upgrade",
        "status",
        "backfill",
        "replay",
        "query",
        "runs",
        "dlq",
        "serve",
        "verify",
        "report",
        "compact",
        "cluster",
        "template",
        "plan",
        "schema",
    ]
    assert [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()] == verbs
    assert "..." not in out.partition("Commands:")[2]
    for verb in verbs:
        assert call(verb, "--help").out.startswith("Usage: beam-pipelines")


def test_the_version_is_one_line(call: Call) -> None:
    assert call("--version").out.startswith("beam-pipelines ")


def test_the_schema_is_json(call: Call) -> None:
    assert "properties" in json.loads(call("schema").out)


def test_what_nobody_expected_is_one_sentence_and_its_trace_on_request(
    call: Call, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("run", orders)
    (record,) = (orders.parent / ".beam_pipelines" / "orders" / "runs").iterdir()
    record.write_text("{")  # no sane program writes this
    done = call("runs", orders, code=1)
    assert done.err.splitlines()[1:] == ["This is unexpected; --log-level debug shows where it happened."]
    from beam_pipelines.cli.main import command, run_command

    run_command(command, ["runs", str(orders), "--log-level", "debug"])
    assert "Traceback" in capsys.readouterr().err
