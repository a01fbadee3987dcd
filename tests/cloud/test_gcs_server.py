"""The local Cloud Storage server: which stale preconditions it refuses, and which it ignores though the real service refuses them.

Our guarantees may rest only on what is refused here (then it is tested), or on what the real service documents (docs/cloud-storage.md).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.cloud.storage.exceptions import InvalidResponse

from tests.cloud.gcs_server import GcsServer, installed
from tests.cloud.installer import HERE, installed_again

pytestmark = pytest.mark.cloud
STALE = 5  # a generation that no object has


@pytest.fixture
def bucket(gcs: GcsServer) -> Any:
    """A bucket with an object `old` of content `1`."""
    made = gcs.client().bucket(gcs.bucket())
    made.blob("old").upload_from_string(b"1")
    return made


def upload(bucket: Any) -> None:
    bucket.blob("old").upload_from_string(b"2", if_generation_match=0, retry=None)


def upload_over_stale(bucket: Any) -> None:
    bucket.blob("old").upload_from_string(b"2", if_generation_match=STALE, retry=None)


def resumable_upload(bucket: Any) -> None:
    with bucket.blob("old").open("wb", chunk_size=256 << 10, if_generation_match=0) as file:
        file.write(b"2" * (300 << 10))


def read_generation(bucket: Any) -> None:
    bucket.blob("old", generation=STALE).download_as_bytes(retry=None)


@pytest.mark.parametrize("attempt", [upload, upload_over_stale, resumable_upload, read_generation])
def test_it_refuses_a_stale_precondition_of(bucket: Any, attempt: Callable[[Any], None]) -> None:
    with pytest.raises((PreconditionFailed, InvalidResponse, NotFound)) as refused:
        attempt(bucket)
    assert getattr(refused.value, "code", None) in (412, 404) or refused.value.response.status_code == 412  # type: ignore[union-attr]
    assert bucket.blob("old").download_as_bytes() == b"1"


def delete(bucket: Any) -> None:
    bucket.blob("old").delete(if_generation_match=STALE, retry=None)


def copy(bucket: Any) -> None:
    bucket.copy_blob(bucket.blob("old"), bucket, "other", if_generation_match=STALE, retry=None)


def rewrite(bucket: Any) -> None:
    bucket.blob("other").rewrite(bucket.blob("old"), if_generation_match=STALE, retry=None)


def rewrite_of_stale_source(bucket: Any) -> None:
    bucket.blob("other").rewrite(bucket.blob("old"), if_source_generation_match=STALE, retry=None)


def compose(bucket: Any) -> None:
    bucket.blob("other").compose([bucket.blob("old")], if_generation_match=STALE, retry=None)


def read_if(bucket: Any) -> None:
    bucket.blob("old").download_as_bytes(if_generation_match=STALE, retry=None)


@pytest.mark.parametrize("attempt", [delete, copy, rewrite, rewrite_of_stale_source, compose, read_if])
def test_it_ignores_a_stale_precondition_of(bucket: Any, attempt: Callable[[Any], None]) -> None:
    """The day this fails, the server has learnt it: move the case above."""
    attempt(bucket)


def test_of_many_uploads_at_once_one_is_accepted(bucket: Any) -> None:
    def once(number: int) -> bool:
        try:
            bucket.blob("new").upload_from_string(str(number), if_generation_match=0, retry=None)
            return True
        except PreconditionFailed:
            return False

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(once, range(20))) == 1


def test_a_second_installation_changes_nothing_and_asks_nobody() -> None:
    assert installed_again("install_gcs.sh", installed().parent) == installed()


def test_without_go_one_sentence_says_so(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    command, nothing = [bash, str(HERE / "install_gcs.sh")], {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=nothing, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no Go in PATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_requests_are_counted_by_kind(gcs: GcsServer) -> None:
    bucket = gcs.client().bucket(gcs.bucket())
    with gcs.counted() as requests:
        bucket.blob("a").upload_from_string(b"1")
        bucket.blob("a").download_as_bytes()
        bucket.blob("b").rewrite(bucket.blob("a"))
        list(gcs.client().list_blobs(bucket.name))
        bucket.blob("a").delete()
    assert requests == {"UPLOAD": 1, "GET media": 1, "REWRITE": 1, "LIST": 1, "DELETE": 1}
