"""Secrets: references in the spec, bytes on the worker, and never the secret itself in a message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.spec.secrets import absent_here, check_reference, expect_secrets, resolve_secret


def test_a_reference_is_resolved_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "käse")
    assert resolve_secret("env:THE_KEY") == "käse".encode()
    (tmp_path / "text").write_bytes(b"hunter2\r\n")
    assert resolve_secret(f"file:{tmp_path}/text") == b"hunter2"


def test_a_binary_key_keeps_a_last_byte_that_looks_like_a_line_break(tmp_path: Path) -> None:
    key = bytes(range(200, 231)) + b"\n"
    (tmp_path / "key").write_bytes(key)
    assert resolve_secret(f"file:{tmp_path}/key") == key


@pytest.mark.parametrize("ref", ["env:BEAM_PIPELINES_NOT_SET", "file:/no/such/file"])
def test_a_secret_that_is_not_there_fails_the_run_and_says_which(ref: str) -> None:
    with pytest.raises(RunError, match=ref):
        resolve_secret(ref)


def test_an_empty_secret_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    with pytest.raises(RunError, match="the file is empty"):
        resolve_secret(f"file:{tmp_path}/empty")


@pytest.mark.parametrize("ref", ["s3cr3t", "s3cr3t:x", "env:", "env:1A", "env:A-B", "file:", "gcp:s3cr3t", "gcp:projects/p", ""])
def test_what_is_no_reference_is_refused_without_repeating_it(ref: str) -> None:
    assert "s3cr3t" not in (check_reference(ref) or "s3cr3t")
    with pytest.raises(SpecError):
        resolve_secret(ref)


@pytest.mark.parametrize("ref", ["env:A_1", "file:/k", "gcp:projects/p/secrets/s", "gcp:projects/p/secrets/s/versions/3"])
def test_references(ref: str) -> None:
    assert check_reference(ref) is None


def test_a_missing_client_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(RunError, match=r"google-cloud-secret-manager is not installed on this worker\. Install beam-pipelines\[gcp\]"):
        resolve_secret("gcp:projects/p/secrets/s")


def test_a_run_on_this_machine_expects_its_secrets_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "k")
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert expect_secrets({"hmac_key": "env:THE_KEY", "dead_letters.raw_key": None}) == {"hmac_key": b"k"}
    for ref in ("env:NOT_THERE", f"file:{tmp_path}/none"):
        with pytest.raises(SpecError, match=f"hmac_key: secret {ref}"):
            expect_secrets({"hmac_key": ref})
        assert absent_here(ref) is not None
    assert [absent_here(ref) for ref in ("env:THE_KEY", f"file:{__file__}", "gcp:projects/p/secrets/s")] == [None, None, None]
