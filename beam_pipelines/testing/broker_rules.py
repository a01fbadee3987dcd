"""What Pub/Sub refuses, and with which code: names, limits of messages, settings out of bounds.

Texts and codes are those of the official emulator where it refuses the same thing (docs/pubsub-testing.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import grpc

from beam_pipelines.errors import nearest

MAX_MESSAGES = 1_000  # of one publish request
MAX_BYTES = 10_000_000  # of one publish request, and of one response with messages
DAY_S = 86_400
DEFAULT_RETENTION_S = 7 * DAY_S

_PROJECT = re.compile(r"projects/[A-Za-z0-9][A-Za-z0-9.:_-]*")
_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9_.~+%-]{2,254}")


class Refused(Exception):
    """A call that the service answers with a gRPC status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refused:
    return Refused(grpc.StatusCode.NOT_FOUND, message)


def already_exists(message: str) -> Refused:
    return Refused(grpc.StatusCode.ALREADY_EXISTS, message)


def not_done(what: str) -> Refused:
    return Refused(grpc.StatusCode.UNIMPLEMENTED, f"The embedded broker does not do {what}. Use the official emulator or the real service.")


def status_code(code: grpc.StatusCode | str) -> grpc.StatusCode:
    """The gRPC status of a name, `UNAVAILABLE`. Raises ValueError for a name that is none."""
    if isinstance(code, grpc.StatusCode):
        return code
    known = grpc.StatusCode.__members__
    if code not in known:
        raise ValueError(f"code: unknown gRPC status {code!r}; {nearest(code, known)}")
    return known[code]


def check_name(name: str, kind: str) -> str:
    """`name` if it has the shape `projects/PROJECT/KIND/ID` of Pub/Sub; else INVALID_ARGUMENT."""
    project, _, rest = name.partition(f"/{kind}/")
    if not (_PROJECT.fullmatch(project) and _ID.fullmatch(rest)):
        raise invalid(f"Invalid [{kind}] name: (name={name})")
    return name


def check_project(name: str) -> str:
    if not _PROJECT.fullmatch(name):
        raise invalid(f"Invalid [projects] name: (name={name})")
    return name


def check_messages(messages: Sequence[Any]) -> None:
    """Refuses what cannot be published: none, too many, too large, or a message with neither data nor attributes."""
    if not messages:
        raise invalid("No messages to publish")
    if len(messages) > MAX_MESSAGES:
        raise invalid("Too many messages to publish")
    for message in messages:
        if message.attributes:
            _check_attributes(message.attributes)
        elif not message.data:
            raise invalid("Some messages are empty")
        if message.ordering_key and len(message.ordering_key.encode()) > 1_024:
            raise invalid("An ordering key is longer than 1024 bytes")


def check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise invalid(f"The value for request_size is too large. You passed {size} in the request, but the maximum value is {MAX_BYTES}.")


def _check_attributes(attributes: Any) -> None:
    if len(attributes) > 100:
        raise invalid("A message has more than 100 attributes")
    for key, value in attributes.items():
        if not 1 <= len(key.encode()) <= 256 or len(value.encode()) > 1_024:
            raise invalid(f"Attribute {key[:40]!r}: a key has 1 to 256 bytes, a value at most 1024")
        if key.startswith("goog") and not key.startswith("googclient_"):
            raise invalid(f"Attribute {key[:40]!r}: keys that begin with 'goog' are reserved")


def check_subscription(settings: Any) -> None:
    """Refuses settings out of bounds, and settings that change what is delivered and that this broker does not follow."""
    if not 0 <= settings.ack_deadline_seconds <= 600:
        raise invalid("ack_deadline_secs out of bounds")
    if settings.HasField("message_retention_duration"):
        check_retention(settings)
    if settings.HasField("dead_letter_policy"):
        _check_attempts(settings.dead_letter_policy.max_delivery_attempts)
    for what, used in (
        ("filters", settings.filter),
        ("push delivery", settings.push_config.push_endpoint),
        ("exactly-once delivery", settings.enable_exactly_once_delivery),
        ("message transforms", settings.message_transforms),
        ("BigQuery subscriptions", settings.HasField("bigquery_config")),
        ("Cloud Storage subscriptions", settings.HasField("cloud_storage_config")),
    ):
        if used:
            raise not_done(what)


def check_retention(settings: Any) -> None:
    if not 600 <= settings.message_retention_duration.seconds <= 31 * DAY_S:
        raise invalid("message_retention_duration out of bounds")


def _check_attempts(attempts: int) -> None:
    if attempts and not 5 <= attempts <= 100:
        size, bound = ("small", "minimum value is 5") if attempts < 5 else ("large", "maximum value is 100")
        text = f"The value for max_delivery_attempts is too {size}. You passed {attempts} in the request, but the {bound}."
        raise Refused(grpc.StatusCode.OUT_OF_RANGE, text)


def check_lease(seconds: int) -> None:
    if not 0 <= seconds <= 600:
        raise invalid("Ack deadline must be between 0 and 600 seconds")


def check_stream_deadline(seconds: int) -> None:
    if not 10 <= seconds <= 600:
        raise invalid("stream_ack_deadline_seconds must be between 10 and 600 seconds")
