"""The BigQuery service, for whoever calls it: where it is, the connections, which errors pass. Loads no Beam.

REST   tables, load jobs, queries                 google-cloud-bigquery's client
gRPC   Storage Read and Storage Write             a channel, for the bare stubs of google-cloud-bigquery-storage
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from beam_pipelines.errors import RunError, SpecError, TransientError
from beam_pipelines.pubsub_service import CHANNEL_OPTIONS, LOG_IN, back_off_s

T = TypeVar("T")

REST_EMULATOR, GRPC_EMULATOR = "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"
GRPC_SERVICE = "bigquerystorage.googleapis.com:443"
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_REASONS = frozenset(
    {"backendError", "rateLimitExceeded", "internalError", "jobBackendError", "jobInternalError", "jobRateLimitExceeded", "stopped"}
)


def where(endpoint: str | None = None) -> str | None:
    """Where the REST service is: BIGQUERY_EMULATOR_HOST if set, as in Google's client, else `endpoint`; None: Google's own."""
    return os.environ.get(REST_EMULATOR) or endpoint


def where_grpc(endpoint: str | None = None) -> str:
    """Where the Storage Read and Write services are: BIGQUERY_STORAGE_EMULATOR_HOST if set, else `endpoint`, else Google's; `http://host:port` is not encrypted."""
    emulator = os.environ.get(GRPC_EMULATOR)
    return f"http://{emulator.removeprefix('http://')}" if emulator else endpoint or GRPC_SERVICE


def client(project: str, endpoint: str | None, *, who: str, error: type[RunError], location: str | None = None) -> Any:
    """A `google.cloud.bigquery.Client`. `endpoint` (from `where`) None is Google's; any other is asked without credentials.

    `who` begins the sentence of the `error` that is raised without credentials. Raises SpecError where google-cloud-bigquery is not installed.
    """
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery
    except ImportError as fault:
        raise SpecError(f"{who}: BigQuery needs google-cloud-bigquery: {fault}.", hint="Run: pip install 'beam-pipelines[gcp]'") from None
    if endpoint is not None:
        options = {"api_endpoint": endpoint if "://" in endpoint else f"http://{endpoint}"}
        nobody = AnonymousCredentials()  # type: ignore[no-untyped-call]
        return bigquery.Client(project=project, credentials=nobody, client_options=options, location=location)
    try:
        return bigquery.Client(project=project, location=location)
    except Exception as fault:  # Google's libraries have many classes for "no credentials", "broken file", "expired"
        raise _no_credentials(who, error, fault) from fault


def storage_types(who: str) -> Any:
    """The messages of google.cloud.bigquery_storage_v1. Raises SpecError where they are not installed."""
    try:
        from google.cloud.bigquery_storage_v1 import types
    except ImportError as fault:
        raise SpecError(
            f"{who}: BigQuery needs google-cloud-bigquery-storage: {fault}.", hint="Run: pip install 'beam-pipelines[gcp]'"
        ) from None
    return types


def channel(endpoint: str, *, who: str, error: type[RunError]) -> Any:
    """A gRPC channel to `endpoint` (from `where_grpc`), made by the first call. Raises `error` without credentials, SpecError where the client is not installed."""
    import grpc

    if endpoint.startswith("http://"):
        return grpc.insecure_channel(endpoint.removeprefix("http://").rstrip("/"), options=CHANNEL_OPTIONS)
    storage_types(who)
    from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

    create: Callable[..., Any] = BigQueryWriteGrpcTransport.create_channel
    target = endpoint.removeprefix("https://").rstrip("/")
    try:
        return create(target if ":" in target else f"{target}:443", options=CHANNEL_OPTIONS)
    except Exception as fault:
        raise _no_credentials(who, error, fault) from fault


def passes(error: Exception) -> bool:
    """Whether the same REST call may succeed later without anybody changing anything: by its status, and for jobs by BigQuery's reason."""
    import requests
    from google.auth.exceptions import TransportError

    broken = requests.exceptions.ConnectionError | requests.exceptions.Timeout | requests.exceptions.ChunkedEncodingError | TransportError
    if isinstance(error, broken | ConnectionError | TimeoutError):
        return True
    found = [e for e in getattr(error, "errors", None) or () if isinstance(e, dict)]
    return getattr(error, "code", None) in _TRANSIENT or any(map(broken_off, found))


def broken_off(error: Mapping[str, Any]) -> bool:
    """Whether BigQuery itself ended the job that has this error: another one of the same kind may succeed."""
    return str(error.get("reason", "")) in _REASONS


def said(error: Exception) -> str:
    """The service's own words in one line, without the request's address before them."""
    found = [str(one["message"]) for one in getattr(error, "errors", None) or () if isinstance(one, dict) and one.get("message")]
    words = found[0] if found else str(getattr(error, "message", "") or error) or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def patiently(
    do: Callable[[], T], at: str, refused: Callable[[Exception], Exception], *, patience_s: float, wait: Callable[[float], Any] | None = None,
    hint: str = "Check the network, the endpoint and BIGQUERY_EMULATOR_HOST.",
) -> T:  # fmt: skip
    """What a REST call gives, again with back-off while its errors pass and for `patience_s` at most.

    Raises TransientError then; what `refused` makes of any other error; a RunError of `do` as it is.
    """
    wait = wait or threading.Event().wait
    waited, failures = 0.0, 0
    while True:
        try:
            return do()
        except (RunError, SpecError):
            raise
        except Exception as error:  # google-cloud-bigquery lets errors of four libraries through
            if not passes(error):
                raise refused(error) from error
            failures += 1
            pause = back_off_s(failures)
            if waited + pause > patience_s:
                raise TransientError(f"{at}: BigQuery does not answer: {said(error)}.", hint=hint) from error
        wait(pause)
        waited += pause


def _no_credentials(who: str, error: type[RunError], fault: Exception) -> RunError:
    return error(
        f"{who}: no credentials for BigQuery: {str(fault).splitlines()[0].rstrip('.')}.",
        hint=f"{LOG_IN} For a local server set {REST_EMULATOR} and {GRPC_EMULATOR}.",
    )
