"""Where a cluster of this machine keeps checkpoints and savepoints: in its own folder, in another one, or in a bucket of Cloud Storage.

    {place}/checkpoints/{job}/chk-7/_metadata      the newest of a job that runs; gone when it has ended
    {place}/savepoints/savepoint-{job}-{random}/   stay

Flink needs a plugin for gs:// (`gs_plugin`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from beam_pipelines.errors import SpecError
from beam_pipelines.places import is_local, local, refused
from beam_pipelines.places.gcs import EMULATOR, SCHEME
from beam_pipelines.runners.writable import expect_writable

_CHUNK_BYTES = 8 << 20
"""What the plugin holds of each file under way; its own 64 MB would be most of the heap of a small task manager."""
_FOLDERS = ("checkpoints", "savepoints")
_LOGGED_IN = Path(".config", "gcloud", "application_default_credentials.json")
_KEYS = "GOOGLE_APPLICATION_CREDENTIALS"


@dataclass(frozen=True)
class Store:
    """`place` is the URL of a folder, as Flink writes it; `plugins` the folder of plugins that Flink needs for it, if it needs one."""

    place: str
    plugins: str | None = None

    @property
    def in_bucket(self) -> bool:
        """Whether it is Cloud Storage, for which Flink needs a plugin."""
        return self.place.startswith(SCHEME)

    def settings(self, environ: Mapping[str, str]) -> dict[str, object]:
        """Of Flink. As everything here, it speaks to the server that STORAGE_EMULATOR_HOST names, without keys, where it names one.

        Keys: https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/deployment/filesystems/gcs/
        """
        folders: dict[str, object] = {f"state.{name}.dir": f"{self.place}/{name}" for name in _FOLDERS}
        if not self.in_bucket:
            return folders
        emulator = environ.get(EMULATOR)
        keys: dict[str, object] = {"gs.auth.null.enable": "true", "gs.auth.service.account.enable": "false"}
        return {
            **folders,
            "gs.outputstream.upload.chunk.size": _CHUNK_BYTES,
            **({} if not emulator else {"gs.storage.root.url": f"{emulator.rstrip('/')}/", **keys}),
        }

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What job manager and task manager get besides `environ`: the plugin, and the keys of who is logged in, which Flink does not look for."""
        if self.plugins is None:
            return {}
        keys = Path(environ.get("HOME", "/"), _LOGGED_IN)
        logged_in = {_KEYS: str(keys)} if not environ.get(_KEYS) and not environ.get(EMULATOR) and keys.is_file() else {}
        return {"FLINK_PLUGINS_DIR": self.plugins, **logged_in}

    def make(self) -> None:
        """Makes its folders, which a bucket does not need. Raises SinkError where this process cannot write there."""
        if self.in_bucket:
            expect_writable(self.place)
            return
        for name in _FOLDERS:
            folder = Path(unquote(urlsplit(self.place).path), name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise refused(str(folder), error) from error
            expect_writable(str(folder))


def store_at(place: str | None, folder: Path) -> Store:
    """The store that a user names, without plugins: a folder or gs://bucket/folder; where None, the cluster's own `folder`. Raises SpecError for anything else."""
    if place is None:
        return Store(folder.as_uri())
    if is_local(place):
        return Store(Path(local(place)).expanduser().resolve().as_uri())
    if not re.fullmatch(r"gs://[^/?#]+(/[^?#]*)?", place):
        raise SpecError(
            f"--checkpoints {place}: expected a folder, or gs://bucket/folder.",
            hint="A cluster of yours keeps them wherever a plugin of Flink's can write: see docs/flink.md.",
        )
    return Store(place.rstrip("/"))
