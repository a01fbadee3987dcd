"""Rows laid aside in files while only their keys travel: `{temp_location}/{run_id}/spill/{file}.arrow`.

A file holds one batch, is written once under a name of its attempt, and is never changed. Nobody deletes it while the run may
still retry the bundle that reads it: `cleanup` does, after commit; `sweep` removes what runs that died have left. The files hold
rows as they are, sensitive columns included: `temp_location` deserves the same protection as the input.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipelines.errors import RunError

_LOG = logging.getLogger(__name__)
_FOLDER = "spill"
_SUFFIX = ".arrow"
WEEK_S = 7 * 86_400


@dataclass(frozen=True)
class SpillFolder:
    """Where one run lays rows aside. A value: it travels to the workers."""

    path: str

    @classmethod
    def of(cls, temp_location: str, run_id: str) -> SpillFolder:
        return cls(FileSystems.join(temp_location, run_id, _FOLDER))

    def write(self, batch: pa.RecordBatch) -> str:
        """Lays `batch` aside under a new name, which is returned. Raises RunError where the place refuses."""
        name = uuid.uuid4().hex
        path = self.file(name)
        try:
            with _create(path) as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        except (OSError, BeamIOError) as error:
            raise RunError(f"{path}: cannot lay rows aside: {error}.", hint="Give a temp_location that every worker can write.") from error
        return name

    def read(self, name: str) -> pa.RecordBatch:
        """The batch laid aside as `name`; local files are mapped, not copied. Raises RunError where it is gone or broken."""
        path = self.file(name)
        try:
            return pa.ipc.open_file(_open(path)).get_batch(0)
        except (OSError, BeamIOError, pa.ArrowInvalid) as error:
            hint = "temp_location must be one place that all workers share, and nothing may clean it up while a run is on. Run again."
            raise RunError(f"{path}: rows laid aside by this run cannot be read back: {error}.", hint=hint) from error

    def file(self, name: str) -> str:
        return str(FileSystems.join(self.path, name + _SUFFIX))


def cleanup(temp_location: str, run_id: str) -> int:
    """Deletes what run `run_id` laid aside and returns how many files that were: call it when the run is committed, or given up."""
    folder = SpillFolder.of(temp_location, run_id)
    return _delete([path for path, _ in _files(folder.file("*"))])


def sweep(temp_location: str, *, older_than_s: float = WEEK_S, now_s: float | None = None) -> int:
    """Deletes spill files older than `older_than_s` seconds, of any run: what runs that died have left. Returns how many."""
    limit = (time.time() if now_s is None else now_s) - older_than_s
    return _delete([path for path, written in _files(SpillFolder.of(temp_location, "*").file("*")) if written < limit])


def temp_location_of(options: PipelineOptions) -> str:
    """The pipeline's `--temp_location`; without one, a folder of this machine that disappears with the launching process."""
    known = options.view_as(GoogleCloudOptions).temp_location
    if known:
        return str(known)
    made = tempfile.mkdtemp(prefix="beam_pipelines-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _LOG.info("Rows are laid aside in %s while duplicates are sought; --temp_location chooses another place.", made)
    return made


def _local(path: str) -> bool:
    return FileSystems.get_scheme(path) is None


def _create(path: str) -> pa.NativeFile:
    if not _local(path):
        return pa.PythonFile(FileSystems.create(path, mime_type="application/octet-stream"), mode="w")
    try:
        return pa.OSFile(path, "wb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return pa.OSFile(path, "wb")


def _open(path: str) -> pa.NativeFile | pa.Buffer:
    if _local(path):
        return pa.memory_map(path)
    with FileSystems.open(path, mime_type="application/octet-stream") as stream:
        return pa.py_buffer(stream.read())


def _files(pattern: str) -> Iterable[tuple[str, float]]:
    found = FileSystems.match([pattern])
    return [(m.path, float(m.last_updated_in_seconds or 0)) for result in found for m in result.metadata_list]


def _delete(paths: list[str]) -> int:
    try:
        FileSystems.delete(paths)
    except BeamIOError as error:
        left = [p for p in paths if FileSystems.exists(p)]  # another cleanup may have been quicker
        if left:
            raise RunError(f"{left[0]}: cannot delete {len(left)} spill files: {error}.", hint="Delete them by hand.") from error
    for folder in {os.path.dirname(p) for p in paths if _local(p)}:
        for level in (folder, os.path.dirname(folder)):  # …/run/spill, …/run: only where empty
            try:
                os.rmdir(level)
            except OSError:
                break
    return len(paths)
