"""An installer of what the cloud tests need, called again when all of it is there: it says where, changes nothing and asks nobody."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOBODY = "http://127.0.0.1:9"
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOBODY) | {
    "NO_PROXY": "",
    "no_proxy": "",
    "GOPROXY": "off",
}


def installed_again(script: str, folder: Path) -> Path:
    """The path that a second call of `script` prints; no file below `folder` may be another, or later written, than before."""
    before = _files(folder)
    assert before, f"nothing is below {folder}"
    command = ["bash", str(HERE / script)]
    done = subprocess.run(command, env={**os.environ, **OFFLINE}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert _files(folder) == before
    return Path(done.stdout.strip())


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of writing of each; not of bytecode, which a server that runs may add."""
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path in found if (stat := path.lstat())}
