"""Files in Cloud Storage, gs://BUCKET/NAME, through google-cloud-storage: every call is safe to repeat, and repeated where an answer fails to come.

    create_new      upload with ifGenerationMatch=0: one of all who try succeeds
    swap            upload, or deletion, with ifGenerationMatch: only of what was read
    move            server-side copy, then deletion
    open_read       ranges of the generation that was there first: never parts of two
    list_*          one folder by a delimiter, 1,000 names a request

An object appears whole, under its name, or not at all. Errors are OSErrors: FileNotFoundError, or `RefusedError` with what to do.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO, NamedTuple, TypeVar

from beam_pipelines.places.gcs_streams import Reader, Writer
from beam_pipelines.places.held import Held
from beam_pipelines.places.refusing import RefusedError

T = TypeVar("T")

SCHEME = "gs://"
EMULATOR = "STORAGE_EMULATOR_HOST"
LOG_IN = "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
PATIENCE_S = 300.0
"""How long a call is tried again while the service cannot be reached, or says 408, 429 or 5xx."""
_WHOLE = "items(name,size,generation,updated),nextPageToken"
_WILD = re.compile(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]")
_MEANS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_STAMPS_S = 5.0
_stamps: dict[str, tuple[float, dict[str, int]]] = {}
_stamping = threading.Lock()
_TOKEN = "beam-pipelines-token"  # noqa: S105  (no secret: who made an object)
_AT_ONCE = 16  # calls of `each` under way
_PASSING = {408, 429, 500, 502, 503, 504}


class Listed(NamedTuple):
    """What the service says of an object. `generation` changes whenever its content does; `updated` is in seconds since 1970."""

    path: str
    size: int
    generation: int
    updated: float = 0.0


def open_new(path: str) -> BinaryIO:
    """A new object, there once the stream is closed; left by an exception, the stream makes none. Memory: 4 MB."""
    return Writer(_blob(path), RETRY(), lambda: saying(path))  # type: ignore[return-value]  # an io class, as open() gives


def open_read(path: str, *, size: int | None = None, generation: int | None = None) -> BinaryIO:
    """An object for reading, with seek; one request for a small one. Raises FileNotFoundError."""
    reader = Reader(_blob(path, generation), RETRY(), lambda: saying(path), size=size)
    reader.begin()
    return reader  # type: ignore[return-value]


def read_bytes(path: str) -> bytes | None:
    """The content of `path`, or None if there is no such object."""
    try:
        with saying(path):
            return bytes(_blob(path).download_as_bytes(raw_download=True, retry=RETRY()))
    except FileNotFoundError:
        return None


def write_bytes(path: str, content: bytes) -> None:
    """Writes or replaces `path` at once."""
    with saying(path, written=True):
        _upload(_blob(path), content)


def create_new(path: str, content: bytes) -> bool:
    """Writes `path` if nobody has; True for exactly one of all who try at once.

    Where an answer is lost, the library tries again, and the second try finds the object of the first: a mark in its metadata tells whose it is.
    """
    from google.api_core.exceptions import PreconditionFailed

    blob, mine = _blob(path), uuid.uuid4().hex
    blob.metadata = {_TOKEN: mine}
    with saying(path, written=True):
        try:
            _upload(blob, content, if_generation_match=0)
            return True
        except PreconditionFailed:
            there = blob.bucket.get_blob(blob.name, retry=RETRY())
            return there is not None and (there.metadata or {}).get(_TOKEN) == mine


def read_held(path: str) -> Held | None:
    """The object as it is, or None if there is none."""
    try:
        with open_read(path) as reader:
            content = reader.read()
            return Held(content, reader.generation)  # type: ignore[attr-defined]  # an io class, as open() gives
    except FileNotFoundError:
        return None


def swap(path: str, held: Held, content: bytes | None) -> bool:
    """Replaces, or deletes, the object if its generation is the one that was read; after a lost answer, the second try finds what the first wrote."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    assert held.generation is not None  # without one, whatever is there would go
    with saying(path, written=True):
        try:
            if content is None:
                _blob(path).delete(if_generation_match=held.generation, retry=RETRY())
            else:
                _upload(_blob(path), content, if_generation_match=held.generation)
            return True
        except (NotFound, PreconditionFailed):
            return content is not None and read_bytes(path) == content


def exists(path: str) -> bool:
    """Whether the object is there."""
    with saying(path):
        return bool(_blob(path).exists(retry=RETRY()))


def size(path: str) -> int:
    """Bytes of the object. Raises FileNotFoundError."""
    return described(path).size


def described(path: str) -> Listed:
    """What the service says of the object now. Raises FileNotFoundError."""
    blob = _blob(path)
    with saying(path):
        blob.reload(retry=RETRY())
    return Listed(path, int(blob.size), int(blob.generation), blob.updated.timestamp())


def move(source: str, target: str) -> None:
    """Copies on the server, replacing `target`, then deletes `source`. Raises FileNotFoundError where neither is there."""
    made, token = _blob(target), None
    try:
        with saying(source):
            while True:
                token, _, _ = made.rewrite(_blob(source), token=token, retry=RETRY())
                if token is None:
                    break
    except FileNotFoundError:
        if not exists(target):
            raise
        return
    delete(source)


def delete(path: str) -> None:
    """Deletes an object if it is there."""
    with suppress(FileNotFoundError), saying(path):
        _blob(path).delete(retry=RETRY())


def delete_tree(folder: str) -> None:
    """Deletes all objects below a folder, several at a time."""
    for _ in each(delete, [(path,) for path in paths_below(folder)]):
        pass


def each(do: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """What `do` gives for each of the arguments, as it comes; sixteen at a time. What one raises ends it: those under way are waited for, others not begun."""
    if len(calls) < 2:
        yield from (do(*call) for call in calls)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(calls)), thread_name_prefix="gcs") as pool:
        try:
            for done in as_completed([pool.submit(do, *call) for call in calls]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def list_files(folder: str) -> list[str]:
    """Names of the objects in `folder`, sorted."""
    start = _prefix(folder)
    names = (blob.name.removeprefix(start) for page in _pages(folder, "items(name)") for blob in page)
    return sorted(name for name in names if name)  # consoles make empty objects called like the folder


def list_folders(folder: str) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    start = _prefix(folder)
    return sorted({prefix.removeprefix(start).rstrip("/") for page in _pages(folder, "prefixes") for prefix in page.prefixes} - {""})


def holds(folder: str, ending: str) -> bool:
    """Whether there is an object with this ending below `folder`; one request mostly."""
    bucket, _ = split(folder)
    with saying(folder, listed=True):
        found = client().list_blobs(bucket, prefix=_prefix(folder), fields="items(name),nextPageToken", retry=RETRY())
        return any(blob.name.endswith(ending) for blob in found)


def stamp(folder: str) -> int | None:
    """When the newest object of `folder` came. One listing serves all folders of partitions that lie side by side, for some seconds."""
    place = folder.rstrip("/")
    above, _, name = place.rpartition("/")
    top = above if "=" in name else place
    with _stamping:
        at, stamps = _stamps.get(top, (0.0, {}))
        if time.monotonic() - at > _STAMPS_S:
            stamps = {}
            for listed in list_below(top):
                under = listed.path.rpartition("/")[0]
                stamps[under] = max(stamps.get(under, 0), int(listed.updated * 1e6))
            _stamps.clear()  # a pass asks for one after the other
            _stamps[top] = (time.monotonic(), stamps)
    return stamps.get(place)


def list_below(folder: str) -> list[Listed]:
    """All objects below `folder`, in folders or not, in order of their names."""
    bucket, _ = split(folder)
    with saying(folder, listed=True):
        found = client().list_blobs(bucket, prefix=_prefix(folder), fields=_WHOLE, retry=RETRY())
        return [Listed(f"{SCHEME}{bucket}/{blob.name}", int(blob.size), int(blob.generation), blob.updated.timestamp()) for blob in found]


def paths_below(folder: str) -> list[str]:
    """The paths of all objects below `folder`."""
    return [listed.path for listed in list_below(folder)]


def matching(pattern: str) -> list[Listed]:
    """The objects that a pattern matches, in order of their names: `*` and `?` stay inside a folder, `**` does not; one listing from the first of these."""
    wild = _WILD.search(pattern)
    if wild is None:
        with suppress(FileNotFoundError):
            return [described(pattern)]
        return []
    wanted = _expression(pattern)
    below = list_below(pattern[: wild.start()].rpartition("/")[0])
    return [listed for listed in below if listed.path == pattern or wanted.fullmatch(listed.path)]


def is_pattern(path: str) -> bool:
    """Whether the path has a wildcard."""
    return _WILD.search(path) is not None


def _expression(pattern: str) -> re.Pattern[str]:
    parts, at = [], 0
    for wild in _WILD.finditer(pattern):
        parts += [re.escape(pattern[at : wild.start()]), _MEANS.get(wild[0]) or wild[0].replace("[!", "[^")]
        at = wild.end()
    return re.compile("".join([*parts, re.escape(pattern[at:])]))


def _pages(folder: str, wanted: str) -> Iterator[Any]:
    bucket, _ = split(folder)
    with saying(folder, listed=True):
        found = client().list_blobs(
            bucket, prefix=_prefix(folder), delimiter="/", fields=f"{wanted},nextPageToken", retry=RETRY()
        )  # fmt: skip
        yield from found.pages


def _prefix(folder: str) -> str:
    name = split(folder)[1].strip("/")
    return f"{name}/" if name else ""


def split(path: str) -> tuple[str, str]:
    """Bucket and name.

    >>> split('gs://lake/flights/day=1')
    ('lake', 'flights/day=1')
    """
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    return bucket, name


def _blob(path: str, generation: int | None = None) -> Any:
    bucket, name = split(path)
    try:
        return client().bucket(bucket).blob(name, generation=generation)
    except ValueError as error:
        raise RefusedError(f"'{bucket}' is no name of a bucket: {str(error).rstrip('.')}", "Give gs://BUCKET/PATH") from error


def _upload(blob: Any, content: bytes, **conditions: int | None) -> None:
    blob.upload_from_string(content, content_type="application/octet-stream", retry=RETRY(), **conditions)


_clients: dict[tuple[int, str | None], Any] = {}


def client() -> Any:
    """This process's client: a forked child makes its own, for connections must not be shared. Raises RefusedError without credentials."""
    key = (os.getpid(), os.environ.get(EMULATOR))
    return _clients.get(key) or _clients.setdefault(key, _connect(key[1]))


def _connect(emulator: str | None) -> Any:
    try:
        from google.auth import default
        from google.cloud.storage import Client
    except ImportError as error:
        raise RefusedError(f"Cloud Storage needs google-cloud-storage: {error}", "Run: pip install 'beam-pipelines[gcp]'") from None
    with saying(SCHEME):
        found = (_anonymous(), None) if emulator else default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
        made = Client(project=found[1] or "none", credentials=found[0])  # objects belong to buckets; the project is not asked for
    made._bucket_metadata_cache = None  # a thread and a request for tracing, after every 404
    _widen(made)
    return made


def _anonymous() -> Any:
    from google.auth import credentials

    return credentials.AnonymousCredentials()  # type: ignore[no-untyped-call]


def _widen(made: Any) -> None:
    """As many connections as calls at once and readers: by default ten are kept, and others thrown away after one use."""
    from requests.adapters import HTTPAdapter

    for scheme in ("https://", "http://"):
        made._http.mount(scheme, HTTPAdapter(pool_maxsize=2 * _AT_ONCE))


@cache
def RETRY() -> Any:  # noqa: N802  (a constant that must not load the library)
    """How calls are repeated: at once, then ever more slowly."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_delay(initial=0.2, maximum=10.0, multiplier=2.0).with_timeout(PATIENCE_S)


@contextmanager
def saying(path: str, *, written: bool = False, listed: bool = False) -> Iterator[None]:
    """Turns the library's errors into OSErrors. A 404 of what is `written` or `listed` is about the bucket."""
    try:
        yield
    except Exception as error:
        of_library = type(error).__module__.partition(".")[0] in ("google", "requests", "urllib3")
        if not of_library and not isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise _explained(path, error, bucket=written or listed) from error


def _explained(path: str, error: Exception, *, bucket: bool) -> OSError:
    name, code, said = split(path)[0], _code(error), _words(error)
    kind = type(error).__name__
    if code == 404 and not bucket and "bucket does not exist" not in said:
        return FileNotFoundError(2, "no such object in Cloud Storage", path)
    if code == 404:
        return RefusedError(f"there is no bucket '{name}'", f"Make it (gcloud storage buckets create gs://{name}), or choose another path")
    if code == 403:
        return RefusedError(
            f"permission denied (403): {said}", f"Grant the account that runs this `roles/storage.objectUser` on gs://{name}"
        )
    if code == 401 or kind in ("DefaultCredentialsError", "RefreshError"):
        return RefusedError(f"no credentials for Cloud Storage: {said}", f"{LOG_IN}; for a local server set {EMULATOR}")
    if code in _PASSING or code is None:
        return RefusedError(f"Cloud Storage cannot be reached, for {PATIENCE_S:.0f} seconds: {said}", "Wait until it can", passing=True)
    return RefusedError(f"Cloud Storage refuses ({code}): {said}", "Check the path and the bucket's settings")


def _code(error: Exception) -> int | None:
    """The HTTP status; None where there was no answer."""
    cause = getattr(error, "cause", None) or error
    response = getattr(cause, "response", None)
    found = getattr(response, "status_code", None) or getattr(cause, "code", None)
    return int(found) if isinstance(found, int) else None


def _words(error: Exception) -> str:
    """One line, without the address that was called."""
    text = str(getattr(error, "message", "") or error).strip().splitlines() or [type(error).__name__]
    return text[0].rpartition("prettyPrint=false: ")[2][:300].rstrip(". ")
