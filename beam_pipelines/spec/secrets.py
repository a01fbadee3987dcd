"""Secrets by reference: the spec and the job graph hold `env:NAME`, `file:/path` or `gcp:projects/…`; workers hold the bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from beam_pipelines.errors import RunError, SpecError, TransientError

if TYPE_CHECKING:
    from beam_pipelines.spec.models import PipelineSpec

_SHAPES = {
    "env": re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*"),
    "file": re.compile(r"file:.+"),
    "gcp": re.compile(r"gcp:projects/[^/]+/secrets/[^/]+(/versions/[^/]+)?"),
}
EXPECTED = "env:NAME, file:/path or gcp:projects/P/secrets/S[/versions/V]"


def check_reference(ref: str) -> str | None:
    """Why `ref` is no secret reference; None where it is one. The text itself is never repeated: it may be the secret."""
    scheme = ref.split(":", 1)[0]
    shape = _SHAPES.get(scheme)
    if shape is not None and shape.fullmatch(ref):
        return None
    got = f"a malformed '{scheme}:' reference" if shape is not None else "something else (a secret itself must not stand in a spec)"
    return f"expected a secret reference, {EXPECTED}; got {got}"


def resolve_secret(ref: str) -> bytes:
    """The bytes that `ref` names. Called where they are needed; nothing is kept.

    `env:` gives the variable's text in UTF-8, `file:` the file's bytes (a text without the line break at its end), `gcp:` the payload of the
    secret's version (the latest one by default). Raises SpecError for a malformed reference, RunError where the secret is not there.
    """
    problem = check_reference(ref)
    if problem is not None:
        raise SpecError(f"secret: {problem}.")
    scheme, _, rest = ref.partition(":")
    return {"env": _from_env, "file": _from_file, "gcp": _from_gcp}[scheme](rest)


def absent_here(ref: str) -> str | None:
    """Why this process cannot see the secret: a variable that is not set, a file that is not there. None where it can, or where only a
    call to a service would tell."""
    scheme, _, rest = ref.partition(":")
    if scheme == "env" and not os.environ.get(rest):
        return "the environment variable is not set here"
    if scheme == "file" and not os.path.isfile(rest):
        return "there is no such file here"
    return None


def expect_secrets(references: Mapping[str, str | None]) -> dict[str, bytes]:
    """The secrets by the place in the spec that names each, for a run whose workers are on this machine: better now than after a while.

    Raises SpecError, with the place and the reference, where one is not there; TransientError where a service did not answer.
    """
    found: dict[str, bytes] = {}
    for place, ref in references.items():
        try:
            found |= {place: resolve_secret(ref)} if ref is not None else {}
        except TransientError:
            raise
        except RunError as error:
            raise SpecError(f"{place}: {error.message}", hint=error.hint or "Nothing was run.") from None
    return found


def secrets_of(spec: PipelineSpec) -> dict[str, str]:
    """The references of the secrets that workers need, by the place in the spec that names each."""
    raw_key = spec.dead_letters.raw_key if spec.sensitive else None
    named = {"hmac_key": spec.hmac_reference, "dead_letters.raw_key": raw_key}
    return {place: ref for place, ref in named.items() if ref is not None}


def passwords_of(spec: PipelineSpec) -> dict[str, str]:
    """The references of the passwords with which databases are read, by the place in the spec that names each."""
    named: dict[str, object] = {f"sources.batch[{n}]": source for n, source in enumerate(spec.sources.batch)}
    named |= {f"lookups.{name}": lookup for name, lookup in spec.lookups.items()}
    found = {f"{at}.password": getattr(table, "password", None) for at, table in named.items()}
    return {place: ref for place, ref in found.items() if ref is not None}


def expect_keys(spec: PipelineSpec) -> None:
    """Raises SpecError where a key is missing, or is none, that the archive, dead letters or masked columns need; TransientError where a service did not answer."""
    raw_key = expect_secrets(secrets_of(spec)).get("dead_letters.raw_key")
    if raw_key is not None:
        from beam_pipelines.arrow.masking import parse_key  # `validate` does without Arrow

        parse_key(raw_key)


def _from_env(name: str) -> bytes:
    value = os.environ.get(name)
    if not value:
        raise RunError(f"secret env:{name}: the environment variable is not set on this worker.", hint="Set it where the workers run.")
    return value.encode()


def _from_file(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"secret file:{path}: {error.strerror or error}.", hint="The file must be readable on every worker.") from None
    content = _without_line_break(content)
    if not content:
        raise RunError(f"secret file:{path}: the file is empty.")
    return content


def _without_line_break(content: bytes) -> bytes:
    """An editor ends a text with a line break; in a binary key the same byte is a part of it."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return text.rstrip("\r\n").encode() if text.rstrip("\r\n").isprintable() else content


def _from_gcp(name: str) -> bytes:
    try:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.cloud import secretmanager
    except ImportError:
        raise RunError(
            f"secret gcp:{name}: the package google-cloud-secret-manager is not installed on this worker.",
            hint="Install beam-pipelines[gcp].",
        ) from None
    version = name if "/versions/" in name else f"{name}/versions/latest"
    try:
        response = secretmanager.SecretManagerServiceClient().access_secret_version(name=version)
    except (GoogleAPICallError, RetryError) as error:
        code = getattr(error, "code", None)
        kind = TransientError if code is None or int(code) >= 500 or int(code) == 429 else RunError
        raise kind(f"secret gcp:{version}: {error}.", hint="The worker's service account needs secretmanager.versions.access.") from None
    return bytes(response.payload.data)
